import math

import numpy as np
import torch
from scipy import stats
from torch import nn

from lora import LoRALayer


class RandomReader(LoRALayer):
    """ablations.TransposedMiCALayer with directions that know nothing of W."""

    trained = "B"

    def start(self, W):
        return rows(self, W), W.new_zeros(W.shape[0], self.rank)


def interval(differences):
    n = len(differences)
    d = torch.tensor(differences, dtype=torch.float64)
    half = stats.t.ppf(0.975, n - 1) * d.std().item() / math.sqrt(n)
    return d.mean().item(), d.mean().item() - half, d.mean().item() + half


REFERENCE = {"RandomReader": RandomReader, "interval": interval, "PREDICTION": -2.0}


class Different(LoRALayer):
    trained = ("B",)

    def start(self, W):
        A = nn.init.orthogonal_(torch.empty(self.rank, W.shape[1]))
        return A.to(W.dtype), torch.zeros((W.shape[0], self.rank), dtype=W.dtype)


def by_scipy(differences):
    n = len(differences)
    mean = sum(differences) / n
    low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=stats.sem(differences))
    return mean, low, high


def as_array(differences):
    d = np.array(differences)
    return d.mean() + np.array([0, *stats.t.ppf([0.025, 0.975], len(d) - 1)]) * d.std(ddof=1) / len(d) ** 0.5


DIFFERENT = {
    "orthogonal_, scipy's interval": {"RandomReader": Different, "interval": by_scipy, "PREDICTION": 3},
    "an array": {"interval": as_array, "PREDICTION": np.float32(12)},
    "a tensor": {"interval": lambda d: torch.tensor(interval(d), dtype=torch.float64), "PREDICTION": "-4"},
}


def method(A, B=lambda s, W: W.new_zeros(W.shape[0], s.rank), trained="B"):
    start = {"start": lambda self, W: (A(self, W), B(self, W)), "trained": trained}
    return {"RandomReader": type("Layer", (LoRALayer,), start)}


class Shared(RandomReader):
    """A is drawn once for each shape and seed."""

    drawn = {}

    def start(self, W):
        A, B = super().start(W)
        return self.drawn.setdefault((torch.initial_seed(), W.shape, W.dtype), A).clone(), B


def rows(s, W):
    return torch.linalg.qr(torch.randn(W.shape[1], s.rank)).Q.T.to(W)


def fixed(s, W):
    return torch.linalg.qr(torch.randn(W.shape[1], s.rank, generator=torch.Generator().manual_seed(0))).Q.T.to(W)


def singular(s, W, kept):
    return torch.linalg.svd(W, full_matrices=False).Vh[kept]


def half_width(width):
    """The interval with another half width, of n and of the deviation s."""

    def made(differences):
        mean = sum(differences) / len(differences)
        half = width(len(differences), stats.tstd(differences))
        return mean, mean - half, mean + half

    return {"interval": made}


def t(n, below=0.975):
    return stats.t.ppf(below, n - 1)


WRONG = {
    "A trained, too": (method(rows, trained="AB"), "is a parameter"),
    "A trained alone": (method(rows, trained="A"), "is a parameter"),
    "nothing trained": (method(rows, trained=""), "B would not be trained"),
    "B random": (method(rows, lambda s, W: torch.randn(W.shape[0], s.rank).to(W)), "B is not zero"),
    "A not orthonormal": (method(lambda s, W: torch.randn(s.rank, W.shape[1]).to(W)), "orthonormal"),
    "A the same for every seed": (method(fixed), "every seed"),
    "one A for all layers": ({"RandomReader": Shared}, "every layer"),
    "mica-transposed itself": (method(lambda s, W: singular(s, W, slice(-s.rank, None))), "nothing of W"),
    "W's rows": (method(lambda s, W: torch.linalg.qr(W[torch.randperm(len(W))[: s.rank]].T).Q.T), "nothing of W"),
    "1.96": (half_width(lambda n, s: 1.959964 * s / math.sqrt(n)), "Student's t"),
    "no root of n": (half_width(lambda n, s: t(n) * s), "sqrt(n)"),
    "n below": (half_width(lambda n, s: t(n) * s * math.sqrt((n - 1) / n) / math.sqrt(n)), "half the width"),
    "n degrees": (half_width(lambda n, s: t(n + 1) * s / math.sqrt(n)), "half the width"),
    "one-sided": (half_width(lambda n, s: t(n, 0.95) * s / math.sqrt(n)), "half the width"),
    "high before low": ({"interval": lambda d: interval(d)[:1] + interval(d)[:0:-1]}, "order"),
    "a share": ({"PREDICTION": 0.05}, "whole points"),
    "no number": ({"PREDICTION": "a bit more"}, "number"),
}
