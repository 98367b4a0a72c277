"""Exercise 12: where dW lands. What did training change, beside what was there?

Goal: three measures of a learned change dW of a weight W, and what they say of your own run.

    amplification = ||U^T dW V||_F / ||U^T W V||_F, U and V the first r left and right singular vectors of *dW*
    similarity    = ||A^T B||_F^2 / r of two orthonormal bases of r columns: 1 for one space, 0 at right angles
                                             LoRA, arXiv 2106.09685, section 7 and appendix G; MiLoRA, arXiv 2406.09044
    outside       = ||dW - P dW||_F^2 / ||dW||_F^2, P the projection onto the span of B's columns

Shapes: W, dW (out, in); two bases (n, r), orthonormal; B (out, r), *not* orthonormal in general.

A derivation, checked numerically: dW = (alpha / rank) B A. What is outside(dW, B), for every A? And for MiCA, how
much of dW lies outside the minor directions then, before, during and after training?

Measure before you look on: of a LoRA and a MiCA that you train now, which dW leans to W's major directions, on which
side? And how large is the amplification?  python -m exercises 12 --measure      (1 minute)
"""

import torch  # noqa: F401

from exercises import NotWritten
from exercises.measuring import landings


def amplification(W, dW, rank):
    """How many times larger the change is than what W itself does between the same directions; a number."""
    raise NotWritten


def similarity(A, B):
    """How much of one space lies in the other; a number from 0 to 1."""
    raise NotWritten


def outside(dW, B):
    """The share of dW that its output has outside the span of B's columns; a number from 0 to 1."""
    raise NotWritten


OUTSIDE_OF_B = ...  # the derivation: outside(dW, B) for dW = (alpha / rank) B A, whatever A is


def measure():
    landings(amplification, similarity, outside)
