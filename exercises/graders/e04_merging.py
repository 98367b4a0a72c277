"""Grades exercise 4: the merged linear and its output against float64, in every dtype, for several methods' layers."""

import numpy as np
import torch
from torch import nn

from exercises.graders.layers import linear_of
from exercises.grading import check_tensor, judge, kind_of, numpy, part, precision, require, same_bits
from lora import LoRALayer
from milora import MiLoRALayer

TITLE, MINUTES = "merging, rounded once", 15
SOLUTIONS = ["lora.py: LoRALayer.merged"]
LAYERS = {layer.__name__: layer for layer in (LoRALayer, MiLoRALayer)}


def merge(student, layer_class, W, b, factors, x, training=False):
    """What the student makes of a layer with these factors, and the layer as it is left."""
    layer = LAYERS[layer_class](linear_of(W, b), 4, 12).train(training)
    for name, factor in factors.items():
        getattr(layer, name).data = factor.clone()
    linear = student.merged(layer)
    said = {"kind": {"a": type(linear).__name__}}
    if type(linear) is nn.Linear:
        said |= {"new": linear is not layer.linear, "weight": linear.weight, "bias": linear.bias}
        said |= {"frozen": not any(p.requires_grad for p in linear.parameters()), "training": linear.training}
        said |= {"features": [linear.in_features, linear.out_features]}
        said |= {"y": linear(x) if {p.dtype for p in linear.parameters()} == {x.dtype} else None}
    left = {"W": layer.linear.weight, "training": layer.training} | {n: getattr(layer, n) for n in factors}
    return said, left


def case(layer_class="LoRALayer", dtype=torch.float32, bias=True, out=24, in_=40):
    """(layer_class, W, b, factors as training might leave them, x) and W' in float64 by NumPy."""
    wide = torch.promote_types(dtype, torch.float32)
    W, b = torch.randn(out, in_, dtype=dtype) / in_**0.5, torch.randn(out, dtype=dtype) if bias else None
    names = ("A", "B", "A0", "B0")[: 4 if layer_class == "MiLoRALayer" else 2]
    factors = {n: 0.1 * torch.randn(*((4, in_) if n[0] == "A" else (out, 4)), dtype=wide) for n in names}
    f = {name: numpy(factor) for name, factor in factors.items()}
    change = f["B"] @ f["A"] - (f["B0"] @ f["A0"] if "B0" in f else 0)
    return (layer_class, W, b, factors, torch.randn(5, in_, dtype=dtype)), numpy(W) + 3 * change


def merged(student, given, training=False):
    """What the student makes of a case; refused where it is no new linear, or where the layer has changed."""
    _, W, b, factors, _ = given
    said, left = student(merge, *given, training)
    require("weight" in said, f"your merged returns a {kind_of(said['kind'])}: it must be a plain nn.Linear")
    check_tensor(said["weight"], W.shape, "the merged weight")
    whole = torch.equal(left["W"], W) and all(torch.equal(left[name], factor) for name, factor in factors.items())
    require(whole and said["new"], "your merged changes the layer: make a new nn.Linear, others may share its own W")
    modes = {left["training"], said["training"]} == {training}
    require(modes, "the layer must stay in its mode, and the merged linear be in the same (.train(layer.training))")
    require(said["frozen"], "the merged linear is trainable: it must be frozen, like W")
    same = said["bias"] is None if b is None else said["bias"] is not None and same_bits(said["bias"], b)
    dtypes = [None if bias is None else bias.dtype for bias in (b, said["bias"])]
    require(same, "the bias is not as it was: its dtype was {} and is {}".format(*dtypes))
    swapped = f"in_features and out_features are {said['features']} for a weight (out, in) of {tuple(W.shape)}"
    require(said["features"] == [W.shape[1], W.shape[0]], swapped)
    return said


@part("merged", 7)
def check_merging(student):
    for name in LAYERS:
        for dtype in (torch.float32, torch.float64):
            given, right = case(name, dtype)
            said = merged(student, given)
            W, factors = numpy(given[1]), given[3]
            mistakes = {"alpha / rank is missing": W + (right - W) / 3}
            if name == "MiLoRALayer":
                whole = W + 3 * numpy(factors["B"]) @ numpy(factors["A"])
                mistakes |= {"MiLoRA also takes its start off: ask layer.delta()": whole}
            what = f"merging a {name} is not W + layer.delta()"
            judge(numpy(said["weight"]), right, what, mistakes, 100 * precision(dtype))
            y = numpy(given[4]) @ right.T + numpy(given[2])
            judge(numpy(said["y"]), y, "the merged linear computes something else than the layer", (), 1e-4)
    for dtype in (torch.bfloat16, torch.float16):
        given, right = case(dtype=dtype, out=64, in_=64)
        found = merged(student, given)["weight"]
        require(found.dtype == dtype, f"a W of {dtype} is merged into {found.dtype}: cast back to W's dtype")
        best = np.abs(numpy(torch.from_numpy(right).to(dtype)) - right)
        once = "add in the wider dtype, W.to(delta.dtype) + delta, and cast the sum"
        excess = (np.abs(numpy(found) - right) - best).max()
        require(excess <= 1e-5, f"a W of {dtype} is rounded more than once: {once}")
    given, _ = case(dtype=torch.bfloat16)
    given[3]["A"].zero_()
    require(same_bits(merged(student, given)["weight"], given[1]), "a change of zero does change bits of W")
    merged(student, case(bias=False)[0])
    merged(student, case()[0], training=True)
