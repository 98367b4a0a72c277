"""figures.py: tables and pictures of made-up records, and that what is shipped agrees: README, results/README.md, records."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import figures
import study
from figures import MATCHED, Results, fill_in, readme_tables, report
from stats import height_between, ratio
from study import ARMS, EXTENDED_DESIGN, FULL, JUDGED, MAIN, QUICK, Design, Run, record_path

ROOT = Path(__file__).resolve().parents[1]
SETS = ("new", "unbound", "new cloze", "never-asked", "old cloze")
PNG = b"\x89PNG\r\n\x1a\n"


def made_up(run, rng):
    """A record with what figures.py reads: more is learned, and less kept, at higher rates."""
    shift = 0.1 * np.log10(run.lr / 1e-2) if run.lr else 0
    acc = {name: 0.6 + shift + rng.normal(0, 0.02) for name in SETS} | {
        "never-asked": 0.8 - shift + rng.normal(0, 0.01)
    }
    summary = {name: {"acc": acc[name], "logprob": np.log(acc[name]), "exact": acc[name] / 2} for name in SETS}
    one = {"amplification": 2.0, "left_major": 0.1, "left_minor": 0.2, "right_major": 0.3, "right_minor": 0.4}
    return {
        "key": {"code": "c", "torch": "2", "device": "cpu"},
        "trained": 1000 * run.arm.settings.rank,
        "history": [{"epoch": i, "loss": 1.0, "new": 0.3 + 0.1 * i} for i in range(1, run.arm.settings.epochs + 1)],
        "summary": summary,
        "forgetting loss": 0.6 + rng.normal(0, 0.01),
        "landing": {"left": [1 / 24] * 24, "right": [1 / 24] * 24, "projections": {"q_proj": one, "v_proj": one}},
        "seconds": 30.0,
        "workers": 2,
        "machine": "a computer",
        "finished": "2026-11-25 01:02:03",
    }


def write_study(folder, design):
    """All the records of a design, as study.py would make them one stage after the other."""
    rng, done = np.random.default_rng(0), {}
    while runs := study.runs_of(design, done.get):
        for run in runs:
            done[run] = made_up(run, rng)
            if run.world in study.TUNING:  # the middle of the grid is best
                best = run.lr == study.grid(run.arm)[1]
                done[run]["summary"]["new"]["acc"] = done[run]["summary"]["never-asked"]["acc"] = 0.5 + 0.1 * best
            path = record_path(folder, run)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(done[run]))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of the whole study, of made-up records."""
    return Results(write_study(tmp_path_factory.mktemp("whole"), EXTENDED_DESIGN), EXTENDED_DESIGN)


def row_of(table, name):
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


# --- what is reported --------------------------------------------------------------------------------------------------


def test_a_mean_and_its_error_are_over_the_judged_worlds(made):
    values = [json.loads(record_path(made.folder, Run(MAIN[1], made.rates["lora"], w)).read_text()) for w in JUDGED]
    new = [100 * value["summary"]["new"]["acc"] for value in values]
    row = row_of(figures.arms_table(made), "lora")
    assert row[:4] == ["lora", "8,000", f"{made.rates['lora']:g}", "8"]
    assert row[4] == f"{np.mean(new):.1f} +- {stats.sem(new):.1f}"
    loss = [value["forgetting loss"] for value in values]
    assert row[-1] == f"{np.mean(loss):.3f} +- {stats.sem(loss):.3f}"


def test_the_primary_comparison_is_mica_minus_lora_and_not_corrected(made):
    name, primary = next(iter(made.comparisons.items()))
    assert name == ("mica", "lora", "new knowledge")
    first, second = (made.values(arm, "new knowledge", JUDGED) for arm in ("mica", "lora"))
    assert primary.difference.mean == pytest.approx(np.mean(first) - np.mean(second))
    assert primary.p == primary.difference.p == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert f"{100 * primary.difference.mean:+.1f} points" in figures.primary_line(made)


def test_all_other_comparisons_are_corrected_together(made):
    others = list(made.comparisons.values())[1:]
    assert len(others) == len(study.PAIRS) * len(study.ENDPOINTS) - 1 + 4  # four pairs of main arms have curves
    assert min(c.p for c in others) == pytest.approx(min(c.difference.p for c in others) * len(others))
    assert all(c.p >= c.difference.p for c in others)


def test_a_larger_forgetting_loss_is_behind(made):
    for (first, second, endpoint), c in made.comparisons.items():
        if c.verdict != "not resolved":
            better = c.difference.mean < 0 if endpoint == "forgetting loss" else c.difference.mean > 0
            assert c.verdict == ("ahead" if better else "behind")


def test_matched_acquisition_reads_whole_curves(made):
    rates = figures.curve_rates(FULL, MAIN[0], made.rates["mica"])
    assert len(made.curve("mica", 3)) == len(rates) == 4
    new = [made.values("mica", "new knowledge", [3], lr)[0] for lr in rates]
    assert [point[0] for point in made.curve("mica", 3)] == new
    heights = [height_between(made.curve("mica", w), made.curve("lora", w)) for w in JUDGED]
    heights = [height for height in heights if height == height]
    assert made.comparisons["mica", "lora", MATCHED].difference.mean == pytest.approx(np.mean(heights))
    assert made.curve("mica-random", 3) is None


def test_gains_are_above_the_untouched_model_of_the_same_world(made):
    before = made.values("untouched", "new knowledge", JUDGED)
    after = made.values("pissa", "new knowledge", JUDGED)
    assert made.gains("pissa", JUDGED) == pytest.approx(np.subtract(after, before))
    value, low, high = ratio(made.gains("pissa", JUDGED), made.gains("lora", JUDGED))
    assert row_of(figures.pairs_table(made), "pissa - lora")[1] == f"{value:.2f} [{low:.2f}, {high:.2f}]"


def test_tried_rates_are_listed_and_the_chosen_one_is_bold(made):
    row = row_of(figures.rates_table(made), "lora")
    assert re.findall(r"([\d.e-]+): ", row[1]) == ["0.003", "0.005", "0.007", "0.01", "0.015"]
    assert re.findall(r"\*\*([\d.]+): 60.0 / 60.0\*\*", row[1]) == ["0.005"]


def test_an_unfinished_study_is_reported_as_far_as_it_got(tmp_path):
    design = Design(QUICK.arms, (), (1, 2, 3))
    write_study(tmp_path, design)
    for path in (tmp_path / "runs").glob("mica-major*"):
        path.unlink()
    (tmp_path / "runs/lora_0.007_world3.json").unlink()
    results = Results(tmp_path, design)
    assert results.comparisons["mica", "lora", "new knowledge"].difference.n == 2
    table = figures.arms_table(results)
    assert row_of(table, "lora")[3] == "2" and row_of(table, "mica")[3] == "3"
    assert "mica-major" not in report(results)


@pytest.mark.parametrize("name", ["epochs", "bars", "frontier", "parameters", "extended"])
def test_pictures_are_drawn(made, name, tmp_path):
    figures.save_figure(getattr(figures, f"draw_{name}")(made), tmp_path / f"{name}.png")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


def test_the_program_writes_everything_and_leaves_the_readme_alone_when_quick(tmp_path, monkeypatch, capsys):
    write_study(tmp_path / "q", QUICK)
    readme = (ROOT / "README.md").read_bytes()
    monkeypatch.setattr(sys, "argv", ["figures.py", "--quick", "--results", str(tmp_path / "q")])
    monkeypatch.chdir(ROOT)
    figures.main()
    assert "Primary comparison, mica - lora" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "q").iterdir()}
    assert written == {"runs", "README.md", "epochs.png", "bars.png", "frontier.png", "parameters.png", "landing.png"}
    assert (ROOT / "README.md").read_bytes() == readme


def test_without_results_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figures.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        figures.main()
    assert stopped.value.code == 2 and "does not yet hold two worlds" in capsys.readouterr().err


def test_only_what_stands_between_the_markers_is_replaced():
    text = "a\n<!-- study: x -->\nold\nold\n<!-- end -->\nb\n<!-- study: y -->\n<!-- end -->\n"
    with pytest.raises(ValueError, match="study: z"):
        fill_in(text, {"z": "new"})
    filled = fill_in(text.replace("y -->\n", "y -->\n\n"), {"x": r"new \1", "y": "more"})
    assert filled == "a\n<!-- study: x -->\nnew \\1\n<!-- end -->\nb\n<!-- study: y -->\nmore\n<!-- end -->\n"


# --- what is shipped ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return Results(ROOT / "results", EXTENDED_DESIGN)


def test_the_readmes_tables_are_what_the_results_give(shipped):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert fill_in(text, readme_tables(shipped)) == text


def test_the_report_of_the_results_is_what_they_give(shipped):
    assert (ROOT / "results/README.md").read_text(encoding="utf-8") == report(shipped)
    for picture in re.findall(r"\((\w+\.png)\)", report(shipped)):
        assert (ROOT / "results" / picture).read_bytes().startswith(PNG)


def test_the_whole_study_is_shipped_and_was_made_by_one_version_of_the_code(shipped):
    assert study.runs_of(FULL, shipped.find) == []
    assert len({json.dumps(record["key"]["code"]) for record in shipped.records.values()}) == 1
    for run in (Run(arm, shipped.rates[arm.name], world) for arm in ARMS for world in JUDGED):
        key = shipped.find(run)["key"]
        assert (key["method"], key["lr"], key["world"]) == (run.arm.method, run.lr, run.world)
        assert key["task"] == study.task_digest(
            run.world, run.arm.subjects
        )  # of the worlds as make_data makes them now


def test_the_results_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file()) < 8e6
