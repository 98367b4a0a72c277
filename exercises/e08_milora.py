"""Exercise 8: a start from the weight itself. MiLoRA trains the minor components of W.

Goal: write MiLoRA's start, so that (alpha / rank) B A is exactly the part of W that goes with its smallest singular
values.

    B = U_m sqrt(S_m), A = sqrt(S_m) V_m^T, with S_m the rank smallest values        MiLoRA, arXiv 2406.09044, eq. 4 and 5
    y = linear(x) + (alpha / rank) (B A - B0 A0) x                                    milora.py

Shapes: W (out, in); self.components(W) gives U_m (out, rank), S_m (rank,), V_m (in, rank); A (rank, in), B (out, rank).
The layer keeps a copy of the start as A0 and B0, whatever happens to A and B.

The papers do not have the factor alpha / rank in that place. To have it and still start with that part of W, S_m has
to be divided by something first.

Measure before you look on: how large is what is taken off, beside the part of W it stands for, if S is not divided,
at alpha = 8, 16, 32 and rank 8?  python -m exercises 8 --measure
"""

import torch

from exercises import NotWritten
from exercises.measuring import base_model
from milora import MiLoRALayer


class MyMiLoRA(MiLoRALayer):  # its update already subtracts B0 A0; its start may not be called
    def start(self, W):
        """(A, B) as they begin, of W's dtype."""
        raise NotWritten


def left_over(s, alpha, rank):
    """If S were *not* divided: what singular value would W - (alpha / rank) B0 A0 have in place of W's value s?

    May be negative. (With the division it is 0: the component is gone from the frozen part.)
    """
    raise NotWritten


def measure():
    linear = base_model()[0].layers[0].self_attn.q_proj
    U, S, V = MiLoRALayer(linear, 8, 8).components(linear.weight.detach())
    for alpha in (8, 16, 32):
        layer = MyMiLoRA(linear, 8, alpha)
        mine = alpha / 8 * torch.linalg.svdvals((layer.B0 @ layer.A0).double())[0]
        undivided = alpha / 8 * S[0]
        print(f"alpha {alpha:2}: W's largest minor value {S[0]:.4f}; taken off {mine:.4f}, undivided {undivided:.4f}")
