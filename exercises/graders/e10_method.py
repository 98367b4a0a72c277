"""Grades exercise 10: what the method is and trains, and the interval against Student's density, integrated by brute force."""

import math

import numpy as np
import torch
from torch import nn

from exercises import NotWritten
from exercises.grading import check_number, check_tensor, numpy, require, same_bits


def method(student):
    """RandomReader."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        linear, x = nn.Linear(20, 30, dtype=dtype), torch.randn(5, 20, dtype=dtype)
        layer = student.RandomReader(linear, 4, 8)
        A = check_tensor(getattr(layer, "A", None), (4, 20), "your A")
        B = check_tensor(getattr(layer, "B", None), (30, 4), "your B")
        require(isinstance(B, nn.Parameter), "your B would not be trained: make it an nn.Parameter")
        require(A.any() or B.any(), "your A and B are both zero: nothing ever learns")
        require(not B.any(), "your B is not zero, so the layer does not start as the linear it was")
        level = np.allclose(numpy(A) @ numpy(A).T, np.eye(4), atol=1e-4)
        require(
            level, "your A's rows are not orthonormal, so that its size is another thing that differs (torch.linalg.qr)"
        )
        require(same_bits(layer(x), linear(x)), f"with W in {dtype} your layer does not start as the linear it was")
    frozen(student)
    linear = nn.Linear(20, 30)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(student.RandomReader(linear, 4, 8).A.detach().clone())
    Vh = np.linalg.svd(numpy(linear.weight), full_matrices=False)[2]
    drawn = numpy(draws[0])
    for rows, which in ((Vh[-4:], "minor"), (Vh[:4], "major")):
        require(((drawn @ rows.T) ** 2).sum() < 3.5, f"your A holds W's {which} directions: it must know nothing of W")
    one_by_one = np.abs(drawn @ Vh.T).max(axis=1).min() > 0.999
    require(not one_by_one, "your A holds singular vectors of W, if random ones: it must know nothing of W")

    require(not torch.equal(draws[0], draws[2]), "your A is the same for every seed: then five seeds are one draw")
    require(torch.equal(draws[0], draws[1]), "your A differs though torch's seed is the same: draw it with torch")


def frozen(student):
    layer = student.RandomReader(nn.Linear(20, 30), 4, 8)
    start = layer.A.detach().clone()
    parameter = isinstance(layer.A, nn.Parameter)
    layer.requires_grad_(True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        (layer(torch.randn(16, 20)) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    drifts = "your A drifts" + (": it has 1 as a parameter" if parameter else "")
    require(torch.equal(layer.A, start), f"{drifts}; frozen means an nn.Buffer (exercise 3)")
    require(layer.B.any(), "your B never moves: no gradient reaches it")
    require("A" in layer.state_dict(), "your A is not saved with the layer: make it an nn.Buffer")


def quantile(freedom):
    """The 97.5% point of Student's distribution: its density added up in small steps until the tail is 2.5%."""
    step = 1e-4
    x = np.arange(0, 60, step) + step / 2
    log_constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    below = 0.5 + np.cumsum(np.exp(log_constant) * (1 + x * x / freedom) ** (-(freedom + 1) / 2)) * step
    return float(x[np.searchsorted(below, 0.975)])


def intervals(student):
    """interval."""
    rng = np.random.default_rng(0)
    for n in (5, 3, 12):
        values = list(rng.normal(1.5, 2.0, size=n))
        result = student.interval(list(values))
        require(isinstance(result, (tuple, list)) and len(result) == 3, "your interval must return (mean, low, high)")
        mean, low, high = (check_number(value, name) for value, name in zip(result, ("mean", "low", "high")))
        require(abs(mean - np.mean(values)) < 1e-6, "your mean is not the mean of the differences")
        require(low < mean < high, "your interval does not lie around the mean: (mean, low, high), in this order")
        require(abs((high + low) / 2 - mean) < 1e-6, "your interval is not as wide below the mean as above it")
        error, t = np.std(values, ddof=1) / math.sqrt(n), quantile(n - 1)
        half = (high - low) / 2
        if abs(half - t * error) > 2e-3 * t * error:
            spread = {
                "that is 1.96 standard errors, for known deviations; with few differences take Student's t": 1.96
                * error,
                "that is one standard error, not a 95% interval": error,
                "divide by sqrt(n): the deviation of the mean is wanted, not that of one difference": t
                * error
                * math.sqrt(n),
                "the deviation has n - 1 below it, not n": t * error * math.sqrt((n - 1) / n),
                "Student's t has n - 1 degrees of freedom": quantile(n) * error,
                "95% lie between the 2.5% and the 97.5% point, so take t at 0.975": one_sided(n - 1) * error,
            }
            close = [why for why, other in spread.items() if abs(half - other) < 3e-3 * other]
            why = close[0] if close else "take it step by step from the formula in the file"
            require(
                False,
                f"of {n} differences your interval is {half:.3f} to each side where {t * error:.3f} is right: {why}",
            )


def one_sided(freedom):
    from scipy.stats import t

    return t.ppf(0.95, freedom)


def prediction(student):
    """PREDICTION."""
    if student.PREDICTION is ...:
        raise NotWritten
    found = check_number(student.PREDICTION, "your PREDICTION")
    require(
        abs(found) <= 100, f"your PREDICTION is {found:g} points, and there are only 100: in points of new/questions"
    )
