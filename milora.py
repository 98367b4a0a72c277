"""MiLoRA (arXiv 2406.09044) and its mirror PiSSA (arXiv 2404.02948): LoRA that starts from a part of the weight itself.

Read lora.py first. Both split W = U S V^T into `rank` of its components, which are trained as B A, and the rest, which
is frozen. MiLoRA trains the minor components and so means to keep what the major ones know; PiSSA trains the major
components, where the weight does most.
"""

from lora import LoRALayer
from mica import major_components, minor_components


class MiLoRALayer(LoRALayer):
    """LoRA with B = U_m sqrt(S_m) and A = sqrt(S_m) V_m^T, the minor components, both trained (arXiv 2406.09044).

    S is divided by alpha / rank first, so that (alpha / rank) B A is those components of W. It is subtracted again, so
    the layer first computes exactly what `linear` does.
    """

    subtracted = True
    part_of = staticmethod(minor_components)

    def initial_factors(self, W):
        U, S, V = self.part_of(W, self.rank)  # (out, rank), (rank), (in, rank)
        root = (S * self.rank / self.alpha).sqrt()
        return root[:, None] * V.T, U * root


class PiSSALayer(MiLoRALayer):
    """The same with the major components: B = U_p sqrt(S_p), A = sqrt(S_p) V_p^T (arXiv 2404.02948)."""

    part_of = staticmethod(major_components)
