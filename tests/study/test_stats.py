"""study/stats.py: known answers, and how often the intervals are right, simulated with the study's eight worlds."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from study.stats import Difference, best_elsewhere, heights, holm, matched, paired, ratio, read_at, rising

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


def test_paired_without_any_spread():
    assert paired([0.5, 0.5], [0.5, 0.5]) == Difference(0, 0, 0, 0, 1, 2)
    assert paired([0.75, 1.0], [0.5, 0.75]) == Difference(0.25, 0, 0.25, 0.25, 0, 2)
    thirds = paired([1 / 3 + 0.1, 2 / 3 + 0.1, 0.1], [1 / 3, 2 / 3, 0])  # none but rounding errors
    assert (thirds.se, thirds.p, thirds.mean) == (0, 0, pytest.approx(0.1))


def test_holm_on_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.4]).tolist() == [1, 1, 1]
    made = [0.01, 0.04, 0.03, 0.005]  # comparisons that are still to come count as unresolved ones
    assert holm(made, planned=7).tolist() == pytest.approx(holm([*made, 1, 1, 1])[:4].tolist())


def test_fiellers_interval_is_what_the_t_test_does_not_refute():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.3, 0.05, 8), rng.normal(0.5, 0.05, 8)
    value, low, high = ratio(x, y)
    assert value == x.mean() / y.mean() and low < value < high
    for edge in (low, high):
        assert paired(x, edge * y).p == pytest.approx(0.05)
    assert ratio(2 * y, y) == pytest.approx((2, 2, 2))
    assert ratio([1, 2, 3], [-0.2, 0.1, 0.2])[1:] == (-math.inf, math.inf)  # to what may be zero it is anything


def test_fiellers_intervals_cover_the_truth_95_times_in_100():
    data = simulated_accuracies(np.random.default_rng(2), [0.55, 0.80], shared=0.03, own=0.02) - 0.25
    results = [ratio(world[:, 0], world[:, 1]) for world in data]
    assert inside(np.mean([low <= 0.30 / 0.55 <= high for _, low, high in results]), 0.95)


# --- curves ------------------------------------------------------------------------------------------------------------


def test_points_that_do_not_go_beyond_all_lower_rates_do_not_count():
    x, y = rising([(0.4, 0.9), (0.6, 0.8), (0.5, 0.7), (0.7, 0.6), (0.65, 0.5)])
    assert x.tolist() == [0.4, 0.6, 0.6, 0.7, 0.7] and y.tolist() == [0.9, 0.8, 0.8, 0.6, 0.6]


def test_heights_of_curves_over_the_span_that_both_reach():
    line = [(0.2, 1.0), (0.6, 0.6)]
    higher = [(0.4, 0.9), (0.8, 0.5)]  # the same slope, 0.1 above, and both reach 0.4 to 0.6
    assert heights(higher, line) == pytest.approx((0.8, 0.7))
    bent = [(0.2, 1.0), (0.4, 1.0), (0.6, 0.6)]  # a triangle of height 0.2 above the line, as wide as the span
    assert np.subtract(*heights(bent, line)) == pytest.approx(0.1)
    assert np.isnan(heights([(0.7, 0.5), (0.9, 0.4)], line)).all()


def test_where_a_mean_is_all_there_is_matching_is_the_paired_t_test():
    rng = np.random.default_rng(4)
    first = np.array([(0.4, 0.9), (0.8, 0.5)]) + rng.normal(0, 0.02, (6, 1, 2))  # worlds shift both arms alike
    second = first - (0, 0.1) + (rng.normal(0, 0.01, (6, 1, 1)) * (0, 1))  # and each, in retention, alone
    expected = paired(first[:, 0, 1], second[:, 0, 1])
    assert vars(matched(first, second)) == pytest.approx(vars(expected))
    assert matched(first, second + (2, 0)) is matched(first[:1], second[:1]) is None
    assert matched(first, second * [1, math.nan]) is None


# Means of curves, an arm's four rates: made up, and those of the designs (study/results), whose numbers decide.
MICA = [(0.396, 6.386), (0.458, 6.901), (0.500, 7.201), (0.465, 7.855)]  # real weights: new knowledge, forgetting loss
LORA = [(0.271, 7.695), (0.424, 8.140), (0.528, 8.096), (0.653, 8.009)]
TOY_MICA = [(0.410, 0.761), (0.447, 0.690), (0.473, 0.597), (0.452, 0.569)]  # toy, q and v: new knowledge, never asked
TOY_LORA = [(0.449, 0.590), (0.655, 0.513), (0.757, 0.464), (0.727, 0.451)]
WRECKED = [(0.28, 3.55), (0.38, 3.8), (0.44, 4.2), (0.38, 5.3)]  # at the last rate
WHOLE = [(0.30, 3.55), (0.39, 3.7), (0.45, 4.15), (0.48, 4.7)]
CURVES = {
    "real, MiCA and LoRA": (MICA, LORA, 24),
    "real, MiCA twice": (MICA, MICA, 24),
    "made up, wrecked": (WRECKED, WHOLE, 24),
    "toy, MiCA and LoRA": (TOY_MICA, TOY_LORA, 360),
}
NOISE = {24: (0.03, 0.012, 0.04, 0.02), 360: (0.02, 0.012, 0.015, 0.012)}  # sd: shared x, own x, shared y, own y


def by_worlds(rng, curve, shared, questions):
    """A curve as each of six worlds shows it, (6, rates, 2): shifted as for every arm, a little more; by its questions."""
    curve, (_, own_x, _, own_y) = np.array(curve), NOISE[questions]
    share = np.clip(curve[:, 0] + shared[0] + rng.normal(0, own_x, (6, len(curve))), 0, 1)
    return np.stack(
        [rng.binomial(questions, share) / questions, curve[:, 1] + shared[1] + rng.normal(0, own_y, share.shape)], -1
    )


@pytest.mark.parametrize("name", CURVES)
def test_matched_differences_are_right_at_the_designs_own_numbers(name):
    """Coverage of at least 93%, so that equal arms are told apart at most 6 times in 100 (the jackknife: 75 to 92%)."""
    *curves, questions = CURVES[name]
    truth, rng = np.subtract(*heights(*curves)), np.random.default_rng(5)
    noise, found = NOISE[questions], []
    for _ in range(600):
        shared = rng.normal(0, noise[0], (6, 1)), rng.normal(0, noise[2], (6, 1))
        found.append(matched(*(by_worlds(rng, curve, shared, questions) for curve in curves)))
    found = [d for d in found if d]
    assert len(found) > 480  # some have no span
    covered = np.mean([d.low <= truth <= d.high for d in found])
    assert covered >= 0.94 if truth == 0 else covered >= 0.93
    assert abs(np.mean([d.mean for d in found]) - truth) < 0.5 * np.mean([d.se for d in found])  # hardly a bias


# --- strengths ---------------------------------------------------------------------------------------------------------


def test_a_curve_is_read_where_it_first_falls_to_a_level():
    points = [(1.0, 0.2), (0.98, 0.4), (0.9, 0.6), (0.96, 0.7), (0.8, 0.9)]  # kept, learned
    assert read_at(points, 0.94) == pytest.approx(0.5) and read_at(points, 0.98) == pytest.approx(0.4)
    assert read_at(points, 0.7) == 0.9  # it never falls so far: all that was learned
    assert read_at(points, 1.1) == 0.2  # it never was so high: nothing may be learned


def test_a_rate_is_chosen_on_the_other_worlds():
    assert best_elsewhere([[1, 1, 9], [2, 2, 2]]) == [1, 1, 2]
