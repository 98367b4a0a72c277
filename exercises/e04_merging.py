"""Exercise 4: merging. After training, the adapter disappears into the weight.

Goal: turn a trained layer into a plain, frozen nn.Linear that computes the same.

    W' = W + (alpha / rank) B A, rounded once to W's dtype       LoRA, arXiv 2106.09685, section 4.1

Shapes: layer.linear.weight W (out, in), perhaps bfloat16; layer.delta(), the change of whatever method made the
layer, (out, in), in the factors' dtype; layer.linear.bias, (out,) or None.

Rounded once: add in the wider of the two dtypes, then cast. The model it came from may still be used with other
adapters, so W stays as it is.

Measure before you look on: a change is 1%, 0.1% or 0.01% of W's size, and W is bfloat16. How much of the change
survives merging? And how much worse is it to round the change first?  python -m exercises 4 --measure
"""

import torch
from torch import nn  # noqa: F401

from exercises import NotWritten


def merged(layer):
    """A LoRALayer (or a layer of any subclass) -> an nn.Linear, frozen, in the layer's mode (training or eval)."""
    raise NotWritten


def measure():
    torch.manual_seed(0)
    W = (0.1 * torch.randn(512, 512)).bfloat16()
    for size in (1e-2, 1e-3, 1e-4):
        change = size * 0.1 * torch.randn(512, 512)
        exact = W.double() + change.double()
        ways = {"once": (W.float() + change).bfloat16(), "twice": W + change.bfloat16()}
        for name, result in ways.items():
            error = ((result.double() - exact).norm() / change.norm()).item()
            kept = 100 * ((result.double() - W.double()) * change).sum() / change.square().sum()
            print(f"change {size:g} of W, rounded {name:5}: error {error:.3f} of the change, {kept:.1f}% of it kept")
