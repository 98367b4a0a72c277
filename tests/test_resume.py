"""A stopped train.py goes on: the same command, the same bytes as one never stopped; what was made otherwise is not mixed in."""

import json
import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch
from forked import forked, needs_fork, start
from test_train import arguments, corpus, draw_nothing, results_of, run_program, world  # noqa: F401

import adapter_io
import comparison
import train
from gpt.weights import load_model
from lora import replace_linears
from mica import MiCALayer
from tools.cli import MADE_BY
from tools.report import draw_comparison

COMPARISON = {"method": ["mica", "full"], "seeds": 2, "text": [], "examples": 2}


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


# --- finished work is not lost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [[("mica", 0)], [("mica", 0), ("full", 0), ("mica", 1)]])
def test_the_same_command_goes_on_with_the_missing_runs_to_the_same_bytes(line, whole, tmp_path, monkeypatch, allowed):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        only(patch, allowed)
        with pytest.raises(SystemExit) as stopped:
            run_program([*line, "--out", str(out)])
        assert stopped.value.code == 130
    calls = only(monkeypatch, [("mica", 0), ("full", 0), ("mica", 1), ("full", 1)])
    run_program([*line, "--out", str(out)])
    assert calls == [("mica", 0), ("full", 0), ("mica", 1), ("full", 1)][len(allowed) :]
    assert same_but_for_its_name(out, whole)


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
    captured = capsys.readouterr()
    assert "full, seed 1" in captured.err and str(out) in captured.err
    assert "training, seconds" in captured.out and "nan" not in captured.out


def test_more_seeds_or_methods_are_added_to_what_there_is(line, out, monkeypatch):
    calls = only(monkeypatch, [("mica", 2), ("lora", 0)])
    run_program([*line, "--out", str(out), "--seeds", "3", "--method", "mica"])
    run_program([*line, "--out", str(out), "--seeds", "1", "--method", "mica", "lora"])
    assert calls == [("mica", 2), ("lora", 0)]
    assert list(results_of(out)["runs"]) == ["mica", "lora"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"])
def test_a_damaged_run_is_refused_by_name(line, out, capsys, damage):
    (out / "full" / "seed1" / "run.json").write_bytes(damage)
    with pytest.raises(SystemExit):
        run_program([*line, "--out", str(out)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(out / "full" / "seed1") in said


def test_a_run_edited_by_hand_is_refused_by_name(line, out, capsys):
    path = out / "full" / "seed1" / "run.json"
    whole = json.loads(path.read_text())
    summary = whole["record"]["summary"]
    edited = {
        "trained": {key: value for key, value in whole["record"].items() if key != "trained"},
        "lr": whole["record"] | {"lr": "high"},
        "history, item 1": whole["record"] | {"history": ["none"]},
        "results": whole["record"] | {"summary": {name: summary[name] for name in [*summary][1:]}},
        "results of": whole["record"] | {"strengths": {"0.5": {}}},
    }
    runs = {words: whole | {"record": record} for words, record in edited.items()}
    for words, run in (runs | {"1 answers": whole | {"answers": ["one"]}}).items():
        path.write_text(json.dumps(run))
        with pytest.raises(SystemExit) as stopped:
            run_program([*line, "--out", str(out)])
        *_, said = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and str(path.parent) in said and words in said and "remove it" in said


def test_results_are_written_before_they_are_printed(line, whole, out, monkeypatch):
    def broken(*args, **kwargs):
        if "file" not in kwargs:
            raise OSError(28, "No space left on device")

    written = ("table.txt", "results.json", "examples.txt")
    for name in (*written, "comparison.png"):  # the picture comes last
        (out / name).unlink()
    monkeypatch.setattr("builtins.print", broken)
    with pytest.raises(SystemExit):
        run_program([*line, "--out", str(out)])
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in written)


@needs_fork
def test_a_signal_ends_as_ctrl_c_does_with_a_report_of_what_is_finished(line, tmp_path):
    out, real = tmp_path / "out", train.run

    def stopping():
        def run(*args):
            if args[3] == "full":
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        train.run = run
        run_program([*line, "--out", str(out)])

    code, printed, said = forked(stopping)
    assert code == 130 and printed.splitlines()[0].split() == ["untouched", "mica"]
    assert said.splitlines()[-1] == "train.py: interrupted" and "the same command goes on" in said
    assert (out / "table.txt").exists()


# --- what was made otherwise is not mixed in --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        (["--lr", "0.5", "--rank", "3", "--targets", "q_proj"], "rank, targets, lr"),
        (["--eval-every", "1", "--examples", "0", "--strengths", "0.5"], "eval_every, examples, strengths"),
        (["--rehearse", "60"], "rehearse"),
    ],
)
def test_after_another_setting_earlier_results_are_kept_beside(line, out, monkeypatch, capsys, changes, said):
    before = content(out, ())
    calls = only(monkeypatch, [("mica", 0)])
    run_program([*line, "--out", str(out), "--seeds", "1", "--method", "mica", *changes])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if f"{out}.1" in line]
    assert said in line
    assert calls == [("mica", 0)] and content(out.with_name("out.1"), ()) == before
    assert (out / "table.txt").exists() and not (out / "full").exists()


def test_nor_are_those_of_another_base_corpus_or_code_mixed_in(
    line, out, tiny_llama_folder, tmp_path, monkeypatch, capsys
):
    other = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    tokenizer = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"new": 1}))
    (tmp_path / "corpus.txt").write_text("\n\n".join(reversed(corpus())))
    only(monkeypatch, [("mica", 0)])
    line = [*line, "--out", str(out), "--seeds", "1", "--method", "mica"]
    changed = ["--model", str(other)], ["--corpus", str(tmp_path / "corpus.txt")], []
    for number, changes in enumerate(changed, start=1):
        if not changes:
            monkeypatch.setattr(comparison, "digest_of_code", lambda: "other")
        run_program([*line, *changes])
        said = capsys.readouterr().err
        assert "(digest)" in said and f"{out}.{number}" in said
        assert out.with_name(f"out.{number}").is_dir()


def test_text_that_the_model_wrote_is_made_again_only_when_it_must_be(line, tmp_path, monkeypatch):
    written, real = [], train.own_text
    monkeypatch.setattr(train, "own_text", lambda *args: written.append(args[2]) or real(*args))
    line = [*line, "--out", str(tmp_path / "out"), "--seeds", "1", "--method", "mica"]
    for extra in ("60", "60 --rank 3", "90"):
        run_program([*line, "--rehearse", *extra.split()])
    assert written == [60, 90]


def test_a_folder_that_is_no_run_is_neither_used_nor_cleared(line, out, capsys):
    (out / "lora" / "seed0").mkdir(parents=True)
    (out / "lora" / "seed0" / "mine.txt").touch()
    with pytest.raises(SystemExit) as stopped:
        run_program([*line, "--out", str(out), "--method", "lora"])
    assert stopped.value.code == 2 and "lora/seed0" in capsys.readouterr().err
    assert (out / "lora" / "seed0" / "mine.txt").exists() and (out / "full" / "seed1" / "run.json").exists()


@needs_fork
def test_a_second_process_with_the_same_out_is_refused(line, whole, out):
    shutil.rmtree(out / "full" / "seed1")
    reader, writer = os.pipe()

    def slow():
        def run(*args):
            os.write(writer, b"running")
            time.sleep(60)

        train.run = run
        run_program([*line, "--out", str(out)])

    with open(os.devnull, "w") as nowhere:
        first = start(slow, nowhere, nowhere)
    assert os.read(reader, 7) == b"running"
    code, printed, said = forked(lambda: run_program([*line, "--out", str(out)]))
    assert (code, printed) == (2, "") and "another process" in said and str(out) in said
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    run_program([*line, "--out", str(out)])
    assert same_but_for_its_name(out, whole)


# --- what is written does not land on what was read -------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"out": "m"},
        {"out": "m/results"},
        {"out": "link"},
        {"out": "world"},  # given as --corpus: a folder
        {"out": "world/out"},
        {"out": "m", "model": "link"},
        {"out": "earlier", "model": "earlier/full/seed0/model", "method": "full"},
        {"out": "earlier", "text": "earlier/examples.txt"},
        {"out": ""},
    ],
)
def test_train_writes_into_nothing_that_it_reads(
    whole, tiny_llama_folder, world, tmp_path, monkeypatch, capsys, changes  # noqa: F811
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llama_folder, "m")
    shutil.copytree(world, "world")
    shutil.copytree(whole, "earlier")
    (tmp_path / "link").symlink_to("m")
    before = content(tmp_path, ())
    with pytest.raises(SystemExit) as stopped:
        run_program(arguments("m", tmp_path / "world", **{"corpus": "world"} | changes))
    said = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and ("--out" in said or "empty" in said), said
    assert content(tmp_path, ()) == before


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("MPS backend out of memory"), "--batch-size"),
        (OSError("cannot write to x (No space left on device): make room"), "cannot write to x"),
    ],
)
def test_runs_finished_before_there_was_no_room_are_kept(line, whole, out, monkeypatch, capsys, error, words):
    def run(*args):
        raise error

    shutil.rmtree(out / "full")
    with monkeypatch.context() as patch:
        patch.setattr(train, "run", run)
        with pytest.raises(SystemExit) as stopped:
            run_program([*line, "--out", str(out)])
    assert stopped.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    assert list(results_of(out)["runs"]) == ["mica"]
    run_program([*line, "--out", str(out)])
    assert same_but_for_its_name(out, whole)


@needs_fork
def test_a_disk_that_is_full_when_the_adapter_is_saved_is_one_sentence(line, tmp_path):
    resource = pytest.importorskip("resource")
    out = tmp_path / "out"

    def main():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))  # room for all but the weights of "full"
        run_program([*line, "--out", str(out)])

    code, printed, said = forked(main)
    assert code == 2 and "Traceback" not in said
    assert "cannot write to" in said.splitlines()[-1] and str(out) in said.splitlines()[-1]
    assert (out / "mica" / "seed0" / "run.json").exists() and not (out / "full" / "seed0").exists()
    assert not [path for path in out.rglob(".*")]


# --- killed at random moments --------------------------------------------------------------------------------------------


def kill_at_random(action, longest, rng):
    """Run action() in a child and kill it somewhere on its way; whether it got to its end before."""
    with open(os.devnull, "w") as nowhere:
        pid = start(action, nowhere, nowhere)
        time.sleep(rng.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def seconds_of(action):
    began = time.monotonic()
    assert forked(action)[0] == 0
    return time.monotonic() - began


MANY = [pytest.param(3, id="a few"), pytest.param(100, id="many", marks=pytest.mark.slow)]


@needs_fork
@pytest.mark.parametrize("kills", MANY)
def test_train_killed_at_any_moment_goes_on_to_the_same_bytes(line, tmp_path, monkeypatch, kills):
    if kills > 5:
        monkeypatch.setattr("tools.report.draw_comparison", draw_comparison)
    rng, killed, unfinished, whole = random.Random(), 0, 0, tmp_path / "whole"
    longest = seconds_of(lambda: run_program([*line, "--out", str(whole)]))
    while killed < kills or unfinished <= 0.3 * kills:  # a kill that comes after the end shows nothing
        assert killed < 5 * kills, "the kills come too late"
        out = tmp_path / f"out{killed}"
        again = lambda: run_program([*line, "--out", str(out)])  # noqa: B023, E731
        for _ in range(rng.choice([1, 1, 2, 5])):  # some are killed again when they go on
            ended = kill_at_random(again, longest, rng)
            killed += 1
            unfinished += not ended
            for run in out.glob("*/seed*"):  # each is whole, whenever it came
                assert content(run) == content(whole / run.relative_to(out))
        code, _, said = forked(again)
        assert code == 0, said
        assert same_but_for_its_name(out, whole)
        shutil.rmtree(out)
    print(f"{killed} kills, {unfinished} of them before the end")


@needs_fork
@pytest.mark.parametrize("kills", MANY)
def test_a_merge_killed_at_any_moment_leaves_the_old_or_the_new_folder(tiny_llama_folder, tmp_path, monkeypatch, kills):
    for name, seed in (("one", 1), ("other", 2)):
        torch.manual_seed(seed)
        model = load_model(tiny_llama_folder)
        replace_linears(model, MiCALayer, 2, 2, ("q_proj",))
        for parameter in (p for p in model.parameters() if p.requires_grad):
            torch.nn.init.normal_(parameter)
        adapter_io.save_adapters(model, tmp_path / name)

    def merge(name, out="merged"):
        line = ["--model", tiny_llama_folder, "--adapter", tmp_path / name, "--out", tmp_path / out]
        monkeypatch.setattr(sys, "argv", ["adapter_io.py", *map(str, line)])
        adapter_io.main()

    for name in ("one", "other"):
        merge(name, f"expected {name}")
    expected = {name: content(tmp_path / f"expected {name}") for name in ("one", "other")}
    assert expected["one"] != expected["other"]
    longest = seconds_of(lambda: merge("other"))
    rng, news, before = random.Random(), 0, "other"
    merge(before)
    for _ in range(kills):
        name = "one" if before == "other" else "other"
        kill_at_random(lambda: merge(name), longest, rng)  # noqa: B023
        merged, old = tmp_path / "merged", tmp_path / ".merged.old"
        found = content(merged if merged.exists() else old)  # killed between two renames: the next puts it back
        assert found in expected.values()
        news += found == expected[name]
        before = name if found == expected[name] else before
    merge("one")
    assert content(tmp_path / "merged") == expected["one"] and (tmp_path / "merged" / MADE_BY).exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    print(f"{kills} kills, {news} of them after the new folder had its name")
