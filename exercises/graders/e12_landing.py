"""Grades exercise 12: the three measures against NumPy in float64, and the derivation on random factors."""

import numpy as np
import torch

from exercises.grading import check_number, judge, numpy, part, require
from exercises.process import constant

TITLE, MINUTES = "where dW lands", 30
SOLUTIONS = []
WITHHELD = ["study/analysis.py: amplification", "study/analysis.py: similarity", "study/analysis.py: landing"]


def weights(shape, seed=0):
    """(W, dW), dW with three clear singular values."""
    rng = np.random.default_rng(seed)
    dW = sum(2.0**-i * np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1])) for i in range(3))
    dW += 0.01 * rng.normal(size=shape)
    return torch.from_numpy(rng.normal(size=shape)), torch.from_numpy(dW)


@part("amplification", 3)
def check_amplification(student):
    for shape in ((12, 9), (9, 12), (10, 10)):
        for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-3)):
            W, dW = (M.to(dtype) for M in weights(shape))
            found = check_number(student.call("amplification", W, dW, 2), "your amplification")
            W, dW = numpy(W), numpy(dW)

            def size(M, of):
                U, _, Vh = np.linalg.svd(of, full_matrices=False)
                return np.linalg.norm(U[:, :2].T @ M @ Vh[:2].T)

            right = size(dW, dW) / size(W, dW)
            mistakes = {
                "it is turned upside down: dW is above, W below": 1 / right,
                "U and V are singular vectors of dW, not of W": size(dW, W) / size(W, W),
            }
            said = f"your amplification of a {shape[0]} x {shape[1]} change is wrong"
            judge(found, right, said, mistakes, tolerance * right)


@part("similarity", 2)
def check_similarity(student):
    rng = np.random.default_rng(1)
    for n, r in ((12, 3), (8, 2), (20, 5)):
        for mix in (0.0, 0.5, 1.0):
            A = np.linalg.qr(rng.normal(size=(n, r)))[0]
            B = np.linalg.qr(mix * A @ rng.normal(size=(r, r)) + (1 - mix) * rng.normal(size=(n, r)))[0]
            right = np.trace(A @ A.T @ B @ B.T) / r
            answer = student.call("similarity", torch.from_numpy(A), torch.from_numpy(B))
            mistakes = {"divide by r, so that a space has similarity 1 with itself": right * r}
            what = f"your similarity of two spaces of {r} dimensions is wrong"
            judge(check_number(answer, "your similarity"), right, what, mistakes)


def share_outside(dW, P):
    return np.linalg.norm(dW - P @ dW) ** 2 / np.linalg.norm(dW) ** 2


@part("outside", 2)
def check_outside(student):
    rng = np.random.default_rng(2)
    for shape in ((12, 9), (9, 12)):
        dW = numpy(weights(shape, seed=3)[1])
        B = rng.normal(size=(shape[0], 4)) * [5, 1, 0.2, 3]
        Q = np.linalg.qr(B)[0]
        right = share_outside(dW, Q @ Q.T)
        found = check_number(student.call("outside", torch.from_numpy(dW), torch.from_numpy(B)), "your share")
        level = "B B^T projects only if B's columns are orthonormal: make them so first, by torch.linalg.qr"
        mistakes = {level: share_outside(dW, B @ B.T), "that is the share inside": 1 - right}
        judge(found, right, "your share of dW outside the span of B is wrong", mistakes, 1e-6)


@part("OUTSIDE_OF_B", 1)
def check_derivation(student):
    """On random factors."""
    found = check_number(student(constant, "OUTSIDE_OF_B"), "OUTSIDE_OF_B")
    rng = np.random.default_rng(4)
    B, A = rng.normal(size=(12, 3)), rng.normal(size=(3, 9))
    Q = np.linalg.qr(B)[0]
    said = f"with random B and A it is not {found:g}: every column of B A is a mixture of B's columns"
    require(abs(found - share_outside(2.0 * B @ A, Q @ Q.T)) < 1e-6, said)
