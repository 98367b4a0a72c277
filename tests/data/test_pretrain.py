"""data/pretrain_base.py: what the base model may see, and that the recipe runs."""

import json
import os
import random
import signal
import sys

import pytest
from forked import forked, needs_fork

from data import pretrain_base
from data.make_data import old_subjects
from gpt import GPTConfig, load_pretrained


def test_a_pass_tells_of_every_subject_once_and_asks_about_the_asked_only():
    asked, never_asked = old_subjects()
    documents = pretrain_base.one_pass(asked, never_asked, 2, random.Random(0))
    questions = [text for text in documents if text.startswith("Question: ")]
    texts = [text for text in documents if not text.startswith("Question: ")]
    assert (len(texts), len(questions)) == (len(asked) + len(never_asked), 2 * len(asked))
    for subject in never_asked:
        assert not any(subject.name in question for question in questions)
    told = " ".join(texts)
    assert all(
        subject.name in told or subject.name.replace("the ", "The ", 1) in told for subject in asked + never_asked
    )


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
    module.main()


@pytest.fixture
def small(monkeypatch):
    """An old world of a few subjects, for passes that take no time."""
    asked, never_asked = old_subjects()
    monkeypatch.setattr(pretrain_base, "old_subjects", lambda: (asked[:10], never_asked[:10]))
    monkeypatch.setattr(pretrain_base, "CONFIG", GPTConfig("llama", 400, 256, 32, 85, 4, 1, 1, 32))
    return "--passes 3 --start-small 0.4 --questions-each 1 --batch-size 4 --seq-len 32 --device cpu".split()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(number, how):
    """End the process as soon as that many passes are written, somewhere in the next."""
    real, calls = pretrain_base.pack, []

    def pack(*arguments):
        calls.append(arguments)
        if len(calls) > number:
            os.kill(os.getpid(), how)
        return real(*arguments)

    pretrain_base.pack = pack


@needs_fork
@pytest.mark.parametrize("number, how", [(0, "SIGTERM"), (1, "SIGKILL")])
def test_stopped_pretraining_goes_on_to_the_same_bytes(small, tmp_path, monkeypatch, number, how):
    how = getattr(signal, how)
    run(monkeypatch, pretrain_base, "--out", tmp_path / "whole", *small)
    line = ["--out", tmp_path / "base", *small]
    code, _, said = forked(lambda: (stop_after(number, how), run(monkeypatch, pretrain_base, *line)))
    assert code in (-how, 130) and said.count("loss") == number, said
    assert not (tmp_path / "base").exists()  # nothing that looks finished
    code, _, said = forked(lambda: run(monkeypatch, pretrain_base, *line))
    assert code == 0 and said.count("loss") == 3 - number, said
    assert content(tmp_path / "base") == content(tmp_path / "whole")
    model, tokenizer = load_pretrained(tmp_path / "base")
    assert model.config == pretrain_base.CONFIG and tokenizer.vocab_size == 400
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "base"}
    assert json.loads((tmp_path / "base" / "MADE_BY").read_text())["passes"] == 3


@needs_fork
def test_pretraining_begins_anew_with_other_settings_and_refuses_a_damaged_file(small, tmp_path, monkeypatch, capsys):
    line = ["--out", tmp_path / "base", *small]
    unfinished = tmp_path / "base.unfinished"
    forked(lambda: (stop_after(1, signal.SIGKILL), run(monkeypatch, pretrain_base, *line)))
    whole = unfinished.read_bytes()
    unfinished.write_bytes(whole[:1000])
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, pretrain_base, *line)
    assert stopped.value.code == 2 and str(unfinished) in capsys.readouterr().err
    unfinished.write_bytes(whole)
    run(monkeypatch, pretrain_base, *line, "--lr", "1")
    said = capsys.readouterr().err
    assert "beginning anew" in said and said.count("loss") == 3 and not unfinished.exists()
    assert json.loads((tmp_path / "base" / "MADE_BY").read_text())["lr"] == 1
