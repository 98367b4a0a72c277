"""MiLoRA (arXiv 2406.09044) and its mirror PiSSA (arXiv 2404.02948): LoRA that starts from a part of the weight itself.

Read lora.py first. Both split W = U S V^T into `rank` of its components, which are trained as B A, and the rest, which
is frozen. MiLoRA trains the minor components and so means to keep what the major ones know; PiSSA trains the major
components, where the weight does most.

Their product does not start at zero, so the start, A0 and B0, is kept and taken off again:

    y = linear(x) + (alpha / rank) * (B A - B0 A0) x

This is training B A on the frozen weight W - (alpha / rank) B0 A0, as the papers say it, without rounding that difference
to W's dtype and without a second copy of W.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fast.subspace import major_components, minor_components
from lora import LoRALayer


class MiLoRALayer(LoRALayer):
    """LoRA with B = U_m sqrt(S_m) and A = sqrt(S_m) V_m^T, the minor components, both trained (arXiv 2406.09044).

    S is divided by alpha / rank first, so that (alpha / rank) B A is those components of W.
    """

    def __init__(self, linear, rank, alpha, dropout=0.0):
        super().__init__(linear, rank, alpha, dropout)
        self.A0, self.B0 = nn.Buffer(self.A.detach().clone()), nn.Buffer(self.B.detach().clone())

    def start(self, W):
        U, S, V = self.components(W)  # (out, rank), (rank,), (in, rank)
        root = (S / self.scaling).sqrt()  # (rank,)
        return root[:, None] * V.T, U * root  # (rank, in), (out, rank)

    def components(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The `rank` columns of U and V, with their S, that are trained."""
        return minor_components(W, self.rank)

    def update(self, x):
        # At the start the same numbers in the same order (but for dropout): the difference is exactly zero.
        return super().update(x) - F.linear(F.linear(x.to(self.A0.dtype), self.A0), self.B0)

    @torch.no_grad()
    def delta(self):
        return self.strength * self.scaling * (self.B @ self.A - self.B0 @ self.A0)

    @torch.no_grad()
    def plain_factors(self):
        """([A; A0], [B, -B0]): the difference of two products is one product of twice the rank."""
        return torch.cat([self.A, self.A0]), torch.cat([self.B, -self.B0], dim=1)


class PiSSALayer(MiLoRALayer):
    """The same with the major components: B = U_p sqrt(S_p), A = sqrt(S_p) V_p^T (arXiv 2404.02948)."""

    def components(self, W):
        return major_components(W, self.rank)
