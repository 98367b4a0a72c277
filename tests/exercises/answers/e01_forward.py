import torch
from torch import nn
from torch.nn import functional as F

from lora import LoRALayer


class Reference(LoRALayer):
    def start(self, W):
        A = nn.init.kaiming_uniform_(torch.empty(self.rank, W.shape[1]), a=5**0.5)
        return A.to(W), W.new_zeros(W.shape[0], self.rank)

    def forward(self, x):
        y = self.linear(x)
        return y + scaled(self, update(self, x), y)


REFERENCE = {"MyLoRA": Reference}


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


class Orthogonal(Reference):
    """Orthonormal rows, and a method of one's own beside forward."""

    def start(self, W):
        return [
            nn.init.orthogonal_(torch.empty(self.rank, W.shape[1], dtype=W.dtype)),
            torch.zeros_like(W[:, : self.rank]),
        ]

    def forward(self, x):
        y = self.linear(x)
        return torch.add(y, self.change(x).type_as(y))

    def change(self, x):
        return F.linear(F.linear(self.dropout(x).type_as(self.A), self.A), self.B).mul(self.alpha).div(self.rank)


DIFFERENT = {"summed in float32": {"MyLoRA": Different}, "orthonormal rows": {"MyLoRA": Orthogonal}}


def start(A, B):
    class Layer(Reference):
        def start(self, W):
            return A(self, W), B(self, W)

    return {"MyLoRA": Layer}


def zeros(*shape):
    return lambda self, W: W.new_zeros([getattr(self, "rank") if s == "r" else W.shape[s] for s in shape])


def random(*shape):
    return lambda self, W: torch.randn([self.rank if s == "r" else W.shape[s] for s in shape]).to(W) / 20


def forward(function):
    return {"MyLoRA": type("Layer", (Reference,), {"forward": function})}


def update(self, x):
    return self.dropout(x).to(self.A.dtype) @ self.A.T


def scaled(self, hidden, y):
    return (self.alpha / self.rank * (hidden @ self.B.T)).to(y.dtype)


def cast_down(self, x):
    A, B = self.A.to(x.dtype), self.B.to(x.dtype)
    return self.linear(x) + self.alpha / self.rank * F.linear(F.linear(self.dropout(x), A), B)


def no_dropout(self, x):
    y = self.linear(x)
    return y + scaled(self, x.to(self.A.dtype) @ self.A.T, y)


def dropout_on_output(self, x):
    y = self.linear(x)
    return y + self.dropout(scaled(self, x.to(self.A.dtype) @ self.A.T, y))


def dropout_between(self, x):
    y = self.linear(x)
    return y + scaled(self, self.dropout(x.to(self.A.dtype) @ self.A.T), y)


def dropout_everywhere(self, x):
    x = self.dropout(x)
    y = self.linear(x)
    return y + scaled(self, x.to(self.A.dtype) @ self.A.T, y)


def dropout_always(self, x):
    y = self.linear(x)
    return y + scaled(self, F.dropout(x, self.dropout.p).to(self.A.dtype) @ self.A.T, y)


def whole_change(self, x):
    y = self.linear(x)
    change = self.alpha / self.rank * (self.B @ self.A)
    return y + F.linear(self.dropout(x).to(self.A.dtype), change).to(y.dtype)


def whole_sum(self, x):
    W = self.linear.weight
    change = self.alpha / self.rank * (self.B @ self.A)
    return F.linear(x, (W + change).to(W.dtype), self.linear.bias)


def unscaled(self, x):
    y = self.linear(x)
    return y + (update(self, x) @ self.B.T).to(y.dtype)


def no_bias(self, x):
    y = F.linear(x, self.linear.weight)
    return y + scaled(self, update(self, x), y)


def as_x(self, x):
    y = self.linear(x)
    return y + (self.alpha / self.rank * (update(self, x) @ self.B.T)).to(x.dtype)


def as_the_factors(self, x):
    return self.linear(x) + self.alpha / self.rank * (update(self, x) @ self.B.T)


def cut_off(self, x):
    y = self.linear(x)
    return y + scaled(self, (update(self, x)).detach(), y)


def cut_off_whole(self, x):
    with torch.no_grad():
        return Reference.forward(self, x)


def base_without_gradient(self, x):
    with torch.no_grad():
        y = self.linear(x)
    return y + scaled(self, update(self, x), y)


def detached_input(self, x):
    y = self.linear(x)
    return y + scaled(self, update(self, x.detach()), y)


def alpha_divided_down(self, x):
    y = self.linear(x)
    return y + (self.alpha // self.rank * (update(self, x) @ self.B.T)).to(y.dtype)


def no_cast(self, x):
    return self.linear(x) + self.alpha / self.rank * (self.dropout(x) @ self.A.T @ self.B.T)


def frozen_only(self, x):
    return self.linear(x)


WRONG = {
    "no forward": (
        {"MyLoRA": type("Layer", (LoRALayer,), {"start": Reference.start})},
        "forward is still",
    ),
    "no start": ({"MyLoRA": type("Layer", (LoRALayer,), {"forward": Reference.forward})}, "start is still"),
    "alpha divided down": (
        forward(alpha_divided_down),
        "is not W x + b",
    ),
    "factors cast down to bfloat16": (forward(cast_down), "rounded down"),
    "no dropout": (forward(no_dropout), "no dropout acts"),
    "dropout on the output": (forward(dropout_on_output), "on the output"),
    "dropout between A and B": (forward(dropout_between), "between A and B"),
    "dropout on the frozen path": (forward(dropout_everywhere), "frozen linear"),
    "dropout in eval mode": (forward(dropout_always), "eval mode"),
    "B A at every step": (forward(whole_change), "as large as W"),
    "W + delta at every step": (forward(whole_sum), "as large as W"),
    "alpha / rank left out": (forward(unscaled), "alpha / rank"),
    "no bias": (forward(no_bias), "bias"),
    "cast to x's dtype": (forward(as_x), "autocast"),
    "float32 for a bfloat16 model": (forward(as_the_factors), "float32"),
    "half of the gradient": (forward(cut_off), "gradient"),
    "no gradient": (forward(cut_off_whole), "gradient"),
    "no cast": (forward(no_cast), "stops"),
    "nothing added": (forward(frozen_only), "do nothing"),
    "nothing returned": (forward(lambda self, x: None), "return"),
    "the linear without a gradient": (forward(base_without_gradient), "through the linear"),
    "x detached": (forward(detached_input), "x is detached"),
    "the project's forward": (forward(lambda self, x: super(Reference, self).forward(x)), "do not call"),
    "the project's update": (
        forward(lambda self, x: self.linear(x) + (self.alpha / self.rank * self.update(x)).to(x.dtype)),
        "do not call",
    ),
    "the project's start": (
        {"MyLoRA": type("Layer", (Reference,), {"start": lambda s, W: LoRALayer.start(s, W)})},
        "do not call",
    ),
    "A unscaled": (start(lambda s, W: torch.randn(s.rank, W.shape[1]).to(W), zeros(0, "r")), "sqrt(in)"),
    "A over in": (
        start(lambda s, W: torch.randn(s.rank, W.shape[1]).to(W) / W.shape[1], zeros(0, "r")),
        "sqrt(in)",
    ),
    "A never negative": (
        start(lambda s, W: torch.rand(s.rank, W.shape[1]).to(W) * 2 / W.shape[1] ** 0.5, zeros(0, "r")),
        "around zero",
    ),
    "both zero": (start(zeros("r", 1), zeros(0, "r")), "both zero"),
    "both random": (start(random("r", 1), random(0, "r")), "B is not zero"),
    "shapes exchanged": (start(random(1, "r"), zeros("r", 0)), "shape"),
    "rows alike": (start(lambda self, W: W.new_ones(self.rank, W.shape[1]), zeros(0, "r")), "rank 1"),
    "A alone": (
        {"MyLoRA": type("Layer", (Reference,), {"start": lambda s, W: Reference.start(s, W)[0]})},
        "return (A, B)",
    ),
    "never filled": (
        start(lambda self, W: W.new_full((self.rank, W.shape[1]), torch.nan), zeros(0, "r")),
        "NaN",
    ),
}
