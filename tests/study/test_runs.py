"""study/runs.py: tasks, keys and records, the numerics; the program, where a killed study goes on to the same numbers."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import made_up

from data.make_data import old_subjects, old_world
from gpt import load_pretrained
from study import __main__ as program
from study import runs, toy
from study.design import TUNING, Arm, Run
from study.runs import (
    check_record,
    describe,
    finder,
    key_of,
    perform,
    read_record,
    record_path,
    surroundings,
)
from study.toy import ABLATIONS, ARMS, FULL, LATER, MAIN, task_for
from tools.cli import write_lines
from train import Settings, Task, adapt, copy_for

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


# --- tasks, keys and records -------------------------------------------------------------------------------------------


def test_retention_is_tuned_on_other_old_subjects_than_the_reported_ones():
    _, never_asked = old_subjects()
    tuned_on = {question["subject"] for question in toy.tuning_retention()}
    reported = {question["subject"] for name, items in old_world().items() if name != "text" for question in items}
    assert len(tuned_on) == 120 and len(reported) == 180
    assert not tuned_on & reported
    assert tuned_on <= {subject.name for subject in never_asked}


def copy_base(folder):
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_bytes((ROOT / "data/base" / name).read_bytes())
    return folder


def test_a_key_holds_everything_that_can_change_a_runs_numbers(tmp_path, monkeypatch):
    arm = Arm("x", "lora")
    run, folder = Run(arm, 7e-3, 1), copy_base(tmp_path / "base")
    around = surroundings(folder, CPU)
    key = key_of(FULL, run, around)
    assert key == key_of(FULL, run, surroundings(folder, CPU)) == json.loads(json.dumps(key))
    renamed = replace(run, arm=replace(arm, name="other", rates=3))
    assert key_of(FULL, renamed, around) == key  # its name changes nothing
    others = [
        replace(run, lr=5e-3),
        replace(run, world=2),
        replace(run, arm=replace(arm, method="mica")),
        replace(run, arm=replace(arm, subjects=20)),
        replace(run, arm=replace(arm, settings=Settings(targets=("q_proj",)))),
        replace(run, arm=replace(arm, settings=Settings(clip=0.5))),
    ]
    keys = [json.dumps(key_of(FULL, other, around)) for other in others]
    assert len({json.dumps(key), *keys}) == 1 + len(others)

    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # one bit of one weight
    (folder / "model.safetensors").write_bytes(weights)
    assert surroundings(folder, CPU)["base"] != around["base"]
    monkeypatch.setattr(runs, "NUMERICS", runs.NUMERICS + 1)
    assert surroundings(folder, CPU)["numerics"] == around["numerics"] + 1
    monkeypatch.setattr(torch, "__version__", "2.99")
    assert surroundings(folder, CPU)["torch"] == "2.99"


def test_a_record_that_is_none_is_named(tmp_path):
    path = tmp_path / "x.json"
    assert read_record(path) is None
    for text in ("", '{"key": {}, "summ', "[]", '{"key": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="x.json.*: delete it, and it will be made again$"):
            read_record(path)


AROUND = {"base": "b", "numerics": 1, "torch": "2", "device": "cpu"}


def write_record(folder, run, key):
    path = record_path(folder, run)
    path.parent.mkdir()
    path.write_text(json.dumps(made_up(FULL, run, np.random.default_rng(0)) | {"key": key}))


def test_a_record_made_otherwise_does_not_count_but_a_setting_that_is_younger_had_its_default(tmp_path):
    run = Run(ARMS[0], None, 1)
    key = key_of(FULL, run, AROUND)
    del key["settings"]["clip"]
    write_record(tmp_path, run, key)
    assert finder(FULL, tmp_path, AROUND)(run) is not None
    assert finder(FULL, tmp_path, AROUND | {"numerics": 2})(run) is None
    assert finder(FULL, tmp_path, AROUND)(replace(run, world=2)) is None
    clipped = replace(run, arm=replace(run.arm, settings=Settings(clip=0.5)))
    assert finder(FULL, tmp_path, AROUND)(clipped) is None


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("trained",), True),
        (("summary", "new", "acc"), 2.0),
        (("summary", "new cloze"), {}),
        (("history", 0, "new"), "1"),
        (("forgetting loss",), [None]),
    ],
)
def test_an_odd_record_is_refused_in_one_sentence(tmp_path, part, value):
    run = Run(MAIN[0], 2e-2, 1)
    inside = record = made_up(FULL, run, np.random.default_rng(0))
    for step in part[:-1]:
        inside = inside[step]
    inside[part[-1]] = value
    path = tmp_path / f"{run.name}.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="world1.json.*: delete it, and it will be made again$"):
        check_record(path, read_record(path), FULL, run)


def test_records_under_another_runs_name_are_not_published(tmp_path):
    run, other = Run(MAIN[0], 2e-2, 1), Run(MAIN[1], 2e-2, 1)
    write_record(tmp_path, run, describe(run) | AROUND)
    record_path(tmp_path, run).rename(record_path(tmp_path, other))
    path = record_path(tmp_path, other)
    with pytest.raises(ValueError, match="is the record of another run than its name says: delete it"):
        check_record(path, read_record(path), FULL, other)
    assert check_record(path, read_record(path), FULL, run) is None


def test_records_of_a_run_that_diverged_are_read(tmp_path):
    run = Run(MAIN[0], 2e-2, 1)
    record = made_up(FULL, run, np.random.default_rng(0))
    record["summary"]["new"]["logprob"] = record["forgetting loss"] = float("nan")
    record["landing"] = record["history"][-1]["loss"] = None
    write_lines(tmp_path / "x.json", [record])
    found = read_record(tmp_path / "x.json")
    check_record(tmp_path / "x.json", found, FULL, run)
    assert found["summary"]["new"]["logprob"] is None


# --- the numerics ------------------------------------------------------------------------------------------------------

# Of runs of a few steps on the shipped base model, to more digits than other machines' order of sums leaves alone. From
# the lora run: the loss of either epoch, what is asked and measured of the trained model, where its change lies.
LORA_RUN = [1.2794352, 1.0310420, 0.5, -2.5113734, 1.9012937, 0.66514560, 0.779843, 0.056944]
LAST_LOSS = {
    "mica": 1.1984425,
    "lora": 1.2017615,
    "milora": 1.1722610,
    "pissa": 1.1567866,
    "full": 0.63884592,
    "mica-major": 1.2396081,
    "mica-random": 1.1758466,
    "mica-orthonormal": 1.2152031,
    "mica-trained": 1.2082317,
    "mica-transposed": 1.1765368,
    "lora-fa": 1.1206541,
}
RAISE = "the same run has other numbers now: raise NUMERICS in study/runs.py, or find what changed the numbers"
SHORT = Settings(rank=4, epochs=2, batch_size=2, seq_len=48)


@pytest.fixture(scope="module")
def short():
    """(a task of few documents and questions, the shipped base model, its tokenizer)"""
    whole = task_for(1, 2, 4, judged=True)
    sets = {name: some[:4] for name, some in whole.question_sets.items()}
    task = Task(whole.documents[:6], sets, {"old text": whole.texts["old text"][:2]})
    return task, *load_pretrained(ROOT / "data/base")


def test_a_short_run_has_the_numbers_it_had(short):
    record = perform(FULL, Run(Arm("short", "lora", settings=SHORT), 7e-3, 1), *short)
    new, landing = record["summary"]["new"], record["landing"]
    losses = [entry["loss"] for entry in record["history"]]
    measured = [new["acc"], new["logprob"], record["summary"]["perplexity"]["old text"], record["forgetting loss"]]
    where = [landing["projections"]["q_proj"]["amplification"], landing["right"][0]]
    assert [*losses, *measured, *where] == pytest.approx(LORA_RUN, rel=1e-5), RAISE


def test_every_method_of_the_design_trains_as_it_did(short):
    (task, base, tokenizer), settings = short, replace(SHORT, targets=("q_proj", "up_proj"))
    losses = {}
    for arm in (*MAIN, *ABLATIONS, LATER):
        model = copy_for(base, arm.method)
        history = adapt(model, tokenizer, task.documents, arm.method, settings, arm.lr, seed=1)
        losses[arm.method] = history[-1]["loss"]
    assert losses == pytest.approx(LAST_LOSS, rel=1e-5), RAISE


# --- the program -------------------------------------------------------------------------------------------------------

# A study small enough for tests: an untouched base, two arms with tuned rates and one that follows, on worlds of 6 subjects.
SMALL_STUDY = """
from study import toy

old = toy.old_world()
toy.old_world = lambda: {name: some[:20] for name, some in old.items()}
toy.tuning_retention = lambda: old["asked"][:20]

if __name__ == "__main__":  # not in a worker, which needs the above only
    from dataclasses import replace

    from study import __main__ as program
    from study.design import Arm
    from train import Settings

    tiny = Settings(rank=2, epochs=2, batch_size=4, seq_len=64)
    arms = [Arm("untouched", None, subjects=2)]
    arms += [Arm("mica", "mica", 2e-2, tiny, rates=2, subjects=2), Arm("lora", "lora", 7e-3, tiny, rates=2, subjects=2)]
    arms += [Arm("rule", "mica", settings=tiny, follows=("lora", 2), subjects=2)]
    program.FULL = program.EXTENDED_DESIGN = replace(toy.FULL, arms=tuple(arms), judged=(1, 2), main=())
    program.write_all = lambda *results: None  # the pictures are of more arms
    program.main()
"""


def small_study(folder, model, workers, **options):
    script = folder / "small_study.py"
    script.write_text(SMALL_STUDY)
    line = [sys.executable, script, "--model", model, "--workers", str(workers), "--results", folder / "results"]
    options["env"] = os.environ | {"PYTHONPATH": str(ROOT)}
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
    assert process.wait(900) == 0, process.stderr.read()
    expected = numbers(whole)
    assert len(expected) >= 2 * 2 * 2 + 2 * 4

    rng, records, survivors = random.Random(), killed / "results/runs", {}
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background may start deaf to it
    for how in (signal.SIGKILL, signal.SIGINT):
        process = small_study(killed, tiny_llama_folder, workers=2, start_new_session=True, preexec_fn=listening)
        before = len(list(records.glob("*.json")))
        deadline = time.monotonic() + 300
        while len(list(records.glob("*.json"))) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1))  # anywhere: while training, while writing
        if how == signal.SIGKILL:
            process.kill()
            process.wait(60)
        else:
            os.killpg(process.pid, how)  # as a terminal does: to the workers too
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
        wait_until_gone(process)
        survivors |= {path: path.read_bytes() for path in records.glob("*.json")}
        assert survivors.keys() == set(records.glob("*.json"))
        assert all(json.loads(content)["key"] for content in survivors.values())  # whole, or not there
        assert 2 <= len(survivors) < len(expected)
    process = small_study(killed, tiny_llama_folder, workers=2)
    assert process.wait(900) == 0, process.stderr.read()
    for left in records.glob(".*.tmp"):  # what a killed process was writing has another name
        left.unlink()
    assert numbers(killed) == expected
    assert all(path.read_bytes() == content for path, content in survivors.items())  # none was made again


def test_rates_are_tried_on_the_tuning_worlds(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    made = []

    def perform_all(design, runs, results, pool, workers, *where):
        made.extend(runs)
        for run in runs:
            record = made_up(design, run, np.random.default_rng(0)) | {"key": key_of(design, run, where[-1])}
            write_lines(record_path(results, run), [record])

    monkeypatch.setattr(runs, "perform_all", perform_all)
    arguments = ["--tune", "mica", "1e-2", "2e-2", "--model", tiny_llama_folder, "--results", tmp_path]
    monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
    program.main()
    assert sorted((run.lr, run.world) for run in made) == [(lr, world) for lr in (1e-2, 2e-2) for world in TUNING]
    assert re.search(r"\| mica \| .*0.01: .*0.02: ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers", "0"], "give at least 1 worker"),
        (["--tune", "mice", "1e-2"], "--tune takes one of mica, lora"),
        (["--model", "nowhere"], "nowhere"),
        (["--real", "--quick"], "not allowed with"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", "--results", str(tmp_path / "results"), *arguments])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()
