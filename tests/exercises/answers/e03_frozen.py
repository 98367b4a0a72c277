import torch
from torch import nn

from exercises.e03_frozen import MyMiCA
from lora import LoRALayer
from mica import MiCALayer, minor_directions


def gradients(*answers):
    return {"FIRST_GRADIENTS": dict(zip(("LoRA", "A = 0", "both 0"), answers))}


def minor(self, W):
    return minor_directions(W, self.rank)


def layer(A=lambda s, W: nn.Parameter(W.new_zeros(s.rank, W.shape[1])), B=lambda s, W: nn.Buffer(minor(s, W))):
    class Layer(MyMiCA):
        def init_factors(self, W):
            self.A, self.B = A(self, W), B(self, W)

    return {"MyMiCA": Layer}


REFERENCE = layer() | gradients("B", "A", "")


class Registered(MyMiCA):
    """A registered buffer, and the decomposition in W's own dtype."""

    def init_factors(self, W):
        self.register_buffer("B", torch.linalg.svd(W, full_matrices=False)[0][:, -self.rank :].clone())
        self.A = nn.Parameter(torch.zeros((self.rank, W.shape[1]), dtype=W.dtype))


DIFFERENT = {
    "a registered buffer": {"MyMiCA": Registered} | gradients("b", "a", ""),
    "declared": {"MyMiCA": MiCALayer},
    "in words": gradients(["B"], ("A",), "neither"),
    "None": gradients(" B ", "A", None),
}


class Drifting(layer()["MyMiCA"]):
    """B moves though it is no parameter."""

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.B.mul_(1.01)
        return super().forward(x)


def random(s, W):
    return nn.Parameter(torch.randn(s.rank, W.shape[1]).to(W))


def major(s, W):
    return nn.Buffer(torch.linalg.svd(W, full_matrices=False).U[:, : s.rank])


WRONG = {
    "B scaled": (layer(B=lambda s, W: nn.Buffer(2 * minor(s, W))), "not orthonormal"),
    "B as a parameter": (layer(B=lambda s, W: nn.Parameter(minor(s, W), requires_grad=False)), "anybody can unfreeze"),
    "B as a plain tensor": (layer(B=minor), "not saved"),
    "B not saved": (layer(B=lambda s, W: nn.Buffer(minor(s, W), persistent=False)), "not saved"),
    "LoRA in disguise": ({"MyMiCA": LoRALayer}, "LoRA in another dress"),
    "both zero": (layer(B=lambda s, W: nn.Buffer(W.new_zeros(W.shape[0], s.rank))), "both zero"),
    "A random": (layer(A=random), "A is not zero"),
    "A frozen": (layer(A=lambda s, W: nn.Buffer(W.new_zeros(s.rank, W.shape[1]))), "A would not be trained"),
    "major directions": (layer(B=major), "minor directions"),
    "B that drifts": ({"MyMiCA": Drifting}, "drifts"),
    "gradients the other way round": (gradients("A", "B", ""), "LoRA"),
    "zero still learns": (gradients("B", "A", "AB"), "both 0"),
    "no letters": (gradients("the first", "A", ""), "LoRA"),
}
