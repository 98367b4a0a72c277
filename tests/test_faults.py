"""What users of other tools stumbled over: a test for each kind of fault that public reports tell of."""

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from test_outside import adapted, check_refused, files, model, refusal, train_line  # noqa: F401

import adapter_io
import eval_qa
import train
from adapter_io import save_adapters
from fast import ranks
from gpt import find_model
from questions import read_questions
from tools import cores
from tools.cli import shipped
from tools.reading import read_documents

ROOT = Path(train.__file__).parent


def run(program, monkeypatch, *line):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, line)])
    program.main()


def python(*line, **environment):
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *map(str, line)], capture_output=True, text=True, env=env, cwd=ROOT)


@pytest.mark.parametrize("missing", ["MASTER_PORT", None])
def test_a_clusters_variables_without_torchrun_are_not_waited_for_for_ever(monkeypatch, missing):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        if name != missing:
            monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(ranks, "PATIENCE", timedelta(seconds=1))
    with pytest.raises(ValueError, match=f"{missing or 'not all 2 processes'}.*unset WORLD_SIZE"):
        with ranks.together("cpu"):
            pass


def test_an_adapter_in_the_models_folder_is_not_ignored_without_a_word(model, tmp_path, capsys):  # noqa: F811
    save_adapters(adapted(model), model)
    assert find_model(str(model)) == model and "--adapter" in capsys.readouterr().err
    save_adapters(adapted(model), tmp_path / "alone")
    assert "is an adapter" in refusal(find_model, str(tmp_path / "alone"))


def test_no_flag_is_abbreviated(files, monkeypatch, capsys):  # noqa: F811
    check_refused(train, [*train_line(files), "--see", 3], ["--see"], monkeypatch, capsys)


def test_the_hubs_client_that_cannot_start_is_one_sentence(monkeypatch):
    def fails(*args, **kwargs):
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    assert "SOCKS proxy" in refusal(find_model, "someone/model")


def test_a_run_survives_matplotlibs_settings_and_a_file_name_that_is_not_utf8(files, tmp_path):  # noqa: F811
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    questions = os.fsencode(files) + b"/caf\xe9.jsonl"
    os.rename(files / "questions.jsonl", questions)
    line = train_line(files, qa=os.fsdecode(questions), retention=os.fsdecode(questions), epochs=1)
    done = python("train.py", *line, MPLBACKEND="Qt4Agg", MATPLOTLIBRC=str(tmp_path))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert {"table.txt", "comparison.png"} <= set(os.listdir(files / "out"))


def test_programs_work_without_docstrings():
    assert "--method" in python("-OO", "train.py", "--help").stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_only_usable_cores_count():
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{core}]); from tools import cores; print(cores.USABLE)"
    assert python("-c", code).stdout.strip() == "1" and cores.USABLE >= 1


def test_what_is_shipped_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (shipped("data/base") / "config.json").exists()


def test_what_may_not_be_meant_is_said(files, monkeypatch, capsys):  # noqa: F811
    run(train, monkeypatch, *train_line(files, epochs=1, examples=0, qa=shipped("data/few/cloze.jsonl")))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [any(word in note for note in notes) for word in ("1 steps", "--lr")] == [True, True]


def test_another_tools_adapter_is_named_and_a_typo_told_before_a_model_is_loaded(files, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(eval_qa, "load_pretrained", None)
    (files / "adapter_config.json").write_text('{"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}')
    for adapter, word in ((files, "mlx_lm.fuse"), (files / "typo", "typo")):
        line = ["--adapter", adapter, "--qa", files / "questions.jsonl"]
        check_refused(eval_qa, line, [word], monkeypatch, capsys)


def test_line_ends_are_the_same_on_every_system():
    assert "eol=lf" in (ROOT / ".gitattributes").read_text()


def test_a_question_with_thousands_of_choices_is_read_at_once(tmp_path):
    choices = ", ".join(f'"choice {i}"' for i in range(20_000))
    (tmp_path / "q.jsonl").write_text(f'{{"question": "Which?", "choices": [{choices}], "answer": 0}}\n')
    (question,) = read_questions(tmp_path / "q.jsonl")
    assert len(question.choices) == 20_000


@pytest.mark.parametrize("program", [eval_qa, adapter_io])
def test_at_a_strength_of_zero_an_adapter_adds_nothing(files, monkeypatch, capsys, program):  # noqa: F811
    save_adapters(adapted(files / "model"), files / "adapter")
    line = ["--model", files / "model", "--adapter", files / "adapter", "--strength", "0"]
    if program is adapter_io:
        run(adapter_io, monkeypatch, *line, "--out", files / "merged")
        line = ["--model", files / "merged"]
    capsys.readouterr()
    asked = ["--qa", files / "questions.jsonl", "--device", "cpu"]
    run(eval_qa, monkeypatch, *line, *asked)
    at_zero = capsys.readouterr().out
    run(eval_qa, monkeypatch, "--model", files / "model", *asked)
    assert capsys.readouterr().out == at_zero


def test_texts_that_are_not_what_they_seem(tmp_path):
    (tmp_path / "utf16.txt").write_bytes("hello there".encode("utf-16-le"))
    assert "UTF-16" in refusal(read_documents, tmp_path / "utf16.txt")
    (tmp_path / "marks.txt").write_text("\ufeffa\u00a0b\n\n\ufeffc")
    assert read_documents(tmp_path / "marks.txt") == ["a b", "c"]
    (tmp_path / "lines.txt").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read_documents(tmp_path / "lines.txt") == ["a", "b"]
