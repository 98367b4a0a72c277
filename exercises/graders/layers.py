"""Scenes with the student's layers: run in the student's process (process.py), they say what a layer is and does there."""

from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch import nn

from exercises import NotWritten
from exercises.grading import Wrong, check_tensor, numpy, require, same_bits, weight
from lora import LoRALayer
from milora import MiLoRALayer

BASES = {"LoRALayer": LoRALayer, "MiLoRALayer": MiLoRALayer}  # whose start is to be written anew
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def linear_of(W, bias=None):
    linear = nn.Linear(W.shape[1], W.shape[0], bias=bias is not None, dtype=W.dtype)
    linear.weight.data = W.clone()
    if bias is not None:
        linear.bias.data = bias.clone()
    return linear


@contextmanager
def out_of_reach(cls, *names):
    """Within: who calls these methods of the project's own class is told to write them."""

    def refuse(*args, **kwargs):
        raise Wrong(f"{cls.__name__}'s {' and '.join(names)} are what you are to write: do not call them")

    with mock.patch.multiple(cls, **{name: refuse for name in names}):
        yield


def layer_of(student, name, W, rank, alpha):
    """The student's layer on W. Raises Wrong where its start does not return (A, B)."""
    cls = getattr(student, name)
    if cls.trained is ...:
        raise NotWritten

    def start(self, W):
        made = cls.start(self, W)
        pair = isinstance(made, (tuple, list)) and len(made) == 2 and all(isinstance(f, torch.Tensor) for f in made)
        require(pair, "your start must return (A, B), two tensors")
        return made

    return type(name, (cls,), {"start": start})(linear_of(W), rank, alpha)


def held(layer):
    """The factors of a layer, as tensors, and how it holds them."""
    factors = {name: getattr(layer, name, None) for name in "AB"}
    parameters = [name for name, factor in factors.items() if isinstance(factor, nn.Parameter)]
    trained = [name for name in parameters if factors[name].requires_grad]
    return factors | {"parameters": parameters, "trained": trained, "saved": list(layer.state_dict())}


def start(student, name, W, rank, alpha, seed=0, x=None, base=None, layers=1):
    """What `layers` fresh layers on W hold, made one after the other; with x, also what they make of it.

    base: name of the class whose start is the one to be written, so that it cannot be called.
    """
    torch.manual_seed(seed)
    if base is not None:
        kept = getattr(student, name).start is BASES[base].start
        require(not kept, f"start is still {base}'s own: put yours back into the class")
    with out_of_reach(BASES[base], "start") if base else nullcontext():
        made = [layer_of(student, name, W, rank, alpha) for _ in range(layers)]
    return [held(layer) | {"y": None if x is None else layer(x)} for layer in made]


def train(student, name, W, rank, alpha):
    """What a layer holds before and after everything in it was trained, by somebody who knows nothing of the layer."""
    layer = layer_of(student, name, W, rank, alpha)
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in held(layer).items()}
    layer.requires_grad_(True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        (layer(torch.randn(16, W.shape[1], dtype=W.dtype)) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, held(layer)


# --- checks, in the grader's process -----------------------------------------------------------------------------------


def check_factors(made, W, rank):
    """(A, B) in NumPy, if they have the right shapes and dtype."""
    for name, shape in (("A", (rank, W.shape[1])), ("B", (W.shape[0], rank))):
        factor = check_tensor(made[name], shape, f"your {name}")
        require(factor.dtype == W.dtype, f"your {name} is {factor.dtype} for a W of {W.dtype}: it must be of W's")
        require(factor.isfinite().all(), f"your {name} holds NaN or infinity: it was never filled")
    A, B = numpy(made["A"]), numpy(made["B"])
    require(A.any() or B.any(), "your A and B are both zero: so are both gradients, and nothing ever learns")
    return A, B


def check_no_op(student, name, alpha=8):
    """Whatever W's dtype, the fresh layer's output is the linear's to the bit."""
    for dtype in DTYPES:
        W, x = weight(30, 20, dtype), torch.randn(5, 20, dtype=dtype)
        y = student(start, name, W, 4, alpha, x=x)[0]["y"]
        same = isinstance(y, torch.Tensor) and same_bits(y, nn.functional.linear(x, W))
        require(same, f"with W in {dtype} your layer does not start as the linear it was")


def check_frozen(student, name, factor, trained):
    """Whatever is done to the layer, the frozen factor stays and is saved with it; the `trained` one moves."""
    before, after = student(train, name, weight(30, 20), 4, 8)
    parameter = f"your {factor} is a parameter, which anybody can unfreeze: make it an nn.Buffer"
    require(factor not in before["parameters"], parameter)
    require(factor in after["saved"], f"your {factor} is not saved with the layer: make it an nn.Buffer")
    require(torch.equal(before[factor], after[factor]), f"your {factor} drifts as the rest is trained")
    require(trained in before["trained"], f"your {trained} would not be trained: make it an nn.Parameter")
    require(not torch.equal(before[trained], after[trained]), f"your {trained} never moves: no gradient reaches it")
