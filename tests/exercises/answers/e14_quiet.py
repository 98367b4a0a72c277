import torch


def quiet_directions(X, rank):
    return torch.linalg.eigh(X.T @ X).eigenvectors[:, :rank].T


def heard(A, X):
    return (X @ A.T).square().sum() / X.square().sum()


REFERENCE = {"quiet_directions": quiet_directions, "heard": heard, "PREDICTION": -10}


def by_svd(X, rank):
    """Of the full decomposition: the last rows of V^T may be what no token has."""
    return torch.linalg.svd(X.double(), full_matrices=True).Vh[-rank:]


DIFFERENT = {
    "the full decomposition": {
        "quiet_directions": by_svd,
        "heard": lambda A, X: float(((A @ X.T).norm() / X.norm()) ** 2),
        "PREDICTION": 3.0,
    },
    "in float64": {
        "quiet_directions": lambda X, r: torch.linalg.eigh(X.double().T @ X.double())[1].flip(1)[:, -r:].T.to(X.dtype),
        "heard": lambda A, X: torch.trace(A @ (X.T @ X) @ A.T).numpy() / (X**2).sum().numpy(),
    },
}


def directions(function):
    return {"quiet_directions": function}


def thin(X, rank):
    return torch.linalg.svd(X, full_matrices=False).Vh[-rank:]


WRONG = {
    "the loudest": (directions(lambda X, r: torch.linalg.svd(X).Vh[:r]), "is least"),
    "the thin decomposition": (directions(thin), "thin decomposition"),
    "centred": (directions(lambda X, r: quiet_directions(X - X.mean(0), r)), "mean"),
    "columns": (directions(lambda X, r: quiet_directions(X, r).T), "shape"),
    "random": (directions(lambda X, r: torch.linalg.qr(torch.randn(X.shape[1], r)).Q.T), "hears"),
    "scaled": (directions(lambda X, r: 2 * quiet_directions(X, r)), "orthonormal"),
    "not squared": ({"heard": lambda A, X: heard(A, X) ** 0.5}, "your share of X"),
    "not divided": ({"heard": lambda A, X: (X @ A.T).square().sum()}, "your share of X"),
    "a share": ({"PREDICTION": 0.05}, "whole points"),
}
