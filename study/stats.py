"""Statistics of the study: paired differences over worlds, Holm's correction, ratios of gains, matched curves, verdicts.

A world is the unit: its questions share texts and subjects, so it counts once. Every array here has a number a world,
and two arms are compared world by world.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A mean difference over worlds, its standard error, 95% interval and p-value (paired t test)."""

    mean: float
    se: float
    low: float
    high: float
    p: float
    n: int  # worlds


def paired(first, second):
    """Difference first - second of two arms on the same worlds (two or more), each (worlds,)."""
    differences = np.asarray(first, float) - np.asarray(second, float)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        raise ValueError("one world has no standard error: run the study on two or more")
    if np.ptp(differences) < 1e-12:  # no spread but rounding errors, where t is 0 / 0 or infinite
        return Difference(mean, 0.0, mean, mean, float(abs(mean) < 1e-12), n)
    test = stats.ttest_1samp(differences, 0)
    interval = test.confidence_interval(0.95)
    return Difference(mean, *map(float, (stats.sem(differences), interval.low, interval.high, test.pvalue)), n)


def holm(p_values, planned=0):
    """p-values corrected for their number (Holm 1979), in the same order: the smallest times n, the next times n - 1, ...

    planned: n, where more comparisons are planned than there are yet; else a study that is half done would promise too much.
    """
    p = np.asarray(p_values, float)
    factors = max(planned, len(p)) - np.arange(len(p))
    order = p.argsort()
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return corrected


def verdict(difference, p, larger_is_better=True):
    """ "ahead", "behind" or "not resolved", of the first arm. p: corrected, where there are several comparisons."""
    if not p < 0.05:
        return "not resolved"
    return "ahead" if (difference.mean > 0) == larger_is_better else "behind"


def ratio(numerators, denominators):
    """(ratio of the means, low, high) with Fieller's 95% interval for pairs, (worlds,) each.

    The interval holds every q for which a paired t test does not refute that numerators - q denominators is 0 on average.
    It is (-inf, inf) where even a denominator of 0 is not refuted: then any ratio may be true.
    """
    x, y = np.asarray(numerators, float), np.asarray(denominators, float)
    t2 = stats.t.ppf(0.975, len(x) - 1) ** 2 / len(x)
    (xx, xy), (_, yy) = np.cov(x, y)
    # (mean x - q mean y)^2 = t2 (xx - 2 q xy + q^2 yy), a quadratic a q^2 - 2 b q + c = 0
    a, b, c = y.mean() ** 2 - t2 * yy, x.mean() * y.mean() - t2 * xy, x.mean() ** 2 - t2 * xx
    if a <= 0:
        return x.mean() / y.mean(), -math.inf, math.inf
    root = math.sqrt(max(0.0, b * b - a * c))
    return x.mean() / y.mean(), (b - root) / a, (b + root) / a


def rising(curve):
    """The points of a curve that learn more than every lower rate: [(new, retention), ...], lowest rate first.

    With what was lost as x: that lose more than every lower rate (one that loses less and learns more is left out, too).
    """
    points = []
    for new, retention in curve:
        if not points or new > points[-1][0]:
            points.append((new, retention))
    return points


def heights(first, second):
    """Mean heights of two curves, in retention, over the span of new knowledge that both reach; NaN without a span.

    A curve: [(new, retention), ...], lowest rate first, joined by straight lines. Any x and y that rates lead to will do.
    """
    (x1, y1), (x2, y2) = (np.array(rising(curve)).T for curve in (first, second))
    low, high = max(x1[0], x2[0]), min(x1[-1], x2[-1])
    if low >= high:
        return math.nan, math.nan
    x = np.unique(np.clip(np.concatenate([x1, x2, [low, high]]), low, high))
    return tuple(float(np.trapezoid(np.interp(x, *curve), x) / (high - low)) for curve in ((x1, y1), (x2, y2)))


def height_between(first, second):
    """Mean of first - second, in retention, over the span of new knowledge that both curves reach; NaN without a span."""
    one, other = heights(first, second)
    return one - other


def matched_by_world(firsts, seconds):
    """The difference in height on each world whose two curves overlap, none diverged; two lists of curves, one a world."""
    found = [height_between(first, second) for first, second in zip(firsts, seconds)]
    return [height for height in found if not math.isnan(height)]


def matched_on_means(firsts, seconds):
    """The difference in height of the two *mean* curves, shared out among the worlds: the values' mean is the estimate.

    Of two lists of curves, one a world; nothing where these do not overlap or one diverged, be it without one world only.
    Where x is noisy, as a few questions make it, a world's own polygon goes wrong: which of its points count, and how far
    it reaches, is picked by their noise. A mean over worlds has little of it. For a t test the estimate is split into
    a value a world by the jackknife: n times the whole less n - 1 times what is left without that world. (The mean of
    these is less biased than the whole, and differs from it a little.)
    """

    def height(worlds):
        return height_between(*(np.mean([curves[i] for i in worlds], axis=0) for curves in (firsts, seconds)))

    n = len(firsts)
    without = [height([i for i in range(n) if i != left]) for left in range(n)] if n > 1 else []
    return [] if np.isnan(without).any() else [n * height(range(n)) - (n - 1) * one for one in without]
