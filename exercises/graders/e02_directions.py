"""Grades exercise 2: the subspace against NumPy's thin SVD in float64, and the number of directions never written to."""

import numpy as np
import torch

from exercises.grading import Wrong, check_number, check_tensor, matrix, numpy, precision, require

SHAPES = {"square": (32, 32), "wide": (20, 48), "tall": (48, 20)}


def spectrum(size, rank):
    """Singular values that fall from 1 to 0.3, and then `rank` small ones: a gap, so that no dtype can mix them up."""
    return np.concatenate([np.linspace(1, 0.3, size - rank), np.linspace(0.05, 0.01, rank)])


def share(B, basis):
    """How much of an orthonormal B lies in the span of `basis`, orthonormal columns: 1 all, 0 nothing."""
    return (basis.T @ B).__pow__(2).sum() / B.shape[1]


def directions(student):
    """minor_directions."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for rank in (4, 1):
            for kind, shape in SHAPES.items():
                one_weight(student, kind, matrix(*shape, spectrum(min(shape), rank)).to(dtype), rank)
    W = matrix(12, 9, spectrum(9, 9)[::-1].copy()).float()
    check_tensor(student.minor_directions(W, 9), (12, 9), "with the largest rank there is, your B")


def one_weight(student, kind, W, rank):
    before = W.clone()
    try:
        B = student.minor_directions(W, rank)
    except RuntimeError as error:
        if W.dtype != torch.bfloat16:
            raise
        raise Wrong(f"a bfloat16 W stops it ({str(error).splitlines()[0]}): compute in float32 or float64") from None
    require(torch.equal(W, before), "your minor_directions changes W in place")
    check_tensor(B, (W.shape[0], rank), f"for a {kind} W of shape {tuple(W.shape)} and rank {rank} your B")
    require(B.is_floating_point(), f"your B is {B.dtype}: it must hold real numbers")
    coarse = W.dtype == torch.float32 and precision(B.dtype) > precision(torch.float32)
    require(not coarse, f"your B is {B.dtype} for a float32 W: return float32 or better")
    found = numpy(B)
    # A bfloat16 W may be decomposed in float32, and float32 is enough for a float32 W.
    computed = torch.promote_types(W.dtype, torch.float32)
    tolerance = min(1e4 * precision(B.dtype, computed), 0.2)
    require(
        np.abs(found.T @ found - np.eye(rank)).max() <= max(tolerance, 1e-3),
        "your columns are not orthonormal: B^T B is not 1",
    )
    U, S, Vh = np.linalg.svd(numpy(W), full_matrices=False)
    full = np.linalg.svd(numpy(W))[0]
    kept = U[:, -rank:]
    error = np.linalg.norm(found @ found.T - kept @ kept.T, 2)
    if error <= tolerance:
        return
    if share(found, U[:, :rank]) > 0.9:
        raise Wrong("your B holds the major directions: U's columns come with the largest singular value first")
    if kind == "tall" and share(found, full[:, U.shape[1] :]) > 0.9:
        raise Wrong(
            "for a tall W your B lies in the left null space, to which W writes nothing at all: "
            "use the thin decomposition (full_matrices=False), or the right eigenvectors of W W^T"
        )
    if kind == "square" and share(found, Vh[-rank:].T) > 0.9:
        raise Wrong("your B holds right singular vectors, directions of the input: take columns of U")
    if error < 1e-2:
        raise Wrong(
            f"your B is {B.dtype} for a W of {W.dtype} and right to {error:.0e} only: something on the way is coarser"
        )
    raise Wrong(f"for a {kind} W your B spans another space than U[:, -{rank}:]: which {rank} columns do you take?")


def null_space(student):
    """never_written, against the rank of random matrices."""
    for shape in ((7, 4), (4, 7), (6, 6), (512, 192), (40, 1)):
        W = np.random.default_rng(0).normal(size=shape)
        wanted = shape[0] - np.linalg.matrix_rank(W)
        found = check_number(student.never_written(*shape), "your answer")
        require(
            found == wanted,
            f"a random W of shape {shape} leaves {wanted} directions of its output out, and you say {found:g}: "
            "W x is a mixture of W's columns, so how many dimensions can it fill?",
        )
