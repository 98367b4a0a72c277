"""Bad input to the programs: one sentence that says what to mend, exit code 2, and nothing half-written left behind."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    questions = files / "questions.jsonl"
    options = {"model": model, "corpus": files / "corpus.txt", "qa": questions, "retention": questions,
               "text": files / "corpus.txt", "epochs": 1, "rank": 2, "device": "cpu"} | changes  # fmt: skip
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def refusal(program, line, monkeypatch, capsys):
    """The one line that the program refuses with."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, line)])
    with pytest.raises(SystemExit) as exit:
        program.main()
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert captured.out == ""
    (said,) = captured.err.splitlines()
    assert said.startswith(f"{program.__name__}.py: ")
    return said


def check_nothing_half_written(out):
    names = [path.name for path in out.rglob("*") if path.is_file()] if out.is_dir() else []
    assert "results.json" not in names
    assert not [name for name in names if name.endswith(".tmp") or name == "writable"]
    for path in out.rglob("*.json") if out.is_dir() else []:
        json.loads(path.read_text())  # whole


def train_refusal(line, out, monkeypatch, capsys):
    said = refusal(train, [*line, "--out", out], monkeypatch, capsys)
    check_nothing_half_written(out)
    return said


# --- the model --------------------------------------------------------------------------------------------------------


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def truncate(path, keep=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


Q = "model.layers.1.self_attn.q_proj.weight"
DAMAGED_MODELS = {
    "missing folder": (shutil.rmtree, ["no folder", "model", "org/name"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json not found"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["has neither model.safetensors nor"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json not found"]),
    "truncated weights": (lambda folder: truncate(folder / "model.safetensors"), ["model.safetensors", "truncated"]),
    "truncated header": (lambda folder: truncate(folder / "model.safetensors", 0.0001), ["truncated"]),
    "truncated tokenizer": (lambda folder: truncate(folder / "tokenizer.json"), ["tokenizer.json", "not JSON", "download it again"]),
    "wrong shape": (
        lambda folder: edit_tensors(folder, lambda t: t.update({Q: torch.zeros(3, 5)})),
        [Q, "is (3, 5) instead of (48, 32)"],
    ),
    "missing tensor": (lambda folder: edit_tensors(folder, lambda t: t.pop(Q)), [f"missing {Q}"]),
    "unknown family": (lambda folder: edit_config(folder, model_type="mamba"), ["config.json: ", "'mamba'", "llama"]),
}


@pytest.mark.parametrize("damage, words", DAMAGED_MODELS.values(), ids=DAMAGED_MODELS)
def test_train_refuses_a_model_that_cannot_be_loaded(model, files, tmp_path, monkeypatch, capsys, damage, words):
    damage(model)
    said = train_refusal(train_line(model, files), tmp_path / "out", monkeypatch, capsys)
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage, words", DAMAGED_MODELS.values(), ids=DAMAGED_MODELS)
def test_eval_qa_refuses_a_model_that_cannot_be_loaded(model, files, tmp_path, monkeypatch, capsys, damage, words):
    damage(model)
    line = ["--model", model, "--qa", files / "questions.jsonl", "--scores", tmp_path / "scores.jsonl"]
    said = refusal(eval_qa, line, monkeypatch, capsys)
    assert all(word in said for word in words), said
    assert not (tmp_path / "scores.jsonl").exists()


# --- texts and questions ----------------------------------------------------------------------------------------------

BAD_FILES = {
    "empty corpus": ("corpus.txt", b"\n\n", ["corpus.txt holds no text"]),
    "corpus not UTF-8": ("corpus.txt", b"caf\xe9", ["corpus.txt is not UTF-8"]),
    "malformed question": ("questions.jsonl", QUESTION.encode() + b'{"quest', ["questions.jsonl, line 2: not JSON"]),
    "answer out of range": ("questions.jsonl", QUESTION.replace("1}", "2}").encode(), ["line 1:", "0 to 1"]),
    "questions not UTF-8": ("questions.jsonl", b"\xff\xfe", ["questions.jsonl is not UTF-8"]),
    "no questions": ("questions.jsonl", b"", ["questions.jsonl holds no questions"]),
}


@pytest.mark.parametrize("name, content, words", BAD_FILES.values(), ids=BAD_FILES)
def test_train_refuses_bad_files(model, files, tmp_path, monkeypatch, capsys, name, content, words):
    (files / name).write_bytes(content)
    said = train_refusal(train_line(model, files), tmp_path / "out", monkeypatch, capsys)
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, content, words", BAD_FILES.values(), ids=BAD_FILES)
def test_eval_qa_refuses_bad_files(model, files, tmp_path, monkeypatch, capsys, name, content, words):
    (files / name).write_bytes(content)
    line = ["--model", model, "--qa", files / "questions.jsonl", "--text", files / "corpus.txt"]
    said = refusal(eval_qa, line, monkeypatch, capsys)
    assert all(word in said for word in words), said


@pytest.mark.parametrize("option", ["corpus", "qa", "retention", "text"])
def test_a_file_that_is_not_there_is_named(model, files, tmp_path, monkeypatch, capsys, option):
    line = train_line(model, files, **{option: files / "nowhere.txt"})
    said = train_refusal(line, tmp_path / "out", monkeypatch, capsys)
    assert "nowhere.txt" in said


# --- settings ---------------------------------------------------------------------------------------------------------

BAD_SETTINGS = {
    "unknown method": ({"method": "magic"}, ["'magic'", "mica"]),
    "unknown target": ({"targets": "c_attn"}, ["unknown target 'c_attn'", "q_proj"]),
    "unknown device": ({"device": "abacus"}, ["device 'abacus'", "try cpu"]),
    "rank 0": ({"rank": 0}, ["rank 0 does not fit"]),
    "rank too big": ({"rank": 25}, ["rank 25 does not fit a weight of shape (24, 32): choose 1 to 24"]),
    "negative alpha": ({"alpha": -1}, ["alpha is -1"]),
    "alpha 0": ({"alpha": 0}, ["alpha is 0"]),
    "dropout 1": ({"dropout": 1}, ["dropout is 1"]),
    "negative learning rate": ({"lr": -0.1}, ["--lr must be a positive number, not -0.1"]),
    "learning rate no number": ({"lr": "nan"}, ["--lr must be a positive number"]),
    "no epochs": ({"epochs": 0}, ["--epochs must be at least 1"]),
    "no batch": ({"batch-size": 0}, ["--batch-size must be at least 1"]),
    "no part": ({"accumulate": 0}, ["--accumulate must be at least 1, not 0"]),
    "no window": ({"seq-len": 0}, ["--seq-len must be at least 1"]),
    "no seeds": ({"seeds": -1}, ["--seeds must be at least 1"]),
    "negative eval-every": ({"eval-every": -2}, ["--eval-every must be at least 0"]),
    "a word for a number": ({"rank": "eight"}, ["invalid int value: 'eight'"]),
    "full in 16 bits": ({"method": "full", "dtype": "bfloat16"}, ["full fine-tuning needs --dtype float32"]),
}


@pytest.mark.parametrize("changes, words", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_train_refuses_bad_settings_before_it_works(model, files, tmp_path, monkeypatch, capsys, changes, words):
    said = train_refusal(train_line(model, files, **changes), tmp_path / "out", monkeypatch, capsys)
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_results_cannot_go_under_a_regular_file(model, files, tmp_path, monkeypatch, capsys, place):
    (tmp_path / "file").write_text("precious")
    said = train_refusal(train_line(model, files), tmp_path / place, monkeypatch, capsys)
    assert "cannot write to" in said
    assert (tmp_path / "file").read_text() == "precious"


def test_eval_qa_refuses_bad_settings(model, files, monkeypatch, capsys):
    line = ["--model", model, "--qa", files / "questions.jsonl"]
    for extra, words in {("--batch-size", "0"): "must be at least 1", ("--device", "abacus"): "device 'abacus'",
                         ("--adapter", str(files)): "adapter_config.json not found",
                         ("--device", "meta"): "device 'meta' cannot be used here",
                         ("--scores", "x" * 300): "File name too long",
                         ("--scores", str(files)): "is a folder: name a file"}.items():  # fmt: skip
        assert words in refusal(eval_qa, [*line, *extra], monkeypatch, capsys)
    line = ["--model", model, "--ask", "Who?", "--scores", files / "scores.jsonl"]
    assert "give --qa" in refusal(eval_qa, line, monkeypatch, capsys)


def test_a_folder_with_another_programs_files_is_not_written_to(model, files, tmp_path, monkeypatch, capsys):
    for name in ("config.json", "results.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text('{"model_type": "llama"}')
        line = [*train_line(model, files), "--out", tmp_path / name]
        said = refusal(train, line, monkeypatch, capsys)
        assert "holds files that this program did not make: give another --out" in said
        assert (tmp_path / name / name).read_text() == '{"model_type": "llama"}'


def test_the_command_itself_ends_with_one_line_and_exit_code_2(model, files):
    truncate(model / "model.safetensors")
    command = [sys.executable, eval_qa.__file__, "--model", model, "--qa", files / "questions.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (said,) = done.stderr.splitlines()
    assert said.startswith("eval_qa.py: ") and "truncated" in said


def test_a_bug_shows_where_it_is_when_asked_to(tiny_llama_folder, files, monkeypatch):
    monkeypatch.setenv("TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, train_line(tiny_llama_folder, files, rank=0))])
    with pytest.raises(ValueError, match="rank 0"):
        train.main()
