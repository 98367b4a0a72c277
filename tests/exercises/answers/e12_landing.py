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


def measured(change=lambda top, bottom: top / bottom, of="dW", kept=None, columns=False, project=True):
    def amplify(W, dW, rank):
        U, _, Vh = torch.linalg.svd(W if of == "W" else dW, full_matrices=False)
        rank = kept or rank
        V = Vh[:, :rank] if columns else Vh[:rank].T
        bottom = (U[:, :rank].T @ W @ V).norm() if project else W.norm()
        return change((U[:, :rank].T @ dW @ V).norm(), bottom).item()

    return {"amplification": amplify}


def share(project):
    return {"outside": lambda dW, B: ((dW - project(dW, B)).norm() / dW.norm()).item() ** 2}


WRONG = {
    "the largest value alone": (
        {"amplification": lambda W, dW, r: torch.linalg.matrix_norm(dW, 2) / torch.linalg.matrix_norm(W, 2)},
        "no mistake that is known",
    ),
    "a half of it": ({"similarity": lambda A, B: (A.T @ B).norm() ** 2 / 2 / A.shape[1]}, "no mistake that is known"),
    "W's singular vectors": (measured(of="W"), "not of W"),
    "upside down": (measured(lambda top, bottom: bottom / top), "upside down"),
    "squared": (measured(lambda top, bottom: (top / bottom) ** 2), "squared"),
    "all vectors": (measured(kept=9), "first `rank`"),
    "W not projected": ({"amplification": lambda W, dW, r: dW.norm() / W.norm()}, "project W"),
    "columns of V^T": (measured(columns=True), "V^T"),
    "not squared": ({"similarity": lambda A, B: (A.T @ B).norm() / A.shape[1]}, "squared"),
    "not divided": ({"similarity": lambda A, B: (A.T @ B).norm() ** 2}, "divide by r"),
    "one by one": ({"similarity": lambda A, B: (A * B).sum(0).square().mean()}, "vector by vector"),
    "B not orthonormal": (share(lambda dW, B: B @ B.T @ dW), "orthonormal"),
    "the share inside": ({"outside": lambda dW, B: 1 - outside(dW, B)}, "inside"),
    "the root": ({"outside": lambda dW, B: outside(dW, B) ** 0.5}, "not squared"),
    "1 is not 0": ({"OUTSIDE_OF_B": 1}, "mixture"),
    "in words": ({"OUTSIDE_OF_B": "nothing"}, "number"),
}
