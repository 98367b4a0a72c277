"""study/design.py and toy.py: what is compared, which rates are tried, what is run next. test_real.py: the other design."""

import math

import pytest

from data.make_data import SHIPPED_SEED
from study.design import TUNING, Arm, Run, chosen_rates, grid, runs_of, step_from, tune
from study.toy import ARMS, CURVE, EXTENDED, FULL, JUDGED, MAIN, PAIRS, QUICK
from train import METHODS, Settings


def record(new, kept=0.5):
    return {"summary": {"new": {"acc": new}, "never-asked": {"acc": kept}}}


def learner(peak):
    """find() of a world in which every run is done, and the best rate is `peak`."""
    return lambda run: record(1 - abs(math.log(run.lr / peak)) / 10 if run.lr else 0)


# --- the design --------------------------------------------------------------------------------------------------------


def test_the_design_is_what_was_asked_for():
    assert len(TUNING) == 2 and len(JUDGED) == 8
    assert len({*TUNING, *JUDGED, SHIPPED_SEED}) == 11  # nothing is judged that anything was tuned on
    assert {arm.method for arm in ARMS} - {None} <= set(METHODS)
    names = [arm.name for arm in ARMS + EXTENDED]
    assert len(set(names)) == len(names)
    assert all(name in names for pair in PAIRS for name in pair)
    assert PAIRS[0] == ("mica", "lora")
    assert {arm.settings for arm in MAIN} == {Settings()}


# --- learning rates ----------------------------------------------------------------------------------------------------


def test_steps_of_learning_rates():
    assert [step_from(7e-3, i) for i in range(-6, 3)] == [7e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7e-3, 1e-2, 1.5e-2]
    assert step_from(1e-2, -1) == 7e-3 and step_from(1e-3, 0) == 1e-3
    assert all(step_from(step_from(1.5e-3, n), -n) == 1.5e-3 for n in range(-20, 21))


def test_grids_stand_around_the_arms_own_rate():
    assert grid(Arm("x", "lora", 7e-3, rates=5)) == [3e-3, 5e-3, 7e-3, 1e-2, 1.5e-2]
    assert grid(Arm("x", "lora", 1e-3, rates=4)) == [7e-4, 1e-3, 1.5e-3, 2e-3]


def test_tuning_takes_the_best_mean_of_both_scores_over_both_worlds():
    arm = Arm("x", "lora", 7e-3, rates=3)
    scores = {5e-3: (0.6, 0.9), 7e-3: (0.8, 0.8), 1e-2: (0.95, 0.6)}  # their means: 0.75, 0.8, 0.775
    assert tune(FULL, arm, lambda run: record(*scores[run.lr]))[1:] == (7e-3, [])
    uneven = {5e-3: (0.2, 0.2), 7e-3: (0.7, 0.7), 1e-2: (1.0, 0.1)}  # by world: 0.55 is the best of the means
    assert tune(FULL, arm, lambda run: record(uneven[run.lr][run.world == TUNING[1]]))[1] == 7e-3


@pytest.mark.parametrize("peak", [1e-3, 7e-2])
def test_a_best_rate_at_an_edge_extends_the_grid(peak):
    rates, best, missing = tune(FULL, Arm("x", "lora", 7e-3, rates=5), learner(peak))
    assert best == peak and missing == []
    assert rates == sorted(rates) and rates[0] < best < rates[-1]
    assert {3e-3, 7e-3, 1.5e-2} <= set(rates)


def test_a_rate_that_follows_another():
    rates, missing = chosen_rates(FULL, learner(7e-3))
    assert rates["lora"] == 7e-3 and rates["mica by rule"] == 0.014 and not missing
    assert chosen_rates(FULL, lambda run: None)[0]["mica by rule"] is None
    assert chosen_rates(QUICK, lambda run: None) == ({arm.name: arm.lr for arm in QUICK.arms}, [])
    assert all(arm.lr for arm in QUICK.arms[1:])


# --- what is run next --------------------------------------------------------------------------------------------------


def test_tuning_comes_first_and_what_its_rates_are_needed_for_only_when_it_is_done():
    first = runs_of(FULL, lambda run: None)
    untouched = [Run(ARMS[0], None, world) for world in JUDGED]
    assert first[: len(JUDGED)] == untouched and {run.world for run in first[len(JUDGED) :]} == set(TUNING)
    judged = runs_of(FULL, lambda run: record(0.5 + (run.lr == grid(run.arm)[1])) if run.world in TUNING else None)
    judged, worlds = judged[len(JUDGED) :], [run.world for run in judged[len(JUDGED) :]]
    assert worlds == sorted(worlds) and {*worlds} == {*JUDGED}
    counts = {arm.name: sum(run.arm == arm for run in judged) for arm in ARMS}
    assert all(counts[arm.name] == len(JUDGED) * (len(CURVE) if arm in MAIN else 1) for arm in ARMS[1:])
    done = runs_of(
        FULL, lambda run: record(0.5 + (bool(run.lr) and run.lr == grid(run.arm)[1]) if run.arm.rates else 0)
    )
    assert done == []
