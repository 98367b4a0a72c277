"""tools/cli.py: what is written never lands on what is read, comes whole, and what goes wrong is one printable line."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import forked, needs_fork
from safetensors import SafetensorError
from safetensors.torch import save_file

from tools.cli import MADE_BY, Parser, atomic, check_apart, one_sentence_errors, progress, whole_folder, write_json


def names(folder):
    return {path.name for path in folder.iterdir()}


def make_parser(**options):
    parser = Parser(prog="program", **options)
    parser.add_argument("--out", default="out")
    parser.add_argument("--qa", nargs="*", default=[])
    parser.add_argument("--seeds", type=int)
    return parser


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, named",
    [
        (["--out", ""], "--out"),
        (["--seed", "3"], "--seed"),  # no abbreviations: it would have been three seeds
        (["--seeds", "\x1b[31m\n" * 500], "--seeds"),
    ],
)
def test_a_mistake_in_the_flags_is_one_printable_line(capsys, line, named):
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_args(line)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and named in said and said.endswith("(see program --help)\n")
    assert len(said) <= 400 and said[:-1].isprintable()


def test_flags_know_the_home_folder_and_texts_stay_as_they_are(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parsed = make_parser(description=None).parse_args(["--out=~/runs", "--qa", "~/a", "b~"])  # None: of python -OO
    assert (parsed.out, parsed.qa) == ("/home/me/runs", ["/home/me/a", "b~"])
    assert make_parser(texts=["out"]).parse_args(["--out=~/runs"]).out == "~/runs"


# --- what is written lands on what was read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "out, read", [("m", "m"), ("link/new", "m"), ("m", "link"), (".", "m"), ("m/config.json", "m/../m/config.json")]
)
def test_an_output_on_in_or_around_an_input_is_refused(tmp_path, monkeypatch, out, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").touch()
    (tmp_path / "link").symlink_to("m")
    with pytest.raises(ValueError, match=f"{out} .* {read} .*--out"):
        check_apart([out], [None, read])
    check_apart([None, "out", "m.json"], [None, "m", "org/name"])  # beside it


# --- files and folders come whole -------------------------------------------------------------------------------------


def earlier(folder, made=True):
    folder.mkdir()
    (folder / "weights").write_text("old")
    (folder / "only old").touch()
    if made:
        (folder / MADE_BY).touch()


def write_new(folder):
    with whole_folder(folder) as new:
        (new / "weights").write_text("new")
        (new / MADE_BY).touch()


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    earlier(tmp_path / "m")
    (tmp_path / "link").symlink_to("m")
    with whole_folder(tmp_path / "link") as new:
        (new / "weights").write_text("new")
        assert (tmp_path / "m" / "weights").read_text() == "old"
    assert names(tmp_path / "m") == {"weights"} and (tmp_path / "m" / "weights").read_text() == "new"
    assert names(tmp_path) == {"m", "link"} and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("bad")])
def test_what_is_not_finished_changes_nothing(tmp_path, error):
    earlier(tmp_path / "m")
    write_json(tmp_path / "file", 1)
    for write in (whole_folder, lambda folder: atomic(folder.with_name("file"))):
        with pytest.raises(type(error)), write(tmp_path / "m") as new:
            (new / "weights" if new.is_dir() else new).write_text("half")
            raise error
    assert (tmp_path / "m" / "weights").read_text() == "old" and (tmp_path / "file").read_text() == "1\n"
    assert names(tmp_path) == {"m", "file"}


def test_a_folder_of_someone_elses_is_not_cleared_and_an_empty_one_is_filled(tmp_path, monkeypatch):
    earlier(tmp_path / "thesis", made=False)
    with pytest.raises(ValueError, match="thesis"):
        write_new(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "weights").read_text() == "old"
    (tmp_path / "empty").mkdir()
    write_new(tmp_path / "empty")
    assert names(tmp_path) == {"thesis", "empty"} and names(tmp_path / "empty") == {"weights", MADE_BY}
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match="current folder"):
        write_new("..")


@needs_fork
def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    """A child is killed before each renaming and removing, in turn; the next run finds the one or the other whole."""
    monkeypatch.chdir(tmp_path)
    found, code = [], -signal.SIGKILL
    while code:
        earlier(tmp_path / "m")
        left = len(found)

        def die_at(action):
            def step(*args, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return action(*args, **kwargs)

            return step

        def child():
            for place, name in [(Path, "rename"), (Path, "unlink"), (os, "unlink"), (Path, "mkdir")]:
                setattr(place, name, die_at(getattr(place, name)))  # noqa: B023
            write_new("m")

        code = forked(child)[0]
        with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "m"):  # puts back or removes what is left
            held = names(tmp_path / "m")
            raise KeyboardInterrupt
        assert held in ({"weights", "only old", MADE_BY}, {"weights", MADE_BY}) and names(tmp_path) == {"m"}
        found.append("only old" in held)
        shutil.rmtree(tmp_path / "m")
    assert found == sorted(found, reverse=True) and len(set(found)) == 2  # first the old, then the new


def test_one_process_at_a_time_writes(tmp_path):
    with whole_folder(tmp_path / "m") as new:
        new.joinpath("x").touch()
        with pytest.raises(ValueError, match="another process is writing .*m"):
            write_new(tmp_path / "m")
    assert names(tmp_path) == {"m"} and names(tmp_path / "m") == {"x"}


# --- errors -----------------------------------------------------------------------------------------------------------


def program(body):
    """A function that does what `body` does, as a program."""

    def main():
        with one_sentence_errors("program", "spoon"):
            body()

    return main


@needs_fork
def test_sigterm_ends_like_ctrl_c():
    def body():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            print("lives")
        finally:
            print("reported")

    assert forked(program(body)) == (130, "reported\n", "program: interrupted\n")


@needs_fork
def test_a_reader_that_has_gone_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as broken:
        assert forked(program(lambda: print("x" * 99999)), out=broken) == (141, "", "")


@pytest.mark.parametrize(
    "error, said",
    [
        (FileNotFoundError(2, "No such file or directory", "q\n.jsonl"), "no such file: q .jsonl"),
        (ValueError("two\nlines\x1b[31m"), "two lines [31m"),
        (ValueError("long" * 999), "longlong"),
        (MemoryError(), "out of memory: use a smaller spoon"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out of memory: use"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (SafetensorError("I/O error: Cannot allocate memory (os error 12)"), "out of memory: use"),
    ],
)
def test_what_goes_wrong_gets_a_name_and_is_one_printable_line(error, said, capsys):
    with pytest.raises(SystemExit) as stopped, one_sentence_errors("program", "spoon"):
        raise error
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and printed.startswith(f"program: {said}")
    assert len(printed) <= 400 and printed[:-1].isprintable()


@needs_fork
def test_a_full_disk_names_what_was_being_written(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource", reason="Windows has no limits on a file's size")
    monkeypatch.chdir(tmp_path)

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (99999, 99999))
        with whole_folder("new") as new, atomic(new / "model") as path:
            save_file({"a": torch.zeros(10**5)}, path)

    code, out, err = forked(program(body))
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "cannot write to " in err and "model (" in err
    assert names(tmp_path) == set()


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    clock = iter(range(0, 99, 3))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(progress(range(5), "steps", note=lambda: "loss 2")) == [0, 1, 2, 3, 4]
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines() == [
        "steps: 2/5, 6 s, loss 2", "steps: 4/5, 12 s, loss 2", "steps: 5/5, 15 s, loss 2",
    ]  # fmt: skip
