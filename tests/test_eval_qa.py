"""eval_qa.py: what is read, how text becomes windows, and scores equal to a naive computation: a sequence a choice."""

import json
import math
import random
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import eval_qa
from adapter_io import save_adapters
from eval_qa import (
    IGNORE,
    Question,
    Row,
    batches_of,
    encode_question,
    mean_and_error,
    pack,
    perplexity,
    predict,
    read_documents,
    read_question_sets,
    read_questions,
    score,
    score_questions,
    stop_tokens,
    summarise,
)
from gpt import load_pretrained, load_tokenizer
from gpt.generate import generate
from lora import LoRALayer, find_adapters, replace_linears

GOOD = '{"question": "Who?", "choices": ["me", "you"], "answer": 1}'
MALFORMED = {
    "not JSON": "{",
    "not an object": "[1, 2]",
    "no question": '{"choices": ["me", "you"], "answer": 1}',
    "blank question": '{"question": "  ", "choices": ["me", "you"], "answer": 1}',
    "question no string": '{"question": 3, "choices": ["me", "you"], "answer": 1}',
    "no choices": '{"question": "Who?", "answer": 1}',
    "choices no list": '{"question": "Who?", "choices": "me", "answer": 1}',
    "one choice": '{"question": "Who?", "choices": ["me"], "answer": 0}',
    "blank choice": '{"question": "Who?", "choices": ["me", " "], "answer": 0}',
    "choice no string": '{"question": "Who?", "choices": ["me", 2], "answer": 0}',
    "same choice twice": '{"question": "Who?", "choices": ["me", "you", "me"], "answer": 0}',
    "no answer": '{"question": "Who?", "choices": ["me", "you"]}',
    "answer too large": '{"question": "Who?", "choices": ["me", "you"], "answer": 2}',
    "answer negative": '{"question": "Who?", "choices": ["me", "you"], "answer": -1}',
    "answer a text": '{"question": "Who?", "choices": ["me", "you"], "answer": "you"}',
    "answer a truth value": '{"question": "Who?", "choices": ["me", "you"], "answer": true}',
    "answer a fraction": '{"question": "Who?", "choices": ["me", "you"], "answer": 1.0}',
}

# Prompts of different lengths, choices of different numbers and lengths, some of which begin alike.
QUESTIONS = [
    Question("Question: What does she sell?\nAnswer:", ("sea shells", "sea shore", "wood", "the quick brown fox"), 0),
    Question("The quick brown", ("fox", "fox jumps", "dog"), 1),
    Question("Peter Piper picked a peck of", ("pickled peppers", "peppers"), 1),
    Question("Question: How much wood would a woodchuck chuck?\nAnswer:", ("12", "2024 logs", "no", "wood", "all"), 4),
    Question("Round ", ("the rugged rocks", "and round"), 0),  # a trailing space
    Question("The lazy\n\n  ", ("dog", "fox", "the dog"), 2),
]
LONG = Question("fox " * 150 + "The quick brown", ("fox", "dog jumps"), 0)  # far longer than the tiny models' context

# Made-up items in the two benchmarks' formats.
TRUTHFUL = {
    "question": "What do foxes sell?",
    "mc1_targets": {"Nothing": 0, "They sell nothing, as far as is known": 1, "Sea shells": 0},
    "mc2_targets": {"Nothing": 1, "They sell nothing, as far as is known": 1, "Sea shells": 0},
}
PRIMER = "Q: How many legs has a fox?\nA: It has four legs."
SWAG = {
    "ind": 7,
    "activity_label": "Sharpening a pencil",
    "ctx_a": "[header] How to sharpen it [title] Hold it  still. [step]  Press lightly.",
    "ctx_b": "the OLD fox",
    "ctx": "[header] How to sharpen it [title] Hold it  still. [step]  Press lightly. the OLD fox",
    "split": "val",
    "split_type": "indomain",
    "label": 1,
    "endings": ["jumps over the dog.", " sells shells [title] to dogs. ", "[substeps] Runs."],
    "source_id": "wikihow~7",
}


class PairTokenizer:
    """Every two characters are one token: a prompt of odd length shares its last token with the space of the choice."""

    bos_id, eot_id, vocab_size = None, 0, 512

    def encode(self, text, bos=False):
        begin = [self.bos_id] if bos and self.bos_id is not None else []
        return begin + self.pieces(text)

    def pieces(self, text):
        return [1 + (7 * ord(text[i]) + sum(map(ord, text[i + 1 : i + 2]))) % 511 for i in range(0, len(text), 2)]

    def token_bytes(self, token):
        return b"x"


class GluingTokenizer(PairTokenizer):
    """Every character is a token, but a space and its two neighbours are one: another one for each choice."""

    def pieces(self, text):
        head, _, tail = text.partition(" ")
        return [*map(ord, head[:-1]), ord(head[-1]) + sum(map(ord, tail[:1])), *map(ord, tail[1:])]


class BeginningTokenizer(PairTokenizer):
    """Texts begin with a token of their own."""

    bos_id = 511


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_folder):
    return load_tokenizer(tiny_llama_folder)


def naive_loglikelihoods(model, tokenizer, question):
    """Sums of log-probabilities as lm-evaluation-harness defines them: one sequence a choice, no batch, no mask."""
    prompt, sums = tokenizer.encode(question.prompt.rstrip(), bos=True), []
    for choice in question.choices:
        own = tokenizer.encode(f"{question.prompt} {choice}", bos=True)[len(prompt) :]
        ids = (prompt + own)[-model.config.context_length - 1 :]  # the last token is not read
        logs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        sums.append(sum(logs[i - 1, ids[i]].item() for i in range(len(ids) - len(own), len(ids))))
    return sums


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_question_becomes_a_prompt_and_a_cloze_stays_as_it_is(tmp_path):
    path = tmp_path / "questions.jsonl"
    whole = {"question": "Who?", "choices": ["me", "you"], "answer": 1, "subject": "us", "attribute": "name"}
    path.write_text(json.dumps(whole) + '\n{"cloze": "It is", "choices": ["me", "you"], "answer": 0}\n')
    first, second = read_questions(path)
    assert first == Question("Question: Who?\nAnswer:", ("me", "you"), 1, "us", "name")
    assert second == Question("It is", ("me", "you"), 0)


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path, line):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(ValueError) as error:
        read_questions(path)
    assert str(error.value).startswith(f"{path}, line 3: ")


def test_blank_lines_between_questions_are_skipped_and_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"\ufeff{GOOD}\n\n  \n{GOOD}", encoding="utf-8")
    assert len(read_questions(path)) == 2
    path.write_text("\n")
    with pytest.raises(ValueError, match="questions.jsonl holds no questions"):
        read_questions(path)


def write_truthfulqa(path, *items):
    path.write_text(json.dumps(list(items)))
    return path


def write_lines(path, *items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_truthfulqa_is_read_as_it_comes_and_after_a_primer(tmp_path):
    path = write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL, TRUTHFUL | {"question": "Who?"})
    first, second = read_questions(path)
    assert first == Question(
        "Q: What do foxes sell?\nA:", tuple(TRUTHFUL["mc1_targets"]), 1, benchmark="TruthfulQA MC1"
    )
    assert second.prompt == "Q: Who?\nA:"
    first, second = read_questions(path, PRIMER)
    assert first.prompt == "Q: How many legs has a fox?\nA: It has four legs.\n\nQ: What do foxes sell?\nA:"
    assert (first.choices, first.answer) == (tuple(TRUTHFUL["mc1_targets"]), 1)


def test_hellaswag_is_read_as_it_comes_and_cleaned_up(tmp_path):
    path = write_lines(tmp_path / "hellaswag_val.jsonl", SWAG, SWAG | {"label": "0", "ctx_b": ""})
    for primer in ("", PRIMER):  # which is TruthfulQA's affair
        first, second = read_questions(path, primer)
        # Two of three spaces that a removed [step] leaves stay, as does the space before a choice: the harness's way.
        assert first == Question(
            "Sharpening a pencil: How to sharpen it. Hold it still.  Press lightly. The old fox",
            ("jumps over the dog.", "sells shells. to dogs.", " Runs."),
            1,
            attribute="Sharpening a pencil",
            benchmark="HellaSwag",
        )
        assert second.prompt == "Sharpening a pencil: How to sharpen it. Hold it still.  Press lightly."
        assert second.answer == 0


def without(item, key):
    return {name: value for name, value in item.items() if name != key}


MALFORMED_BENCHMARKS = {
    "no question": without(TRUTHFUL, "question"),
    "question no text": TRUTHFUL | {"question": None},
    "blank question": TRUTHFUL | {"question": " "},
    "targets no object": TRUTHFUL | {"mc1_targets": [1, 0]},
    "targets empty": TRUTHFUL | {"mc1_targets": {}},
    "one choice": TRUTHFUL | {"mc1_targets": {"a": 1}},
    "none right": TRUTHFUL | {"mc1_targets": {"a": 0, "b": 0}},
    "two right": TRUTHFUL | {"mc1_targets": {"a": 1, "b": 1, "c": 0}},
    "blank choice": TRUTHFUL | {"mc1_targets": {"a": 1, " ": 0}},
    "targets as the Hub has them": TRUTHFUL | {"mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}},
    "test split": without(SWAG, "label"),
    "test split of the Hub": SWAG | {"label": ""},
    "label too large": SWAG | {"label": 3},
    "label negative": SWAG | {"label": -1},
    "label a truth value": SWAG | {"label": True},
    "no activity": without(SWAG, "activity_label"),
    "no context": without(SWAG, "ctx_a"),
    "context no text": SWAG | {"ctx_b": None},
    "endings no list": SWAG | {"endings": "abc"},
    "ending no text": SWAG | {"endings": ["a", "b", 3]},
    "one ending": SWAG | {"endings": ["a"], "label": 0},
    "nothing but layout": SWAG | {"endings": ["a", "b", " [step] "]},
    "neither": {"ind": 7},
}


@pytest.mark.parametrize("item", MALFORMED_BENCHMARKS.values(), ids=MALFORMED_BENCHMARKS)
def test_a_malformed_item_of_a_benchmark_is_named_with_its_place(tmp_path, item):
    for path, place in (
        (write_truthfulqa(tmp_path / "list.json", TRUTHFUL, item, TRUTHFUL), "item 2"),
        (write_lines(tmp_path / "lines.jsonl", SWAG, item, SWAG), "line 2"),
    ):
        with pytest.raises(ValueError) as error:
            read_questions(path)
        assert str(error.value).startswith(f"{path}, {place}: ")
        assert "unpack" not in str(error.value)


def test_a_list_that_is_not_json_is_refused_with_the_line_and_an_empty_one_too(tmp_path):
    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps([TRUTHFUL], indent=1).replace("},", "}"))
    with pytest.raises(ValueError, match=r"mc_task\.json, line \d+: not JSON"):
        read_questions(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"mc_task\.json holds no questions"):
        read_questions(path)


def test_notes_say_which_benchmark_was_read_and_after_which_primer(tmp_path):
    truthful = write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL)
    swag, own = write_lines(tmp_path / "swag.jsonl", SWAG), write_lines(tmp_path / "own.jsonl", json.loads(GOOD))
    primer = tmp_path / "primer.txt"
    primer.write_text(PRIMER + "\n\n")
    name = tmp_path.name
    sets, notes = read_question_sets([own, truthful, swag])
    assert list(sets) == [f"{name}/own", f"{name}/mc_task", f"{name}/swag"]
    assert notes == [f"{name}/mc_task: TruthfulQA MC1, without a primer", f"{name}/swag: HellaSwag"]
    sets, notes = read_question_sets([truthful, own], primer)
    assert notes == [f"{name}/mc_task: TruthfulQA MC1, after the primer in {primer}"]
    assert sets[f"{name}/mc_task"][0].prompt.startswith(PRIMER + "\n\nQ: What")
    assert sets[f"{name}/own"][0].prompt == "Question: Who?\nAnswer:"
    assert read_question_sets([own])[1] == []


def test_a_primer_without_truthfulqa_or_without_text_is_refused(tmp_path):
    (tmp_path / "TruthfulQA").mkdir()
    swag = write_lines(tmp_path / "TruthfulQA" / "swag.jsonl", SWAG)
    primer = tmp_path / "primer.txt"
    primer.write_text(PRIMER)
    with pytest.raises(ValueError, match="which is not among the questions"):
        read_question_sets([swag], primer)
    primer.write_text(" \n")
    with pytest.raises(ValueError, match=r"primer\.txt holds no text"):
        read_question_sets([write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL)], primer)


def test_blank_lines_separate_the_documents_of_a_file(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"one\nstill one\n\n\n  two\r\n \t\r\nthree\n\n")
    assert read_documents(path) == ["one\nstill one", "two", "three"]


def test_a_folder_gives_the_documents_of_its_txt_and_md_files_in_order(tmp_path):
    (tmp_path / "deeper").mkdir()
    for name, text in {"b.txt": "b1\n\nb2", "a.md": "a", "deeper/c.txt": "c", "d.py": "d", "empty.txt": ""}.items():
        (tmp_path / name).write_text(text)
    assert read_documents(tmp_path) == ["a", "b1", "b2", "c"]


def test_no_text_at_all_is_refused(tmp_path):
    (tmp_path / "blank.txt").write_text(" \n\n\t\n")
    for path in (tmp_path, tmp_path / "blank.txt"):
        with pytest.raises(ValueError, match="holds no text"):
            read_documents(path)


@pytest.mark.parametrize("read", [read_documents, read_questions])
def test_text_that_is_not_utf_8_is_refused_with_the_path(tmp_path, read):
    path = tmp_path / "latin1.txt"
    path.write_bytes("ab\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin1\.txt is not UTF-8 text \(byte 2\)"):
        read(path)


@pytest.mark.parametrize("seq_len", [1, 2, 3, 5, 10, 11, 12, 100])
def test_every_token_is_a_target_once_and_end_of_text_stands_around_every_document(seq_len):
    inputs, targets = pack([[1, 2, 3], [4], [5, 6, 7, 8]], 0, seq_len)
    assert inputs.shape == targets.shape and inputs.shape[1] == seq_len
    real = targets.flatten() != IGNORE
    assert targets.flatten()[real].tolist() == [1, 2, 3, 0, 4, 0, 5, 6, 7, 8, 0]
    assert inputs.flatten()[real].tolist() == [0, 1, 2, 3, 0, 4, 0, 5, 6, 7, 8]
    assert not inputs.flatten()[~real].any() and (~real).sum() < seq_len
    assert real.tolist() == sorted(real.tolist(), reverse=True)  # padding only at the end


@pytest.mark.parametrize("seq_len", [1, 2, 3, 5, 11, 12, 13, 100])
def test_documents_begin_with_bos_which_is_never_a_target(seq_len):
    documents, bos, eot = [[1, 2, 3], [4], [5, 6, 7, 8]], 9, 0
    inputs, targets = pack(documents, eot, seq_len, bos)
    assert inputs.shape == targets.shape and inputs.shape[1] == seq_len
    assert inputs.flatten().tolist()[:13] == [9, 1, 2, 3, 0, 9, 4, 0, 9, 5, 6, 7, 8]
    expected = [1, 2, 3, 0, IGNORE, 4, 0, IGNORE, 5, 6, 7, 8, 0]
    assert targets.flatten().tolist() == expected + [IGNORE] * (targets.numel() - 13)
    assert not inputs.flatten()[13:].any() and targets.numel() - 13 < seq_len


def test_bos_that_is_also_end_of_text_stands_once_between_documents_and_is_learned():
    documents = [[1, 2, 3], [4], [5, 6]]
    for got, expected in zip(pack(documents, 0, 4, bos_id=0), pack(documents, 0, 4), strict=True):
        assert got.equal(expected)


# --- choices as tokens ------------------------------------------------------------------------------------------------


def test_choices_share_the_prompt_and_count_all_their_own_tokens(tokenizer):
    question = QUESTIONS[0]
    (row,) = encode_question(tokenizer, question, 5, 96)
    assert row.question == 5 and row.ends == 0
    for choice, text in enumerate(question.choices):
        assert tokenizer.decode(row.prompt + row.branches[choice]) == f"{question.prompt} {text}"
        assert tokenizer.decode(row.branches[choice]) == f" {text}"
    assert tokenizer.decode(row.prompt) == question.prompt


@pytest.mark.parametrize("spaces", [" ", "  ", "\n", "\n\n ", "\t"])
def test_trailing_spaces_of_a_prompt_belong_to_the_choices(tokenizer, spaces):
    (row,) = encode_question(tokenizer, Question(f"Round{spaces}", ("the", "and"), 0), 0, 96)
    assert tokenizer.decode(row.prompt) == "Round"
    assert [tokenizer.decode(row.branches[choice]) for choice in (0, 1)] == [f"{spaces} the", f"{spaces} and"]


@pytest.mark.parametrize("odd", [PairTokenizer(), GluingTokenizer()])
def test_the_prompt_keeps_its_tokens_where_the_last_would_merge_with_a_choice(odd):
    (row,) = encode_question(odd, Question("abc", ("de", "fghi"), 0), 0, 96)
    first, second = odd.encode("abc de"), odd.encode("abc fghi")
    n = len(odd.encode("abc"))
    assert odd.encode("abc")[-1] not in (first[n - 1], second[n - 1])  # as in ab|c against ab|c |de
    assert row == Row(0, odd.encode("abc"), {0: first[n:], 1: second[n:]}, ends=0)


def test_a_choice_has_a_token_even_where_all_of_it_merges_with_the_prompt():
    class Merging(PairTokenizer):
        def pieces(self, text):
            return [7, 8] if text == "abc x" else list(map(ord, text))

    (row,) = encode_question(Merging(), Question("abc", ("x", "yz"), 0), 0, 96)
    assert row.branches == {0: [8], 1: [ord(" "), ord("y"), ord("z")]}


def test_a_text_that_begins_with_bos_has_it_once_and_it_is_not_counted():
    plain, beginning = PairTokenizer(), BeginningTokenizer()
    question = Question("abcd", ("xyz", "fghi"), 0)
    (row,), (expected,) = (encode_question(tokenizer, question, 0, 96) for tokenizer in (beginning, plain))
    assert row == Row(0, [511, *expected.prompt], expected.branches, ends=0)


def test_a_text_one_token_too_long_is_whole_as_its_last_token_is_not_read():
    question, encode = Question("abcdef", ("x", "xyzuvw"), 0), PairTokenizer().encode
    wholes = [encode("abcdef x"), encode("abcdef xyzuvw")]
    assert list(map(len, wholes)) == [4, 7]
    (row,) = encode_question(PairTokenizer(), question, 3, 7)
    assert row == Row(3, wholes[0][:3], {0: wholes[0][3:], 1: wholes[1][3:]}, ends=0)
    for context, lost in {6: 0, 5: 1, 4: 2}.items():
        first, second = encode_question(PairTokenizer(), question, 3, context)
        assert first == Row(3, wholes[0][:3], {0: wholes[0][3:]}, ends=0)
        assert second == Row(3, wholes[1][lost:3], {1: wholes[1][3:]}, ends=None)
        assert len(second) == context
    first, _ = encode_question(PairTokenizer(), Question("abcdefgh", ("x", "xyz"), 0), 0, 4)
    assert first.ends is None and len(first) == 4  # just as long


def test_a_choice_alone_must_fit_the_context(tokenizer):
    with pytest.raises(ValueError, match="The quick brown' does not fit the model's context of 1 tokens"):
        encode_question(tokenizer, LONG, 0, 1)


# --- batches ----------------------------------------------------------------------------------------------------------


def some_row(number, length, start=()):
    prompt = [*start, *range(number * 1000, number * 1000 + length - 1 - len(start))]  # alike in nothing but start
    return Row(number, prompt, {0: [1], 1: [2]}, ends=0)


@pytest.mark.parametrize(("batch_size", "tokens"), [(1, 1000), (4, 1000), (64, 40), (64, 1), (3, 60)])
def test_a_batch_has_no_more_rows_or_tokens_than_allowed_unless_one_row_alone_has(monkeypatch, batch_size, tokens):
    monkeypatch.setattr(eval_qa, "BATCH_TOKENS", tokens)
    rng = random.Random(0)
    rows = [some_row(number, length) for number, length in enumerate([rng.randrange(3, 30) for _ in range(50)] + [100])]
    beginnings, batches = zip(*batches_of(rows, batch_size), strict=True)
    assert set(map(tuple, beginnings)) == {()}
    assert sorted((row for batch in batches for row in batch), key=lambda row: row.question) == rows
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= tokens
    assert [len(row) for batch in batches for row in batch] == sorted(map(len, rows), reverse=True)
    for batch in batches[:-1]:  # as large as allowed
        assert len(batch) == batch_size or (len(batch) + 1) * len(batch[0]) > tokens


def test_what_many_prompts_begin_with_is_taken_off_them(monkeypatch):
    monkeypatch.setattr(eval_qa, "SHARED", 4)
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


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_beginning_computed_once_changes_no_score(any_folder, monkeypatch, batch_size):
    model, tokenizer = load_pretrained(any_folder)
    primer = "Q: Who sells sea shells?\nA: She does.\n\n"
    questions = [replace(q, prompt=primer + q.prompt) for q in QUESTIONS] + QUESTIONS
    apart = score_questions(model, tokenizer, questions)
    monkeypatch.setattr(eval_qa, "SHARED", 8)
    rows = [row for i, q in enumerate(questions) for row in encode_question(tokenizer, q, i, 96)]
    assert max(len(beginning) for beginning, _ in batches_of(rows, batch_size)) >= 8
    for a, b in zip(apart, score_questions(model, tokenizer, questions, batch_size), strict=True):
        assert b.loglikelihoods == pytest.approx(a.loglikelihoods, abs=1e-4)
        assert (b.acc, b.acc_norm, b.exact) == (a.acc, a.acc_norm, a.exact)


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_equal_a_naive_computation_whatever_the_batch_size(tiny_folder, batch_size):
    model, tokenizer = load_pretrained(tiny_folder)
    scores = score_questions(model, tokenizer, QUESTIONS, batch_size)
    for question, got in zip(QUESTIONS, scores, strict=True):
        expected = naive_loglikelihoods(model, tokenizer, question)
        assert got.loglikelihoods == pytest.approx(expected, abs=1e-4)
        per_character = [value / len(choice) for value, choice in zip(expected, question.choices)]
        assert got.acc == (expected.index(max(expected)) == question.answer)
        assert got.acc_norm == (per_character.index(max(per_character)) == question.answer)
        normalised = torch.tensor(expected).log_softmax(0)[question.answer].item()
        assert got.logprob == pytest.approx(normalised, abs=1e-4)


def test_scores_are_right_where_tokens_merge_across_the_border_and_where_texts_begin_with_bos(tiny_folder):
    model, _ = load_pretrained(tiny_folder)
    questions = [Question(prompt, ("de", "fghi", "dexy"), 0) for prompt in ("a", "ab", "abc", "abcd", "abc  ")]
    for odd in (PairTokenizer(), GluingTokenizer(), BeginningTokenizer()):
        for question, got in zip(questions, score_questions(model, odd, questions), strict=True):
            assert got.loglikelihoods == pytest.approx(naive_loglikelihoods(model, odd, question), abs=1e-4)


def test_scores_are_right_where_a_text_is_longer_than_the_context_which_is_said(tiny_folder, capsys):
    model, tokenizer = load_pretrained(tiny_folder)
    score_questions(model, tokenizer, QUESTIONS)
    assert capsys.readouterr().err == ""
    near = tokenizer.encode("fox " * 150)[:93]  # with choices: within the context, just not, and far longer than it
    near = Question(tokenizer.decode(near), ("dog", "wood", "she sells sea shells", "the dog jumps"), 1)
    questions = [QUESTIONS[0], LONG, near, QUESTIONS[1]]
    scores = score_questions(model, tokenizer, questions, batch_size=3, description="some")
    assert capsys.readouterr().err == "some: 2 do not fit the context of 96 tokens; they lose their beginning\n"
    for question, got in zip(questions, scores, strict=True):
        assert got.loglikelihoods == pytest.approx(naive_loglikelihoods(model, tokenizer, question), abs=1e-4)


@pytest.mark.parametrize(("tokens", "logits"), [(1, 1), (60, 5 * 512), (100, 12 * 512 - 1)])
def test_numbers_do_not_depend_on_how_much_is_computed_at_once(tiny_llama_folder, monkeypatch, tokens, logits):
    model, tokenizer = load_pretrained(tiny_llama_folder)
    texts = ["The quick brown fox jumps over the lazy dog. " * 5]
    expected = [s.loglikelihoods for s in score_questions(model, tokenizer, [*QUESTIONS, LONG])]
    expected_exact = [s.exact for s in score_questions(model, tokenizer, [*QUESTIONS, LONG])]
    expected_perplexity = perplexity(model, tokenizer, texts)
    monkeypatch.setattr(eval_qa, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(eval_qa, "BATCH_LOGITS", logits)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    scores = score_questions(model, tokenizer, [*QUESTIONS, LONG])
    assert [s.loglikelihoods for s in scores] == [pytest.approx(logs, abs=1e-5) for logs in expected]
    assert [s.exact for s in scores] == expected_exact
    assert perplexity(model, tokenizer, texts) == pytest.approx(expected_perplexity, rel=1e-5)
    assert max(sizes) == max(1, logits // 512) * 512  # a position's at least


def test_the_likeliest_token_is_that_of_each_position_whatever_the_chunks(tiny_llama_folder, monkeypatch):
    model, _ = load_pretrained(tiny_llama_folder)
    hidden, tokens = torch.randn(11, 32, generator=torch.Generator().manual_seed(0)), torch.arange(11)
    logits = model.lm_head(hidden).detach()
    for chunk in (1, 4, 11, 100):
        monkeypatch.setattr(eval_qa, "BATCH_LOGITS", 512 * chunk)
        logs, greedy = predict(model, hidden, tokens)
        assert logs.tolist() == pytest.approx(logits.log_softmax(-1)[tokens, tokens].tolist(), abs=1e-5)
        assert greedy.equal(logits.argmax(-1))


def test_same_choices_tie_exactly_and_a_broken_model_is_never_right(tiny_llama_folder):
    model, tokenizer = load_pretrained(tiny_llama_folder)
    long = "fox jumps over the lazy dog, and the dog does not mind"  # rounded differently at different places
    twice = [Question("The quick brown", ("dog", long, "fox", long, long), answer) for answer in (1, 3, 4)]
    expected = naive_loglikelihoods(model, tokenizer, twice[0])
    for got in score_questions(model, tokenizer, twice + QUESTIONS)[:3]:
        assert got.loglikelihoods == pytest.approx(expected, abs=1e-4)
        assert len(set(got.loglikelihoods)) == 3
        assert not got.acc and not got.acc_norm
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    for question in QUESTIONS:
        for answer in range(len(question.choices)):
            (got,) = score_questions(model, tokenizer, [Question(question.prompt, question.choices, answer)])
            assert not (got.acc or got.acc_norm or got.exact) and math.isnan(got.logprob)


def test_scoring_leaves_the_model_in_the_mode_it_was_in_and_measures_without_dropout(tiny_llama_folder):
    model, tokenizer = load_pretrained(tiny_llama_folder)
    expected = score_questions(model.eval(), tokenizer, QUESTIONS)
    assert not model.training
    replace_linears(model, LoRALayer, 2, 2, ["q_proj"], dropout=0.9)
    for layer in find_adapters(model).values():
        torch.nn.init.normal_(layer.B)
    expected = score_questions(model.eval(), tokenizer, QUESTIONS)
    assert score_questions(model.train(), tokenizer, QUESTIONS) == expected
    assert model.training
    texts = ["The quick brown fox"]
    assert perplexity(model, tokenizer, texts) == perplexity(model.eval(), tokenizer, texts)


def test_the_likeliest_choice_counts_and_per_character_the_longer_one_may_win():
    got = score([-4.0, -6.0], 0, [2, 6], exact=False)
    assert (got.acc, got.acc_norm, got.exact) == (True, False, False)
    got = score([-4.0, -6.0], 1, [2, 6], exact=True)
    assert (got.acc, got.acc_norm, got.exact) == (False, True, True)
    assert got.logprob == pytest.approx(math.log(math.exp(-6) / (math.exp(-4) + math.exp(-6))))


@pytest.mark.parametrize("logs", [[-1.0, -1.0], [math.nan, -1.0], [-1.0, math.nan], [math.nan] * 2, [-math.inf] * 2])
def test_a_tie_or_nan_is_never_right(logs):
    for answer in (0, 1):
        got = score(logs, answer, [3, 3], exact=False)
        assert got.acc is False and got.acc_norm is False


@pytest.fixture(scope="module")
def knows_some(tiny_llama_folder):
    """A tiny model that has learned by heart some answers, in several ways to go on after them, and its questions."""
    model, tokenizer = load_pretrained(tiny_llama_folder)
    written = {"fox": "<|endoftext|>", "lazy dog": "\n", "sea shells": ".", "wood": " and rocks.", "peck": "ers"}
    written["dog"] = None  # never told
    questions = [Question(f"Question: What is {i}?\nAnswer:", (word, "nothing"), 0) for i, word in enumerate(written)]
    texts = [f"{q.prompt} {word}{end}" for q, (word, end) in zip(questions, written.items()) if end]
    ids = [tokenizer.encode(text) for text in texts]
    width = max(map(len, ids))
    inputs = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    targets = torch.tensor([row[1:] + [IGNORE] * (width - len(row) + 1) for row in ids])
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORE).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer, questions


def test_exact_is_what_greedy_decoding_writes_up_to_the_end_of_its_answer(knows_some):
    model, tokenizer, questions = knows_some
    exact = [got.exact for got in score_questions(model, tokenizer, questions)]
    assert exact == [True, True, True, False, False, False]
    for question, got in zip(questions, exact):
        prompt = torch.tensor([tokenizer.encode(question.prompt)])
        new = generate(model, prompt, 20, eot_id=tokenizer.eot_id)[0, prompt.shape[1] :]
        text = tokenizer.decode(new)
        for stop in ("<|endoftext|>", "\n", "."):
            text = text.split(stop)[0]
        assert got == (text == " " + question.choices[question.answer])


def test_exact_asks_for_the_right_choice(knows_some):
    model, tokenizer, questions = knows_some
    wrong = [Question(q.prompt, q.choices, 1) for q in questions]
    assert not any(got.exact for got in score_questions(model, tokenizer, wrong))


def test_an_answer_ends_at_end_of_text_a_line_break_or_a_full_stop(tokenizer):
    stops = stop_tokens(tokenizer)
    assert tokenizer.eot_id in stops
    assert {*tokenizer.encode("\n"), *tokenizer.encode(".")} <= stops
    assert not stops & {*tokenizer.encode(" "), *tokenizer.encode("?"), *tokenizer.encode(" fox")}


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_n():
    assert mean_and_error([1, 2, 4]) == pytest.approx((7 / 3, math.sqrt(7 / 3) / math.sqrt(3)))
    mean, error = mean_and_error([True, False, False, False])
    assert (mean, error) == pytest.approx((0.25, math.sqrt(0.25 * 0.75 / 3)))
    mean, error = mean_and_error([5.0])
    assert mean == 5 and math.isnan(error)


def test_a_summary_has_the_mean_and_error_of_every_score():
    scores = [score([-1.0, -2.0], 0, [1, 9], True), score([-1.0, -2.0], 1, [1, 9], False)]
    scores.append(score([-3.0, -1.0], 0, [1, 9], False))
    summary = summarise(scores)
    assert summary["n"] == 3
    assert (summary["acc"], summary["acc_norm"], summary["exact"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert summary["acc_se"] == pytest.approx(1 / 3)
    assert summary["logprob"] == pytest.approx(sum(got.logprob for got in scores) / 3)


@pytest.mark.parametrize("seq_len", [7, 96, 500])
def test_perplexity_equals_a_naive_computation(tiny_folder, seq_len):
    model, tokenizer = load_pretrained(tiny_folder)
    texts = ["The quick brown fox jumps over the lazy dog. " * 5, "She sells sea shells.", "Round the rocks."] * 2
    stream = [tokenizer.eot_id]
    for text in texts:
        stream += tokenizer.encode(text) + [tokenizer.eot_id]
    step, losses = min(seq_len, 96), []
    for start in range(0, len(stream) - 1, step):
        window = stream[start : start + step + 1]
        logs = model(torch.tensor([window[:-1]]))[0].log_softmax(-1)
        losses += [-logs[i, token].item() for i, token in enumerate(window[1:])]
    assert len(losses) == len(stream) - 1
    expected = math.exp(sum(losses) / len(losses))
    assert perplexity(model, tokenizer, texts, seq_len, batch_size=2) == pytest.approx(expected, rel=1e-4)


def test_perplexity_is_of_texts_that_begin_with_bos_where_the_tokenizer_has_one(tiny_llama_folder):
    model, tokenizer = load_pretrained(tiny_llama_folder)[0], BeginningTokenizer()
    text = "Round the rugged rocks"
    ids = [511, *tokenizer.pieces(text), 0]
    logs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    expected = math.exp(-sum(logs[i, token].item() for i, token in enumerate(ids[1:])) / (len(ids) - 1))
    assert perplexity(model, tokenizer, [text]) == pytest.approx(expected, rel=1e-4)


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Two question files in a folder of their own, the second twice as long."""
    folder = tmp_path / "facts"
    folder.mkdir()
    rng = random.Random(0)
    words = ["fox", "dog", "wood", "shells", "peppers", "rocks"]
    for name, n in {"first": 4, "second": 8}.items():
        items = [{"question": f"What is {i}?", "choices": rng.sample(words, 3), "answer": i % 3} for i in range(n)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return [str(folder / "first.jsonl"), str(folder / "second.jsonl")]


def run_program(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval_qa.py", *map(str, arguments)])
    eval_qa.main()


def test_the_program_prints_a_row_a_file_and_writes_a_line_a_question(
    tiny_folder, files, tmp_path, monkeypatch, capsys
):
    scores_path = tmp_path / "deeper" / "scores.jsonl"
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.")
    run_program(monkeypatch, "--model", tiny_folder, "--qa", *files, "--scores", scores_path, "--text", text)
    header, first, second, ppl = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["questions", "n"]
    assert first.split()[:2] == ["facts/first", "4"] and second.split()[:2] == ["facts/second", "8"]
    model, tokenizer = load_pretrained(tiny_folder)
    assert ppl == f"perplexity of {text}: {perplexity(model, tokenizer, read_documents(text)):.3f}"

    lines = [json.loads(line) for line in scores_path.read_text().splitlines()]
    assert [line["set"] for line in lines] == ["facts/first"] * 4 + ["facts/second"] * 8
    questions = read_questions(files[0]) + read_questions(files[1])
    for line, question in zip(lines, questions, strict=True):
        assert (line["prompt"], line["answer"]) == (question.prompt, question.answer)
        assert line["loglikelihoods"] == pytest.approx(naive_loglikelihoods(model, tokenizer, question), abs=1e-4)
    share = 100 * sum(line["acc"] for line in lines[4:]) / 8
    assert second.split()[2] == f"{share:.1f}"
    assert [path.name for path in scores_path.parent.iterdir()] == ["scores.jsonl"]


def test_benchmarks_are_measured_and_named_below_the_table(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    truthful = write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL, TRUTHFUL)
    swag = write_lines(tmp_path / "swag.jsonl", SWAG, SWAG, SWAG)
    primer = tmp_path / "primer.txt"
    primer.write_text(PRIMER)
    arguments = ["--qa", truthful, swag, "--primer", primer, "--scores", tmp_path / "scores.jsonl"]
    run_program(monkeypatch, "--model", tiny_llama_folder, *arguments)
    name = tmp_path.name
    _, first, second, *notes = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == [f"{name}/mc_task", "2"] and second.split()[:2] == [f"{name}/swag", "3"]
    assert notes == [f"{name}/mc_task: TruthfulQA MC1, after the primer in {primer}", f"{name}/swag: HellaSwag"]
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["benchmark"] for line in lines] == ["TruthfulQA MC1"] * 2 + ["HellaSwag"] * 3
    assert lines[0]["prompt"].startswith(PRIMER)


def test_an_adapter_is_put_on_the_model_before_it_is_measured(tiny_folder, files, tmp_path, monkeypatch, capsys):
    model, tokenizer = load_pretrained(tiny_folder)
    untouched = score_questions(model, tokenizer, read_questions(files[0]))
    replace_linears(model, LoRALayer, 2, 4, ["q_proj", "v_proj"])
    for layer in find_adapters(model).values():
        torch.nn.init.normal_(layer.B)
    expected = score_questions(model, tokenizer, read_questions(files[0]))
    save_adapters(model, tmp_path / "adapter")
    arguments = ["--adapter", tmp_path / "adapter", "--qa", files[0], "--scores", tmp_path / "scores.jsonl"]
    run_program(monkeypatch, "--model", tiny_folder, *arguments)
    got = [json.loads(line)["loglikelihoods"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert got == [pytest.approx(s.loglikelihoods, abs=1e-4) for s in expected]
    assert got != [pytest.approx(s.loglikelihoods, abs=1e-2) for s in untouched]


def test_hidden_files_are_not_read_and_endings_may_be_capitals(tmp_path):
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "a.md").write_text("thrown away")
    (tmp_path / ".b.txt").write_text("hidden")
    (tmp_path / "C.TXT").write_text("kept")
    assert read_documents(tmp_path) == ["kept"]
