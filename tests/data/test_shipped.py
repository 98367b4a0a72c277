"""data/base as shipped: it is small, transformers reads it, it knows only the old world, and an untrained adapter changes nothing."""

import math
from pathlib import Path

import pytest
import tokenizers
import torch
from conftest import reference

from eval_qa import read_documents, score_questions, summarise
from gpt import load_pretrained
from lora import LoRALayer, replace_linears
from mica import MiCALayer
from questions import read_questions
from train import block_linears

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="module")
def shipped():
    """The model and its tokenizer: not to be changed."""
    model, tokenizer = load_pretrained(DATA / "base")
    return model.eval().requires_grad_(False), tokenizer


@pytest.fixture(scope="module")
def corpus():
    return read_documents(DATA / "new" / "corpus.txt")


def summary_of(model, tokenizer, name):
    return summarise(score_questions(model, tokenizer, read_questions(DATA / f"{name}.jsonl")))


def some_ids(tokenizer, corpus):
    """Token ids of the corpus (4, 256): as many as the context holds."""
    ids = [token for text in corpus[:40] for token in tokenizer.encode(text)]
    return torch.tensor(ids[: 4 * 256]).view(4, 256)


@torch.inference_mode()
def test_transformers_computes_the_same_logits(shipped, corpus):
    model, tokenizer = shipped
    ids = some_ids(tokenizer, corpus)
    expected = reference(DATA / "base")(ids).logits
    assert torch.allclose(model(ids), expected, atol=1e-4, rtol=0)
    assert expected.std() > 1  # logits that say something


def test_the_tokenizers_library_gives_the_same_ids(shipped, corpus):
    _, tokenizer = shipped
    oracle = tokenizers.Tokenizer.from_file(str(DATA / "base" / "tokenizer.json"))
    texts = [*corpus, *(question.prompt for question in read_questions(DATA / "new" / "questions.jsonl"))]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == oracle.encode(text).ids
        assert tokenizer.decode(ids) == text


def test_the_base_knows_nothing_of_the_new_world(shipped):
    summary = summary_of(*shipped, "new/questions")
    assert summary["n"] == 720
    assert abs(summary["acc"] - 0.25) <= 2 * math.sqrt(0.25 * 0.75 / 720)


@pytest.mark.parametrize("name", ["old/never_asked", "old/asked"])
def test_the_base_knows_the_old_world_whether_it_was_asked_in_pretraining_or_not(shipped, name):
    assert summary_of(*shipped, name)["acc"] >= 0.95


@torch.inference_mode()
@pytest.mark.parametrize("layer_class", [MiCALayer, LoRALayer])
def test_an_untrained_adapter_changes_no_logit(shipped, corpus, layer_class):
    plain, tokenizer = shipped
    model, _ = load_pretrained(DATA / "base")
    names = replace_linears(model, layer_class, 8, 8, block_linears(model))
    assert len(names) == 7 * model.config.n_layers
    ids = some_ids(tokenizer, corpus)
    assert torch.equal(model.eval()(ids), plain(ids))
