import torch

from mica import minor_directions

REFERENCE = {"minor_directions": minor_directions, "never_written": lambda out, in_: max(out - in_, 0)}


def in_float32(W, rank):
    return torch.linalg.svd(W.float(), full_matrices=False).U[:, -rank:]


def gram(W, rank):
    """Eigenvectors of W W^T, past those of the null space; the smallest come first there."""
    vectors = torch.linalg.eigh(W.double() @ W.double().T).eigenvectors
    null = max(W.shape[0] - W.shape[1], 0)
    return vectors[:, null : null + rank]


DIFFERENT = {
    "eigenvectors": {"minor_directions": gram, "never_written": lambda out, in_: out - min(out, in_)},
    "in float32 or better": {
        "minor_directions": lambda W, rank: in_float32(W, rank) if W.dtype != torch.float64 else gram(W, rank),
        "never_written": lambda out, in_: torch.tensor(0 if out <= in_ else out - in_),
    },
}


def svd(W, full=False):
    return torch.linalg.svd(W.double(), full_matrices=full)


def directions(function):
    return {"minor_directions": function}


WRONG = {
    "the full decomposition": (directions(lambda W, r: svd(W, full=True).U[:, -r:]), "null space"),
    "major directions": (directions(lambda W, r: svd(W).U[:, :r]), "major"),
    "right singular vectors": (directions(lambda W, r: svd(W).Vh[-r:].T), "away from U"),
    "rows of U": (directions(lambda W, r: svd(W).U[-r:]), "shape"),
    "one too early": (directions(lambda W, r: svd(W).U[:, -r - 1 : -1]), "away from U"),
    "scaled by S": (directions(lambda W, r: svd(W).U[:, -r:] * svd(W).S[-r:]), "orthonormal"),
    "no bfloat16": (directions(lambda W, r: torch.linalg.svd(W, full_matrices=False).U[:, -r:]), "stops"),
    "float32 for float64": (directions(lambda W, r: in_float32(W, r).to(W.dtype)), "away from U"),
    "16 bits": (directions(lambda W, r: svd(W).U[:, -r:].bfloat16()), "float32 or better"),
    "changes W": (directions(lambda W, r: minor_directions(W.mul_(2), r)), "changes what"),
    "the larger side": ({"never_written": lambda out, in_: abs(out - in_)}, "leaves 0"),
    "what it does write to": ({"never_written": lambda out, in_: min(out, in_)}, "leaves 3"),
}
