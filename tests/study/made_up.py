"""Made-up records for the tests of tables and pictures."""

import json

import numpy as np

from study.design import TUNING, grid, runs_of
from study.runs import describe, record_path

SETS = ("new", "unbound", "new cloze", "never-asked", "old cloze")


def made_up(design, run, rng):
    """A record with what tables and figures read: more is learned, and less kept, at higher rates."""
    middle = run.arm.at[0] if run.arm.at else 1e-2
    shift = 0.1 * np.log10(run.lr / middle) if run.lr else 0
    acc = {name: 0.6 + shift + rng.normal(0, 0.02) for name in SETS} | {
        "never-asked": 0.7 - shift + rng.normal(0, 0.01)
    }
    summary = {
        name: {"acc": acc[name], "logprob": np.log(acc[name]), "exact": acc[name] / 2, "acc_norm": acc[name]}
        for name in SETS
    }
    if not run.arm.subjects:  # of the chronicle less is asked
        summary = {name: summary[name] for name in ("new", "never-asked")}
    summary["perplexity"] = {design.text: 100 + 1000 * shift}
    landing = None
    if design.landing:
        one = {"amplification": 2.0, "left_major": 0.1, "left_minor": 0.2, "right_major": 0.3, "right_minor": 0.4}
        landing = {"left": [1 / 24] * 24, "right": [1 / 24] * 24, "projections": {"q_proj": one, "v_proj": one}}
    epochs = [{"epoch": i, "loss": 1.0} for i in range(1, run.arm.settings.epochs + 1)]
    turned = {"summary": summary, "forgetting loss": 0.6}
    beside = {"strengths": {f"{strength:g}": turned for strength in design.strengths}} if design.strengths else {}
    return beside | {
        "key": describe(run) | {"numerics": 1, "torch": "2", "device": "cpu"},
        "trained": 1000 * run.arm.settings.rank,
        "history": [epoch | ({"new": 0.3 + 0.01 * epoch["epoch"]} if design.landing else {}) for epoch in epochs],
        "summary": summary,
        "forgetting loss": 0.6 + (0 if design.landing else shift) + rng.normal(0, 0.01),
        "landing": landing,
        "seconds": 30.0,
        "workers": 2,
        "machine": "a computer",
        "finished": "2026-11-25 01:02:03",
    }


def write_study(folder, design, count=None):
    """The records of a design, in the order in which the study would make them: all, or the first `count`."""
    rng, done = np.random.default_rng(0), {}
    while runs := runs_of(design, done.get):
        for run in runs:
            if len(done) == count:
                return folder
            done[run] = made_up(design, run, rng)
            if run.world in TUNING:  # the middle of the grid is best
                best = run.lr == grid(run.arm)[1]
                done[run]["summary"]["new"]["acc"] = done[run]["summary"]["never-asked"]["acc"] = 0.5 + 0.1 * best
                done[run]["summary"]["new cloze"]["logprob"] = -2 + best
            path = record_path(folder, run)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(done[run]))
    return folder
