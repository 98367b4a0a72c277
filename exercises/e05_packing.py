"""Exercise 5: packing. Texts of all lengths become windows of one length, and every token is to be predicted once.

Goal: lay the documents end to end, an end-of-text token before, between and after them; cut the stream into windows.

    stream = eot d1 eot d2 eot ... eot;  inputs = stream[:-1], targets = stream[1:], both cut every seq_len tokens
                                                            (as in GPT-2's and GPT-3's training: arXiv 2005.14165, B)
    Picture: pictures/packing.png

Shapes: documents, a list of lists of token ids; inputs and targets, both int64 (windows, seq_len). The last window
is filled up: inputs with eot_id, targets with IGNORE, and there is no window of filling alone. bos_id, where it is
given and not eot_id: what this model's texts begin with. Then every document begins with it (eot d1 becomes eot bos
d1), the stream itself begins with bos instead of eot, and it is never a target (IGNORE).

Measure before you look on: the project shuffles the texts before it packs them. If all texts on one subject stand
next to each other instead, what is left of `new/questions`? Guess, then:  python -m exercises 5 --measure     (1 minute)
"""

import torch  # noqa: F401

from corpus import IGNORE  # noqa: F401, the mark for "no target here"
from exercises import NotWritten
from exercises.measuring import documents_by_subject, teach
from train import METHODS


def pack(documents, eot_id, seq_len, bos_id=None):
    """Token lists -> (inputs, targets), two int64 tensors (windows, seq_len)."""
    raise NotWritten


def measure():
    """The texts on a subject made one document, so that shuffling cannot part them."""
    print("shuffled:")
    teach({"mica": METHODS["mica"]})
    print("\nall texts on a subject next to each other:")
    teach({"mica": METHODS["mica"]}, documents=documents_by_subject())
