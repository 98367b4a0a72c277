"""Statistics of the study: paired differences over worlds, Holm's correction, ratios of gains, matched curves, verdicts.

A world is the unit: its questions share texts and subjects, so it counts once. Every array here has a number a world,
and two arms are compared world by world.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A mean difference over worlds, its standard error, 95% interval and p-value (t with n - 1 degrees of freedom)."""

    mean: float
    se: float
    low: float
    high: float
    p: float
    n: int  # worlds


def difference(mean, se, n):
    """The Difference of an estimate over n worlds (two or more) with this standard error."""
    if se < 1e-12:  # no spread but rounding errors, where t is 0 / 0 or infinite
        return Difference(mean, 0.0, mean, mean, float(abs(mean) < 1e-12), n)
    margin = float(stats.t.ppf(0.975, n - 1)) * se
    return Difference(mean, se, mean - margin, mean + margin, float(2 * stats.t.sf(abs(mean) / se, n - 1)), n)


def paired(first, second):
    """Difference first - second of two arms on the same worlds, each (worlds,): the paired t test."""
    differences = np.asarray(first, float) - np.asarray(second, float)
    if len(differences) < 2:
        raise ValueError("one world has no standard error: run the study on two or more")
    return difference(float(differences.mean()), float(stats.sem(differences)), len(differences))


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


def rising(curves):
    """(x, y), each (..., rates), of curves (..., rates, 2) whose points stand lowest rate first.

    A point whose x is not above that of every lower rate is replaced by the last one whose was: it does not count. (Where x is
    what was lost, this leaves out a rate that loses less and learns more, too.)
    """
    x, y = np.moveaxis(np.asarray(curves, float), -1, 0)
    top = np.maximum.accumulate(x, -1)
    counts = np.concatenate([np.full_like(x[..., :1], True), x[..., 1:] > top[..., :-1]], -1)
    last = np.maximum.accumulate(np.where(counts, np.arange(x.shape[-1]), 0), -1)
    return top, np.take_along_axis(y, last, -1)


def area(x, y, low, high):
    """Under the polygon (x, y), each (..., rates), from low to high (...)."""
    left, right = (np.clip(ends, low[..., None], high[..., None]) for ends in (x[..., :-1], x[..., 1:]))
    width = np.diff(x)
    slope = np.diff(y) / np.where(width > 0, width, 1)
    return ((right - left) * (y[..., :-1] + slope * ((left + right) / 2 - x[..., :-1]))).sum(-1)


def heights(first, second):
    """Mean heights (...) in y of two curves (..., rates, 2) over the span of x that both reach; NaN without a span."""
    (x1, y1), (x2, y2) = rising(first), rising(second)
    low, high = np.maximum(x1[..., 0], x2[..., 0]), np.minimum(x1[..., -1], x2[..., -1])
    span = np.where(low < high, high - low, math.nan)
    return area(x1, y1, low, high) / span, area(x2, y2, low, high) / span


@functools.cache
def resamples(n):
    """(how often each of n worlds is in a resample, in how many of the n^n ways this comes about) of all different ones."""
    counts = np.array(
        [[some.count(world) for world in range(n)] for some in itertools.combinations_with_replacement(range(n), n)]
    )
    return counts, np.array([math.factorial(n) / math.prod(map(math.factorial, row)) for row in counts])


def matched(firsts, seconds):
    """Difference in height of the mean curves of two arms, each (worlds, rates, 2); None where these do not overlap.

    A world's own curve is bent by the noise of its few questions, which picks the points that count and the span:
    differences of such curves are biased, and their spread says too little (tests/study/test_stats.py). A mean over
    worlds has little of that noise. Its error is the bootstrap's over worlds, exact, since all resamples are gone through:
    the spread of the estimate over them, times sqrt(n / (n - 1)). A world's questions are in its numbers, so they are
    resampled with it. None, too, where a run diverged, or where a fifth of the resamples have no span: then the spread of
    the rest says too little.
    """
    n = len(firsts)
    if n < 2:
        return None
    counts, ways = resamples(n)
    whole = np.subtract(*heights(np.mean(firsts, 0), np.mean(seconds, 0)))
    found = np.subtract(*heights(*(np.tensordot(counts / n, np.asarray(c, float), 1) for c in (firsts, seconds))))
    known = ~np.isnan(found)
    if np.isnan(whole) or ways[known].sum() < 0.8 * ways.sum():
        return None
    found, ways = found[known], ways[known]
    variance = np.average((found - np.average(found, weights=ways)) ** 2, weights=ways)
    return difference(float(whole), math.sqrt(variance * n / (n - 1)), n)


def read_at(points, level):
    """The y of a curve of points (x, y) where its x first falls to `level`; the last y where it never does.

    The untouched model first, then what was learned at rising strengths: x is what is kept, y what is learned.
    """
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 < level:
            return y0 + (y1 - y0) * (x0 - level) / (x0 - x1) if x0 > level else y0
    return points[-1][1]


def best_elsewhere(values):
    """A value a world, (worlds,), of several (rates, worlds): that of the rate which is best on all the *other* worlds."""
    values = np.asarray(values, float)
    others = values.sum(1, keepdims=True) - values
    return values[others.argmax(0), np.arange(values.shape[1])].tolist()
