"""study.py: the design, what is run next, keys and records; a killed study goes on to the same numbers."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import study
from data.make_data import SHIPPED_SEED
from study import (
    ARMS,
    CURVE,
    EXTENDED,
    EXTENDED_DESIGN,
    FULL,
    JUDGED,
    MAIN,
    PAIRS,
    QUICK,
    STEPS,
    TUNING,
    Arm,
    Design,
    Run,
    chosen_rates,
    grid,
    key_of,
    read_record,
    runs_of,
    step_from,
    task_for,
    tune,
    without_docstrings,
)
from train import ALL, METHODS, Settings

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def record(new, kept=0.5):
    return {"summary": {"new": {"acc": new}, "never-asked": {"acc": kept}}}


def learner(peak):
    """find() of a world in which every run is done, and the best rate is `peak`."""
    return lambda run: record(1 - abs(math.log(run.lr / peak)) / 10 if run.lr else 0)


# --- the design --------------------------------------------------------------------------------------------------------


def test_the_design_is_what_was_asked_for():
    assert len(TUNING) == 2 and len(JUDGED) == 8
    assert len({*TUNING, *JUDGED, SHIPPED_SEED}) == 11  # nothing is judged that anything was tuned on
    assert [arm.name for arm in MAIN] == list(ALL) and all(arm.rates == 5 for arm in MAIN)
    methods = {arm.method for arm in ARMS}
    assert methods == {None, *METHODS}
    names = [arm.name for arm in ARMS + EXTENDED]
    assert len(set(names)) == len(names)
    assert all(name in names for pair in PAIRS for name in pair)
    assert PAIRS[0] == ("mica", "lora")
    ranks = {arm.settings.rank for arm in MAIN}
    assert ranks == {8} and next(arm for arm in ARMS if arm.name == "mica rank 16").settings == Settings(rank=16)


def test_runs_have_files_of_their_own():
    everything = [*runs_of(EXTENDED_DESIGN, lambda run: None)]
    everything += runs_of(EXTENDED_DESIGN, lambda run: record(run.lr) if run in everything else None)
    done = {run: record(1 - abs(math.log10(run.lr) + 2)) for run in everything}
    everything += runs_of(EXTENDED_DESIGN, done.get)
    names = [run.name for run in everything]
    assert len({name.lower() for name in names}) == len(names)  # on any file system
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in names)


# --- learning rates ----------------------------------------------------------------------------------------------------


def test_steps_of_learning_rates():
    assert [step_from(7e-3, i) for i in range(-6, 3)] == [7e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7e-3, 1e-2, 1.5e-2]
    assert step_from(1e-2, -1) == 7e-3 and step_from(1e-3, 0) == 1e-3
    with pytest.raises(ValueError):
        step_from(4e-3, 1)


@given(st.sampled_from(STEPS), st.integers(-6, 1), st.integers(-20, 20))
def test_steps_go_back_to_where_they_came_from(step, power, steps):
    lr = float(f"{step}e{power}")
    assert step_from(step_from(lr, steps), -steps) == lr
    assert (step_from(lr, steps) > lr) == (steps > 0)


def test_grids_stand_around_the_default():
    assert grid(Arm("x", "lora", rates=5)) == [3e-3, 5e-3, 7e-3, 1e-2, 1.5e-2]
    assert grid(Arm("x", "lora", rates=4)) == [5e-3, 7e-3, 1e-2, 1.5e-2]
    assert grid(Arm("x", "lora", rates=4, lr=1e-3)) == [7e-4, 1e-3, 1.5e-3, 2e-3]


def test_tuning_takes_the_best_mean_of_both_scores_over_both_worlds():
    arm = Arm("x", "lora", rates=3)
    scores = {5e-3: (0.6, 0.9), 7e-3: (0.8, 0.8), 1e-2: (0.95, 0.6)}  # their means: 0.75, 0.8, 0.775
    assert tune(arm, TUNING, lambda run: record(*scores[run.lr]))[1:] == (7e-3, [])
    uneven = {5e-3: (0.2, 0.2), 7e-3: (0.7, 0.7), 1e-2: (1.0, 0.1)}  # by world: 0.55 is the best of the means
    assert tune(arm, TUNING, lambda run: record(uneven[run.lr][run.world == TUNING[1]]))[1] == 7e-3
    assert tune(arm, TUNING, lambda run: record(0.5 + 0.01 * (run.lr == 7e-3)))[1] == 7e-3


@pytest.mark.parametrize("peak", [7e-3, 1e-3, 7e-2])
def test_a_best_rate_at_an_edge_extends_the_grid(peak):
    rates, best, missing = tune(Arm("x", "lora", rates=5), TUNING, learner(peak))
    assert best == peak and missing == []
    assert rates == sorted(rates) and rates[0] < best < rates[-1]
    assert {3e-3, 7e-3, 1.5e-2} <= set(rates)


def test_tuning_asks_for_what_is_missing_and_for_the_edge_only_then():
    arm, done = Arm("x", "lora", rates=3), {}
    rates, best, missing = tune(arm, TUNING, done.get)
    assert best is None and {(run.lr, run.world) for run in missing} == {(lr, w) for lr in rates for w in TUNING}
    done |= {run: learner(1e-3)(run) for run in missing}
    rates, best, missing = tune(arm, TUNING, done.get)
    assert best is None and {(run.lr, run.world) for run in missing} == {(3e-3, world) for world in TUNING}


def test_a_rate_that_follows_another():
    rates, missing = chosen_rates(FULL, learner(7e-3))
    assert rates["lora"] == 7e-3 and rates["mica by rule"] == 0.014 and not missing
    assert chosen_rates(FULL, lambda run: None)[0]["mica by rule"] is None
    assert chosen_rates(QUICK, lambda run: None) == (
        {a.name: a.method and METHODS[a.method].lr for a in QUICK.arms},
        [],
    )


# --- what is run next --------------------------------------------------------------------------------------------------


def test_tuning_comes_first_and_judged_worlds_only_when_it_is_done():
    first = runs_of(FULL, lambda run: None)
    assert {run.world for run in first} == set(TUNING)
    judged = runs_of(FULL, lambda run: record(0.5 + (run.lr == grid(run.arm)[1])) if run.world in TUNING else None)
    assert {run.world for run in judged} == set(JUDGED)
    counts = {arm.name: sum(run.arm == arm for run in judged) for arm in ARMS}
    assert all(counts[arm.name] == len(JUDGED) * (len(CURVE) if arm in MAIN else 1) for arm in ARMS)
    at_chosen = len(ARMS) * len(JUDGED)
    assert {run.arm.name for run in judged[:at_chosen]} == {arm.name for arm in ARMS}  # the curves come last
    assert (
        runs_of(FULL, lambda run: record(0.5 + (bool(run.lr) and run.lr == grid(run.arm)[1]) if run.arm.rates else 0))
        == []
    )


def test_finished_runs_are_not_repeated():
    design = Design((ARMS[0], MAIN[1]), (), (1, 2))
    runs = runs_of(design, lambda run: None)
    assert [(run.arm.name, run.world) for run in runs] == [("untouched", 1), ("lora", 1), ("untouched", 2), ("lora", 2)]
    assert runs_of(design, {runs[1]: record(1)}.get) == [runs[0], *runs[2:]]


# --- tasks, keys and records -------------------------------------------------------------------------------------------


def test_tuning_asks_about_other_old_subjects_than_are_judged():
    judged, tuning = task_for(JUDGED[0], 40), task_for(TUNING[0], 40)
    assert {name: len(some) for name, some in judged.question_sets.items()} == {
        "new": 720, "unbound": 720, "new cloze": 720, "never-asked": 720, "old cloze": 360,
    }  # fmt: skip
    subjects = {q.subject for q in judged.question_sets["never-asked"]}
    assert not subjects & {q.subject for q in tuning.question_sets["never-asked"]}


def test_worlds_differ_and_repeat():
    prompts = [tuple(q.prompt for q in task_for(world, 40).question_sets["new"]) for world in (*TUNING, *JUDGED)]
    assert len(set(prompts)) == 10
    task_for.cache_clear()
    assert tuple(q.prompt for q in task_for(JUDGED[-1], 40).question_sets["new"]) == prompts[-1]


def copy_base(folder):
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_bytes((ROOT / "data/base" / name).read_bytes())
    return folder


def test_a_key_holds_everything_that_can_change_a_runs_numbers(tmp_path, monkeypatch):
    arm = Arm("x", "lora")
    run, folder = Run(arm, 7e-3, 1), copy_base(tmp_path / "base")
    around = study.surroundings(folder, CPU)
    key = key_of(run, around)
    assert key == key_of(run, study.surroundings(folder, CPU)) == json.loads(json.dumps(key))
    assert key_of(replace(run, arm=replace(arm, name="other", rates=3)), around) == key  # its name changes nothing
    others = [
        replace(run, lr=5e-3),
        replace(run, world=2),
        replace(run, arm=replace(arm, method="mica")),
        replace(run, arm=replace(arm, subjects=20)),
        *(
            replace(run, arm=replace(arm, settings=replace(Settings(), **change)))
            for change in ({"rank": 4}, {"alpha": 4.0}, {"targets": ("q_proj",)}, {"epochs": 2}, {"batch_size": 4},
                           {"dropout": 0.1}, {"seq_len": 64}, {"warmup": 0.2}, {"clip": 0.5})
        ),
    ]  # fmt: skip
    keys = [json.dumps(key_of(other, around)) for other in others]
    assert len({json.dumps(key), *keys}) == 1 + len(others)

    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # one bit of one weight
    (folder / "model.safetensors").write_bytes(weights)
    assert study.surroundings(folder, CPU)["base"] != around["base"]
    monkeypatch.setattr(study, "train", study.lora)  # other code
    assert study.surroundings(folder, CPU)["code"] != around["code"]
    monkeypatch.setattr(torch, "__version__", "2.99")
    assert study.surroundings(folder, CPU)["torch"] == "2.99"


def test_a_key_knows_code_from_comments():
    code = 'def f(x):\n    """What."""\n    return x + 1  # why\n'
    assert without_docstrings(code) == without_docstrings("def f(x):\n\n    return (x + 1)\n")
    assert without_docstrings(code) != without_docstrings(code.replace("+", "-"))
    assert without_docstrings('"""A."""\nx = "a"') != without_docstrings('"""A."""\nx = "b"')
    assert without_docstrings('class A:\n    """What."""\n')


def test_a_record_that_is_none_is_named(tmp_path):
    path = tmp_path / "x.json"
    assert read_record(path) is None
    for text in ("", '{"key": {}, "summ', "[]", "3", '{"key": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="x.json is not a run's record: delete it"):
            read_record(path)


def test_a_record_made_in_other_surroundings_does_not_count(tmp_path):
    run, around = Run(ARMS[0], None, 1), {"base": "b", "code": "c"}
    path = study.record_path(tmp_path, run)
    path.parent.mkdir()
    path.write_text(json.dumps({"key": key_of(run, around), "summary": {}}))
    assert study.finder(tmp_path, around)(run) is not None
    assert study.finder(tmp_path, around | {"code": "d"})(run) is None
    assert study.finder(tmp_path, around)(replace(run, world=2)) is None


# --- the program -------------------------------------------------------------------------------------------------------

# A study small enough for tests: an untouched base, two arms with tuned rates and one that follows, on worlds of 6 subjects.
SMALL_STUDY = """
import sys
sys.path.insert(0, {root!r})
import study
from study import Arm, Design, Settings

whole, TINY = study.old_world(), Settings(rank=2, epochs=2, batch_size=4, seq_len=64)
study.old_world = lambda: {{name: some[:20] for name, some in whole.items()}}
study.tuning_retention = lambda: whole["asked"][:20]
study.task_of = lambda seed, retention: real(seed, retention, 2)

def real(seed, retention, subjects):
    new = study.world(seed, subjects)
    sets = {{"new": new["questions"], "unbound": new["unbound"], "never-asked": retention}}
    return study.Task(new["corpus"], {{n: [study.make_question(i) for i in some] for n, some in sets.items()}}, {{}})

arms = [Arm("untouched", None, subjects=2)]
arms += [Arm(name, name, TINY, rates=2, subjects=2) for name in ("mica", "lora")]
arms += [Arm("rule", "mica", TINY, follows=("lora", 2), subjects=2)]
study.FULL = Design(tuple(arms), study.TUNING, (1, 2))
if __name__ == "__main__":
    study.main()
"""


def small_study(folder, model, workers, **options):
    script = folder / "small_study.py"
    script.write_text(SMALL_STUDY.format(root=str(ROOT)))
    line = [sys.executable, script, "--model", model, "--workers", str(workers), "--results", folder / "results"]
    return subprocess.Popen(list(map(str, line)), cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


def numbers(folder):
    """{file: its record without when and how long}."""
    records = {path.name: json.loads(path.read_text()) for path in (folder / "results/runs").iterdir()}
    return {
        name: {k: v for k, v in one.items() if k not in ("seconds", "finished", "workers")}
        for name, one in records.items()
    }


def wait_until_gone(process):
    """Wait until neither the study nor a worker of it is left: they are the group of a session of their own."""
    for _ in range(300):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a worker lives on")


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_numbers(tiny_llama_folder, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    process = small_study(whole, tiny_llama_folder, workers=1)
    assert process.wait(300) == 0, process.stderr.read()
    expected = numbers(whole)
    assert len(expected) >= 2 * 2 * 2 + 2 * 4

    rng, runs, survivors = random.Random(), killed / "results/runs", {}
    for kill in range(2):
        process = small_study(killed, tiny_llama_folder, workers=2, start_new_session=True)
        before = len(list(runs.glob("*.json")))
        deadline = time.monotonic() + 120
        while len(list(runs.glob("*.json"))) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1))  # anywhere: while training, while writing
        process.kill()
        process.wait(60)
        wait_until_gone(process)
        survivors |= {path: path.read_bytes() for path in runs.glob("*.json")}
        assert survivors.keys() == set(runs.glob("*.json"))
        assert all(json.loads(content)["key"] for content in survivors.values())  # whole, or not there
        assert 2 <= len(survivors) < len(expected)
    process = small_study(killed, tiny_llama_folder, workers=2)
    assert process.wait(300) == 0, process.stderr.read()
    for left in runs.glob(".*.tmp"):  # what a killed process was writing has another name
        left.unlink()
    assert numbers(killed) == expected
    assert all(path.read_bytes() == content for path, content in survivors.items())  # none was made again


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(tiny_llama_folder, tmp_path):
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background may start deaf to it
    process = small_study(tmp_path, tiny_llama_folder, workers=2, start_new_session=True, preexec_fn=listening)
    runs = tmp_path / "results/runs"
    deadline = time.monotonic() + 120
    while len(list(runs.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=60)
    wait_until_gone(process)
    assert process.returncode == 130
    assert "study.py: interrupted" in errors and "Traceback" not in errors
    assert len(numbers(tmp_path)) >= 2
    assert list(runs.glob(".*.tmp")) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers", "0"], "--workers must be at least 1, not 0"),
        (["--model", "nowhere"], "nowhere"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--quick", "--extended"], "not allowed with"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "--results", str(tmp_path / "results"), *arguments])
    with pytest.raises(SystemExit) as stopped:
        study.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_damaged_record_stops_the_study_before_anything_runs(tmp_path, monkeypatch, capsys):
    path = study.record_path(tmp_path, Run(ARMS[0], None, JUDGED[0]))
    path.parent.mkdir()
    path.write_text('{"key": ')
    monkeypatch.setattr(sys, "argv", ["study.py", "--quick", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        study.main()
    assert stopped.value.code == 2 and "untouched_world1.json is not a run's record" in capsys.readouterr().err
