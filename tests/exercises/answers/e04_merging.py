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


def weight(function):
    """The reference with another weight: function(W, delta)."""

    def merge(layer):
        linear = LoRALayer.merged(layer)
        W = function(layer.linear.weight, layer.delta()).detach()
        linear.weight = nn.Parameter(W, requires_grad=False)
        return linear

    return {"merged": merge}


def then(function):
    """The reference, and then something done: function(linear, layer)."""

    def merge(layer):
        linear = LoRALayer.merged(layer)
        return function(linear, layer) or linear

    return {"merged": merge}


def bias(function):
    def change(linear, layer):
        value = function(linear)
        linear.bias = None if value is None else nn.Parameter(value, requires_grad=False)

    return then(change)


def in_place(linear, layer):
    layer.linear.weight.data += layer.delta().to(layer.linear.weight.dtype)
    return layer.linear


def factors(linear, layer):
    change = layer.alpha / layer.rank * (layer.B @ layer.A)
    linear.weight.data = (layer.linear.weight.to(change.dtype) + change).to(linear.weight.dtype)


def exchanged(linear, layer):
    linear.in_features, linear.out_features = linear.out_features, linear.in_features


WRONG = {
    "a float32 bias": (bias(lambda linear: linear.bias if linear.bias is None else linear.bias.float()), "dtype"),
    "no bias": (bias(lambda linear: None), "bias"),
    "a bias of its own": (bias(lambda linear: torch.zeros(linear.out_features)), "bias"),
    "in and out exchanged": (then(exchanged), "in_features"),
    "added in place": (then(in_place), "own W"),
    "the change rounded first": (weight(lambda W, d: W + d.to(W.dtype)), "more than once"),
    "kept in float32": (weight(lambda W, d: W.to(d.dtype) + d), "cast back"),
    "not scaled": (weight(lambda W, d: (W.to(d.dtype) + d / 3).to(W.dtype)), "alpha / rank"),
    "nothing added": (weight(lambda W, d: W.clone()), "no mistake that is known"),
    "B A instead of delta": (then(factors), "MiLoRA"),
    "trainable": (then(lambda linear, layer: linear.requires_grad_(True)), "frozen"),
    "always in training mode": (then(lambda linear, layer: linear.train()), "mode"),
    "puts the layer into eval mode": (then(lambda linear, layer: layer.eval() and linear), "mode"),
    "the layer itself": (then(lambda linear, layer: layer), "plain nn.Linear"),
    "nothing returned": ({"merged": lambda layer: None}, "plain nn.Linear"),
}
