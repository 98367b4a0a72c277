"""study/real.py: the design on real weights; its tables and pictures, of made-up records, however many there are."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from made_up import write_study
from scipy import stats

from data.make_data import SHIPPED_SEED
from study import __main__ as program
from study import figures, real, tables
from study.design import TUNING, Run, grid, runs_of
from study.real import JUDGED, REAL
from study.report import pairs_of, report
from study.runs import read_record, record_path, task_digest, task_of
from study.stats import matched
from study.tables import Results
from study.toy import LONG_QV

ARMS = {arm.name: arm for arm in (*REAL.arms, *REAL.extended)}
MATCHED, CONVERSE = REAL.primary
CURVES = 1 + 3 * 4  # runs a world before any rate is chosen


def row_of(table, *names):
    start = "".join(f"| {name} " for name in names) + "|"
    (row,) = [line for line in table.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in row.strip("|").split("|")]


# --- the design --------------------------------------------------------------------------------------------------------


def test_the_design_is_what_was_asked_for():
    assert REAL.tuning == TUNING and len(JUDGED) >= 6
    assert len({*TUNING, *JUDGED, SHIPPED_SEED}) == 3 + len(JUDGED)  # nothing is judged that anything was tuned on
    assert len(ARMS) == len(REAL.arms) + len(REAL.extended)
    assert all(name in ARMS for pair in REAL.pairs for name in pair) and REAL.pairs[0] == ("mica", "lora")
    assert REAL.main == ("mica", "lora", "mica-random") and all(len(ARMS[name].at) == 4 for name in REAL.main)
    everywhere = {"lora all linears", "mica all linears", "full", "full chronicle"}
    for name, arm in ARMS.items():
        assert arm.settings.targets == (None if name in everywhere else ("q_proj", "v_proj")), name
        assert arm.settings.rank == (8 if name == "lora rank 8" else 16), name
        assert arm.settings.batch_size == 2 and arm.settings.alpha is None  # alpha is the rank
        assert bool(arm.at) + bool(arm.rates) + bool(arm.follows) == (arm.method is not None), name
    assert [arm.subjects for arm in REAL.extended] == [0, 0, 0] and REAL.extended_worlds == 4


def test_what_needs_no_choice_of_a_rate_does_not_wait_for_one():
    first, done, batches = runs_of(REAL, lambda run: None), {}, []
    curves = [run for run in first if run.world in JUDGED]
    assert [run.world for run in curves] == sorted([*JUDGED] * CURVES)
    assert {run.arm.name for run in curves} == {"untouched", *REAL.main}
    while left := runs_of(REAL, done.get):
        batches.append(left)
        score = {run: -abs(np.log((run.lr or 1) / (run.arm.lr or 1))) for run in left}
        done |= {run: {"summary": {"new cloze": {"logprob": value}}} for run, value in score.items()}
    assert {run.arm.name for run in batches[-1]} == set(ARMS) - {"untouched", *REAL.main}
    assert len({run.name.lower() for run in done}) == len(done)  # files of their own, on any file system
    assert all(set(run.name.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for run in done)


# --- tables and pictures -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Results(write_study(tmp_path_factory.mktemp("real"), REAL), REAL)


def part(tmp_path, count):
    return Results(write_study(tmp_path, REAL, count), REAL)


def test_the_primary_comparison_is_the_forgetting_loss_at_matched_new_knowledge(made):
    name, primary = next(iter(made.comparisons.items()))
    assert name == ("mica", "lora", MATCHED)
    ends = ("new knowledge", "forgetting loss")
    curves = [[made.curve(arm, world, ends) for world in JUDGED] for arm in ("mica", "lora")]
    assert all(list(curve) == [5e-3, 1e-2, 2e-2, 4e-2] for curve in curves[0])
    assert primary.difference == matched(*([list(curve.values()) for curve in some] for some in curves))
    assert primary.p == primary.difference.p
    assert list(made.comparisons) == [one for one in REAL.comparisons if one in made.comparisons]
    others = list(made.comparisons.values())[1:]
    assert min(c.p for c in others) == pytest.approx(min(c.difference.p for c in others) * (len(REAL.comparisons) - 1))
    lines, d = tables.primary_line(made).split("\n\n"), primary.difference
    assert f"**{d.mean:+.3f} nats**, standard error {d.se:.4f}" in lines[0]
    assert CONVERSE in lines[1] and "points" in lines[1] and "corrected p" in lines[1]


def test_the_report_of_everything(made):
    text = report(made)
    assert "Every run of the design has its record." in text and "## Chronicle" in text and "nan" not in text
    assert row_of(tables.rates_table(made), "mica")[1].count("**") == 2
    curves, chosen = pairs_of(made).split("At one rate each (mica 0.01, lora 0.002, ")
    assert curves.count("\n| mica") == 3 and chosen.count(" - lora") >= 3 and "mica-trained - mica" in chosen
    assert "a uniform guess (-1.386)" in chosen  # how the rates were chosen stands beside what was found at them


@pytest.mark.parametrize("count", [3, CURVES, 2 * CURVES, 160])
def test_some_of_the_records_show_what_there_is_and_what_is_missing(tmp_path, count):
    results = part(tmp_path, count)
    text = report(results)
    assert "**Not finished**" in text and "nan" not in text
    arms = tables.arms_table(results, REAL.arms)
    assert row_of(arms, "mica", "16,000", "0.005")[3] == str(min(len(JUDGED), -(-(count - 1) // CURVES)))
    if found := results.comparisons.get(("mica", "lora", MATCHED)):
        assert found.difference.n == count // CURVES >= 2 or found.difference.n == len(JUDGED)
    else:
        assert "none yet: it needs two worlds" in tables.primary_line(results) and count < 2 * CURVES
    if count in (CURVES, 160):  # drawing takes long
        for figure in figures.draw_all(results, None).values():
            figures.save_figure(figure, tmp_path / "x.png")


def test_a_half_done_study_corrects_for_the_comparisons_that_are_to_come(tmp_path):
    results, planned = part(tmp_path, 6 * CURVES), len(REAL.comparisons) - 1
    for name, record in results.records.items():
        if name.startswith("mica-random"):  # one clear difference
            record["summary"]["perplexity"][REAL.text] -= 1000
    others = list(results.comparisons.values())[1:]
    assert len(others) < planned == len(REAL.pairs) * len(REAL.endpoints) + 3 * len(REAL.matched) - 1 == 53
    least = min(c.difference.p for c in others)
    assert least * planned < 0.01 and min(c.p for c in others) == pytest.approx(least * planned)
    assert f"over all {planned} comparisons" in report(results)
    assert "At one rate each" not in report(results) and "Learning rates" not in report(results)  # none chosen yet


def test_a_rate_at_which_training_diverged_is_not_chosen_and_shown_as_nan(tmp_path):
    write_study(tmp_path, REAL)
    *_, chosen, highest = grid(ARMS["full"])
    diverged = record_path(tmp_path, Run(ARMS["full"], highest, TUNING[0]))
    record = json.loads(diverged.read_text())
    record["summary"]["new cloze"]["logprob"] = None
    diverged.write_text(json.dumps(record))
    results = Results(tmp_path, REAL)
    assert results.rates["full"] == chosen and f"{highest:g}: nan / " in row_of(tables.rates_table(results), "full")[1]


def test_pictures_are_of_what_is_measured(made, tmp_path):
    drawn = figures.draw_all(made, None)
    assert set(drawn) == {"bars", "frontier"}
    labels = [ax.get_ylabel() for ax in drawn["frontier"].axes]
    assert labels == ["forgetting loss, nats", "general (retention), %", "perplexity"]
    assert [ax.get_title().split()[1] for ax in drawn["frontier"].axes] == ["down", "up", "down"]
    names = [label.get_text() for label in drawn["bars"].axes[-1].get_xticklabels()]
    assert len(names) == 3 * 4 + 5 and "mica 0.04" in names and "lora rank 8" in names


def test_a_look_at_an_arm_at_any_of_its_rates(made):
    row = row_of(tables.look(made, "mica@4e-2", "lora@0.001"), "forgetting loss, nats")
    values = [made.values(name, "forgetting loss", JUDGED, lr) for name, lr in (("mica", 4e-2), ("lora", 1e-3))]
    low, high = stats.ttest_rel(*values).confidence_interval(0.95)
    assert row[3] == f"{np.subtract(*values).mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    assert row[5] == f"{sum(one > other for one, other in zip(*values))} of 6 worlds"
    chronicle = tables.look(made, "mica chronicle", "lora chronicle")  # of it less is asked
    assert row_of(chronicle, "questions, %") and "new knowledge" not in chronicle and "gain" not in chronicle
    assert "gain" not in tables.look(made, "untouched", "lora")


@pytest.mark.parametrize(
    "arm, sentence",
    [
        ("mice", "there is no arm 'mice': take one of untouched, mica, lora,"),
        ("mica@7", "'mica@7' and 'lora@2e-3' share fewer than two worlds"),
        ("mica@2e-2", "'mica@2e-2' and 'lora@2e-3' share fewer than two worlds"),
    ],
)
def test_a_look_that_cannot_be_taken_is_one_sentence(tmp_path, monkeypatch, capsys, arm, sentence):
    write_study(tmp_path, REAL, CURVES + 3)  # of mica's third rate there is one world
    run_program(monkeypatch, "--real", "--results", tmp_path, "--look", "mica@5e-3", "untouched")
    assert "forgetting loss, nats" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run_program(monkeypatch, "--real", "--results", tmp_path, "--look", arm, "lora@2e-3")
    assert sentence in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["runs"]


def run_program(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
    program.main()


# --- what is shipped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", [REAL, LONG_QV], ids=["real", "qv"])
def test_records_that_are_shipped_are_runs_of_their_design(design):
    """With these settings, worlds and questions: else the study would make them again."""
    arms = {arm.name.replace(" ", "-"): arm for arm in (*design.arms, *design.extended)}
    records = sorted((Path(real.__file__).parent / "results" / design.name / "runs").glob("*.json"))
    assert records
    for path in records:
        key = read_record(path)["key"]
        run = Run(arms[path.stem.split("_")[0]], key["lr"], key["world"])
        assert run.name == path.stem
        assert key["settings"] == json.loads(json.dumps(asdict(run.arm.settings))) and key["method"] == run.arm.method
        # The chronicle's were made when its chapters were cut into pieces: data/chronicle/README.md.
        assert not run.arm.subjects or key["task"] == task_digest(design.task, *task_of(run)), path.name
