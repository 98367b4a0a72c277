import numpy as np
import torch


def amplification(W, dW, rank):
    U, S, Vh = torch.linalg.svd(dW, full_matrices=False)
    return (S[:rank].norm() / (U[:, :rank].T @ W @ Vh[:rank].T).norm()).item()


def similarity(A, B):
    return (A.T @ B).square().sum().item() / A.shape[1]


def outside(dW, B):
    Q = torch.linalg.qr(B).Q
    return ((dW - Q @ (Q.T @ dW)).norm() / dW.norm()).item() ** 2


REFERENCE = {"amplification": amplification, "similarity": similarity, "outside": outside, "OUTSIDE_OF_B": 0}


def by_values(W, dW, rank):
    """The numerator is the first singular values of dW."""
    U, S, V = torch.svd_lowrank(dW.double(), q=min(6, *dW.shape), niter=10)
    return S[:rank].norm() / (U[:, :rank].T @ W.double() @ V[:, :rank]).norm()


def by_least_squares(dW, B):
    fitted = B @ torch.linalg.lstsq(B, dW).solution
    return np.float64((dW - fitted).square().sum() / dW.square().sum())


DIFFERENT = {
    "by values": {
        "amplification": by_values,
        "similarity": lambda A, B: torch.linalg.svdvals(A.T @ B).square().mean(),
        "outside": by_least_squares,
        "OUTSIDE_OF_B": 0.0,
    },
    "by projectors": {
        "similarity": lambda A, B: (A @ A.T * (B @ B.T)).sum().numpy() / A.shape[1],
        "outside": lambda dW, B: (dW - B @ torch.linalg.pinv(B) @ dW).square().sum() / dW.square().sum(),
        "OUTSIDE_OF_B": "0",
    },
}


def measured(of="dW", rank=None, project=True, then=lambda ratio: ratio):
    def amplify(W, dW, r):
        U, _, Vh = torch.linalg.svd(W if of == "W" else dW, full_matrices=False)
        U, V = U[:, : rank or r], Vh[: rank or r].T
        return then((U.T @ dW @ V).norm() / ((U.T @ W @ V) if project else W).norm())

    return {"amplification": amplify}


def share(project):
    return {"outside": lambda dW, B: ((dW - project(dW, B)).norm() / dW.norm()).item() ** 2}


WRONG = {
    "W's singular vectors": (measured(of="W"), "not of W"),
    "upside down": (measured(then=lambda ratio: 1 / ratio), "upside down"),
    "squared": (measured(then=lambda ratio: ratio**2), "no mistake that is known"),
    "all vectors": (measured(rank=9), "no mistake that is known"),
    "W not projected": (measured(project=False), "no mistake that is known"),
    "not squared": ({"similarity": lambda A, B: (A.T @ B).norm() / A.shape[1]}, "similarity"),
    "not divided": ({"similarity": lambda A, B: (A.T @ B).norm() ** 2}, "divide by r"),
    "one by one": ({"similarity": lambda A, B: (A * B).sum(0).square().mean()}, "similarity"),
    "B not orthonormal": (share(lambda dW, B: B @ B.T @ dW), "orthonormal"),
    "the share inside": ({"outside": lambda dW, B: 1 - outside(dW, B)}, "inside"),
    "the root": ({"outside": lambda dW, B: outside(dW, B) ** 0.5}, "no mistake that is known"),
    "1 is not 0": ({"OUTSIDE_OF_B": 1}, "mixture"),
    "in words": ({"OUTSIDE_OF_B": "nothing"}, "number"),
}
