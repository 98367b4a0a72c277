"""study/stats.py: known answers, and how often the intervals are right, simulated with the study's eight worlds."""

import math

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from study.stats import (
    Difference,
    height_between,
    heights,
    holm,
    matched_by_world,
    matched_on_means,
    paired,
    ratio,
    rising,
    verdict,
)

WORLDS, TRIALS = 8, 1500


def inside(share, true_share):
    """Is a simulated share of TRIALS what it should be, but for chance? (1 in 10,000 fails)"""
    low, high = binom.interval(0.9999, TRIALS, true_share)
    return low <= share * TRIALS <= high


def simulated_accuracies(rng, means, shared, own, questions=720):
    """Accuracies of arms (TRIALS, WORLDS, arms): worlds differ for all arms alike and for each alone, questions are drawn."""
    world = rng.normal(0, shared, (TRIALS, WORLDS, 1)) + rng.normal(0, own, (TRIALS, WORLDS, len(means)))
    return rng.binomial(questions, np.clip(np.array(means) + world, 0, 1)) / questions


def test_paired_on_numbers_worked_out_by_hand():
    difference = paired([3.0, 5.0, 7.0, 9.0], [2.0, 3.0, 4.0, 5.0])  # 1, 2, 3, 4
    assert difference.mean == 2.5 and difference.n == 4
    assert difference.se == pytest.approx(math.sqrt(5 / 3) / 2)
    margin = 3.182446305284263 * difference.se  # t(3) at 97.5%, from a table
    assert (difference.low, difference.high) == pytest.approx((2.5 - margin, 2.5 + margin))
    assert difference.p == pytest.approx(0.0304663, rel=1e-5)  # t = 3.8730, 3 degrees of freedom


def test_paired_is_about_pairs_and_signed():
    first, second = [0.1, 0.5, 0.9], [0.08, 0.478, 0.882]
    assert paired(first, second).p < 0.05
    assert paired(first, second).mean == pytest.approx(-paired(second, first).mean)
    assert paired(first, second[::-1]).p > 0.5


def test_paired_without_any_spread():
    assert paired([0.5, 0.5], [0.5, 0.5]) == Difference(0, 0, 0, 0, 1, 2)
    assert paired([0.75, 1.0], [0.5, 0.75]) == Difference(0.25, 0, 0.25, 0.25, 0, 2)
    thirds = paired([1 / 3 + 0.1, 2 / 3 + 0.1, 0.1], [1 / 3, 2 / 3, 0])  # none but rounding errors
    assert (thirds.se, thirds.p, thirds.mean) == (0, 0, pytest.approx(0.1))
    with pytest.raises(ValueError, match="one world"):
        paired([0.5], [0.4])


def test_holm_on_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.4]).tolist() == [1, 1, 1]
    assert holm([0.02]).tolist() == [0.02]


def test_holm_counts_comparisons_that_are_still_to_come_as_unresolved_ones():
    made = [0.01, 0.04, 0.03, 0.005]
    assert holm(made, planned=7).tolist() == pytest.approx(holm([*made, 1, 1, 1])[:4].tolist())
    assert holm(made, planned=4).tolist() == holm(made).tolist()


def test_verdicts():
    up, down = paired([2, 3.1], [1, 2]), paired([1, 2], [2, 3.1])
    assert verdict(up, 0.01) == verdict(down, 0.01, larger_is_better=False) == "ahead"
    assert verdict(down, 0.01) == verdict(up, 0.01, larger_is_better=False) == "behind"
    assert verdict(up, 0.05) == verdict(up, math.nan) == "not resolved"


def test_fiellers_interval_is_what_the_t_test_does_not_refute():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.3, 0.05, 8), rng.normal(0.5, 0.05, 8)
    value, low, high = ratio(x, y)
    assert value == x.mean() / y.mean() and low < value < high
    for edge in (low, high):
        assert paired(x, edge * y).p == pytest.approx(0.05)
    assert ratio(y, y)[0] == 1 and ratio(2 * y, y) == pytest.approx((2, 2, 2))


def test_a_ratio_to_what_may_be_zero_is_anything():
    assert ratio([1, 2, 3], [-0.2, 0.1, 0.2])[1:] == (-math.inf, math.inf)


def test_intervals_of_paired_differences_cover_the_truth_95_times_in_100():
    data = simulated_accuracies(np.random.default_rng(0), [0.55, 0.80], shared=0.04, own=0.015)
    covered = [d.low <= -0.25 <= d.high for d in (paired(world[:, 0], world[:, 1]) for world in data)]
    assert inside(np.mean(covered), 0.95)


def test_equal_arms_are_told_apart_5_times_in_100():
    data = simulated_accuracies(np.random.default_rng(1), [0.7, 0.7], shared=0.04, own=0.015)
    assert inside(np.mean([paired(world[:, 0], world[:, 1]).p < 0.05 for world in data]), 0.05)


def test_fiellers_intervals_cover_the_truth_95_times_in_100():
    data = simulated_accuracies(np.random.default_rng(2), [0.55, 0.80], shared=0.03, own=0.02) - 0.25
    results = [ratio(world[:, 0], world[:, 1]) for world in data]
    assert inside(np.mean([low <= 0.30 / 0.55 <= high for _, low, high in results]), 0.95)


def test_holm_errs_in_at_most_5_of_100_families():
    differences = np.random.default_rng(3).normal(0, 1, (TRIALS, WORLDS, 10))
    families = ttest_1samp(differences, 0, axis=1).pvalue  # (TRIALS, 10), nothing to be found
    errors = [holm(family).min() < 0.05 for family in families]
    assert np.mean(errors) <= binom.ppf(0.9999, TRIALS, 0.05) / TRIALS
    assert np.mean(errors) > 0.02  # and is not needlessly strict with independent tests


def test_the_rising_part_of_a_curve():
    assert rising([(0.4, 0.9), (0.6, 0.8), (0.5, 0.7), (0.7, 0.6), (0.65, 0.5)]) == [(0.4, 0.9), (0.6, 0.8), (0.7, 0.6)]


def test_height_between_curves():
    line = [(0.2, 1.0), (0.6, 0.6)]
    higher = [(0.4, 0.9), (0.8, 0.5)]  # the same slope, 0.1 above, and both reach 0.4 to 0.6
    assert height_between(higher, line) == pytest.approx(0.1)
    assert height_between(line, higher) == pytest.approx(-0.1)
    bent = [(0.2, 1.0), (0.4, 1.0), (0.6, 0.6)]  # a triangle of height 0.2 above the line, as wide as the span
    assert height_between(bent, line) == pytest.approx(0.1)
    assert math.isnan(height_between([(0.7, 0.5), (0.9, 0.4)], line))
    assert heights(higher, line) == pytest.approx((0.8, 0.7))


def test_matching_on_means_shares_the_difference_out_among_the_worlds():
    rng = np.random.default_rng(4)
    first = np.array([(0.4, 0.9), (0.8, 0.5)]) + rng.normal(0, 0.02, (6, 1, 2))  # worlds shift both arms alike
    second = first - (0, 0.1) + (rng.normal(0, 0.01, (6, 1, 1)) * (0, 1))  # and each, in retention, alone
    values = matched_on_means(first, second)
    assert values == pytest.approx(
        (first - second)[:, 0, 1]
    )  # where a mean is all there is, each world's own difference
    assert matched_by_world(first, second) == pytest.approx(values)
    assert matched_on_means(first, second + (2, 0)) == matched_on_means(first[:1], second[:1]) == []


# Four rates an arm, of new knowledge and forgetting loss: as on real weights; where a curve flattens; where it turns.
CURVES = {
    "as on real weights": (
        [(0.28, 3.55), (0.37, 3.8), (0.44, 4.2), (0.47, 4.9)],
        [(0.30, 3.52), (0.39, 3.7), (0.45, 4.05), (0.50, 4.7)],
    ),
    "equal arms": 2 * ([(0.28, 3.55), (0.37, 3.8), (0.44, 4.2), (0.47, 4.9)],),
    "wrecked at the last rate": (
        [(0.28, 3.55), (0.38, 3.8), (0.44, 4.2), (0.38, 5.3)],
        [(0.30, 3.55), (0.39, 3.7), (0.45, 4.15), (0.48, 4.7)],
    ),
}


def one_world_each(rng, curve, new_shift, loss_shift, questions=180):
    """A curve as each world shows it, (worlds, rates, 2): shifted as for every arm, and a little more; by 180 questions."""
    shape = len(new_shift), len(curve)
    share = np.clip(curve[:, 0] + new_shift + rng.normal(0, 0.012, shape), 0, 1)
    return np.stack(
        [rng.binomial(questions, share) / questions, curve[:, 1] + loss_shift + rng.normal(0, 0.02, shape)], -1
    )


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("ends", [(0, 1), (1, 0)], ids=["loss at new knowledge", "new knowledge at loss"])
def test_matching_on_means_finds_the_truth(name, ends):
    """As curves have it whose points are exact: with hardly a bias, and within the interval about 95 times in 100."""
    rng = np.random.default_rng(5)
    truths = [np.array(curve)[:, ends] for curve in CURVES[name]]
    truth = height_between(truths[1], truths[0])
    found = []
    for _ in range(TRIALS // 3):
        shared = rng.normal(0, 0.03, (6, 1)), rng.normal(0, 0.04, (6, 1))
        arms = [one_world_each(rng, np.array(curve), *shared)[..., ends] for curve in CURVES[name]]
        found.append(paired(matched_on_means(arms[1], arms[0]), np.zeros(6)))
    se = np.mean([d.se for d in found])
    assert abs(np.mean([d.mean for d in found]) - truth) < 0.2 * se
    assert 0.92 < np.mean([d.low <= truth <= d.high for d in found]) < 0.975
