"""Exercise 1: the layer. A frozen linear and two thin factors beside it; at the start not one bit changes.

Goal: write LoRALayer's start and its forward pass, for a linear of any dtype.

    y = W x + b + (alpha / rank) * B A x                         LoRA, arXiv 2106.09685, eq. 3

Shapes: x (..., in), self.linear.weight W (out, in), self.A (rank, in), self.B (out, rank), y (..., out). self.rank,
self.alpha, self.linear and self.dropout (an nn.Dropout for the input of A, and for nothing else) are there.

What makes it an exercise: the linear's weight may be bfloat16. The W that the start is given is then widened to
float32 already, A and B are float32 as it is, and x is bfloat16. Under autocast the linear's output has another dtype
than x. Always the factors are used as they are, y has the dtype of the linear's output, and with B = 0 it is the
linear's output to the bit. Gradients flow to A, to B and, through both paths, to x.

Measure before you look on: why are the factors not bfloat16 too, if W is? A is about 0.1 large. Take 1000 steps of
size 0.0001 in float32 and in bfloat16: how far has it moved?  python -m exercises 1 --measure
"""

import torch
from torch import nn  # noqa: F401

from exercises import NotWritten
from lora import LoRALayer


class MyLoRA(LoRALayer):  # the rest is LoRALayer's, whose start, forward and update may not be called here
    def start(self, W):
        """(A, B) as they begin, tensors of W's dtype, W being (out, in): the layer makes parameters of them.

        A is random, drawn around zero and about 1 / sqrt(in) large; B is zero.
        """
        raise NotWritten

    def forward(self, x):
        """x (..., in) -> y (..., out)."""
        raise NotWritten


def measure():
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.tensor(0.1, dtype=dtype)
        for _ in range(1000):
            a -= 1e-4
        print(f"{dtype}: from 0.1 to {a.item():.4f} in 1000 steps of 0.0001")
