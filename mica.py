"""MiCA, Minor Component Adaptation (arXiv 2604.01694): LoRA that writes only where the weight writes least.

Read lora.py first. MiCA is the same layer with another start: B is a fixed set of directions taken from the weight
itself, A starts at zero and is all that is trained. Below it are its ablations, which ask what of that matters, and
the search for the directions.
"""

import torch

from lora import LoRALayer, check_rank, factor_dtype


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

    trained = ("A",)

    def initial_factors(self, W):
        return torch.zeros(self.rank, W.shape[1]), self.directions(W)

    def directions(self, W):
        """B, (out, rank) with orthonormal columns."""
        return minor_subspace(W, self.rank)


# --- ablations: MiCA with one thing changed ---


class MajorMiCALayer(MiCALayer):
    """B from the other end, the singular vectors of the largest singular values: is it the *minor* ones that matter?"""

    def directions(self, W):
        return major_components(W, self.rank)[0]


class RandomMiCALayer(MiCALayer):
    """B from singular vectors drawn at random, as in the paper's Figure 2: does it matter *which* ones?"""

    def directions(self, W):
        U = thin_svd(W)[0]  # (out, min(out, in)); any of them may be drawn, so all are computed
        return U[:, torch.randperm(U.shape[1])[: self.rank].to(U.device)]


class OrthonormalMiCALayer(MiCALayer):
    """B a random orthonormal matrix, which knows nothing of W: do singular vectors matter at all?"""

    def directions(self, W):
        return torch.linalg.qr(torch.randn(W.shape[0], self.rank)).Q


class TrainedMiCALayer(MiCALayer):
    """B starts in the minor directions but is trained too: does it matter that it stays there?"""

    trained = ("A", "B")


class TransposedMiCALayer(LoRALayer):
    """The mirror image: A holds the minor *right* singular vectors, frozen; B = 0 is trained. Reads where W reads least."""

    trained = ("B",)

    def initial_factors(self, W):
        return minor_subspace(W.T, self.rank).T, torch.zeros(W.shape[0], self.rank)


# --- singular vectors ---


def thin_svd(W):
    """U (out, k), S (k) and V (in, k) of W = U S V^T, k = min(out, in), largest singular value first."""
    source = W.cpu() if W.device.type == "mps" else W  # mps has no float64
    U, S, Vh = torch.linalg.svd(source.double(), full_matrices=False)
    return tuple(factor.to(W.device, factor_dtype(W)) for factor in (U, S, Vh.T))


@torch.no_grad()
def minor_components(W, rank):
    check_rank(rank, W.shape)
    return tuple(factor[..., -rank:].contiguous() for factor in thin_svd(W))


@torch.no_grad()
def major_components(W, rank):
    check_rank(rank, W.shape)
    return tuple(factor[..., :rank].contiguous() for factor in thin_svd(W))


def minor_subspace(W, rank):
    """The left singular vectors of W's smallest singular values: (out, in) -> (out, rank), orthonormal columns.

    Of the *thin* SVD, W = U S V^T with min(out, in) columns in U: for a tall W the full SVD's last columns are the
    left null space, which W never writes to, instead of the directions it writes to most weakly.
    Computed in float64, because neighbouring small singular values are close together; returned in float32 (float64
    for a float64 W), on W's device. Signs, and the order among equal singular values, are arbitrary: compare
    projectors B B^T, never vectors. Raises ValueError for a rank below 1 or above min(out, in).
    """
    return minor_components(W, rank)[0]
