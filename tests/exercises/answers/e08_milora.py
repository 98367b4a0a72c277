import torch

from milora import MiLoRALayer, PiSSALayer


class Reference(MiLoRALayer):
    def start(self, W):
        U, S, V = self.components(W)
        root = (S * self.rank / self.alpha).sqrt()
        return root[:, None] * V.T, U * root


REFERENCE = {"MyMiLoRA": Reference, "left_over": lambda s, alpha, rank: s - alpha / rank * s}


class Different(MiLoRALayer):
    def start(self, W):
        U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        root = torch.diag((S[-self.rank :] / (self.alpha / self.rank)) ** 0.5)
        return (root @ Vh[-self.rank :]).to(W.dtype), (U[:, -self.rank :] @ root).to(W.dtype)


class Turned(Reference):
    """Other factors of the same product, as even: an orthogonal matrix between them."""

    def start(self, W):
        A, B = super().start(W)
        signs = torch.ones(self.rank).to(W)
        signs[::2] = -1
        return signs[:, None] * A, B * signs


DIFFERENT = {
    "from the decomposition": {"MyMiLoRA": Different, "left_over": lambda s, alpha, rank: s * (rank - alpha) / rank},
    "other signs": {"MyMiLoRA": Turned, "left_over": lambda s, alpha, rank: torch.tensor(s) * (1 - alpha / rank)},
}


def start(split=lambda S, alpha, rank: ((S * rank / alpha).sqrt(),) * 2, base=MiLoRALayer):
    class Layer(base):
        def start(self, W):
            U, S, V = self.components(W)
            left, right = split(S, self.alpha, self.rank)
            return right[:, None] * V.T, U * left

    return {"MyMiLoRA": Layer}


WRONG = {
    "the project's": (
        {"MyMiLoRA": type("Layer", (MiLoRALayer,), {"start": lambda s, W: MiLoRALayer.start(s, W)})},
        "do not call",
    ),
    "no start": ({"MyMiLoRA": type("Layer", (MiLoRALayer,), {})}, "start is still"),
    "not divided": (start(lambda S, a, r: (S.sqrt(), S.sqrt())), "divide S_m"),
    "alpha divided down": (start(lambda S, a, r: ((S / (a // r)).sqrt(),) * 2), "alpha 6"),
    "multiplied": (start(lambda S, a, r: ((S * a / r).sqrt(),) * 2), "is not U_m S_m V_m^T"),
    "no root": (start(lambda S, a, r: (S * r / a,) * 2), "is not U_m S_m V_m^T"),
    "all in B": (start(lambda S, a, r: (S * r / a, torch.ones_like(S))), "evenly"),
    "major components": (start(base=PiSSALayer), "PiSSA"),
    "divided all the same": ({"left_over": lambda s, alpha, rank: 0.0}, "s = 0.5"),
    "the wrong way round": ({"left_over": lambda s, alpha, rank: s - rank / alpha * s}, "s = 0.5"),
}
