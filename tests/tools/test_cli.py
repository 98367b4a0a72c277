"""tools/cli.py: what is written never lands on what is read, comes whole, and what goes wrong is one printable line."""

import errno
import importlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import forked, needs_fork, start
from matplotlib import pyplot as plt
from safetensors import SafetensorError
from safetensors.torch import save_file

import tools.started
from tools import cli
from tools.cli import (
    MADE_BY,
    Parser,
    alone,
    atomic,
    check_apart,
    explain,
    one_sentence_errors,
    sentence,
    whole_folder,
    write_json,
)

try:
    import resource
except ImportError:  # Windows
    resource = None

ROOT = Path(__file__).resolve().parents[2]


def names(folder):
    return {path.name for path in folder.iterdir()}


# --- kind 1: what is written lands on what was read ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "out, read",
    [
        ("m", "m"),
        ("m/config.json", "m"),
        ("m/new/deeper", "m"),
        ("link", "m"),
        ("link/new", "m"),
        ("m", "link"),
        ("new/../m", "m"),
        ("m", "m/config.json"),
        (".", "m"),
        ("m/config.json", "m/../m/config.json"),
    ],
)
def test_an_output_on_in_or_around_an_input_is_refused(tmp_path, monkeypatch, out, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").touch()
    (tmp_path / "link").symlink_to("m")
    with pytest.raises(ValueError, match="would be written, but .* is read: give another --out"):
        check_apart([out], [None, read])


def test_an_output_beside_an_input_is_not(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "q.jsonl").touch()
    check_apart([None, tmp_path / "out", tmp_path / "q.json"], [None, tmp_path / "m", tmp_path / "q.jsonl", "org/name"])


@pytest.mark.parametrize("line", [["--out", ""], ["--out", " "], ["--qa", "a", ""], ["--qa", ""]])
def test_an_empty_text_is_no_value(capsys, line):
    parser = Parser(prog="program")
    parser.add_argument("--out", default="out")
    parser.add_argument("--qa", nargs="*", default=[])
    assert parser.parse_args(["--qa"]).qa == []
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(line)
    assert stopped.value.code == 2 and f"{line[0]} is given an empty text" in capsys.readouterr().err


# --- kind 2: files that belong together come together --------------------------------------------------------------------


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


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:
        monkeypatch.setattr(cli, "exchange", lambda *folders: False)
    earlier(tmp_path / "m")
    with whole_folder(tmp_path / "m") as new:
        (new / "weights").write_text("new")
        assert (tmp_path / "m" / "weights").read_text() == "old"
    assert names(tmp_path / "m") == {"weights"} and (tmp_path / "m" / "weights").read_text() == "new"
    assert names(tmp_path) == {"m"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it may be two steps")
def test_here_two_folders_change_names_in_one_step(tmp_path):
    earlier(tmp_path / "one"), (tmp_path / "other").mkdir()
    assert cli.exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "other" / "weights").exists() and not names(tmp_path / "one")
    assert not cli.exchange(tmp_path / "one", tmp_path / "none")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("bad"), OSError("bad")])
def test_a_folder_that_is_not_finished_changes_nothing(tmp_path, error):
    earlier(tmp_path / "m")
    with pytest.raises(BaseException) as raised, whole_folder(tmp_path / "m") as new:
        (new / "weights").write_text("half")
        raise error
    assert raised.type is getattr(error, "__class__", error) or raised.type is error
    assert (tmp_path / "m" / "weights").read_text() == "old" and names(tmp_path) == {"m"}


def test_a_folder_of_someone_elses_is_not_cleared_and_an_empty_one_is_filled(tmp_path):
    earlier(tmp_path / "thesis", made=False)
    with pytest.raises(ValueError, match="holds what this program did not make: move it away, or give another folder"):
        write_new(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "weights").read_text() == "old"
    (tmp_path / "empty").mkdir()
    write_new(tmp_path / "empty")
    assert names(tmp_path) == {"thesis", "empty"} and names(tmp_path / "empty") == {"weights", MADE_BY}


def test_the_current_folder_is_not_renamed(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", ".."):
        with pytest.raises(ValueError, match="holds the current folder"):
            write_new(name)


def test_a_link_to_a_folder_stays_one(tmp_path):
    earlier(tmp_path / "m")
    (tmp_path / "link").symlink_to("m")
    write_new(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "m" / "weights").read_text() == "new"


def test_what_killed_processes_left_is_removed_by_the_next(tmp_path):
    for name in ("m", "file"):
        (tmp_path / f".{name}.lock").touch()
    earlier(tmp_path / ".m.tmp")
    earlier(tmp_path / ".m.old")  # killed between two renames
    (tmp_path / ".file.tmp").write_text("half")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "m"):
        assert (tmp_path / "m" / "weights").read_text() == "old"  # it is back
        raise KeyboardInterrupt
    write_new(tmp_path / "m")
    write_json(tmp_path / "file", 1)
    assert names(tmp_path) == {"m", "file"} and names(tmp_path / "m") == {"weights", MADE_BY}


@needs_fork
def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    lock, (reader, writer) = tmp_path / ".m.lock", os.pipe()

    def hold():
        with alone(lock, "it"):
            os.write(writer, b"held")
            time.sleep(60)

    with open(os.devnull, "w") as nowhere:
        holder = start(hold, nowhere, nowhere)
    try:
        assert os.read(reader, 4) == b"held"
        with pytest.raises(ValueError, match="another process is writing .*m: wait until it ends"):
            write_new(tmp_path / "m")
        assert not (tmp_path / "m").exists() and lock.exists()
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    write_new(tmp_path / "m")
    assert names(tmp_path) == {"m"}


def test_within_one_process_too(tmp_path):
    with whole_folder(tmp_path / "m") as new:
        new.joinpath("x").touch()
        with pytest.raises(ValueError, match="another process is writing"):
            write_new(tmp_path / "m")
    assert names(tmp_path / "m") == {"x"}


# --- kind 3: finished work is lost ---------------------------------------------------------------------------------------


def program(body):
    """A function that does what `body` does, as a program."""

    def main():
        with one_sentence_errors("program", "spoon"):
            body()

    return main


@needs_fork
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_sigterm_and_sighup_end_like_ctrl_c(name):
    number = getattr(signal, name)

    def body():
        try:
            os.kill(os.getpid(), number)
            print("lives")
        finally:
            print("reported")

    assert forked(program(body)) == (128 + number, "reported\n", "program: interrupted\n")


@needs_fork
def test_under_nohup_sighup_stays_ignored():
    def main():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        program(lambda: (os.kill(os.getpid(), signal.SIGHUP), print("lives")))()

    assert forked(main) == (0, "lives\n", "")


def test_signals_and_streams_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM), sys.stdout
    with one_sentence_errors("program"):
        assert signal.getsignal(signal.SIGTERM) not in before and sys.stdout not in before
    assert (signal.getsignal(signal.SIGTERM), sys.stdout) == before


def talkative(done):
    for stream in (sys.stdout, sys.stderr, sys.stdout):
        print("вопросы " * 9999, file=stream, flush=True)
    done.touch()
    print("end")


@needs_fork
@pytest.mark.parametrize("streams", [["out"], ["err"], ["out", "err"]])
@pytest.mark.parametrize("closed", [True, False])
def test_the_work_goes_on_when_nobody_listens_any_more(tmp_path, streams, closed):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as broken:
        given = dict.fromkeys(streams, None if closed else broken)
        code, out, err = forked(program(lambda: talkative(tmp_path / "done")), **given)
    assert code == 0 and (tmp_path / "done").exists()
    assert out.endswith("end\n") == ("out" not in streams)
    assert "Error" not in out + err and "Exception" not in out + err


@needs_fork
def test_an_encoding_without_the_letters_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    code, out, _ = forked(program(lambda: talkative(tmp_path / "done")))
    assert code == 0 and out.startswith("\\u0432\\u043e") and out.endswith("end\n")


@needs_fork
def test_ctrl_c_while_torch_is_imported_shows_no_traceback():
    def main():
        importlib.reload(tools.started)
        os.kill(os.getpid(), signal.SIGINT)
        print("lives")

    assert forked(main) == (-signal.SIGINT, "", "")


PROGRAMS = ["train.py", "eval_qa.py", "adapter_io.py", "data/pretrain_base.py", "study/__main__.py", "study/tune.py"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_begin_with_that(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.index("import tools.started") < text.index("import torch" if "import torch" in text else "from gpt")


# --- kind 4: no room -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80000 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB). Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to mmap 1024 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Invalid buffer size: 16.00 GiB"),
        SafetensorError("Error while serializing: I/O error: Cannot allocate memory (os error 12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_every_way_to_run_out_of_memory_is_one_sentence(error):
    assert explain(error, "--batch-size") == "out of memory: use a smaller --batch-size"


def test_other_errors_are_bugs():
    for error in (RuntimeError("shape mismatch"), KeyError("x"), TypeError()):
        assert explain(error, "x") is None


@needs_fork
@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_file({"a": torch.zeros(10**5)}, path),
        lambda path: path.write_text("x" * 10**6),
        lambda path: plt.figure(figsize=(9, 9), dpi=200).savefig(path, format="raw"),
    ],
)
def test_a_full_disk_names_what_was_being_written(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (99999, 99999))
        with whole_folder("new") as new, atomic(new / "model") as path:
            write(path)

    code, out, err = forked(program(body))
    assert (code, out) == (2, ""), err
    (said,) = err.splitlines()
    assert said.startswith("program: cannot write to new/model (")
    assert said.endswith(": make room there, or give another place")
    assert names(tmp_path) == set()


@needs_fork
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_nothing_is_written_in_the_place_of_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="which is not a file: give another name"), atomic(tmp_path / "pipe"):
        pytest.fail("it began")
    assert (tmp_path / "pipe").is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_the_output_is_one_sentence():
    with open("/dev/full", "w") as full:
        code, _, err = forked(program(lambda: print("x")), out=full)
        assert code == 2 and len(err.splitlines()) == 1 and "No space left on device" in err
        assert forked(program(lambda: print("x", file=sys.stderr)), err=full)[0] == 0  # a full log stops nothing


def test_an_error_that_happens_while_reading_is_not_said_to_be_in_writing(tmp_path):
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "m"):
        (tmp_path / "nowhere").read_text()


# --- kind 10: texts ------------------------------------------------------------------------------------------------------


def test_a_sentence_is_one_printable_line_of_under_400_characters():
    long = "model.safetensors lacks " + ", ".join(f"layers.{i}\n\x1b[31m" for i in range(20000)) + ": download it again"
    said = sentence(f"train.py: {long}")
    assert len(said) < 400 and said.isprintable() and "  " not in said
    assert said.startswith("train.py: model.safetensors lacks") and said.endswith(": download it again")
    assert sentence("short", "(see --help)") == "short (see --help)"
    for size in range(380, 410):
        assert len(sentence("x" * size)) < 400 and len(sentence("x" * size, "end")) < 400


def test_mistakes_in_the_flags_too(capsys):
    parser = Parser(prog="program")
    parser.add_argument("--rank", type=int)
    for line in (["--rank", "\x1b[31m\n" * 500], ["\x1b[2J" + "x" * 5000], ["--rank"]):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(line)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.endswith("(see program --help)\n")
        assert len(said) <= 400 and said[:-1].isprintable()


@pytest.mark.parametrize(
    "error, said",
    [
        (
            FileNotFoundError(2, "No such file or directory", "q\n.jsonl"),
            "program: q .jsonl: No such file or directory: check",
        ),
        (OSError(22, "Invalid argument"), "program: a file or the output: Invalid argument: check that it can be used"),
        (OSError(18, "Cross-device link", "a", None, "b"), "program: a and b: Cross-device link"),
        (ValueError("two\nlines"), "program: two lines"),
    ],
)
def test_what_the_system_says_gets_a_name_and_a_remedy(error, said, capsys):
    with pytest.raises(SystemExit), one_sentence_errors("program"):
        raise error
    assert capsys.readouterr().err.startswith(said)


def test_a_terminal_is_not_given_orders_by_what_is_printed(capsys):
    with one_sentence_errors("program"):
        print("a\x1b[31mb\x07c\u202ed\te\u200df")
    assert capsys.readouterr().out == "a [31mb c d\te\u200df\n"


# --- atomic --------------------------------------------------------------------------------------------------------------


def test_a_file_is_new_or_old_and_as_readable_as_any(tmp_path):
    write_json(tmp_path / "deeper" / "file", 1)
    (tmp_path / "plain").touch()
    assert (tmp_path / "deeper" / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "deeper" / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "deeper" / "file").read_text() == "1\n" and names(tmp_path / "deeper") == {"file"}
