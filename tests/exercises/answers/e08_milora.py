import torch
from torch import nn

from milora import MiLoRALayer, PiSSALayer


class Reference(MiLoRALayer):
    def init_factors(self, W):
        U, S, V = self.components(W)
        root = (S * self.rank / self.alpha).sqrt()
        self.A, self.B = nn.Parameter(root[:, None] * V.T), nn.Parameter(U * root)
        self.A0, self.B0 = nn.Buffer(self.A.detach().clone()), nn.Buffer(self.B.detach().clone())


REFERENCE = {"MyMiLoRA": Reference, "left_over": lambda s, alpha, rank: s - alpha / rank * s}


class Different(MiLoRALayer):
    def init_factors(self, W):
        U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        root = torch.diag((S[-self.rank :] / (self.alpha / self.rank)) ** 0.5)
        self.B = nn.Parameter((U[:, -self.rank :] @ root).to(W.dtype))
        self.A = nn.Parameter((root @ Vh[-self.rank :]).to(W.dtype))
        self.register_buffer("A0", self.A.detach().clone())
        self.register_buffer("B0", self.B.detach().clone())


class Turned(Reference):
    """Other factors of the same product, as even: an orthogonal matrix between them."""

    def init_factors(self, W):
        super().init_factors(W)
        signs = torch.ones(self.rank).to(W)
        signs[::2] = -1
        self.A.data, self.B.data = signs[:, None] * self.A.data, self.B.data * signs
        self.A0, self.B0 = self.A.detach().clone(), self.B.detach().clone()


DIFFERENT = {
    "from the decomposition": {"MyMiLoRA": Different, "left_over": lambda s, alpha, rank: s * (rank - alpha) / rank},
    "other signs": {"MyMiLoRA": Turned, "left_over": lambda s, alpha, rank: torch.tensor(s) * (1 - alpha / rank)},
}


def start(
    split=lambda S, alpha, rank: ((S * rank / alpha).sqrt(), (S * rank / alpha).sqrt()), keep=None, base=MiLoRALayer
):
    class Layer(base):
        def init_factors(self, W):
            U, S, V = self.components(W)
            left, right = split(S, self.alpha, self.rank)
            A, B = right[:, None] * V.T, U * left
            self.A, self.B = nn.Parameter(A), nn.Parameter(B)
            if keep:
                self.A0, self.B0 = keep(self, "A"), keep(self, "B")
            else:
                self.A0, self.B0 = nn.Buffer(A.clone()), nn.Buffer(B.clone())

    return {"MyMiLoRA": Layer}


WRONG = {
    "the project's": (
        {"MyMiLoRA": type("Layer", (MiLoRALayer,), {"init_factors": lambda s, W: MiLoRALayer.init_factors(s, W)})},
        "do not call",
    ),
    "no start": ({"MyMiLoRA": type("Layer", (MiLoRALayer,), {})}, "init_factors is still"),
    "alpha divided down": (start(lambda S, a, r: ((S / (a // r)).sqrt(),) * 2), "divide S_m"),
    "not divided": (start(lambda S, a, r: (S.sqrt(), S.sqrt())), "divide S_m"),
    "multiplied": (start(lambda S, a, r: ((S * a / r).sqrt(),) * 2), "divide S_m"),
    "the root divided": (start(lambda S, a, r: (S.sqrt() * r / a,) * 2), "divide S_m"),
    "no root": (start(lambda S, a, r: (S * r / a,) * 2), "square root"),
    "all in B": (start(lambda S, a, r: (S * r / a, torch.ones_like(S))), "evenly"),
    "major components": (start(base=PiSSALayer), "PiSSA"),
    "the same memory": (start(keep=lambda s, n: nn.Buffer(getattr(s, n).detach())), "memory"),
    "parameters": (start(keep=lambda s, n: nn.Parameter(getattr(s, n).detach().clone())), "drifts"),
    "not saved": (start(keep=lambda s, n: getattr(s, n).detach().clone()), "not saved"),
    "zeros kept": (start(keep=lambda s, n: nn.Buffer(torch.zeros_like(getattr(s, n)))), "as they start"),
    "divided all the same": ({"left_over": lambda s, alpha, rank: 0.0}, "s = 0.5"),
    "the wrong way round": ({"left_over": lambda s, alpha, rank: s - rank / alpha * s}, "s = 0.5"),
}
