"""Grades exercise 2: the subspace against NumPy's thin SVD in float64, and the number of directions never written to."""

import numpy as np
import torch

from exercises.grading import check_number, check_tensor, matrix, numpy, part, precision, require, spectrum, weight
from exercises.process import Stopped, Wrong

TITLE, MINUTES = "minor directions", 15
SOLUTIONS = ["mica.py: minor_directions"]
SHAPES = {"square": (32, 32), "wide": (20, 48), "tall": (48, 20)}


def share(B, basis):
    """How much of an orthonormal B lies in the span of `basis`, orthonormal columns: 1 all, 0 nothing."""
    return (basis.T @ B).__pow__(2).sum() / B.shape[1]


@part("minor_directions", 5)
def test_directions(student):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for rank in (4, 1):
            for kind, shape in SHAPES.items():
                one_weight(student, kind, weight(*shape, dtype, rank), rank)
    W = matrix(12, 9, spectrum(9, 9)[::-1].copy()).float()
    check_tensor(student.call("minor_directions", W, 9), (12, 9), "with the largest rank there is, your B")


def one_weight(student, kind, W, rank):
    try:
        B = student.call("minor_directions", W, rank)
    except Stopped as stopped:
        if W.dtype != torch.bfloat16:
            raise
        raise Wrong(f"a bfloat16 W stops it: compute in float32 or float64 ({stopped})"[:250]) from None
    check_tensor(B, (W.shape[0], rank), f"for a {kind} W of shape {tuple(W.shape)} and rank {rank} your B")
    require(B.is_floating_point(), f"your B is {B.dtype}: it must hold real numbers")
    coarse = W.dtype == torch.float32 and precision(B.dtype) > precision(torch.float32)
    require(not coarse, f"your B is {B.dtype} for a float32 W: return float32 or better")
    found = numpy(B)
    # A bfloat16 W may be decomposed in float32, and float32 is enough for a float32 W.
    tolerance = min(1e4 * precision(B.dtype, torch.promote_types(W.dtype, torch.float32)), 0.2)
    level = np.abs(found.T @ found - np.eye(rank)).max() <= max(tolerance, 1e-3)
    require(level, "your columns are not orthonormal: B^T B is not 1")
    U, S, Vh = np.linalg.svd(numpy(W), full_matrices=False)
    kept = U[:, -rank:]
    error = np.linalg.norm(found @ found.T - kept @ kept.T, 2)
    if error <= tolerance:
        return
    major = share(found, U[:, :rank]) > 0.9
    require(not major, "your B holds the major directions: U's columns come with the largest singular value first")
    unwritten = kind == "tall" and share(found, np.linalg.svd(numpy(W))[0][:, U.shape[1] :]) > 0.9
    thin = "use the thin decomposition (full_matrices=False), or the right eigenvectors of W W^T"
    require(not unwritten, f"for a tall W your B lies in the left null space, to which W writes nothing at all: {thin}")
    right = kind == "square" and share(found, Vh[-rank:].T) > 0.9
    require(not right, "your B holds right singular vectors, directions of the input: take columns of U")
    wide = f"your B is {B.dtype} for a W of {W.dtype} and right to {error:.0e} only: something on the way is coarser"
    require(error >= 1e-2, wide)
    said = f"for a {kind} W your B spans another space than U[:, -{rank}:], {error:.2g} away (0: the same, 1: at right angles)"
    raise Wrong(f"{said}; no mistake that is known here gives this: which {rank} columns do you take?")


@part("never_written", 2)
def test_null_space(student):
    """Against the rank of random matrices."""
    for shape in ((7, 4), (4, 7), (6, 6), (512, 192), (40, 1)):
        wanted = shape[0] - np.linalg.matrix_rank(np.random.default_rng(0).normal(size=shape))
        found = check_number(student.call("never_written", *shape), "your answer")
        said = f"a random W of shape {shape} leaves {wanted} directions of its output out, and you say {found:g}"
        require(found == wanted, f"{said}: W x is a mixture of W's columns, so how many dimensions can it fill?")
