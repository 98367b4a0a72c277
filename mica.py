"""MiCA, Minor Component Adaptation (arXiv 2604.01694): LoRA that writes only where the weight writes least.

Read lora.py first. MiCA is the same layer with another start: B is a fixed set of directions taken from the weight
itself, A starts at zero and is all that is trained. ablations.py asks what of that matters.
"""

import torch
from torch import Tensor

from fast.subspace import minor_components
from lora import LoRALayer


def minor_directions(W: Tensor, rank: int) -> Tensor:
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
    It also leaves only rank * in numbers to train.
    Why A = 0: the product B A is zero, so the model starts out unchanged and nothing is subtracted from W. Training
    still starts at once: A's gradient is B^T times the output's gradient, and B is not zero. (With both factors zero
    both gradients would be zero, for ever.)
    Load the model's weights first: B is computed when the layer is made, and the minor directions of a randomly
    initialised weight say nothing about the pretrained one.
    """

    trained = "A"

    def start(self, W: Tensor) -> tuple[Tensor, Tensor]:
        B = minor_components(W, self.rank)[0]  # minor_directions(W, self.rank), sooner
        return W.new_zeros(self.rank, W.shape[1]), B  # (rank, in), (out, rank)
