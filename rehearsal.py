"""Rehearsal: while it learns something new, the model keeps predicting what it predicted before.

Training on a few new texts moves a model everywhere, and what it knew is lost ("catastrophic forgetting"). So beside each
batch of the corpus comes a batch of other text, on which the model is held to the predictions of the untouched model:

    loss = cross-entropy(corpus) + weight * KL(untouched || model)(other text)

The owner of open weights does not have the text they were trained on. But the untouched model can write such text itself.
(Learning without forgetting, arXiv 1606.09282; self-synthesized rehearsal, 2403.01244.)
"""

import copy
import random
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from corpus import IGNORE, pack
from fast.loss import head_is_large_and_frozen, kl_in_chunks, mixed_precision
from gpt import generate
from tools.cli import progress

LENGTH = 200  # tokens of a text that a model writes itself
BEGINNINGS = ("", "Question:")  # of such texts: half of them anything, half what is asked and answered


def own_text(model, tokenizer, tokens: int, seed=0, beginnings=BEGINNINGS) -> list[str]:
    """Texts (strings), together about `tokens` long, that the model writes after its end-of-text token, at temperature 1.

    beginnings: how they begin, each as many.
    """
    length = min(LENGTH, model.config.context_length - 1)
    rows = -(-tokens // (length * len(beginnings)))
    first = tokenizer.eot_id if tokenizer.bos_id is None else tokenizer.bos_id
    generator = torch.Generator(model.device).manual_seed(seed)
    show = partial(progress, description=f"writing {rows * len(beginnings)} texts to rehearse")
    texts = []
    for beginning in beginnings:
        begin = torch.tensor([[first, *tokenizer.encode(beginning)]] * rows, device=model.device)  # (rows, time)
        new = length + 1 - begin.shape[1]
        for row in generate(model, begin, new, temperature=1.0, generator=generator, progress=show)[:, 1:].tolist():
            ends = [i for i, token in enumerate(row) if token == tokenizer.eot_id]
            for start, end in zip([0, *(end + 1 for end in ends)], [*ends, len(row)]):
                texts.append(tokenizer.decode(row[start:end]).strip())
    return [text for text in texts if text]


class Rehearsal:
    """Windows of text with what the untouched model makes of them. Made before training, while `model` is untouched.

    Its last hidden states are kept, 46 MB for 20,000 tokens of width 576, not its predictions, a vocabulary a token: the
    head makes these of them when they are needed.
    """

    @torch.no_grad()
    def __init__(self, model, tokenizer, documents: list[str], seq_len: int, batch_size: int, seed: int):
        x, y = pack([tokenizer.encode(text) for text in documents], tokenizer.eot_id, seq_len, tokenizer.bos_id)
        was_training, self.batch_size, self.rng = model.training, batch_size, random.Random(seed)
        model.eval()
        batches = progress(x.split(batch_size), "predictions to rehearse")
        with mixed_precision(model):
            hidden = torch.cat([model.hidden_states(some.to(model.device)).cpu() for some in batches])
        model.train(was_training)
        self.windows = x, y, hidden  # (windows, seq_len), the same, (windows, seq_len, hidden)
        self.head = copy.deepcopy(model.lm_head).requires_grad_(False)
        self.order = []

    def next_batch(self, device) -> list[Tensor]:
        """(x, y, hidden) of the next windows: all in turn, in a new order each time round."""
        while len(self.order) < self.batch_size:
            self.order += self.rng.sample(range(len(self.windows[0])), len(self.windows[0]))
        chosen, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        return [tensor[chosen].to(device) for tensor in self.windows]

    def loss(self, model, x: Tensor, y: Tensor, untouched: Tensor) -> Tensor:
        """KL(untouched || model), in nats, the sum over the tokens x (batch, seq_len) whose target in y is not IGNORE.

        untouched: the untouched model's hidden states (batch, seq_len, hidden). The gradient is the model's alone.
        """
        with mixed_precision(model):
            if head_is_large_and_frozen(model.lm_head):  # the same to rounding, without ever holding all predictions
                return kl_in_chunks(model.hidden_states(x), untouched, model.lm_head.weight, y, IGNORE)
            wanted, logits = self.head(untouched), model(x)  # (batch, seq_len, vocab) each
        wanted, logits = wanted.float().log_softmax(-1), logits.float().log_softmax(-1)
        return F.kl_div(logits, wanted, log_target=True, reduction="none").sum(-1)[y != IGNORE].sum()
