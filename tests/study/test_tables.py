"""study/tables.py, report.py: tables of made-up records, and that what is shipped agrees: README.md, results/README.md, records."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import write_study
from scipy import stats

from lora import LoRALayer
from study import __main__ as program
from study import tables
from study.design import Run, runs_of
from study.figures import draw_all
from study.real import REAL
from study.report import answers, fill_in, report
from study.runs import finder, record_path, surroundings
from study.stats import matched, ratio
from study.tables import Results
from study.toy import ARMS, EXTENDED_DESIGN, FULL, JUDGED, LONG_QV, MAIN, QUICK, STRENGTHS
from train import METHODS, Method

MATCHED, ENDS = "never asked at matched new knowledge", ("new knowledge", "never asked")
STUDY = Path(__file__).resolve().parents[2] / "study"


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
    row = row_of(tables.arms_table(made, ARMS), "lora")
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
    assert f"{100 * primary.difference.mean:+.1f} points" in tables.primary_line(made)


def test_a_larger_forgetting_loss_is_behind(made):
    for (first, second, endpoint), c in made.comparisons.items():
        if c.verdict != "not resolved":
            better = c.difference.mean < 0 if endpoint == "forgetting loss" else c.difference.mean > 0
            assert c.verdict == ("ahead" if better else "behind")


def test_matched_acquisition_reads_whole_curves(made):
    rates = tables.curve_rates(FULL, MAIN[0], made.rates["mica"])
    assert list(made.curve("mica", 3, ENDS)) == rates and len(rates) == 4
    new = [made.values("mica", "new knowledge", [3], lr)[0] for lr in rates]
    assert [point[0] for point in made.curve("mica", 3, ENDS).values()] == new
    curves = [[list(made.curve(name, world, ENDS).values()) for world in JUDGED] for name in ("mica", "lora")]
    assert made.comparisons["mica", "lora", MATCHED].difference == matched(*curves)
    assert len(made.curve("mica-random", 3, ENDS)) == 1 and made.matched("mica-random", "mica", ENDS) is None


def test_at_equal_keeping_each_world_is_read_at_the_rate_that_is_best_on_the_others(tmp_path, design=STRENGTHS):
    results = Results(write_study(tmp_path, design), design)
    for (
        record
    ) in results.records.values():  # kept falls from 1 by 0.2, new knowledge rises from 0.2 by 0.4, and 0.1 with lr
        steps = {float(strength): turned for strength, turned in record.get("strengths", {}).items()} | {1.0: record}
        for t, turned in steps.items():
            lr = record["key"]["lr"] or 0
            turned["summary"] = json.loads(json.dumps(turned["summary"]))
            turned["summary"]["never-asked"]["acc"] = 1 - 0.2 * t * (lr > 0)
            turned["summary"]["new"]["acc"] = 0.2 + (0.4 + lr + 0.01 * record["key"]["world"]) * t * (lr > 0)
            turned["forgetting loss"] = 1 + t * (lr > 0)
    (kept, lost), rates = design.primary, {name: max(results.arms[name].at) for name in ("mica", "lora")}
    for title, t in ((kept, 0.25), (lost, 0.5)):  # 95% is kept at a quarter, and half is lost at a half
        expected = [0.2 + (0.4 + rates["mica"] + 0.01 * world) * t for world in JUDGED]
        assert results.read_at("mica", title, JUDGED) == pytest.approx(expected)
        assert results.comparisons["mica", "lora", title].difference.mean == pytest.approx(
            t * (rates["mica"] - rates["lora"])
        )
    text = report(results)
    assert list(results.comparisons) == design.comparisons and len(design.comparisons) == 2 * len(design.pairs)
    assert len(re.findall(r"\| mica \| [\d.]+ \| 0.35 \| 8 \|", text)) == 2 and "nan" not in text
    assert draw_all(results, None).keys() == {"bars", "frontier"}


def test_gains_are_above_the_untouched_model_of_the_same_world(made):
    before = made.values("untouched", "new knowledge", JUDGED)
    after = made.values("pissa", "new knowledge", JUDGED)
    assert made.gains("pissa", JUDGED) == pytest.approx(np.subtract(after, before))
    value, low, high = ratio(made.gains("pissa", JUDGED), made.gains("lora", JUDGED))
    assert (
        row_of(tables.pairs_table(made, ["new knowledge"]), "pissa - lora")[1] == f"{value:.2f} [{low:.2f}, {high:.2f}]"
    )


def test_an_unfinished_study_is_reported_as_far_as_it_got(tmp_path):
    design = QUICK
    write_study(tmp_path, design)
    for path in (tmp_path / "runs").glob("mica-major*"):
        path.unlink()
    (tmp_path / "runs/lora_0.007_world3.json").unlink()
    results = Results(tmp_path, design)
    assert results.comparisons["mica", "lora", "new knowledge"].difference.n == 2
    table = tables.arms_table(results, design.arms)
    assert row_of(table, "lora")[3] == "2" and row_of(table, "mica")[3] == "3"
    assert "| mica-major" not in report(results) and "missing (mica-major 3, lora 1; worlds 1, 2, 3)" in report(results)


# --- the program -------------------------------------------------------------------------------------------------------


def run_program(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
    monkeypatch.chdir(STUDY.parent)
    program.main()


def test_the_program_draws_what_there_is_and_leaves_the_studys_readme_alone(tmp_path, monkeypatch, capsys):
    write_study(tmp_path / "q", QUICK)
    before = (STUDY / "README.md").read_bytes()
    run_program(monkeypatch, "--quick", "--draw", "--results", tmp_path / "q")
    assert "Primary comparison, mica - lora" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "q").iterdir()}
    pictures = ("epochs", "bars", "frontier", "parameters", "landing")
    assert names == {"runs", "README.md", *(f"{name}.png" for name in pictures)}
    assert (STUDY / "README.md").read_bytes() == before


@pytest.mark.parametrize(
    "study, sentence", [([], "does not yet hold two worlds"), (["--real"], "does not yet hold a judged run")]
)
def test_without_results_one_sentence(study, sentence, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_program(monkeypatch, *study, "--draw", "--results", tmp_path)
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


# --- what is shipped ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return Results(STUDY / "results", EXTENDED_DESIGN)


@pytest.fixture(scope="module")
def studies(shipped):
    """{the program's flag: Results}"""
    return {"": shipped} | {d.name: Results(STUDY / "results" / d.name, d) for d in (STRENGTHS, LONG_QV, REAL)}


def test_the_readmes_answers_are_what_the_results_give(studies):
    text = (STUDY / "README.md").read_text(encoding="utf-8")
    assert fill_in(text, answers(*studies.values())) == text


CITED = {"43.1", "0.079", "47.8", "0.050", "2.2", "2.5"}  # figures of others, a model's size, hours


def test_each_figure_in_the_readme_is_printed_by_a_command(studies):
    """In a report, or by one of the looks that the README gives; whole numbers are these, rounded."""
    text = (STUDY / "README.md").read_text(encoding="utf-8")
    printed = "".join(report(results) for results in studies.values())
    for flag, first, second in re.findall(r"python -m study( --\w+)? --look (\S+) (\S+)", text):
        printed += tables.look(studies[flag.strip(" -")], first, second)
    prose = re.sub(r"\d{4}\.\d{5}", "", text)  # papers
    assert set(re.findall(r"(?<![\d.@])\d+\.\d+", prose)) - CITED <= set(re.findall(r"\d+\.\d+", printed))


def test_the_reports_of_the_results_are_what_they_give_whatever_methods_there_are(studies, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method(LoRALayer, lr=1e-2))
    for results in studies.values():
        text = report(results)
        assert (results.folder / "README.md").read_text(encoding="utf-8") == text
        assert f"over all {len(results.design.comparisons) - 1} comparisons" in " ".join(text.split())
        for picture in re.findall(r"\((\w+\.png)\)", text):
            assert (results.folder / picture).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_whole_study_is_shipped_and_its_records_count(shipped):
    """For this base model, these worlds (as make_data makes them now) and this version of the numerics."""
    made = {json.dumps({name: r["key"][name] for name in ("torch", "device")}) for r in shipped.records.values()}
    (machine,) = map(json.loads, made)
    around = surroundings(STUDY.parent / "data/base", torch.device("cpu")) | machine
    find = finder(EXTENDED_DESIGN, STUDY / "results", around)
    assert runs_of(FULL, find) == []
    assert runs_of(EXTENDED_DESIGN, find) == runs_of(EXTENDED_DESIGN, shipped.find)
    for run in (Run(arm, shipped.rates[arm.name], world) for arm in ARMS for world in JUDGED):
        key = shipped.find(run)["key"]
        assert (key["method"], key["lr"], key["world"]) == (run.arm.method, run.lr, run.world)
