"""fast/scoring.py: prompts computed once for all their choices give the scores of eval_qa.py's plain version."""

import math
import random
from dataclasses import replace

import pytest
from conftest import SENTENCES
from test_eval_qa import LONG, QUESTIONS

from corpus import perplexity
from eval_qa import BASE, encode_question, score_question, score_questions
from fast import scoring
from fast.scoring import batches_of, rows_of
from gpt import load_pretrained
from questions import Question, read_questions

WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


def rows_for(tokenizer, question, index, context):
    return rows_of(index, (*encode_question(tokenizer, question, context), question.answer), context)


def assert_as_plain(model, tokenizer, questions, tolerance, **settings):
    for question, got in zip(questions, score_questions(model, tokenizer, questions, **settings), strict=True):
        expected = score_question(model, tokenizer, question)
        assert got.loglikelihoods == pytest.approx(expected.loglikelihoods, rel=tolerance, abs=tolerance)
        assert got.logprob == pytest.approx(expected.logprob, rel=tolerance, abs=tolerance)
        if closest(expected, question) > tolerance:
            assert (got.acc, got.acc_norm, got.exact) == (expected.acc, expected.acc_norm, expected.exact)


def closest(score, question):
    """How far the two likeliest choices are apart, also per character: nearer than rounding, either may win."""
    logs = score.loglikelihoods
    norms = [value / len(choice) for value, choice in zip(logs, question.choices)]
    pairs = (sorted(set(values))[-2:] for values in (logs, norms))
    return min(pair[-1] - pair[0] if len(pair) > 1 else math.inf for pair in pairs)


def random_questions(rng):
    """Questions with prompts from short to longer than the context, and two to five choices, some of them alike."""
    questions = []
    for _ in range(rng.randint(1, 6)):
        choices = tuple(" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(rng.randint(2, 5)))
        choices = (*choices, f"{choices[0]} {WORDS[0]}") if rng.random() < 0.5 else choices
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 80))) + rng.choice(["", " ", "\nAnswer:"])
        questions.append(Question(prompt, choices, rng.randrange(len(choices))))
    return questions


def test_random_questions_are_scored_as_by_the_plain_version(tiny_llama_folder):
    loaded = load_pretrained(tiny_llama_folder)
    for seed in range(20):
        rng = random.Random(seed)
        assert_as_plain(*loaded, random_questions(rng), 1e-4, batch_size=rng.randint(1, 8))


@pytest.mark.parametrize("name", ["new/questions", "old/cloze"])
def test_shipped_questions_are_scored_as_by_the_plain_version(name):
    questions = read_questions(BASE.parent / f"{name}.jsonl")[::30]
    assert_as_plain(*load_pretrained(BASE), questions, 1e-5)


def test_a_beginning_computed_once_changes_no_score(tiny_folder, monkeypatch):
    model, tokenizer = load_pretrained(tiny_folder)
    primer = "Q: Who sells sea shells?\nA: She does.\n\n"
    questions = [replace(q, prompt=primer + q.prompt) for q in QUESTIONS] + QUESTIONS
    apart = score_questions(model, tokenizer, questions)
    monkeypatch.setattr(scoring, "SHARED", 8)
    rows = [row for i, q in enumerate(questions) for row in rows_for(tokenizer, q, i, 96)]
    assert max(len(beginning) for beginning, _ in batches_of(rows, 3)) >= 8
    for a, b in zip(apart, score_questions(model, tokenizer, questions, 3), strict=True):
        assert b.loglikelihoods == pytest.approx(a.loglikelihoods, abs=1e-4)
        assert (b.acc, b.acc_norm, b.exact) == (a.acc, a.acc_norm, a.exact)


@pytest.mark.parametrize(("tokens", "logits"), [(1, 1), (100, 12 * 512 - 1)])
def test_numbers_do_not_depend_on_how_much_is_computed_at_once(tiny_llama_folder, monkeypatch, tokens, logits):
    model, tokenizer = load_pretrained(tiny_llama_folder)
    texts = ["The quick brown fox jumps over the lazy dog. " * 5]
    expected = score_questions(model, tokenizer, [*QUESTIONS, LONG])
    expected_perplexity = perplexity(model, tokenizer, texts)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(scoring, "BATCH_LOGITS", logits)
    monkeypatch.setattr("corpus.BATCH_LOGITS", logits)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    scores = score_questions(model, tokenizer, [*QUESTIONS, LONG])
    assert [s.loglikelihoods for s in scores] == [pytest.approx(s.loglikelihoods, abs=1e-5) for s in expected]
    assert [s.exact for s in scores] == [s.exact for s in expected]
    assert max(sizes) == max(1, logits // 512) * 512  # a position's at least
    assert perplexity(model, tokenizer, texts) == pytest.approx(expected_perplexity, rel=1e-5)
    assert max(sizes) == 96 * 512  # the plain perplexity: a window's at least
