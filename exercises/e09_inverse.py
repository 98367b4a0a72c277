"""Exercise 9: a few vectors of many. The whole decomposition of a large weight takes minutes; eight columns need not.

Goal: find the minor directions of a square M by inverse iteration on a block of columns.

    solving with M M^T divides the component along the i-th left singular vector by S_i^2, so that after some rounds the
    smallest S win; after each solution the columns are made orthonormal again, or they all become the same one
                                                                 Golub and Van Loan, Matrix Computations, 7.3 and 8.2
    a round:  Y = orthonormal(M^-1 Q),  Q = orthonormal(M^-T Y)

Shapes: M (n, n), float32 or float64; Q and Y (n, columns), orthonormal, Q beginning as random_columns(M, columns).
Q's span comes to hold the minor left singular vectors (columns of U), Y's the minor right ones (of V). More columns
than vectors that are wanted make it faster.

Measure before you look on: for 8 wanted vectors of a real q_proj, how large is the error after 2, 4 and 8 rounds with
8, 10, 12 and 16 columns? Which helps more, twice the rounds or twice the columns? And why is it hopeless for a weight
that is not square, such as a random 512 x 2048?  python -m exercises 9 --measure
"""

import torch

from exercises import NotWritten
from exercises.measuring import base_model
from fast.subspace import orthonormal, random_columns  # noqa: F401


def inverse_iteration(M, columns, rounds):
    """(Q, Y) after so many rounds; M is inverted or factorised once for all of them."""
    raise NotWritten


def shrinking(S, rank, columns):
    """By what factor does a round shrink the error in the `rank` minor directions? S: all singular values, largest first."""
    raise NotWritten


def error(W, Q, rank):
    """The ruler: the sine of the largest angle between the true minor directions and the best of Q's span."""
    U = torch.linalg.svd(W.double(), full_matrices=False).U[:, -rank:]
    outside = U - Q.double() @ (Q.double().T @ U)
    return torch.linalg.matrix_norm(outside, 2).item()


def measure():
    W = base_model()[0].layers[0].self_attn.q_proj.weight.detach().double()
    print(f"{'columns':>8}{'2 rounds':>12}{'4 rounds':>12}{'8 rounds':>12}{'predicted a round':>22}")
    for columns in (8, 10, 12, 16):
        cells = [error(W, inverse_iteration(W, columns, rounds)[0], 8) for rounds in (2, 4, 8)]
        predicted = shrinking(torch.linalg.svdvals(W), 8, columns)
        print(f"{columns:8}" + "".join(f"{cell:12.1e}" for cell in cells) + f"{predicted:22.3f}")
    wide = torch.linalg.svdvals(torch.randn(512, 2048, generator=torch.Generator().manual_seed(0)))
    print(f"a random 512 x 2048 weight, 16 columns: {shrinking(wide, 8, 16):.3f} a round")
