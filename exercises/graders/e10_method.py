"""Grades exercise 10: what the method is and trains, and the interval against Student's density, added up in steps."""

import functools
import math

import numpy as np
import torch

from exercises.graders.layers import DTYPES, check_factors, check_frozen, check_no_op, start
from exercises.grading import check_number, check_points, check_tuple, judge, numpy, part, require, weight
from exercises.process import constant

TITLE, MINUTES = "a method of your own", 40
SOLUTIONS = ["ablations.py: TransposedMiCALayer.start"]
WITHHELD = ["ablations.py: OrthonormalMiCALayer.start", "study/stats.py: paired"]


@part("RandomReader.start", 5)
def check_method(student):
    for dtype in DTYPES:
        W = weight(30, 20, dtype)
        [made] = student(start, "RandomReader", W, 4, 8)
        A, B = check_factors(made, W.to(torch.promote_types(dtype, torch.float32)), 4)
        require(not B.any(), "your B is not zero, so the layer does not start as the linear it was")
        level = np.allclose(A @ A.T, np.eye(4), atol=1e-4)
        require(level, "your A's rows are not orthonormal: another thing that differs from mica-transposed")
    check_no_op(student, "RandomReader")
    check_frozen(student, "RandomReader", "A", "B")

    def draw(W, seed):
        return [numpy(made["A"]) for made in student(start, "RandomReader", W, 4, 8, seed, layers=2)]

    W = weight(30, 20)
    (A, second), (of_another, _), (other_seed, _) = draw(W, 0), draw(weight(30, 20, seed=1), 0), draw(W, 1)
    unknowing = "your A must know nothing of W: with the same torch seed it is to be the same for another W"
    require(np.array_equal(A, of_another), unknowing)
    require(not np.array_equal(A, other_seed), "your A is the same for every seed: then five seeds are one draw")
    require(not np.array_equal(A, second), "your A is the same in every layer: draw each layer's own")


@functools.cache
def quantile(freedom, below=0.975):
    """A point of Student's distribution: its density added up in small steps until that much lies below."""
    step = 1e-4
    x = np.arange(0, 60, step) + step / 2
    log_constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    mass = 0.5 + np.cumsum(np.exp(log_constant) * (1 + x * x / freedom) ** (-(freedom + 1) / 2)) * step
    return float(x[np.searchsorted(mass, below)])


@part("interval", 4)
def check_intervals(student):
    rng = np.random.default_rng(0)
    for n in (5, 3, 12):
        values = rng.normal(1.5, 2.0, size=n).tolist()
        result = check_tuple(student.call("interval", values), 3, "interval", "(mean, low, high)")
        mean, low, high = (check_number(value, name) for value, name in zip(result, ("mean", "low", "high")))
        judge(mean, np.mean(values), "your mean is not the mean of the differences")
        require(low < mean < high, "your interval does not lie around the mean: (mean, low, high), in this order")
        require(abs((high + low) / 2 - mean) < 1e-6, "your interval is not as wide below the mean as above it")
        error, t = np.std(values, ddof=1) / math.sqrt(n), quantile(n - 1)
        mistakes = {
            "that is 1.96 standard errors, for known deviations; with few differences take Student's t": 1.96 * error,
            "divide by sqrt(n): the deviation of the mean is wanted": t * error * math.sqrt(n),
        }
        said = f"half the width of your interval of {n} differences is not t s / sqrt(n)"
        judge((high - low) / 2, t * error, said, mistakes, 2e-3 * t * error)


@part("PREDICTION", 1)
def check_prediction(student):
    check_points(student(constant, "PREDICTION"), "your PREDICTION")
