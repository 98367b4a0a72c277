"""LoRALayer, the one layer every adapter here is made of, and what can be done with it to a whole model.

A large weight W is frozen and a small product of two factors learns what must change (LoRA, arXiv 2106.09685, eq. 3):

    y = W x + b + (alpha / rank) * B A x

Methods differ only in where A and B start and which of them is trained: see mica.py and milora.py for subclasses.
Load a model's weights first, then replace_linears(model, LoRALayer, ...), train, merge_adapters(model).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def factor_dtype(tensor):
    """float64 for a float64 tensor, else float32: 16 bits are too few to add up small steps in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def check_rank(rank, shape):
    """Raise ValueError unless a product of this rank fits a weight of this shape (out, in)."""
    if not 1 <= rank <= min(shape):
        raise ValueError(f"rank {rank} does not fit a weight of shape {tuple(shape)}: choose 1 to {min(shape)}")


def check_settings(linear, rank, alpha, dropout):
    """Raise ValueError, in one sentence, for whatever keeps `linear` from being adapted with these settings."""
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"only an nn.Linear can be adapted, not {type(linear).__name__}")
    check_rank(rank, linear.weight.shape)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}: it must be a positive number")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}: it must be at least 0 and less than 1")
    if not linear.weight.is_meta and not linear.weight.isfinite().all():  # a meta tensor has a shape but no numbers
        raise ValueError(f"a weight of shape {tuple(linear.weight.shape)} holds NaN or infinity: load other weights")


class LoRALayer(nn.Module):
    """y = linear(x) + (alpha / rank) * (x A^T) B^T, with `linear` frozen (LoRA, arXiv 2106.09685, eq. 3).

    linear: nn.Linear with weight W (out, in); rank: 1 to min(out, in); alpha: positive, divided by the rank so that the
    best learning rate hardly depends on the rank; dropout: share of the adapter's input set to zero while training.
    A (rank, in) and B (out, rank) are float32 (float64 for a float64 W). Raises ValueError for settings out of range.

    LoRA starts from a random A and B = 0: the product is 0, so the layer first computes exactly what `linear` does.
    A method whose factors do not start at zero says so in `subtracted`: their first values A0 and B0 are then kept, and

        y = linear(x) + (alpha / rank) * (B A - B0 A0) x

    which is training B A on the frozen weight W - (alpha / rank) B0 A0, without rounding that difference to W's dtype
    and without a second copy of W.
    """

    trained = ("A", "B")  # a factor not named here is a buffer, which no optimizer can reach
    subtracted = False  # is the product of the first factors taken off again?

    def __init__(self, linear, rank, alpha, dropout=0.0):
        super().__init__()
        check_settings(linear, rank, alpha, dropout)
        self.rank, self.alpha = rank, alpha
        self.dropout = nn.Dropout(dropout)
        W = linear.weight.detach()  # (out, in)
        for name, factor in zip("AB", self.initial_factors(W)):
            factor = factor.to(W.device, factor_dtype(W))
            if name in self.trained:
                self.register_parameter(name, nn.Parameter(factor))
            else:
                self.register_buffer(name, factor)
            if self.subtracted:
                self.register_buffer(f"{name}0", factor.clone())
        self.linear = linear.requires_grad_(False)
        self.train(linear.training)  # else dropout would be on in a model that is in eval mode

    def initial_factors(self, W):
        """The A (rank, in) and B (out, rank) to start from, for the weight W (out, in). Subclasses override this."""
        A = nn.init.kaiming_uniform_(torch.empty(self.rank, W.shape[1]), a=math.sqrt(5))  # as PEFT does
        B = torch.zeros(W.shape[0], self.rank)
        return A, B

    def forward(self, x):
        y = self.linear(x)  # (..., out)
        update = F.linear(F.linear(self.dropout(x).to(self.A.dtype), self.A), self.B)  # (..., in) -> rank -> out
        if self.subtracted:  # at the start the same numbers in the same order: the difference is exactly zero
            update = update - F.linear(F.linear(x.to(self.A.dtype), self.A0), self.B0)
        return y + (self.alpha / self.rank * update).to(y.dtype)  # y keeps its dtype: adding zeros changes nothing

    @torch.no_grad()
    def delta(self):
        """The change of the weight, (alpha / rank) (B A - B0 A0): (out, in), in the factors' float32 (or float64)."""
        product = self.B @ self.A
        return self.alpha / self.rank * (product - self.B0 @ self.A0 if self.subtracted else product)

    @torch.no_grad()
    def plain_factors(self):
        """(A, B) of the plain LoRA with the same change, at the same alpha / rank: (k, in) and (out, k).

        They are [A; A0] and [B, -B0], with k = 2 rank, where the start is subtracted; else A and B themselves.
        """
        if not self.subtracted:
            return self.A.detach(), self.B.detach()
        return torch.cat([self.A, self.A0]), torch.cat([self.B, -self.B0], dim=1)

    def merged(self):
        """A plain, frozen nn.Linear with weight W + delta(), added in float32 and rounded once to W's dtype."""
        W = self.linear.weight  # (out, in)
        linear = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")  # meta: the weight comes next
        linear.weight = nn.Parameter((W.to(self.A.dtype) + self.delta()).to(W.dtype), requires_grad=False)
        linear.bias = self.linear.bias
        return linear.train(self.training)


def find_adapters(model):
    """{full name: layer} of the model's adapted layers, in the model's order; empty where there is none."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALayer)}


def replace_linears(model, layer_class, rank, alpha, targets, dropout=0.0, progress=iter):
    """Freeze the model and put layer_class(linear, rank, alpha, dropout) in place of each nn.Linear named in `targets`.

    targets: last parts of names ("q_proj", in every block) or full names ("layers.0.self_attn.q_proj").
    progress: wraps the list of linears, to show how far it is: some starts need a decomposition of each weight.
    Returns the full names of what was replaced. Raises ValueError for a target the model does not have, for settings
    that do not fit, and for a model that is already adapted; the model is then as it was.
    """
    if find_adapters(model):
        raise ValueError("the model is already adapted: merge its adapters first, or load the model again")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    leaves = {name.rpartition(".")[2] for name in linears}  # "q_proj" of "layers.0.self_attn.q_proj"
    unknown = [target for target in targets if target not in leaves and target not in linears]
    if unknown or not targets:
        problem = f"unknown target {', '.join(map(repr, unknown))}" if unknown else "no target is named"
        raise ValueError(f"{problem}: this model's linear layers are {', '.join(sorted(leaves))}")
    chosen = {name: linear for name, linear in linears.items() if {name, name.rpartition(".")[2]} & set(targets)}
    for linear in chosen.values():  # all are checked before any is touched
        check_settings(linear, rank, alpha, dropout)

    layers = {name: layer_class(chosen[name], rank, alpha, dropout) for name in progress(list(chosen))}
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return list(layers)


def merge_adapters(model):
    """Put layer.merged(), a plain nn.Linear, in place of every adapter; return their full names.

    The merged weights stay frozen like the rest of the model. Raises ValueError when there is nothing to merge.
    """
    layers = find_adapters(model)
    if not layers:
        raise ValueError("the model has no adapters to merge")
    for name, layer in layers.items():  # one at a time, so that only one weight is held twice
        model.set_submodule(name, layer.merged())
    return list(layers)


def count_trainable(model):
    """(trained, all) numbers of parameters: a weight shared by two layers counts once, a frozen factor not at all."""
    parameters = list(model.parameters())  # without repeats; buffers are not among them
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
