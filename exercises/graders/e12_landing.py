"""Grades exercise 12: the three measures against NumPy in float64, and the derivation on random factors."""

import numpy as np
import torch

from exercises import NotWritten
from exercises.grading import check_number, numpy, require


def weights(shape, seed=0, dtype=torch.float64):
    """(W, dW), dW of rank 3 with clear singular values."""
    rng = np.random.default_rng(seed)
    dW = sum(2.0**-i * np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1])) for i in range(3))
    return torch.from_numpy(rng.normal(size=shape)).to(dtype), torch.from_numpy(dW).to(dtype)


def amplifying(student):
    """amplification."""
    for shape in ((12, 9), (9, 12), (10, 10)):
        for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-3)):
            W, dW = weights(shape, dtype=dtype)
            found = check_number(student.amplification(W.clone(), dW.clone(), 2), "your amplification")
            U, _, Vh = np.linalg.svd(numpy(dW), full_matrices=False)
            size = lambda U, M, Vh, power=1: np.linalg.norm(U[:, :2].T @ M @ Vh[:2].T) ** power  # noqa: E731
            right = size(U, numpy(dW), Vh) / size(U, numpy(W), Vh)
            if abs(found - right) > tolerance * right:
                wU, _, wVh = np.linalg.svd(numpy(W), full_matrices=False)
                others = {
                    "it is squared": right**2,
                    "it is turned upside down: dW is above, W below": 1 / right,
                    "U and V are singular vectors of dW, not of W": size(wU, numpy(dW), wVh) / size(wU, numpy(W), wVh),
                    "only the first `rank` vectors count": np.linalg.norm(numpy(dW))
                    / np.linalg.norm(U.T @ numpy(W) @ Vh.T),
                    "project W too: U^T W V stands below": np.linalg.norm(numpy(dW)) / np.linalg.norm(numpy(W)),
                }
                close = [why for why, other in others.items() if abs(found - other) < 1e-3 * other]
                why = close[0] if close else "torch.linalg.svd gives V^T, whose rows are the vectors"
                require(
                    False,
                    f"your amplification of a {shape[0]} x {shape[1]} change is {found:.3f} and not {right:.3f}: {why}",
                )


def similar(student):
    """similarity."""
    rng = np.random.default_rng(1)
    for n, r in ((12, 3), (8, 2), (20, 5)):
        for mix in (0.0, 0.5, 1.0):
            A = np.linalg.qr(rng.normal(size=(n, r)))[0]
            B = np.linalg.qr(mix * A @ rng.normal(size=(r, r)) + (1 - mix) * rng.normal(size=(n, r)))[0]
            PA, PB = A @ A.T, B @ B.T
            right = np.trace(PA @ PB) / r
            found = check_number(student.similarity(torch.from_numpy(A), torch.from_numpy(B)), "your similarity")
            why = (
                "the norm is squared" if abs(found - np.sqrt(right * r) / r) < 1e-6
                else "divide by r, so that a space has similarity 1 with itself" if abs(found - right * r) < 1e-6
                else "it depends on the choice of the bases; ||A^T B||_F^2 does not"
            )  # fmt: skip
            require(
                abs(found - right) < 1e-6,
                f"of two spaces of {r} dimensions your similarity is {found:.3f} and not {right:.3f}: {why}",
            )


def outside_of(student):
    """outside."""
    rng = np.random.default_rng(2)
    for shape in ((12, 9), (9, 12)):
        _, dW = weights(shape, seed=3)
        B = rng.normal(size=(shape[0], 4)) * [5, 1, 0.2, 3]
        Q = np.linalg.qr(B)[0]
        right = np.linalg.norm(dW.numpy() - Q @ Q.T @ dW.numpy()) ** 2 / np.linalg.norm(dW.numpy()) ** 2
        found = check_number(student.outside(dW.clone(), torch.from_numpy(B)), "your share")
        why = (
            "that is the share inside" if abs(found - (1 - right)) < 1e-6
            else "that is not squared" if abs(found - np.sqrt(right)) < 1e-6
            else "B B^T projects only if B's columns are orthonormal: make them so first, by torch.linalg.qr"
            if found > 1 or abs(found - naive(dW.numpy(), B)) < 1e-6
            else "P is made of B's columns and acts on dW's output, from the left"
        )  # fmt: skip
        require(abs(found - right) < 1e-6, f"{right:.3f} of a dW lies outside the span of B, not {found:.3f}: {why}")


def naive(dW, B):
    return np.linalg.norm(dW - B @ B.T @ dW) ** 2 / np.linalg.norm(dW) ** 2


def derivation(student):
    """OUTSIDE_OF_B, on random factors."""
    if student.OUTSIDE_OF_B is ...:
        raise NotWritten
    found = check_number(student.OUTSIDE_OF_B, "OUTSIDE_OF_B")
    rng = np.random.default_rng(4)
    B, A = rng.normal(size=(12, 3)), rng.normal(size=(3, 9))
    Q, dW = np.linalg.qr(B)[0], 2.0 * B @ A
    share = np.linalg.norm(dW - Q @ Q.T @ dW) ** 2 / np.linalg.norm(dW) ** 2
    require(
        abs(found - share) < 1e-6,
        f"with random B and A it is not {found:g}: every column of B A is a mixture of B's columns",
    )
