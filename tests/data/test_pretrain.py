"""data/pretrain_base.py: what the base model may see, and that the recipe runs."""

import random
import sys

import pytest

from data import pretrain_base
from data.make_data import KINDS, old_subjects
from gpt import load_pretrained


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


def test_no_question_is_in_the_wording_kept_for_the_reworded_sets():
    asked, _ = old_subjects()
    documents = pretrain_base.one_pass(asked, [], 20, random.Random(1))
    questions = {text.split("\n")[0] for text in documents if text.startswith("Question: ")}
    for subject in asked:
        for attribute in KINDS[subject.kind].attributes.values():
            reworded = attribute.reworded.format(S=subject.name, P=subject.name + "'s", O=subject.name)
            assert f"Question: {reworded}" not in questions


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
    module.main()


def test_other_widths_have_the_shipped_models_shape(monkeypatch, capsys):
    assert pretrain_base.config_of(192) == pretrain_base.CONFIG
    narrow = pretrain_base.config_of(64)
    assert (narrow.hidden_size, narrow.intermediate_size, narrow.n_heads, narrow.n_kv_heads) == (64, 170, 2, 2)
    for width in (0, 100):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, pretrain_base, "--width", width)
        assert stop.value.code == 2 and f"not {width}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_recipe_of_the_base_model_runs_and_what_it_writes_opens(tmp_path, monkeypatch, capsys):
    run(monkeypatch, pretrain_base, "--out", tmp_path, "--passes", 2, "--start-small", 0.5, "--device", "cpu")
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in capsys.readouterr().err.splitlines()]
    assert len(losses) == 2 and losses[1] < losses[0] - 1
    model, tokenizer = load_pretrained(tmp_path)
    assert model.config == pretrain_base.CONFIG
    assert tokenizer.vocab_size == model.config.vocab_size
