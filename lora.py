"""LoRALayer, the one layer every adapter here is made of, and what can be done with it to a whole model.

A large weight W is frozen and a small product of two factors learns what must change (LoRA, arXiv 2106.09685, eq. 3):

    y = W x + b + (alpha / rank) * B A x

Methods differ only in where A and B start and which of them is trained: see mica.py and milora.py for subclasses.
Load a model's weights first, then replace_linears(model, LoRALayer, ...), train, merge_adapters(model).
"""

import math
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRALayer(nn.Module):
    """y = linear(x) + (alpha / rank) * (x A^T) B^T, with `linear` frozen (LoRA, arXiv 2106.09685, eq. 3).

    linear: nn.Linear with weight W (out, in); rank: 1 to min(out, in); alpha: positive, divided by the rank so that the
    best learning rate hardly depends on the rank; dropout: share of the adapter's input set to zero while training.
    A (rank, in) and B (out, rank) are float32 (float64 for a float64 W). Raises ValueError for settings out of range.

    A method of your own overrides start() and `trained`. If it overrides update(), it overrides delta() and
    plain_factors() too, so that all three say the same change: saving and merging check that they do.
    """

    trained = "AB"  # a factor that is not named here is a buffer: nothing can unfreeze, decay or optimise it

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        check_settings(linear, rank, alpha, dropout)
        self.rank, self.alpha = rank, alpha
        self.scaling = alpha / rank
        self.strength = 1.0  # how much of what was learned is added: see scale()
        self.dropout = nn.Dropout(dropout)
        W = linear.weight.detach()  # (out, in)
        A, B = self.start(W.to(factor_dtype(W)))
        self.A = nn.Parameter(A) if "A" in self.trained else nn.Buffer(A)
        self.B = nn.Parameter(B) if "B" in self.trained else nn.Buffer(B)
        self.linear = linear.requires_grad_(False)
        self.train(linear.training)  # else dropout would be on in a model that is in eval mode

    def start(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """(A (rank, in), B (out, rank)) before training, in W's dtype and on its device. Subclasses override this.

        Here A is random and B = 0, so the product is 0 and the layer first computes exactly what `linear` does.
        """
        A = nn.init.kaiming_uniform_(torch.empty(self.rank, W.shape[1]), a=math.sqrt(5))  # as PEFT does
        return A.to(W), W.new_zeros(W.shape[0], self.rank)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # (..., out)
        if self.strength == 0:
            return y
        return y + (self.strength * self.scaling * self.update(x)).to(y.dtype)  # in y's dtype, adding 0 changes no bit

    def update(self, x: Tensor) -> Tensor:
        """What the factors make of x (..., in), before scaling: (x A^T) B^T, (..., out), in the factors' dtype."""
        return F.linear(F.linear(self.dropout(x).to(self.A.dtype), self.A), self.B)  # (..., in) -> rank -> out

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The change of the weight, strength * (alpha / rank) B A: (out, in), in the factors' dtype."""
        return self.strength * self.scaling * (self.B @ self.A)

    def plain_factors(self) -> tuple[Tensor, Tensor]:
        """(A (k, in), B (out, k)) with delta() = strength * scaling * B A, in the files' plain form; k = rank here."""
        return self.A.detach(), self.B.detach()

    def merged(self) -> nn.Linear:
        """A plain, frozen nn.Linear with weight W + delta(), added in float32 and rounded once to W's dtype."""
        W = self.linear.weight  # (out, in)
        linear = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")  # meta: the weight comes next
        linear.weight = nn.Parameter((W.to(self.A.dtype) + self.delta()).to(W.dtype), requires_grad=False)
        linear.bias = self.linear.bias
        return linear.train(self.training)


def factor_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for a float64 tensor, else float32: 16 bits are too few to add up small steps in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def check_settings(linear: nn.Module, rank: int, alpha: float, dropout: float) -> None:
    """Raise ValueError, in one sentence, for whatever keeps `linear` from being adapted with these settings."""
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"only an nn.Linear can be adapted, not {type(linear).__name__}")
    shape = tuple(linear.weight.shape)
    if not 1 <= rank <= min(shape):
        raise ValueError(f"rank {rank} does not fit a weight of shape {shape}: choose 1 to {min(shape)}")
    if not (0 < alpha < math.inf and 0 <= dropout < 1):
        raise ValueError(f"alpha is {alpha} and dropout {dropout}: alpha must be positive, dropout from 0 to below 1")
    if not linear.weight.is_meta and not all(end.isfinite() for end in linear.weight.aminmax()):  # meta: no numbers yet
        raise ValueError(f"a weight of shape {shape} holds NaN or infinity: load other weights")


# --- a whole model -----------------------------------------------------------------------------------------------------


def find_adapters(model: nn.Module) -> dict[str, LoRALayer]:
    """{full name: layer} of the model's adapted layers, in the model's order; empty where there is none."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALayer)}


def replace_linears(
    model: nn.Module, layer_class: type, rank: int, alpha: float, targets, dropout: float = 0.0, progress=iter
) -> list[str]:
    """Freeze the model and put layer_class(linear, rank, alpha, dropout) in place of each nn.Linear named in `targets`.

    targets: last parts of names ("q_proj", in every block) or full names ("layers.0.self_attn.q_proj").
    progress: wraps the list of linears, to show how far it is: some starts need a decomposition of each weight.
    Returns the full names of what was replaced. Raises ValueError for a target the model does not have, for settings
    that do not fit, and for a model that is already adapted; the model is then as it was.
    """
    if find_adapters(model):
        raise ValueError("the model is already adapted: merge its adapters first, or load the model again")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    last_parts = {name.rpartition(".")[2] for name in linears}  # "q_proj" of "layers.0.self_attn.q_proj"
    unknown = [target for target in targets if target not in last_parts and target not in linears]
    if unknown or not targets:
        problem = f"unknown target {', '.join(map(repr, unknown))}" if unknown else "no target is named"
        raise ValueError(f"{problem}: this model's linear layers are {', '.join(sorted(last_parts))}")
    chosen = {name: linear for name, linear in linears.items() if {name, name.rpartition(".")[2]} & set(targets)}
    for linear in chosen.values():  # all are checked before any is touched
        check_settings(linear, rank, alpha, dropout)

    layers = {name: layer_class(chosen[name], rank, alpha, dropout) for name in progress(list(chosen))}
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return list(layers)


def scale(model: nn.Module, strength: float) -> None:
    """Turn what the adapters learned up or down: W + strength * change. 0 is the untouched model, 1 is as trained."""
    for layer in find_adapters(model).values():
        layer.strength = strength


@contextmanager
def without_adapters(model: nn.Module):
    """While it lasts, every adapter adds nothing: the model is the untouched one, to the bit."""
    strengths = {layer: layer.strength for layer in find_adapters(model).values()}
    scale(model, 0.0)
    try:
        yield
    finally:
        for layer, strength in strengths.items():
            layer.strength = strength


@torch.no_grad()
def check_method(name: str, layer: LoRALayer) -> None:
    """Raise ValueError unless a layer's plain_factors(), delta() and forward() say the same change of its weight."""
    W, (A, B), training = layer.linear.weight, layer.plain_factors(), layer.training
    if hasattr(W, "to_local"):  # of a weight that several processes share this one has only a part
        return
    x = torch.randn(4, W.shape[1], generator=torch.Generator().manual_seed(0)).to(W)  # (4, in)
    y = layer.eval()(x)  # eval: without dropout
    layer.train(training)
    x, forward, scale = x.to(A), (y - layer.linear(x)).to(A), layer.strength * layer.scaling
    plain, delta = scale * (x @ A.T @ B.T), x @ layer.delta().T  # (4, out)
    rounding = 4 * torch.finfo(W.dtype).eps * y.to(A).norm() + 1e-4 * abs(scale) * x.norm() * A.norm() * B.norm()
    for one, other, methods in ((plain, delta, "plain_factors and delta"), (delta, forward, "delta and forward")):
        if (one - other).norm() > rounding:
            raise ValueError(f"{methods} of {type(layer).__name__} disagree ({name}): override both in the same sense")


def merge_adapters(model: nn.Module) -> list[str]:
    """Put layer.merged(), a plain nn.Linear, in place of every adapter; return their full names.

    The merged weights stay frozen like the rest of the model. Raises ValueError when there is nothing to merge, and for a
    method of your own that would be merged as another (check_method).
    """
    layers = find_adapters(model)
    if not layers:
        raise ValueError("the model has no adapters to merge")
    for name, layer in layers.items():
        check_method(name, layer)
    for name, layer in layers.items():  # one at a time, so that only one weight is held twice
        model.set_submodule(name, layer.merged())
    return list(layers)


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """(trained, all) numbers of parameters: a weight shared by two layers counts once, a frozen factor not at all."""
    parameters = list(model.parameters())  # without repeats; buffers are not among them
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
