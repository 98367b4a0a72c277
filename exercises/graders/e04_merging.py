"""Grades exercise 4: the merged weight against float64, in 32, 64 and 16 bits, for layers of several methods."""

import numpy as np
import torch
from torch import nn

from exercises.grading import numpy, require, same_bits
from lora import LoRALayer
from mica import MiCALayer
from milora import MiLoRALayer


def trained(layer_class, dtype=torch.float32, bias=True, dropout=0.0, shape=(24, 40)):
    """A layer with factors as training might leave them."""
    torch.manual_seed(0)
    layer = layer_class(nn.Linear(shape[1], shape[0], bias=bias, dtype=dtype), 4, 12, dropout)
    layer.A.data = 0.1 * torch.randn_like(layer.A)
    if isinstance(layer.B, nn.Parameter):
        layer.B.data = 0.1 * torch.randn_like(layer.B)
    return layer


def wanted(layer):
    """W' in float64, by NumPy."""
    change = numpy(layer.B) @ numpy(layer.A)
    if hasattr(layer, "B0"):
        change -= numpy(layer.B0) @ numpy(layer.A0)
    return numpy(layer.linear.weight) + layer.alpha / layer.rank * change


def merging(student):
    """merged."""
    layer = trained(LoRALayer)
    W, A = layer.linear.weight.detach().clone(), layer.A.detach().clone()
    linear = student.merged(layer)
    require(linear is not None, "your merged returns nothing: return the new nn.Linear")
    require(type(linear) is nn.Linear, f"your merged returns a {type(linear).__name__}: it must be a plain nn.Linear")
    require(
        torch.equal(layer.linear.weight, W),
        "your merged changes the layer's own W: others may share it, so add out of place",
    )
    require(
        torch.equal(layer.A, A) and linear is not layer.linear,
        "your merged changes the layer itself: make a new nn.Linear",
    )
    require(
        tuple(linear.weight.shape) == (24, 40),
        f"the new weight has the shape {tuple(linear.weight.shape)}, not (out, in)",
    )
    for layer_class in (LoRALayer, MiCALayer, MiLoRALayer):
        for dtype in (torch.float32, torch.float64):
            layer = trained(layer_class, dtype)
            linear, expected = student.merged(layer), wanted(layer)
            require(
                linear.weight.dtype == dtype,
                f"a W of {dtype} is merged into {linear.weight.dtype}: cast back to W's dtype",
            )
            error = np.abs(numpy(linear.weight) - expected).max()
            if error > 100 * torch.finfo(dtype).eps:
                change = expected - numpy(layer.linear.weight)
                unscaled = np.allclose(numpy(linear.weight), expected - 2 / 3 * change, atol=1e-5)
                none = np.allclose(numpy(linear.weight), expected - change, atol=1e-5)
                why = "alpha / rank is missing" if unscaled else "nothing was added to W" if none else "it is off"
                why = why if layer_class is not MiLoRALayer else "MiLoRA also takes its start off: ask layer.delta()"
                require(False, f"merging a {layer_class.__name__} is not W + layer.delta(): {why}")
    rounded_once(student)
    for bias in (True, False):
        layer = trained(LoRALayer, bias=bias)
        linear = student.merged(layer)
        kept = (
            linear.bias is None if not bias else linear.bias is not None and torch.equal(linear.bias, layer.linear.bias)
        )
        require(kept, "the bias gets lost in merging" if bias else "a linear without a bias gets one in merging")
        require(
            not any(p.requires_grad for p in linear.parameters()),
            "the merged linear is trainable: it must be frozen, like W",
        )
    for training in (True, False):
        layer = trained(LoRALayer, dropout=0.5).train(training)
        linear = student.merged(layer)
        require(layer.training == training, "your merged leaves the layer in another mode than it was in")
        require(linear.training == training, "the merged linear is not in the layer's mode (.train(layer.training))")
        layer.eval()
        x = torch.randn(5, 40)
        require(
            torch.allclose(linear(x), layer(x), atol=1e-4), "the merged linear computes something else than the layer"
        )


def rounded_once(student):
    for dtype in (torch.bfloat16, torch.float16):
        layer = trained(LoRALayer, dtype, shape=(64, 64))
        weight, expected = student.merged(layer).weight, wanted(layer)
        require(weight.dtype == dtype, f"a W of {dtype} is merged into {weight.dtype}: cast back to W's dtype")
        best = np.abs(numpy(torch.from_numpy(expected).to(dtype)) - expected)
        excess = (np.abs(numpy(weight) - expected) - best).max()
        require(
            excess <= 1e-5,
            f"a W of {dtype} is rounded more than once: add in the wider dtype, W.to(delta.dtype) + delta, and cast the sum",
        )
    layer = trained(LoRALayer, torch.bfloat16)
    layer.A.data.zero_()
    require(same_bits(student.merged(layer).weight, layer.linear.weight), "a change of zero does change bits of W")
