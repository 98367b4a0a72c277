"""Exercise 3: frozen means frozen. MiCA is exercise 1's layer with another start, and one factor never moves.

Goal: write MiCA's start so that nothing can move B: no optimiser that is given all parameters, no weight decay, no
model.requires_grad_(True) by somebody who never read your code. Yet saving, loading and .to(device) must take it
along.

    B = U[:, -r:], frozen;  A = 0, trained                       MiCA, arXiv 2604.01694

LoRALayer does so for you: it makes a buffer of each factor that `trained` does not name. Here you do it by hand.

Shapes: W (out, in), self.A (rank, in), self.B (out, rank).

Measure before you look on: how much do `new/questions` (what it learns) and `old/never_asked` (what it keeps) change
if B is trained too? Guess, then:  python -m exercises 3 --measure     (1 to 2 minutes; it also compares with LoRA)
"""

import torch  # noqa: F401
from torch import nn  # noqa: F401

from ablations import TrainedMiCALayer
from exercises import NotWritten
from exercises.measuring import teach
from lora import LoRALayer, factor_dtype
from mica import minor_directions  # noqa: F401
from train import METHODS, Method


class MyMiCA(LoRALayer):
    def __init__(self, linear, rank, alpha, dropout=0.0):
        super().__init__(linear, rank, alpha, dropout)
        del self.A, self.B  # LoRALayer's own
        W = linear.weight.detach()
        self.init_factors(W.to(factor_dtype(W)))

    def init_factors(self, W):
        """Set self.A and self.B, of W's dtype, W being (out, in); minor_directions may also be yours, of e02_directions."""
        raise NotWritten


# Which factors have a gradient other than zero at the very first step? Of each write "A", "B", "AB" or "" (neither).
FIRST_GRADIENTS = {
    "LoRA: A random, B = 0, both trained": ...,
    "A = 0, B = U[:, -r:], both trained": ...,
    "A = 0, B = 0, both trained": ...,
}


def measure():
    teach({"mine": Method(MyMiCA, 2e-2), "B trained": Method(TrainedMiCALayer, 7e-3), "lora": METHODS["lora"]})
