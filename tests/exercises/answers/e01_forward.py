import torch
from torch import nn
from torch.nn import functional as F

from lora import LoRALayer


def layer(
    A=lambda s, W: nn.init.kaiming_uniform_(torch.empty(s.rank, W.shape[1]), a=5**0.5).to(W),
    B=lambda s, W: W.new_zeros(W.shape[0], s.rank),
    frozen=lambda s, x: s.linear(x),
    given=lambda s, x: s.dropout(x).to(s.A.dtype) @ s.A.T,
    change=lambda s, hidden: s.alpha / s.rank * (hidden @ s.B.T),
    end=lambda s, change, y, x: change.to(y.dtype),
    **methods,
):
    """The reference, with one thing done otherwise."""

    class Layer(LoRALayer):
        def start(self, W):
            return A(self, W), B(self, W)

        def forward(self, x):
            y = frozen(self, x)
            return y + end(self, change(self, given(self, x)), y, x)

    for name, method in methods.items():
        setattr(Layer, name, method)
    return {"MyLoRA": Layer}


REFERENCE = layer()


class Different(LoRALayer):
    """A normal start, and the sum in the wider dtype, rounded once."""

    def start(self, W):
        A = (torch.randn(self.rank, W.shape[1]) * W.shape[1] ** -0.5).to(W.dtype)
        return nn.Parameter(A), torch.zeros((W.shape[0], self.rank), dtype=W.dtype)

    def forward(self, x):
        y = self.linear(x)
        hidden = torch.einsum("...i,ri->...r", self.dropout(x.to(self.A.dtype)), self.A)
        change = torch.einsum("...r,or->...o", hidden, self.B) * (self.alpha / self.rank)
        return (y.to(self.A.dtype) + change).to(y.dtype)


class Orthogonal(LoRALayer):
    """Orthonormal rows, a list, and a method of one's own beside forward."""

    def start(self, W):
        A = nn.init.orthogonal_(torch.empty(self.rank, W.shape[1], dtype=W.dtype))
        return [A, torch.zeros_like(W[:, : self.rank])]

    def forward(self, x):
        y = self.linear(x)
        return torch.add(y, self.change(x).type_as(y))

    def change(self, x):
        return F.linear(F.linear(self.dropout(x).type_as(self.A), self.A), self.B).mul(self.alpha).div(self.rank)


DIFFERENT = {"summed in float32": {"MyLoRA": Different}, "orthonormal rows": {"MyLoRA": Orthogonal}}


def cast_down(self, x):
    A, B = self.A.to(x.dtype), self.B.to(x.dtype)
    return self.linear(x) + self.alpha / self.rank * F.linear(F.linear(self.dropout(x), A), B)


def whole_sum(self, x):
    change = self.alpha / self.rank * (self.B @ self.A)
    return F.linear(x, (self.linear.weight + change).to(x.dtype), self.linear.bias)


def no_grad(function):
    return lambda s, x: torch.no_grad()(function)(s, x)


def gaussian(scale, draw=torch.randn):
    return lambda s, W: draw(s.rank, W.shape[1]).to(W) * scale(W.shape[1])


WRONG = {
    "no forward": (layer(forward=LoRALayer.forward), "forward is still"),
    "no start": (layer(start=LoRALayer.start), "start is still"),
    "the project's forward": (layer(forward=lambda s, x: LoRALayer.forward(s, x)), "do not call"),
    "the project's start": (layer(start=lambda s, W: LoRALayer.start(s, W)), "do not call"),
    "the project's update": (layer(change=lambda s, hidden: s.update(hidden)), "do not call"),
    "factors cast down to bfloat16": (layer(forward=cast_down), "rounded down"),
    "no dropout": (layer(given=lambda s, x: x.to(s.A.dtype) @ s.A.T), "dropout"),
    "dropout between A and B": (layer(given=lambda s, x: s.dropout(x.to(s.A.dtype) @ s.A.T)), "dropout"),
    "dropout on the frozen path": (layer(frozen=lambda s, x: s.linear(s.dropout(x))), "as it came"),
    "dropout in eval mode": (layer(given=lambda s, x: F.dropout(x, s.dropout.p).to(s.A.dtype) @ s.A.T), "eval mode"),
    "W + B A at every step": (layer(forward=whole_sum), "as large as W"),
    "alpha / rank left out": (layer(change=lambda s, hidden: hidden @ s.B.T), "alpha / rank is missing"),
    "alpha divided down": (layer(change=lambda s, hidden: s.alpha // s.rank * (hidden @ s.B.T)), "is not W x + b"),
    "no bias": (layer(frozen=lambda s, x: F.linear(x, s.linear.weight)), "bias is missing"),
    "cast to x's dtype": (layer(end=lambda s, change, y, x: change.to(x.dtype)), "autocast"),
    "float32 for a bfloat16 model": (layer(end=lambda s, change, y, x: change), "float32"),
    "no cast": (layer(given=lambda s, x: s.dropout(x) @ s.A.T), "stops"),
    "A detached": (layer(given=lambda s, x: s.dropout(x).to(s.A.dtype) @ s.A.detach().T), "none arrives"),
    "no gradient": (layer(forward=no_grad(REFERENCE["MyLoRA"].forward)), "none arrives"),
    "the linear without a gradient": (layer(frozen=no_grad(lambda s, x: s.linear(x))), "through the linear"),
    "x detached": (layer(given=lambda s, x: s.dropout(x.detach()).to(s.A.dtype) @ s.A.T), "x is detached"),
    "nothing returned": (layer(forward=lambda s, x: None), "must be a tensor"),
    "A unscaled": (layer(A=gaussian(lambda n: 1)), "sqrt(in)"),
    "A over in": (layer(A=gaussian(lambda n: 1 / n)), "sqrt(in)"),
    "A never negative": (layer(A=gaussian(lambda n: 2 / n**0.5, torch.rand)), "around zero"),
    "rows alike": (layer(A=gaussian(lambda n: 1 / n**0.5, torch.ones)), "rank 1"),
    "both zero": (layer(A=gaussian(lambda n: 0.0)), "both zero"),
    "both random": (layer(B=lambda s, W: torch.randn(W.shape[0], s.rank).to(W)), "B is not zero"),
    "shapes exchanged": (layer(A=lambda s, W: torch.randn(W.shape[1], s.rank).to(W)), "shape"),
    "A alone": (layer(start=lambda s, W: torch.randn(s.rank, W.shape[1]).to(W)), "return (A, B)"),
    "never filled": (layer(A=lambda s, W: W.new_full((s.rank, W.shape[1]), torch.nan)), "NaN"),
}
