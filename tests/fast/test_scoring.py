"""fast/scoring.py: prompts computed once for all their choices give the scores of eval_qa.py's plain version."""

import math
import random
from dataclasses import replace

import pytest
import torch
from conftest import SENTENCES
from test_eval_qa import LONG, QUESTIONS, PairTokenizer

from corpus import perplexity
from eval_qa import BASE, encode_question, score_question, score_questions
from fast import scoring
from fast.scoring import Row, batches_of, predict, rows_of
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


def test_many_choices_come_in_rows_of_some_and_are_scored_the_same(tiny_llama_folder, monkeypatch, capsys):
    many = Question("The fox", tuple(f"fox {i}" for i in range(5000)), 4321)
    tokenizer = load_pretrained(tiny_llama_folder)[1]
    rows = rows_for(tokenizer, many, 0, 96)
    assert len(rows) < 30 and max(map(len, rows)) < 1.1 * scoring.ROW_TOKENS  # attention takes their square
    assert [choice for row in rows for choice in row.branches] == [*range(5000)]
    few = [Question("The fox", many.choices[: 3 + 2 * answer], answer) for answer in range(4)]
    monkeypatch.setattr(scoring, "ROW_TOKENS", 8)
    assert len(rows_for(tokenizer, few[3], 0, 96)) > 2
    assert_as_plain(*load_pretrained(tiny_llama_folder), few, 1e-4)
    assert capsys.readouterr().err == ""  # nothing is cut


def test_a_text_one_token_too_long_is_whole_as_its_last_token_is_not_read():
    question, encode = Question("abcdef", ("x", "xyzuvw"), 0), PairTokenizer().encode
    wholes = [encode("abcdef x"), encode("abcdef xyzuvw")]
    assert list(map(len, wholes)) == [4, 7]
    (row,) = rows_for(PairTokenizer(), question, 3, 7)
    assert row == Row(3, wholes[0][:3], {0: wholes[0][3:], 1: wholes[1][3:]}, ends=0)
    for context, lost in {6: 0, 5: 1, 4: 2}.items():
        first, second = rows_for(PairTokenizer(), question, 3, context)
        assert first == Row(3, wholes[0][:3], {0: wholes[0][3:]}, ends=0)
        assert second == Row(3, wholes[1][lost:3], {1: wholes[1][3:]}, ends=None)
        assert len(second) == context
    first, _ = rows_for(PairTokenizer(), Question("abcdefgh", ("x", "xyz"), 0), 0, 4)
    assert first.ends is None and len(first) == 4  # just as long


def some_row(number, length, start=()):
    prompt = [*start, *range(number * 1000, number * 1000 + length - 1 - len(start))]  # alike in nothing but start
    return Row(number, prompt, {0: [1], 1: [2]}, ends=0)


@pytest.mark.parametrize(("batch_size", "tokens"), [(4, 1000), (64, 40), (64, 1)])
def test_a_batch_has_no_more_rows_or_tokens_than_allowed_unless_one_row_alone_has(monkeypatch, batch_size, tokens):
    monkeypatch.setattr(scoring, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(scoring, "ENOUGH", 30)
    monkeypatch.setattr(scoring, "SIMILAR", 0.5)
    rng = random.Random(0)
    rows = [some_row(number, length) for number, length in enumerate([rng.randrange(3, 30) for _ in range(50)] + [100])]
    beginnings, batches = zip(*batches_of(rows, batch_size), strict=True)
    assert set(map(tuple, beginnings)) == {()}
    assert sorted((row for batch in batches for row in batch), key=lambda row: row.question) == rows
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= tokens
    assert [len(row) for batch in batches for row in batch] == sorted(map(len, rows), reverse=True)
    for batch, after in zip(batches, batches[1:]):  # as large as allowed, or large enough before much shorter ones
        full = len(batch) == batch_size or (len(batch) + 1) * len(batch[0]) > tokens
        assert full or len(batch) * len(batch[0]) >= 30 and len(after[0]) < 0.5 * len(batch[0])
    assert all(len(row) >= 0.5 * len(batch[0]) for batch in batches for row in batch[30 // len(batch[0]) + 1 :])


def test_what_many_prompts_begin_with_is_taken_off_them(monkeypatch):
    monkeypatch.setattr(scoring, "SHARED", 4)
    start = [7, 8, 9, 10, 11]
    alike = [some_row(number, 12, start) for number in (1, 2, 3)]
    apart = [some_row(4, 12, start[:3]), some_row(5, 12), some_row(6, 2)]  # too little alike, nothing alike, too short
    one = some_row(7, 14, [9] * 4)  # long enough, but the only one
    batches = batches_of([*apart, *alike, one], 2)
    shared = [batch for beginning, batch in batches if beginning == start]
    assert [len(batch) for batch in shared] == [2, 1]
    assert [replace(row, prompt=start + row.prompt) for batch in shared for row in batch] == alike
    others = [row for beginning, batch in batches if not beginning for row in batch]
    assert sorted(others, key=lambda row: row.question) == [*apart, one]
    # The same prompt twice keeps its last token: something has to predict the first of a choice.
    ((beginning, (first, second)),) = batches_of([alike[0], alike[0]], 2)
    assert (beginning, first.prompt) == (alike[0].prompt[:-1], alike[0].prompt[-1:]) and first == second


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


def test_the_likeliest_token_is_that_of_each_place_whatever_the_chunks(tiny_llama_folder, monkeypatch):
    model, _ = load_pretrained(tiny_llama_folder)
    hidden, tokens = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0)), torch.arange(11)
    places = torch.tensor([7, 0, 0, 11, 3, 7, 7, 1, 2, 10, 0])  # three tokens are asked about at once
    logits = model.lm_head(hidden.flatten(0, 1)[places]).detach()
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    for chunk in (1, 4, 11, 100):
        monkeypatch.setattr(scoring, "BATCH_LOGITS", 512 * chunk)
        logs, greedy = predict(model, hidden, places, tokens)
        assert logs.tolist() == pytest.approx(logits.log_softmax(-1)[range(11), tokens].tolist(), abs=1e-5)
        assert greedy.equal(logits.argmax(-1))
        assert sum(sizes) == 7 and max(sizes) == min(chunk, 7)  # a place once
        sizes.clear()
