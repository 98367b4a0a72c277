"""study/real.py: the design on real weights; its tables and pictures, of made-up records, however many there are."""

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from made_up import write_study
from scipy import stats

from data.make_data import SHIPPED_SEED
from study import __main__ as program
from study import figures, real, tables
from study.design import TUNING, Run, chosen_rates, grid, runs_of, tune
from study.real import JUDGED, REAL, task_for
from study.report import pairs_of, report
from study.runs import read_record, record_path, task_digest, task_of
from study.stats import matched
from study.tables import Results
from study.toy import FULL, LONG_QV

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
    assert {name for pair in REAL.matched.values() for name in pair} <= set(REAL.endpoints)
    assert set(REAL.primary) <= set(REAL.matched) and set(REAL.rated) <= set(REAL.columns)
    everywhere = {"lora all linears", "mica all linears", "full", "full chronicle"}
    for name, arm in ARMS.items():
        assert arm.settings.targets == (None if name in everywhere else ("q_proj", "v_proj")), name
        assert arm.settings.rank == (8 if name == "lora rank 8" else 16), name
        assert arm.settings.batch_size == 2 and arm.settings.alpha is None  # alpha is the rank
        assert bool(arm.at) + bool(arm.rates) + bool(arm.follows) == (arm.method is not None), name
    assert [arm.subjects for arm in REAL.extended] == [0, 0, 0] and REAL.extended_worlds == 4


def test_worlds_are_24_facts_in_eight_wordings():
    judged, tuning = (
        task_for(JUDGED[0], real.SUBJECTS, real.TEXTS, True),
        task_for(TUNING[0], real.SUBJECTS, real.TEXTS, False),
    )
    assert len(judged.documents) == len(tuning.documents) == 4 * 8
    for name in ("new", "unbound", "new cloze"):
        assert len(judged.question_sets[name]) == 24
    assert set(tuning.question_sets) == {"new", "new cloze"} and not tuning.texts  # what costs nothing while tuning
    assert len(judged.question_sets["never-asked"]) >= 600 and set(judged.texts) == {REAL.text}
    found = {
        tuple(task_for(world, real.SUBJECTS, real.TEXTS, world in JUDGED).documents) for world in (*TUNING, *JUDGED)
    }
    assert len(found) == len(TUNING) + len(JUDGED)


def guessed(questions, measure):
    """The share that is answered right by taking the choice with the largest `measure`, of equal ones any."""
    right = 0
    for question in questions:
        values = [measure(choice) for choice in question.choices]
        right += (values[question.answer] == max(values)) / values.count(max(values))
    return right / len(questions)


def test_no_shortcut_answers_the_questions():
    """How often the texts say a choice, how long it is, where it stands: over the worlds at most 30%, chance is 25%."""
    shares = {}
    for world in (*JUDGED, *TUNING):
        task = task_for(world, real.SUBJECTS, real.TEXTS, world in JUDGED)
        said = " ".join(task.documents)
        for name in {"new", "new cloze", "unbound"} & set(task.question_sets):
            questions = task.question_sets[name]
            for sign, way in ((1, "most"), (-1, "least")):
                for what, measure in (("often", lambda c: said.count(c.strip())), ("long", lambda c: len(c))):
                    share = guessed(questions, lambda choice: sign * measure(choice))
                    shares.setdefault((name, what, way), []).append(share)
            places = Counter(question.answer for question in questions)
            assert max(places.values()) <= 0.3 * len(questions) and len(places) == 4
    assert {key: np.mean(values) for key, values in shares.items() if np.mean(values) > 0.3} == {}


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
    assert len({run.name.lower() for run in done}) == len(done)
    assert all(set(run.name.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for run in done)


@pytest.mark.parametrize("place", range(4))
def test_of_fixed_rates_one_is_chosen_and_none_is_added(place):
    arm = ARMS["mica"]
    best = sorted(arm.at)[place]

    def find(run):
        return {"summary": {"new cloze": {"logprob": -1.0 if run.lr == best else -2.0}}}

    assert tune(REAL, arm, find) == (sorted(arm.at), best, [])
    if place not in (0, 3):  # of other arms the grid is extended, and here would be for ever
        return
    rates, _ = chosen_rates(REAL, lambda run: find(run) if run.arm.at else None)
    assert rates["mica"] == rates["mica chronicle"] == best
    assert rates["full"] is rates["full chronicle"] is None


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


def test_looks_at_curves_are_not_corrected_and_not_among_the_comparisons(made):
    look = made.looks["mica", "lora", "forgetting loss at matched log p"]
    curves = [
        [list(made.curve(arm, world, ("log p", "forgetting loss")).values()) for world in JUDGED]
        for arm in ("mica", "lora")
    ]
    assert look.difference == matched(*curves) and look.p == look.difference.p and look.verdict == "(a look)"
    assert not made.looks.keys() & made.comparisons.keys() and len(made.looks) == 3 * 2
    assert f"{look.difference.mean:+.3f} [" in pairs_of(made) and "(a look) | " in tables.comparisons_table(made)


def test_of_costs_less_is_better(made):
    assert {c.column for c in made.comparisons.values() if c.verdict != "not resolved"} & {
        "forgetting loss",
        "perplexity",
    }
    for c in made.comparisons.values():
        if c.verdict != "not resolved":
            lower = c.column in ("forgetting loss", "perplexity")
            assert c.verdict == ("ahead" if (c.difference.mean < 0) == lower else "behind")


def test_columns_have_their_units_and_fixed_rates_a_row_each(made):
    table = tables.arms_table(made, REAL.arms)
    head = table.splitlines()[0]
    assert "| perplexity |" in head and "| log p, nats |" in head and "| general, % |" in head
    for lr in ARMS["mica"].at:
        values = made.values("mica", "perplexity", JUDGED, lr)
        row = row_of(table, "mica", "16,000", f"{lr:g}")
        assert row[3] == str(len(JUDGED)) and f"{np.mean(values):.1f} +- {stats.sem(values):.1f}" in row
    assert "exact" not in head
    chronicle = tables.arms_table(made, made.extended)
    assert row_of(chronicle, "mica chronicle")[3] == "4" and "unbound" not in chronicle and "cloze" not in chronicle


def test_the_report_of_everything(made):
    text = report(made)
    assert "Every run of the design has its record." in text and "## Chronicle" in text and "nan" not in text
    assert row_of(tables.rates_table(made), "mica")[1].count("**") == 2
    curves, chosen = pairs_of(made).split("At one rate each (mica 0.01, lora 0.002, ")
    assert curves.count("\n| mica") == 3 and chosen.count(" - lora") >= 3 and "mica-trained - mica" in chosen
    assert "a uniform guess (-1.386)" in chosen  # how the rates were chosen stands beside what was found at them


@pytest.mark.parametrize("count", [3, CURVES, CURVES + 3, 2 * CURVES, 6 * CURVES, 6 * CURVES + 30, 160])
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
    assert [ax.get_ylabel() for ax in drawn["frontier"].axes] == [
        "forgetting loss, nats",
        "general (retention), %",
        "perplexity",
    ]
    assert [ax.get_title().split()[1] for ax in drawn["frontier"].axes] == ["down", "up", "down"]
    alone = [arm.name for arm in REAL.arms if arm.rates]
    for ax in drawn["frontier"].axes:  # three curves, named in the legend, and a point an arm, named beside it
        assert len(ax.containers) == 3 + len(alone) and [note.get_text() for note in ax.texts] == alone
    *others, last = drawn["frontier"].axes
    assert [text.get_text() for text in last.get_legend().get_texts()] == ["untouched", *REAL.main] and not any(
        ax.get_legend() for ax in others
    )
    figures.save_figure(drawn["frontier"], tmp_path / "x.png")  # lays it out
    boxes = [ax.get_window_extent() for ax in drawn["frontier"].axes]
    assert not any(last.get_legend().get_window_extent().overlaps(box) for box in boxes)  # it would hide points
    names = [label.get_text() for label in drawn["bars"].axes[-1].get_xticklabels()]
    assert len(names) == 3 * 4 + 5 and "mica 0.04" in names and "lora rank 8" in names


def test_a_look_at_two_arms_is_as_the_comparison_of_them(made):
    said = tables.look(made, "full", "lora all linears")
    for endpoint in REAL.endpoints:
        comparison = made.comparisons["full", "lora all linears", endpoint]
        row = row_of(said, tables.with_unit(endpoint))
        assert row[1] == tables.over_worlds(made, "full", endpoint, JUDGED)
        assert (
            tables.interval(comparison) == f"{row[3]} {comparison.verdict}"
            and row[4] == f"{comparison.difference.p:.2g}"
        )
    assert "| full - lora all linears | " + said.split("gain / gain ")[1] in tables.pairs_table(made, ["new knowledge"])


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
        ("mica@7", "'mica@7' is not judged: 'mica' is so at 0.005, 0.01, 0.02"),
        ("mica@high", "'mica@high' is not judged"),
        ("untouched@1", "'untouched' is so at no rate"),
        ("mica chronicle", "'mica chronicle' is so at no rate"),
        ("mica@2e-2", "'mica@2e-2' and 'lora@2e-3' share fewer than two worlds"),
    ],
)
def test_a_look_that_cannot_be_taken_is_one_sentence(tmp_path, monkeypatch, capsys, arm, sentence):
    write_study(tmp_path, REAL, CURVES + 3)  # of mica's third rate there is one world
    with pytest.raises(SystemExit, match="2"):
        run_program(monkeypatch, "--real", "--results", tmp_path, "--look", arm, "lora@2e-3")
    assert sentence in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_program_takes_a_look_and_writes_nothing(tmp_path, monkeypatch, capsys):
    write_study(tmp_path, REAL, 2 * CURVES)
    run_program(monkeypatch, "--real", "--results", tmp_path, "--look", "mica@5e-3", "lora@2e-3")
    assert "forgetting loss, nats" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def run_program(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
    program.main()


def test_the_program_draws_into_its_own_folder_and_readme_and_needs_no_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "HERE", tmp_path)
    write_study(tmp_path / "results/real", REAL, 2 * CURVES)
    write_study(tmp_path / "results", FULL), write_study(tmp_path / "results/qv", LONG_QV)
    (tmp_path / "README.md").write_text("before\n<!-- answers -->\nold\n<!-- end -->\nafter\n")
    run_program(monkeypatch, "--real", "--draw")
    assert "forgetting loss at matched new knowledge" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "results/real").iterdir()} == {"runs", "README.md", "bars.png", "frontier.png"}
    text = (tmp_path / "README.md").read_text()
    assert (
        "\nold\n" not in text and "| **MiCA or LoRA?** | mica - lora |" in text and text.startswith("before\n<!-- ans")
    )


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


def test_no_rate_is_chosen_for_q_and_v_of_the_toy_and_its_worlds_are_fewer_facts_told_more_often():
    assert runs_of(LONG_QV, lambda run: {"summary": {}}) == [] and not LONG_QV.tuning
    runs = runs_of(LONG_QV, lambda run: None)
    assert len(runs) == 6 * (1 + 3 * 4) and {run.world for run in runs} == set(LONG_QV.judged) <= set(FULL.judged)
    for arm in LONG_QV.arms[1:]:
        assert arm.settings.targets == ("q_proj", "v_proj") and arm.settings.rank == 16 and arm.lr in arm.at
    task = LONG_QV.task(*task_of(runs[0]))
    assert len(task.documents) == 60 * 8 and len(task.question_sets["new"]) == 60 * 6
