"""MiCA and LoRA with one thing changed, a few lines each: what of MiCA's idea matters? Read mica.py first."""

import torch

from fast.subspace import major_components, minor_components
from lora import LoRALayer
from mica import MiCALayer, minor_directions


class MajorMiCALayer(MiCALayer):
    """B from the other end, the singular vectors of the largest singular values: is it the *minor* ones that matter?"""

    def start(self, W):
        return W.new_zeros(self.rank, W.shape[1]), major_components(W, self.rank)[0]


class RandomMiCALayer(MiCALayer):
    """B from singular vectors drawn at random, as in the paper's Figure 2: does it matter *which* ones?"""

    def start(self, W):
        U = minor_directions(W, min(W.shape))  # all of them, since any may be drawn
        return W.new_zeros(self.rank, W.shape[1]), U[:, torch.randperm(U.shape[1])[: self.rank]]


class OrthonormalMiCALayer(MiCALayer):
    """B a random orthonormal matrix, which knows nothing of W: do singular vectors matter at all?"""

    def start(self, W):
        B = torch.linalg.qr(torch.randn(W.shape[0], self.rank)).Q.to(W)
        return W.new_zeros(self.rank, W.shape[1]), B


class TrainedMiCALayer(MiCALayer):
    """B starts in the minor directions but is trained too: does it matter that it stays there?"""

    trained = "AB"


class TransposedMiCALayer(LoRALayer):
    """The mirror image: A holds the minor *right* singular vectors, frozen; B = 0 is trained. Reads where W reads least."""

    trained = "B"

    def start(self, W):
        A = minor_components(W.T, self.rank)[0].T  # U of W^T is V of W
        return A, W.new_zeros(W.shape[0], self.rank)


class LoRAFALayer(LoRALayer):
    """LoRA whose random A stays as it starts (LoRA-FA, arXiv 2308.03303): must what is frozen know W at all?"""

    trained = "B"
