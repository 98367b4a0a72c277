"""Exercise 10: a method of your own, on the frontier. How much of what a method learns is due to its directions?

Goal: MiCA's mirror image, mica-transposed, reads along W's minor right singular vectors (A, frozen) and trains B.
Write the same with directions that know nothing of W, and measure the difference as one should: with seeds, and an
interval.

    A random and frozen, B = 0 and trained                       compare LoRA-FA, arXiv 2308.03303; mica.py
    the 95% interval of a mean of n differences d:  mean +- t s / sqrt(n), s^2 = sum (d - mean)^2 / (n - 1), and t the 97.5%
    point of Student's distribution with n - 1 degrees of freedom (scipy.stats.t)
    Picture: pictures/frontier.png

Shapes: W (out, in); A (rank, in), with orthonormal rows, as mica-transposed's; B (out, rank). `trained` names the factors
that are trained: "A", "B" or "AB". The layer makes buffers of the others.

Measure before you look on, and predict before you measure: how many points of `new/questions` will your method be
above (or below) mica-transposed, on the mean of five seeds? Write whole points into PREDICTION first, then:
python -m exercises 10 --measure      (5 minutes of one core; writes nothing)
"""

import torch  # noqa: F401

from exercises import NotWritten
from exercises.measuring import five_seeds
from lora import LoRALayer


class RandomReader(LoRALayer):
    trained = ...

    def start(self, W):
        """(A, B) as they begin, of W's dtype: for each layer and torch.manual_seed another A, with orthonormal rows."""
        raise NotWritten


def interval(differences):
    """(mean, low, high): the mean of a list of paired differences, and its 95% interval by Student's t."""
    raise NotWritten


PREDICTION = ...  # points of new/questions, your method minus mica-transposed; graded for being written down


def measure():
    five_seeds(RandomReader, interval, PREDICTION)
