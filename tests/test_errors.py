"""Bad input to the programs: one sentence that says what to mend, exit code 2, and nothing half-written left behind."""

import json
import shutil
import sys

import pytest

import eval_qa
import train

QUESTION = '{"question": "Who?", "choices": ["the fox", "the dog"], "answer": 1}\n'


@pytest.fixture
def model(tiny_llama_folder, tmp_path):
    """A model folder to damage."""
    return shutil.copytree(tiny_llama_folder, tmp_path / "model")


@pytest.fixture
def files(tmp_path):
    """A corpus and questions that are in order."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "corpus.txt").write_text("The fox likes the dog.")
    (folder / "questions.jsonl").write_text(QUESTION * 3)
    return folder


def train_line(model, files, **changes):
    questions, corpus = files / "questions.jsonl", files / "corpus.txt"
    options = {"model": model, "corpus": corpus, "qa": questions, "retention": questions, "text": corpus, "rank": 2}
    options |= {"device": "cpu", "out": files.parent / "out"}
    return [str(part) for name, value in (options | changes).items() for part in (f"--{name}", value)]


def eval_line(model, files):
    return ["--model", model, "--qa", files / "questions.jsonl", "--text", files / "corpus.txt", "--device", "cpu"]


def check_refused(program, line, words, monkeypatch, capsys):
    """The program ends with one line that has all the words."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, line)])
    with pytest.raises(SystemExit) as exit:
        program.main()
    captured = capsys.readouterr()
    *notes, said = captured.err.splitlines()
    assert (exit.value.code, captured.out) == (2, "") and said.startswith(f"{program.__name__}.py: ")
    assert all(note.startswith("note: ") for note in notes)
    assert all(word in said for word in words), said


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES = {
    "missing model": (lambda model, files: shutil.rmtree(model), ["model", "org/name"]),
    "truncated weights": (lambda model, files: truncate(model / "model.safetensors"), ["model.safetensors"]),
    "no text": (lambda model, files: (files / "corpus.txt").write_text("\n\n"), ["corpus.txt"]),
    "no file": (lambda model, files: (files / "questions.jsonl").unlink(), ["questions.jsonl", "no such file"]),
    "half a question": (lambda model, files: truncate(files / "questions.jsonl"), ["questions.jsonl, line 2"]),
}


@pytest.mark.parametrize("damage, words", DAMAGES.values(), ids=DAMAGES)
def test_what_cannot_be_read_is_named_by_both_programs(model, files, tmp_path, monkeypatch, capsys, damage, words):
    damage(model, files)
    check_refused(train, train_line(model, files), words, monkeypatch, capsys)
    check_refused(eval_qa, eval_line(model, files), words, monkeypatch, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"method": "magic"}, ["magic", "mica"]), ({"targets": "c_attn"}, ["c_attn", "q_proj"]),
        ({"device": "abacus"}, ["abacus", "cpu"]), ({"rank": 25}, ["rank 25", "(24, 32)", "1 to 24"]),
        ({"lr": "nan"}, ["--lr", "nan"]), ({"epochs": 0}, ["--epochs"]),
        ({"method": "full", "dtype": "bfloat16"}, ["--dtype float32"]),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_before_any_work(model, files, tmp_path, monkeypatch, capsys, changes, words):
    check_refused(train, train_line(model, files, **changes), words, monkeypatch, capsys)
    assert not (tmp_path / "out").exists()


def test_what_another_program_wrote_is_not_written_over(model, files, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    check_refused(train, train_line(model, files), [str(tmp_path / "out")], monkeypatch, capsys)
    assert (tmp_path / "out" / "config.json").read_text() == '{"model_type": "llama"}'
