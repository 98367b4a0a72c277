"""Grades exercise 10: what the method is and trains, and the interval against Student's density, added up in steps."""

import functools
import math

import numpy as np
import torch

from exercises.graders.layers import DTYPES, check_frozen, check_no_op, check_shapes, start
from exercises.grading import check_number, check_points, check_tuple, judge, numpy, part, require, weight
from exercises.process import constant

TITLE, MINUTES = "a method of your own", 40
SOLUTIONS = ["ablations.py: TransposedMiCALayer.start"]
WITHHELD = ["ablations.py: OrthonormalMiCALayer.start", "study/stats.py: paired"]


@part("RandomReader.start", 5)
def test_method(student):
    for dtype in DTYPES:
        W = weight(30, 20, dtype)
        wide = W.to(torch.promote_types(dtype, torch.float32))
        [made] = student(start, "RandomReader", W, 4, 8)
        check_shapes(made, wide, 4)
        A, B = numpy(made["A"]), numpy(made["B"])
        require("B" in made["trained"], "your B would not be trained: make it an nn.Parameter")
        require(A.any() or B.any(), "your A and B are both zero: nothing ever learns")
        require(not B.any(), "your B is not zero, so the layer does not start as the linear it was")
        level = np.allclose(A @ A.T, np.eye(4), atol=1e-4)
        require(
            level, "your A's rows are not orthonormal, so that its size is another thing that differs (torch.linalg.qr)"
        )
    check_no_op(student, "RandomReader")
    check_frozen(student, "RandomReader", "A", "B")

    def draw(W, seed):
        return [made["A"] for made in student(start, "RandomReader", W, 4, 8, seed, layers=2)]

    W, other = weight(30, 20), weight(30, 20, seed=1)
    (again, _), (A, second) = draw(W, 0), draw(W, 0)
    require(torch.equal(again, A), "your A differs though torch's seed is the same: draw it with torch")
    Vh = np.linalg.svd(numpy(W), full_matrices=False)[2]
    for rows, which in ((Vh[-4:], "minor"), (Vh[:4], "major")):
        known = ((numpy(A) @ rows.T) ** 2).sum() > 3.5
        require(not known, f"your A holds W's {which} directions: it must know nothing of W")
    require(
        torch.equal(draw(other, 0)[0], A),
        "your A is another for another W and the same seed: it must know nothing of W",
    )
    require(not torch.equal(draw(W, 1)[0], A), "your A is the same for every seed: then five seeds are one draw")
    require(not torch.equal(second, A), "your A is the same in every layer: draw each layer's own")


@functools.cache
def quantile(freedom, below=0.975):
    """A point of Student's distribution: its density added up in small steps until that much lies below."""
    step = 1e-4
    x = np.arange(0, 60, step) + step / 2
    log_constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    mass = 0.5 + np.cumsum(np.exp(log_constant) * (1 + x * x / freedom) ** (-(freedom + 1) / 2)) * step
    return float(x[np.searchsorted(mass, below)])


@part("interval", 4)
def test_intervals(student):
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
            "that is one standard error, not a 95% interval": error,
            "divide by sqrt(n): the deviation of the mean is wanted, not that of one difference": t
            * error
            * math.sqrt(n),
            "the deviation has n - 1 below it, not n": t * error * math.sqrt((n - 1) / n),
            "Student's t has n - 1 degrees of freedom": quantile(n) * error,
            "95% lie between the 2.5% and the 97.5% point, so take t at 0.975": quantile(n - 1, 0.95) * error,
        }
        said = f"of {n} differences your interval has another width than Student's"
        judge((high - low) / 2, t * error, said, mistakes, 2e-3 * t * error)


@part("PREDICTION", 1)
def test_prediction(student):
    check_points(student(constant, "PREDICTION"), "your PREDICTION")
