"""Exercise 14: an adapter of today. What if it could not even hear the old text?

Goal: MiCA writes where W writes least. LoRA-Null reads where the layer's *inputs* say least: it runs old text through the
model, keeps what comes into a linear, and freezes A in the directions that these inputs hardly have.

    y = linear(x) + (alpha / rank) B A x:  if A x = 0 for all old inputs x, then whatever B learns, old text stays as it was
    A = the `rank` eigenvectors of X^T X with the smallest eigenvalues      LoRA-Null, arXiv 2503.02659; CorDA, 2406.05223
    heard = ||X A^T||_F^2 / ||X||_F^2

Shapes: X (tokens, in), a row for each token of old text, its mean *not* taken off, of float32 or better; there may be
fewer tokens than `in`. A (rank, in) with orthonormal rows; signs are arbitrary. B (out, rank) is 0 and trained.

Measure before you look on: A is taken from one half of data/old/text.txt. How much of the *other* half's inputs does it
hear, beside a random A? And does the adapter forget less than LoRA-FA, whose A is random and frozen? Write into PREDICTION
how many points of `old/never_asked` it will be above (or below) LoRA-FA, in whole points, then:
python -m exercises 14 --measure      (2 to 4 minutes of one core)
"""

import torch  # noqa: F401

from exercises import NotWritten
from exercises.measuring import quiet_readers


def quiet_directions(X, rank):
    """X (tokens, in) -> A (rank, in): the directions along which the inputs are smallest."""
    raise NotWritten


def heard(A, X):
    """The share of the inputs X that A reads, a number from 0 to 1; for a random A it is about rank / in."""
    raise NotWritten


PREDICTION = ...  # points of old/never_asked, yours minus lora-fa's; graded for being written down


def measure():
    quiet_readers(quiet_directions, heard, PREDICTION)
