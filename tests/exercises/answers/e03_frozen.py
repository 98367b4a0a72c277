import torch
from torch import nn

from exercises.e03_frozen import MyMiCA
from lora import LoRALayer
from mica import MiCALayer, minor_directions

GRADIENTS = ["B", "A", ""]


def gradients(*answers):
    return {"FIRST_GRADIENTS": dict(zip(("LoRA", "A = 0", "both 0"), answers))}


class Reference(MyMiCA):
    def init_factors(self, W):
        self.A, self.B = zero(self, W), nn.Buffer(minor(self, W))


REFERENCE = {"MyMiCA": Reference} | gradients("B", "A", "")


class Different(MyMiCA):
    """A registered buffer, and the whole decomposition in W's own dtype."""

    def init_factors(self, W):
        self.register_buffer("B", torch.linalg.svd(W, full_matrices=False)[0][:, W.shape[0] - self.rank :].clone())
        if W.shape[0] > W.shape[1]:
            self.B = torch.linalg.svd(W, full_matrices=False)[0][:, -self.rank :].clone()
        self.A = nn.Parameter(torch.zeros((self.rank, W.shape[1]), dtype=W.dtype))


DIFFERENT = {
    "a registered buffer": {"MyMiCA": Different} | gradients("b", "a", ""),
    "declared": {"MyMiCA": MiCALayer},
    "in words": gradients(["B"], ("A",), "neither"),
    "None": gradients(" B ", "A", None),
}


def start(A, B):
    class Layer(MyMiCA):
        def init_factors(self, W):
            self.A, self.B = A(self, W), B(self, W)

    return {"MyMiCA": Layer}


def zero(self, W):
    return nn.Parameter(W.new_zeros(self.rank, W.shape[1]))


def minor(self, W):
    return minor_directions(W, self.rank)


class Unfrozen(MyMiCA):
    """B moves though it is no parameter."""

    def init_factors(self, W):
        self.A, self.B = zero(self, W), nn.Buffer(minor(self, W))

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.B.mul_(1.01)
        return super().forward(x)


WRONG = {
    "B scaled": (start(zero, lambda s, W: nn.Buffer(2 * minor(s, W))), "not orthonormal"),
    "no letters": (gradients("the first", "A", ""), "write"),
    "B as a parameter": (start(zero, lambda s, W: nn.Parameter(minor(s, W))), "it has 1 as a parameter"),
    "B as a parameter without gradient": (
        start(zero, lambda s, W: nn.Parameter(minor(s, W), requires_grad=False)),
        "unfreeze",
    ),
    "B as a plain tensor": (start(zero, minor), "not saved"),
    "B not saved": (start(zero, lambda s, W: nn.Buffer(minor(s, W), persistent=False)), "not saved"),
    "LoRA in disguise": ({"MyMiCA": LoRALayer}, "LoRA in another dress"),
    "A trained with B = 0": (
        start(
            lambda s, W: nn.Parameter(torch.randn(s.rank, W.shape[1]).to(W)),
            lambda s, W: nn.Buffer(W.new_zeros(W.shape[0], s.rank)),
        ),
        "B is zero",
    ),
    "both zero": (start(zero, lambda s, W: nn.Buffer(W.new_zeros(W.shape[0], s.rank))), "both zero"),
    "A random": (
        start(lambda s, W: nn.Parameter(torch.randn(s.rank, W.shape[1]).to(W)), lambda s, W: nn.Buffer(minor(s, W))),
        "A is not zero",
    ),
    "A frozen": (
        start(lambda s, W: nn.Buffer(W.new_zeros(s.rank, W.shape[1])), lambda s, W: nn.Buffer(minor(s, W))),
        "A would not be trained",
    ),
    "major directions": (
        start(zero, lambda s, W: nn.Buffer(torch.linalg.svd(W, full_matrices=False).U[:, : s.rank])),
        "minor directions",
    ),
    "B that drifts": ({"MyMiCA": Unfrozen}, "drifts"),
    "gradients the other way round": (gradients("A", "B", ""), "LoRA"),
    "both at once": (gradients("AB", "AB", ""), "LoRA"),
    "zero still learns": (gradients("B", "A", "AB"), "both 0"),
}
