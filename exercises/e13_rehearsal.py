"""Exercise 13: rehearsal. While it learns something new, a model is held to what it predicted before.

Goal: write the loss that keeps a model whole, on text that the untouched model wrote itself.

    loss = CE(corpus) + weight * KL(untouched || model)(own text), each a mean over tokens, in nats
    KL(p || q) = sum over the vocabulary of p (log p - log q)
                                    Learning without forgetting, arXiv 1606.09282; self-synthesized rehearsal, 2403.01244

Shapes: logits (batch, time, vocab), of the untouched model and of the one that learns, perhaps bfloat16: compute in
float32. targets (batch, time): where they are IGNORE, nothing is predicted and the token counts in no mean. Logits may
lie far apart, so that a probability is 0 in float32; p log p is 0 there. `with without_adapters(model):` (lora.py) makes
an adapted model the untouched one. The gradient is that of the model that learns: p is given.

Measure before you look on: LoRA learns the shipped corpus with each weight below. How many points of `old/never_asked`
does it keep? (The untouched model has 99.6%, and guessing gives 25%.) And what happens to `new/questions`? Write down the
first, then:  python -m exercises 13 --measure      (5 to 10 minutes of one core)
"""

import torch  # noqa: F401
from torch.nn import functional as F  # noqa: F401

from corpus import IGNORE  # noqa: F401, the mark for "no target here"
from exercises import NotWritten
from exercises.measuring import rehearsals
from lora import without_adapters  # noqa: F401


def kl(untouched, logits, targets):
    """KL(untouched || model) of two logits (batch, time, vocab), the mean over the tokens whose target is not IGNORE."""
    raise NotWritten


def rehearsed(model, x, y, own_x, own_y, weight):
    """The loss of a step: corpus x and targets y, own text own_x and own_y, all (batch, time); model(x) gives logits."""
    raise NotWritten


KEPT = {0.0: ..., 0.1: ..., 1.0: ...}  # by weight: your prediction of old/never_asked afterwards, in whole percent


def measure():
    rehearsals(kl, KEPT)
