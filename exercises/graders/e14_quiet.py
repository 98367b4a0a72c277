"""Grades exercise 14: the quietest directions against NumPy's eigenvectors in float64, and the share that is heard."""

import numpy as np
import torch

from exercises.grading import (
    apart,
    check_number,
    check_points,
    check_tensor,
    judge,
    matrix,
    numpy,
    part,
    require,
    spectrum,
)
from exercises.process import constant

TITLE, MINUTES = "an adapter that does not hear", 30
SOLUTIONS = ["fast/subspace.py: minor_components"]
SHAPES = {"many tokens": (200, 24), "as many tokens as inputs": (24, 24), "fewer tokens than inputs": (14, 24)}


def inputs(shape, dtype=torch.float32):
    """X (tokens, in) with at least four quiet directions, and another in which it has only its mean."""
    X = matrix(*shape, 10 * spectrum(min(shape), 5))
    return (X + torch.linalg.svd(X).Vh[-1]).to(dtype)


@part("quiet_directions", 5)
def test_directions(student):
    for dtype in (torch.float32, torch.float64):
        for kind, shape in SHAPES.items():
            X = inputs(shape, dtype)
            A = check_tensor(student.call("quiet_directions", X, 4), (4, 24), f"with {kind} your A")
            require(A.is_floating_point() and A.dtype.itemsize >= 4, f"your A is {A.dtype}: return float32 or better")
            A, X = numpy(A), numpy(X)
            require(np.abs(A @ A.T - np.eye(4)).max() < 1e-4, "your A's rows are not orthonormal: A A^T is not 1")
            values, vectors = np.linalg.eigh(X.T @ X)
            null = vectors[
                :, : max(4, (values < 1e-6).sum())
            ]  # with fewer tokens any part of the null space is as quiet
            if apart(A.T, null) < 1e-2:
                continue
            thin = np.linalg.svd(X, full_matrices=False)[2]
            centred = np.linalg.eigh(np.cov(X.T))[1][:, :4]
            others = {
                "your A holds the loudest directions": vectors[:, -4:],
                "the thin decomposition leaves out what no token has at all: take the full one, or X^T X": thin[-4:].T,
                "the mean is taken off X, so that A hears it": centred,
            }
            known = [sentence for sentence, basis in others.items() if apart(A.T, basis) < 1e-2]
            found = (A * (A @ X.T @ X)).sum() / (X**2).sum()
            why = (
                known[0]
                if known
                else f"it hears {found:.2g} of X, where {values[:4].clip(0).sum() / values.sum():.2g} is least"
            )
            require(False, f"with {kind} your A is not in the quietest directions: {why}")


@part("heard", 2)
def test_heard(student):
    rng = np.random.default_rng(0)
    for shape in SHAPES.values():
        X, A = rng.normal(size=shape) * np.linspace(0.1, 3, shape[1]), np.linalg.qr(rng.normal(size=(shape[1], 4)))[0].T
        found = check_number(student.call("heard", torch.from_numpy(A), torch.from_numpy(X)), "your share")
        right = (A * (A @ X.T @ X)).sum() / (X**2).sum()
        mistakes = {
            "that is not squared": np.sqrt(right),
            "that is the share that is not heard": 1 - right,
            "it is not divided by ||X||^2": right * (X**2).sum(),
            "it is divided by the rank as well": right / 4,
        }
        judge(found, right, "your share of X that A hears is wrong", mistakes)


@part("PREDICTION", 1)
def test_prediction(student):
    check_points(student(constant, "PREDICTION"), "your PREDICTION")
