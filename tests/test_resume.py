"""A stopped train.py goes on to the same bytes as one never stopped; what was made otherwise is not mixed in."""

import json
import os
import random
import shutil
import signal
import time

import pytest
from forked import forked, needs_fork, start
from test_train import arguments, corpus, draw_nothing, results_of, run_program, world  # noqa: F401

import comparison
import train
from tools.cli import MADE_BY

COMPARISON = {"method": ["mica", "full"], "seeds": 2, "text": [], "examples": 2}
ORDER = [("mica", 0), ("full", 0), ("mica", 1), ("full", 1)]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.report.draw_comparison", draw_nothing)
        yield


@pytest.fixture(scope="module")
def line(tiny_llama_folder, world):  # noqa: F811
    return arguments(tiny_llama_folder, world, **COMPARISON)


@pytest.fixture(scope="module")
def whole(line, quick, tmp_path_factory):
    """What a comparison that is never stopped leaves."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run_program([*line, "--out", str(out)])
    return out


@pytest.fixture
def out(whole, tmp_path):
    """A finished comparison, to go on with."""
    return shutil.copytree(whole, tmp_path / "out")


def content(folder, but=("seconds.json", MADE_BY)):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in but}


def same_but_for_its_name(folder, expected):
    """config.json holds --out and --model; all else must be the same."""
    ours, theirs = content(folder), content(expected)
    configs = [json.loads(some.pop("config.json")) | {"out": None, "model": None} for some in (ours, theirs)]
    return ours == theirs and configs[0] == configs[1]


def only(monkeypatch, allowed):
    """Let train.run stop the program when it comes to what is not allowed; the calls it got."""
    real, calls = train.run, []

    def run(base, tokenizer, task, method, settings, lr, seed, *rest):
        calls.append((method, seed))
        if (method, seed) not in allowed:
            raise KeyboardInterrupt
        return real(base, tokenizer, task, method, settings, lr, seed, *rest)

    monkeypatch.setattr(train, "run", run)
    return calls


def refused(line, capsys):
    """The sentence with which the program refuses."""
    with pytest.raises(SystemExit) as stopped:
        run_program(line)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# --- finished work is not lost ----------------------------------------------------------------------------------------


def test_the_same_command_goes_on_with_the_missing_runs_to_the_same_bytes(line, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        only(patch, ORDER[:3])
        with pytest.raises(SystemExit) as stopped:
            run_program([*line, "--out", str(out)])
        assert stopped.value.code == 130
    calls = only(monkeypatch, ORDER)
    run_program([*line, "--out", str(out)])
    assert calls == ORDER[3:] and same_but_for_its_name(out, whole)


def test_a_finished_comparison_is_reported_again_without_training(
    line, whole, out, tiny_llama_folder, tmp_path, monkeypatch, capsys
):
    """Of a copy of the model, too; what killed processes left is removed."""
    calls = only(monkeypatch, [])
    for name in ("table.txt", "results.json", "comparison.png"):
        (out / name).unlink()
    (out / "mica" / ".seed1.tmp").mkdir()
    (out / "mica" / ".seed1.lock").touch()
    (out / ".table.txt.tmp").write_text("half")
    (out.parent / ".out.lock").touch()
    copied = shutil.copytree(tiny_llama_folder, tmp_path / "copy")
    run_program([*line, "--out", str(out), "--model", str(copied)])
    assert calls == [] and same_but_for_its_name(out, whole)
    assert "training, seconds" in (printed := capsys.readouterr().out) and "nan" not in printed


def test_more_seeds_or_methods_are_added_to_what_there_is(line, out, monkeypatch):
    calls = only(monkeypatch, [("mica", 2), ("lora", 0)])
    run_program([*line, "--out", str(out), "--seeds", "3", "--method", "mica"])
    run_program([*line, "--out", str(out), "--seeds", "1", "--method", "mica", "lora"])
    assert calls == [("mica", 2), ("lora", 0)]
    assert list(results_of(out)["runs"]) == ["mica", "lora"]


@pytest.mark.parametrize(
    "edit, named",
    [
        (lambda run: run["record"].pop("trained"), "trained"),
        (lambda run: run["record"]["summary"].popitem(), "results of"),
        (lambda run: run.update(answers=["one"]), "1 answers"),
    ],
)
def test_a_damaged_run_is_refused_by_name(line, out, capsys, edit, named):
    path = out / "full" / "seed1" / "run.json"
    run = json.loads(path.read_text())
    edit(run)
    path.write_text(json.dumps(run))
    said = refused([*line, "--out", str(out)], capsys)
    assert str(path.parent) in said and named in said and "remove it" in said


# --- what was made otherwise is not mixed in --------------------------------------------------------------------------


def test_after_a_change_of_settings_base_corpus_or_code_earlier_results_are_kept_beside(
    line, out, tiny_llama_folder, tmp_path, monkeypatch, capsys
):
    other = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    tokenizer = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"new": 1}))
    (tmp_path / "corpus.txt").write_text("\n\n".join(reversed(corpus())))
    before = content(out, ())
    only(monkeypatch, [("mica", 0)])
    line = [*line, "--out", str(out), "--seeds", "1", "--method", "mica"]
    changes = {
        "rank, lr, strengths": ["--lr", "0.5", "--rank", "3", "--strengths", "0.5"],
        "rank, lr, rehearse": ["--rehearse", "60"],
        "model (digest)": ["--model", str(other)],
        "corpus, questions or text (digest)": ["--corpus", str(tmp_path / "corpus.txt")],
        "code (digest)": [],
    }
    for number, (named, change) in enumerate(changes.items(), start=1):
        if not change:
            monkeypatch.setattr(comparison, "digest_of_code", lambda: "other")
        run_program([*line, *change])
        (said,) = [text for text in capsys.readouterr().err.splitlines() if f"{out}.{number}" in text]
        assert all(name in said for name in named.split(", ")), said
        assert (out / "table.txt").exists() and not (out / "full").exists()
    assert content(out.with_name("out.1"), ()) == before


def test_text_that_the_model_wrote_is_made_again_only_when_it_must_be(line, tmp_path, monkeypatch):
    written, real = [], train.own_text
    monkeypatch.setattr(train, "own_text", lambda *args: written.append(args[2]) or real(*args))
    line = [*line, "--out", str(tmp_path / "out"), "--seeds", "1", "--method", "mica"]
    for extra in ("60", "60 --rank 3", "90"):
        run_program([*line, "--rehearse", *extra.split()])
    assert written == [60, 90]


def test_a_folder_that_is_no_run_is_neither_used_nor_cleared(line, out, capsys):
    (out / "lora" / "seed0").mkdir(parents=True)
    assert "lora/seed0" in refused([*line, "--out", str(out), "--method", "lora"], capsys)
    assert (out / "lora" / "seed0").exists()


@pytest.mark.parametrize("out", ["link", "world/out"])
def test_train_writes_into_nothing_it_reads(tiny_llama_folder, world, tmp_path, monkeypatch, capsys, out):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llama_folder, "m")
    shutil.copytree(world, "world")
    (tmp_path / "link").symlink_to("m")
    before = content(tmp_path, ())
    assert "--out" in refused(arguments("m", tmp_path / "world", corpus="world", out=out), capsys)
    assert content(tmp_path, ()) == before


# --- killed at random moments -----------------------------------------------------------------------------------------

KILLS = 4


def kill_at_random(action, longest):
    """Run action() in a child and kill it somewhere on its way; whether it got to its end before."""
    with open(os.devnull, "w") as nowhere:
        pid = start(action, nowhere, nowhere)
        time.sleep(random.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


@needs_fork
def test_train_killed_at_any_moment_goes_on_to_the_same_bytes(line, tmp_path):
    killed, unfinished, whole = 0, 0, tmp_path / "whole"
    began = time.monotonic()
    assert forked(lambda: run_program([*line, "--out", str(whole)]))[0] == 0
    longest = time.monotonic() - began
    while killed < KILLS or not unfinished:  # a kill that comes after the end shows nothing
        assert killed < 5 * KILLS, "the kills come too late"
        out = tmp_path / f"out{killed}"
        again = lambda: run_program([*line, "--out", str(out)])  # noqa: B023, E731
        for _ in range(random.choice([1, 2])):  # some are killed again when they go on
            unfinished += not kill_at_random(again, longest)
            killed += 1
            for run in out.glob("*/seed*"):  # each is whole, whenever it came
                assert content(run) == content(whole / run.relative_to(out))
        code, _, said = forked(again)
        assert code == 0, said
        assert same_but_for_its_name(out, whole)
