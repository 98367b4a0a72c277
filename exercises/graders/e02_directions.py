"""Grades exercise 2: the subspace against NumPy's thin SVD in float64, and the number of directions never written to."""

import numpy as np
import torch

from exercises import grading
from exercises.grading import apart, check_number, check_tensor, numpy, part, precision, require

TITLE, MINUTES = "minor directions", 15
SOLUTIONS = ["mica.py: minor_directions"]
SHAPES = {"square": (32, 32), "wide": (20, 48), "tall": (48, 20)}


@part("minor_directions", 5)
def check_directions(student):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for rank in (4, 1):
            for kind, shape in SHAPES.items():
                check_one(student, kind, grading.weight(*shape, dtype, rank), rank)
    W = grading.matrix(12, 9, grading.spectrum(9, 9)[::-1].copy()).float()
    check_tensor(student.call("minor_directions", W, 9), (12, 9), "with the largest rank there is, your B")


def check_one(student, kind, W, rank):
    case = f"for a {kind} W of {W.dtype}"
    B = check_tensor(student.call("minor_directions", W, rank), (W.shape[0], rank), f"{case} your B")
    coarse = not B.is_floating_point() or precision(B.dtype) > max(precision(W.dtype), precision(torch.float32))
    require(not coarse, f"{case} your B is {B.dtype}: return float32 or better")
    found = numpy(B)
    # A bfloat16 W may be decomposed in float32, and float32 is enough for a float32 W.
    tolerance = min(1e4 * precision(B.dtype, torch.promote_types(W.dtype, torch.float32)), 0.2)
    level = np.abs(found.T @ found - np.eye(rank)).max() <= max(tolerance, 1e-3)
    require(level, "your columns are not orthonormal: B^T B is not 1")
    U = np.linalg.svd(numpy(W), full_matrices=False)[0]
    error = apart(found, U[:, -rank:])
    if error <= tolerance:
        return
    major = apart(found, U[:, :rank]) < 0.1
    require(not major, "your B holds the major directions: U's columns come with the largest singular value first")
    unwritten = np.abs(found.T @ numpy(W)).max() < 1e-3
    thin = "use the thin decomposition (full_matrices=False), or the right eigenvectors of W W^T"
    require(not unwritten, f"{case} your B lies in the left null space, to which W writes nothing at all: {thin}")
    require(False, f"{case} your B is {error:.2g} away from U[:, -{rank}:] (0: the same space, 1: at right angles)")


@part("never_written", 2)
def check_null_space(student):
    """Against the rank of random matrices."""
    for shape in ((7, 4), (4, 7), (6, 6), (512, 192), (40, 1)):
        wanted = shape[0] - np.linalg.matrix_rank(np.random.default_rng(0).normal(size=shape))
        found = check_number(student.call("never_written", *shape), "your answer")
        said = f"a random W of shape {shape} leaves {wanted} directions of its output out, and you say {found:g}"
        require(found == wanted, f"{said}: W x is a mixture of W's columns, so how many dimensions can it fill?")
