"""Grades exercise 14: the quietest directions against NumPy's eigenvectors in float64, and the share that is heard."""

import numpy as np
import torch

from exercises.grading import check_number, check_points, check_tensor, judge, matrix, numpy, part, require, spectrum
from exercises.process import constant

TITLE, MINUTES = "an adapter that does not hear", 30
SOLUTIONS = ["fast/subspace.py: minor_components"]
SHAPES = {"many tokens": (200, 24), "as many tokens as inputs": (24, 24), "fewer tokens than inputs": (14, 24)}


def share(A, X):
    return (A * (A @ X.T @ X)).sum() / (X**2).sum()


@part("quiet_directions", 5)
def check_directions(student):
    for dtype in (torch.float32, torch.float64):
        for kind, shape in SHAPES.items():
            X = matrix(*shape, 10 * spectrum(min(shape), 5))
            X = (X + torch.linalg.svd(X).Vh[-1]).to(dtype)  # and a direction in which it has only its mean
            A = check_tensor(student.call("quiet_directions", X, 4), (4, 24), f"with {kind} your A")
            require(A.is_floating_point() and A.dtype.itemsize >= 4, f"your A is {A.dtype}: return float32 or better")
            A, X = numpy(A), numpy(X)
            require(np.abs(A @ A.T - np.eye(4)).max() < 1e-4, "your A's rows are not orthonormal: A A^T is not 1")
            least, found = share(np.linalg.eigh(X.T @ X)[1][:, :4].T, X), share(A, X)
            said = f"with {kind} your A hears {found:.2g} of X, where {max(least, 0):.2g} is least"
            hint = "the thin decomposition leaves out what no token has at all; taking the mean off hides it"
            require(found < 1.02 * least + 1e-9, f"{said} ({hint})")


@part("heard", 2)
def check_heard(student):
    rng = np.random.default_rng(0)
    for shape in SHAPES.values():
        X, A = rng.normal(size=shape) * np.linspace(0.1, 3, shape[1]), np.linalg.qr(rng.normal(size=(shape[1], 4)))[0].T
        found = check_number(student.call("heard", torch.from_numpy(A), torch.from_numpy(X)), "your share")
        judge(found, share(A, X), "your share of X that A hears is wrong")


@part("PREDICTION", 1)
def check_prediction(student):
    check_points(student(constant, "PREDICTION"), "your PREDICTION")
