import copy

import torch
from torch import nn

from lora import LoRALayer

REFERENCE = {"merged": LoRALayer.merged}


def different(layer):
    """In float64, in a copy of the layer's own linear."""
    linear = copy.deepcopy(layer.linear)
    total = layer.linear.weight.double() + layer.delta().double()
    linear.weight.data = total.to(linear.weight.dtype)
    return linear.train(layer.training)


def filled(layer):
    """A new linear, its numbers copied."""
    W = layer.linear.weight
    linear = nn.Linear(W.shape[1], W.shape[0], bias=layer.linear.bias is not None, dtype=W.dtype)
    with torch.no_grad():
        linear.weight.copy_(W + layer.delta())
        if linear.bias is not None:
            linear.bias.copy_(layer.linear.bias)
    linear.training = layer.training
    return linear.requires_grad_(False)


DIFFERENT = {"a copy, in float64": {"merged": different}, "copied in": {"merged": filled}}


def merged(weight=None, change_linear=None, start=None):
    """The reference, with another weight, or with something done to the linear at the end."""

    def merge(layer):
        if start:
            start(layer)
        linear = LoRALayer.merged(layer)
        if weight:
            linear.weight = nn.Parameter(weight(layer.linear.weight, layer.delta()).detach(), requires_grad=False)
        return change_linear(linear, layer) if change_linear else linear

    return {"merged": merge}


def in_place(layer):
    layer.linear.weight.data += layer.delta().to(layer.linear.weight.dtype)
    return layer.linear


def factors(layer):
    linear = LoRALayer.merged(layer)
    change = layer.alpha / layer.rank * (layer.B @ layer.A)
    linear.weight.data = (layer.linear.weight.to(change.dtype) + change).to(linear.weight.dtype)
    return linear


def without_bias(linear, layer):
    linear.bias = None
    return linear


def always_bias(linear, layer):
    if linear.bias is None:
        linear.bias = nn.Parameter(torch.zeros(linear.out_features), requires_grad=False)
    return linear


def trainable_bias(linear, layer):
    if linear.bias is not None:
        linear.bias.requires_grad_(True)
    return linear


def wide_bias(linear, layer):
    if linear.bias is not None and linear.weight.dtype == torch.bfloat16:
        linear.bias = nn.Parameter(linear.bias.float(), requires_grad=False)
    return linear


def exchanged(layer):
    linear = nn.Linear(*layer.linear.weight.shape, device="meta")
    reference = LoRALayer.merged(layer)
    linear.weight, linear.bias = reference.weight, reference.bias
    return linear.train(layer.training)


WRONG = {
    "a float32 bias": (merged(change_linear=wide_bias), "bfloat16"),
    "in and out exchanged": ({"merged": exchanged}, "in_features"),
    "added in place": ({"merged": in_place}, "own W"),
    "the change rounded first": (merged(lambda W, d: W + d.to(W.dtype)), "more than once"),
    "kept in float32": (merged(lambda W, d: W.to(d.dtype) + d), "cast back"),
    "not scaled": (merged(lambda W, d: (W.to(d.dtype) + d / 3).to(W.dtype)), "alpha / rank"),
    "subtracted": (merged(lambda W, d: (W.to(d.dtype) - d).to(W.dtype)), "W + layer.delta()"),
    "nothing added": (merged(lambda W, d: W.clone()), "nothing was added"),
    "B A instead of delta": ({"merged": factors}, "MiLoRA"),
    "no bias": (merged(change_linear=without_bias), "bias gets lost"),
    "a bias of its own": (merged(change_linear=always_bias), "without a bias"),
    "trainable": (merged(change_linear=lambda linear, layer: linear.requires_grad_(True)), "frozen"),
    "a trainable bias": (merged(change_linear=trainable_bias), "frozen"),
    "always in training mode": (merged(change_linear=lambda linear, layer: linear.train()), "mode"),
    "puts the layer into eval mode": (merged(start=lambda layer: layer.eval()), "mode"),
    "the layer itself": ({"merged": lambda layer: layer}, "plain nn.Linear"),
    "nothing returned": ({"merged": lambda layer: None}, "return"),
}
