"""Which directions? What a frozen factor may reach, in nine ways, on the toy. Fixed before its first judged run: DESIGNS.md.

MiCA's premise is that the directions which W writes to least are those to learn in. So B stands at six places along W's
spectrum, at none (random), and where the layer's *outputs* vary least; A where its *inputs* do (LoRA-Null, arXiv 2503.02659);
and a whole LoRA is kept off W's major directions on both sides (OPLoRA, 2510.13003).

What varies is measured on text that the untouched model writes itself, not on what forgetting is measured with.
"""

from dataclasses import replace

import torch
from torch import nn

from corpus import pack
from fast.subspace import major_components
from lora import LoRALayer
from mica import MiCALayer, minor_directions
from rehearsal import own_text
from study.design import Arm
from study.toy import STRENGTHS, both_rates
from train import METHODS, Method

PLACES = (0.2, 0.4, 0.6, 0.8)  # along the singular values, largest first: at 0 stands mica-major, at 1 mica
MOMENTS = {}  # {a weight's address: X^T X (in, in) of its inputs X (tokens, in)}, float64; measure_moments fills it


class PlacedMiCALayer(MiCALayer):
    """B from neighbouring left singular vectors of W anywhere between its major (place 0) and its minor ones (1)."""

    place = 1.0

    def start(self, W):
        U = minor_directions(W, min(W.shape))  # (out, k), all of them
        first = round(self.place * (U.shape[1] - self.rank))
        return W.new_zeros(self.rank, W.shape[1]), U[:, first : first + self.rank]


class QuietOutputLayer(MiCALayer):
    """B: where the layer's outputs W x vary least, among the directions that W writes to at all."""

    def start(self, W):
        U = minor_directions(W.double(), min(W.shape))  # (out, k)
        variances = U.T @ W.double() @ MOMENTS[W.data_ptr()] @ W.double().T @ U  # (k, k)
        B = U @ torch.linalg.eigh(variances).eigenvectors[:, : self.rank]  # smallest first
        return W.new_zeros(self.rank, W.shape[1]), B.to(W)


class QuietInputLayer(LoRALayer):
    """A: where the layer's inputs vary least, frozen; B = 0 is trained (as LoRA-Null's, arXiv 2503.02659)."""

    trained = "B"

    def start(self, W):
        A = torch.linalg.eigh(MOMENTS[W.data_ptr()]).eigenvectors[:, : self.rank].T
        return A.to(W), W.new_zeros(W.shape[0], self.rank)


class OPLoRALayer(LoRALayer):
    """LoRA whose change is (I - U U^T) (alpha / rank) B A (I - V V^T), U and V W's `kept` major directions (2510.13003)."""

    kept = 32

    def __init__(self, linear, rank, alpha, dropout=0.0):
        super().__init__(linear, rank, alpha, dropout)
        U, _, V = major_components(linear.weight.detach(), self.kept)
        self.U, self.V = nn.Buffer(U), nn.Buffer(V)  # (out, kept), (in, kept)

    def update(self, x):
        y = super().update(x - x @ self.V @ self.V.T)
        return y - y @ self.U @ self.U.T

    def plain_factors(self):
        A, B = super().plain_factors()
        return A - A @ self.V @ self.V.T, B - self.U @ (self.U.T @ B)

    def delta(self):
        A, B = self.plain_factors()
        return self.strength * self.scaling * (B @ A)


@torch.no_grad()
def measure_moments(base, tokenizer, tokens=20_000):
    """Fill MOMENTS for the linears in the blocks of `base`, on text of its own."""
    ids = [tokenizer.encode(text) for text in own_text(base, tokenizer, tokens)]

    def listen(linear, given, _):
        X = given[0].flatten(0, -2).double()  # (tokens, in)
        MOMENTS[linear.weight.data_ptr()] = MOMENTS.get(linear.weight.data_ptr(), 0) + X.T @ X

    linears = [module for module in base.layers.modules() if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_hook(listen) for linear in linears]
    seq_len = min(128, base.config.context_length)
    for x in pack(ids, tokenizer.eot_id, seq_len, tokenizer.bos_id)[0].split(16):
        base(x)
    for hook in hooks:
        hook.remove()


LAYERS = {f"B at {place:g}": type("Placed", (PlacedMiCALayer,), {"place": place}) for place in PLACES}
LAYERS |= {"quiet outputs": QuietOutputLayer, "quiet inputs": QuietInputLayer, "oplora": OPLoRALayer}


def get_ready(base, tokenizer):
    """Once in each process that trains: train.py offers none of these methods, and some must hear text first."""
    if not MOMENTS:
        METHODS.update({name: Method(layer, 2e-2) for name, layer in LAYERS.items()})
        measure_moments(base, tokenizer)


PLACED = [name for name in LAYERS if name.startswith("B at")]
FROZEN_B = ("mica", "mica-major", *PLACED, "mica-orthonormal", "quiet outputs")
DIRECTIONS = replace(
    STRENGTHS,
    arms=(
        Arm("untouched", None),
        *(Arm(name, name, 2e-2, at=(2e-2, 5e-2, 7e-3)) for name in FROZEN_B),
        *(both_rates(name, 2e-2, 5e-2) for name in ("quiet inputs", "lora-fa")),
        *(both_rates(name, 7e-3, 1.5e-2) for name in ("oplora", "lora")),
    ),
    pairs=(
        ("mica", "B at 0.6"),
        *((name, "mica") for name in FROZEN_B if name not in ("mica", "B at 0.6")),
        ("quiet inputs", "lora-fa"),
        ("quiet inputs", "quiet outputs"),
        ("oplora", "lora"),
    ),
    main=(*FROZEN_B, "quiet inputs", "lora-fa", "oplora", "lora"),
    get_ready=get_ready,
    name="directions",
)
