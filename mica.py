"""MiCA, Minor Component Adaptation (arXiv 2604.01694): LoRA that writes only where the weight writes least.

Read lora.py first. MiCA is the same layer with another start: B is a fixed set of directions taken from the weight
itself, A starts at zero and is all that is trained. Below it are its ablations, which ask what of that matters.
"""

import torch
from torch import nn

from fast.subspace import major_components, minor_components
from lora import LoRALayer


def minor_directions(W, rank):
    """U[:, -rank:] of W = U S V^T: the directions (out, rank) that W (out, in) writes to most weakly, orthonormal.

    Of the *thin* SVD, with min(out, in) columns in U: for a tall W the full SVD's last columns are the left null space,
    which W never writes to at all. In float64, because small singular values drown in float32's rounding. Signs, and
    the order among equal singular values, are arbitrary: compare projectors B B^T, never vectors.
    """
    U, S, Vh = torch.linalg.svd(W.cpu().double(), full_matrices=False)  # (out, k), (k,), (k, in), largest S first
    return U[:, -rank:].to(W)  # to W's dtype and device


class MiCALayer(LoRALayer):
    """LoRA with B = U[:, -rank:] of W = U S V^T, frozen, and A = 0, trained (arXiv 2604.01694).

    Why the minor directions: large singular values carry what the model does with most inputs. Directions of the
    output that W hardly uses have room for something new, with the least disturbance of what is there.
    Why B is frozen: a trained B would drift away from these directions, and nothing would hold the update in them.
    So B is a buffer: it can be neither optimised nor decayed. It also leaves only rank * in numbers to train.
    Why A = 0: the product B A is zero, so the model starts out unchanged and nothing is subtracted from W. Training
    still starts at once: A's gradient is B^T times the output's gradient, and B is not zero. (With both factors zero
    both gradients would be zero, for ever.)
    Load the model's weights first: B is computed when the layer is made, and the minor directions of a randomly
    initialised weight say nothing about the pretrained one.
    """

    def init_factors(self, W):
        self.A = nn.Parameter(W.new_zeros(self.rank, W.shape[1]))
        self.B = nn.Buffer(self.directions(W))

    def directions(self, W):
        """B, (out, rank) with orthonormal columns."""
        return minor_components(W, self.rank)[0]  # minor_directions(W, self.rank), sooner


# --- ablations: MiCA with one thing changed ----------------------------------------------------------------------------


class MajorMiCALayer(MiCALayer):
    """B from the other end, the singular vectors of the largest singular values: is it the *minor* ones that matter?"""

    def directions(self, W):
        return major_components(W, self.rank)[0]


class RandomMiCALayer(MiCALayer):
    """B from singular vectors drawn at random, as in the paper's Figure 2: does it matter *which* ones?"""

    def directions(self, W):
        U = minor_directions(W, min(W.shape))  # all of them, since any may be drawn
        return U[:, torch.randperm(U.shape[1])[: self.rank]]


class OrthonormalMiCALayer(MiCALayer):
    """B a random orthonormal matrix, which knows nothing of W: do singular vectors matter at all?"""

    def directions(self, W):
        return torch.linalg.qr(torch.randn(W.shape[0], self.rank)).Q.to(W)


class TrainedMiCALayer(MiCALayer):
    """B starts in the minor directions but is trained too: does it matter that it stays there?"""

    def init_factors(self, W):
        self.A = nn.Parameter(W.new_zeros(self.rank, W.shape[1]))
        self.B = nn.Parameter(self.directions(W))


class TransposedMiCALayer(LoRALayer):
    """The mirror image: A holds the minor *right* singular vectors, frozen; B = 0 is trained. Reads where W reads least."""

    def init_factors(self, W):
        self.A = nn.Buffer(minor_components(W.T, self.rank)[0].T)  # U of W^T is V of W
        self.B = nn.Parameter(W.new_zeros(W.shape[0], self.rank))


class LoRAFALayer(LoRALayer):
    """LoRA whose random A stays as it starts (LoRA-FA, arXiv 2308.03303): must what is frozen know W at all?"""

    def init_factors(self, W):
        super().init_factors(W)
        A = self.A.detach()
        del self.A  # a parameter's name cannot become a buffer's
        self.A = nn.Buffer(A)
