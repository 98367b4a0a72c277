"""eval_qa.py: questions in our format, how text becomes windows, scores equal to a naive computation, and the program."""

import io
import json
import math
import random
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import eval_qa
from adapter_io import save_adapters
from corpus import IGNORE, pack, perplexity
from eval_qa import (
    continuation,
    encode_question,
    greedy_answer,
    make_score,
    score_question,
    score_questions,
    stop_tokens,
    summarise,
)
from gpt import load_pretrained, load_tokenizer
from gpt.generate import generate
from lora import LoRALayer, find_adapters, replace_linears
from questions import Question, make_question, read_questions
from tools.cli import printable
from tools.reading import read_documents

GOOD = {"question": "Who?", "choices": ["me", "you"], "answer": 1}

MALFORMED = {  # changes of a question, None: without it; and what is named
    "no question": ({"question": None}, "question"),
    "blank question": ({"question": "  "}, "question"),
    "question no string": ({"question": 3}, "question"),
    "no choices": ({"choices": None}, "choices"),
    "choices no list": ({"choices": "me"}, "choices"),
    "one choice": ({"choices": ["me"]}, "choices"),
    "blank choice": ({"choices": ["me", " "]}, "choices"),
    "choice no string": ({"choices": ["me", 2]}, "choices"),
    "same choice twice": ({"choices": ["me", "you", "me"]}, "choices"),
    "the same but for a space": ({"choices": ["me", "me "]}, "choices"),
    "no answer": ({"answer": None}, "answer"),
    "answer too large": ({"answer": 2}, "answer"),
    "answer negative": ({"answer": -1}, "answer"),
    "answer a text": ({"answer": "you"}, "answer"),
    "answer a truth value": ({"answer": True}, "answer"),
    "answer a fraction": ({"answer": 1.0}, "answer"),
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


def test_a_question_becomes_a_prompt_and_a_cloze_stays_as_it_is(tmp_path):
    path = tmp_path / "questions.jsonl"
    whole = {"question": "Who?", "choices": ["me", "you"], "answer": 1, "subject": "us", "attribute": "name"}
    path.write_text(json.dumps(whole) + '\n{"cloze": "It is", "choices": ["me", "you"], "answer": 0}\n')
    first, second = read_questions(path)
    assert first == Question("Question: Who?\nAnswer:", ("me", "you"), 1, "us", "name")
    assert second == Question("It is", ("me", "you"), 0)


def test_spaces_around_a_choice_are_left_out_but_not_of_a_prompt_and_a_missing_note_is_empty():
    item = {"question": "Where?", "choices": [" Elm ", "Ash"], "answer": 0, "subject": None}
    assert make_question(item) == Question("Question: Where?\nAnswer:", ("Elm", "Ash"), 0)
    assert make_question({"prompt": "It is", "choices": [" Elm", "Elm"], "answer": 0}).choices == (" Elm", "Elm")


@pytest.mark.parametrize("changes, named", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_question_is_named_with_its_file_and_line(tmp_path, changes, named):
    path, item = tmp_path / "questions.jsonl", {k: v for k, v in (GOOD | changes).items() if v is not None}
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(item)}\n{json.dumps(GOOD)}\n")
    with pytest.raises(ValueError) as error:
        read_questions(path)
    place, said = f"{path}, line 3: ", str(error.value)
    assert said.startswith(place) and f'"{named}' in said.removeprefix(place)


def test_blank_lines_are_skipped_and_lines_that_are_no_questions_refused(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"\ufeff{json.dumps(GOOD)}\n\n  \n{json.dumps(GOOD)}", encoding="utf-8")
    assert len(read_questions(path)) == 2
    for content in ("\n", "{", "[1, 2]"):
        path.write_text(content)
        with pytest.raises(ValueError, match="questions.jsonl"):
            read_questions(path)


@pytest.mark.parametrize("seq_len", [1, 2, 3, 5, 10, 11, 12, 13, 100])
@pytest.mark.parametrize("bos", [None, 9, 0])  # 0: also end-of-text, which then stands once and is learned
def test_every_token_but_bos_is_a_target_once_and_end_of_text_stands_around_every_document(seq_len, bos):
    inputs, targets = pack([[1, 2, 3], [4], [5, 6, 7, 8]], 0, seq_len, bos)
    stream = [0, 1, 2, 3, 0, 4, 0, 5, 6, 7, 8, 0] if bos != 9 else [9, 1, 2, 3, 0, 9, 4, 0, 9, 5, 6, 7, 8, 0]
    n = len(stream) - 1
    assert inputs.shape == targets.shape and inputs.shape[1] == seq_len
    inputs, targets = inputs.flatten().tolist(), targets.flatten().tolist()
    assert inputs[:n] == stream[:-1] and targets[:n] == [IGNORE if token == 9 else token for token in stream[1:]]
    assert set(inputs[n:]) <= {0} and set(targets[n:]) <= {IGNORE} and len(inputs) - n < seq_len  # padding


def test_choices_share_the_prompt_and_count_all_their_own_tokens(tokenizer):
    question = QUESTIONS[0]
    prompt, choices = encode_question(tokenizer, question, 96)
    for ids, text in zip(choices, question.choices, strict=True):
        assert tokenizer.decode(prompt + ids) == f"{question.prompt} {text}"
        assert tokenizer.decode(ids) == f" {text}"
    assert tokenizer.decode(prompt) == question.prompt


@pytest.mark.parametrize("spaces", [" ", "  ", "\n", "\n\n ", "\t"])
def test_trailing_spaces_of_a_prompt_belong_to_the_choices(tokenizer, spaces):
    prompt, choices = encode_question(tokenizer, Question(f"Round{spaces}", ("the", "and"), 0), 96)
    assert tokenizer.decode(prompt) == "Round"
    assert list(map(tokenizer.decode, choices)) == [f"{spaces} the", f"{spaces} and"]


@pytest.mark.parametrize("odd", [PairTokenizer(), GluingTokenizer()])
def test_the_prompt_keeps_its_tokens_where_the_last_would_merge_with_a_choice(odd):
    encoded = encode_question(odd, Question("abc", ("de", "fghi"), 0), 96)
    first, second = odd.encode("abc de"), odd.encode("abc fghi")
    n = len(odd.encode("abc"))
    assert odd.encode("abc")[-1] not in (first[n - 1], second[n - 1])  # as in ab|c against ab|c |de
    assert encoded == (odd.encode("abc"), [first[n:], second[n:]])


def test_a_choice_has_a_token_even_where_all_of_it_merges_with_the_prompt():
    class Merging(PairTokenizer):
        def pieces(self, text):
            return [7, 8] if text == "abc x" else list(map(ord, text))

    _, choices = encode_question(Merging(), Question("abc", ("x", "yz"), 0), 96)
    assert choices == [[8], [ord(" "), ord("y"), ord("z")]]


def test_a_text_that_begins_with_bos_has_it_once_and_it_is_not_counted():
    question = Question("abcd", ("xyz", "fghi"), 0)
    prompt, choices = encode_question(PairTokenizer(), question, 96)
    assert encode_question(BeginningTokenizer(), question, 96) == ([511, *prompt], choices)


def test_a_choice_alone_must_fit_the_context(tokenizer):
    with pytest.raises(ValueError, match="The quick brown.* 1 tokens"):
        encode_question(tokenizer, LONG, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_equal_a_naive_computation_whatever_the_batch_size(tiny_folder, batch_size):
    model, tokenizer = load_pretrained(tiny_folder)
    scores = score_questions(model, tokenizer, QUESTIONS, batch_size)
    plain = [score_question(model, tokenizer, question) for question in QUESTIONS]
    for question, got in zip([*QUESTIONS, *QUESTIONS], [*scores, *plain], strict=True):
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
            expected = pytest.approx(naive_loglikelihoods(model, odd, question), abs=1e-4)
            assert got.loglikelihoods == expected == score_question(model, odd, question).loglikelihoods


def test_scores_are_right_where_a_text_is_longer_than_the_context_which_is_said(tiny_folder, capsys):
    model, tokenizer = load_pretrained(tiny_folder)
    score_questions(model, tokenizer, QUESTIONS)
    assert capsys.readouterr().err == ""
    near = tokenizer.encode("fox " * 150)[:93]  # with choices: within the context, just not, and far longer than it
    near = Question(tokenizer.decode(near), ("dog", "wood", "she sells sea shells", "the dog jumps"), 1)
    questions = [QUESTIONS[0], LONG, near, QUESTIONS[1]]
    scores = score_questions(model, tokenizer, questions, batch_size=3, description="some")
    said = capsys.readouterr().err
    assert said.startswith("some: 2 ") and "96" in said
    for question, got in zip(questions, scores, strict=True):
        expected = pytest.approx(naive_loglikelihoods(model, tokenizer, question), abs=1e-4)
        assert got.loglikelihoods == expected == score_question(model, tokenizer, question).loglikelihoods


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
    got = make_score(Question("?", ("ab", "abcdef"), 0), [-4.0, -6.0], exact=False)
    assert (got.acc, got.acc_norm, got.exact) == (True, False, False)
    got = make_score(Question("?", ("ab", "abcdef"), 1), [-4.0, -6.0], exact=True)
    assert (got.acc, got.acc_norm, got.exact) == (False, True, True)
    assert got.logprob == pytest.approx(math.log(math.exp(-6) / (math.exp(-4) + math.exp(-6))))


@pytest.mark.parametrize("logs", [[-1.0, -1.0], [math.nan, -1.0], [-1.0, math.nan], [math.nan] * 2, [-math.inf] * 2])
def test_a_tie_or_nan_is_never_right(logs):
    for answer in (0, 1):
        got = make_score(Question("?", ("abc", "xyz"), answer), logs, exact=False)
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
    assert score_questions(model, tokenizer, []) == []
    wrong = [Question(q.prompt, q.choices, 1) for q in questions]
    assert not any(got.exact for got in score_questions(model, tokenizer, wrong))  # it asks for the right choice
    exact = [got.exact for got in score_questions(model, tokenizer, questions)]
    assert exact == [True, True, True, False, False, False]
    assert exact == [score_question(model, tokenizer, question).exact for question in questions]
    for question, got in zip(questions, exact):
        prompt = torch.tensor([tokenizer.encode(question.prompt)])
        new = generate(model, prompt, 20, eot_id=tokenizer.eot_id)[0, prompt.shape[1] :]
        text = tokenizer.decode(new)
        for stop in ("<|endoftext|>", "\n", "."):
            text = text.split(stop)[0]
        assert got == (text == " " + question.choices[question.answer])


def test_exact_is_not_known_where_what_follows_lies_outside_the_context(knows_some):
    model, tokenizer, questions = knows_some
    (before,) = score_questions(model, tokenizer, questions[:1])
    whole = model.config
    just = len(tokenizer.encode(questions[0].prompt + " fox"))  # what follows it is predicted, too
    for context, exact in ((just, True), (just - 1, False)):
        model.config = replace(whole, context_length=context)
        (fast,) = score_questions(model, tokenizer, questions[:1])
        plain = score_question(model, tokenizer, questions[0])
        model.config = whole
        assert fast.exact == plain.exact == exact
        assert fast.loglikelihoods[0] == pytest.approx(before.loglikelihoods[0], abs=1e-5)


def test_an_answer_ends_at_end_of_text_a_line_break_or_a_full_stop(tokenizer):
    stops = stop_tokens(tokenizer)
    assert tokenizer.eot_id in stops
    assert {*tokenizer.encode("\n"), *tokenizer.encode(".")} <= stops
    assert not stops & {*tokenizer.encode(" "), *tokenizer.encode("?"), *tokenizer.encode(" fox")}


def test_a_summary_has_the_mean_and_error_of_every_score():
    made = [(0, [-1.0, -2.0], True), (1, [-1.0, -2.0], False), (0, [-3.0, -1.0], False)]
    scores = [make_score(Question("?", ("a", "ninechars"), answer), logs, exact) for answer, logs, exact in made]
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


def randomize(model, targets=("q_proj", "v_proj")):
    """Put adapters on it that change what it says."""
    torch.manual_seed(0)
    replace_linears(model, LoRALayer, 2, 4, targets)
    for layer in find_adapters(model).values():
        torch.nn.init.normal_(layer.B)


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


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_greedy_answer_is_what_is_written_up_to_its_end(knows_some):
    model, tokenizer, questions = knows_some
    answers = [greedy_answer(model, tokenizer, question.prompt) for question in questions]
    assert answers[:4] == ["fox", "lazy dog", "sea shells", "wood and rocks"]
    assert greedy_answer(model, tokenizer, questions[0].prompt + " ") == "fox"  # a trailing space changes nothing


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (" 3.5 miles. It is far", "3.5 miles"),
        (" Dr. Lissom. He", "Dr. Lissom"),
        (" J. K. Rowling.\nQuestion", "J. K. Rowling"),
        (" Elmsgate.He", "Elmsgate"),
        (" Elm.", "Elm"),
        ("\nElm", ""),
        (" 1. Elmsgate\n2.", "1. Elmsgate"),
    ],
)
def test_where_an_answer_ends(knows_some, monkeypatch, written, answer):
    model, tokenizer, questions = knows_some
    ids = tokenizer.encode(written + "<|endoftext|> more")
    say = lambda model, prompt, *_, **__: torch.tensor([[*prompt[0].tolist(), *ids]])  # noqa: E731
    monkeypatch.setattr(eval_qa, "generate", say)
    assert greedy_answer(model, tokenizer, questions[0].prompt) == answer


def test_a_prompt_is_read_as_it_stands_and_what_follows_is_not_cut(knows_some, monkeypatch):
    model, tokenizer, _ = knows_some
    read = []
    written = " Yes. 1. Elm\nand more"

    def generate(model, prompt, *_, **__):
        read.append(prompt[0].tolist())
        return torch.tensor([[*read[0], *tokenizer.encode(written), tokenizer.eot_id]])

    monkeypatch.setattr(eval_qa, "generate", generate)
    assert continuation(model, tokenizer, "The fox:\n") == written
    assert tokenizer.decode(read[0]) == "The fox:\n"


def test_a_question_and_a_prompt_of_the_same_words_are_both_answered(tiny_llama_folder, monkeypatch, capsys):
    run_program(monkeypatch, "--model", tiny_llama_folder, "--ask", "The fox", "--prompt", "The fox")
    assert capsys.readouterr().out.count("The fox\n  answer: ") == 2


def test_an_adapter_of_another_base_is_noted(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    model, _ = load_pretrained(tiny_llama_folder)
    replace_linears(model, LoRALayer, 2, 4, ["q_proj"])
    said = {}
    for name, noted in {"same": str(tiny_llama_folder), "other": "org/other", "none": None}.items():
        save_adapters(model, tmp_path / name / "adapter", noted)
        run_program(monkeypatch, "--model", tiny_llama_folder, "--adapter", tmp_path / name, "--ask", "Who?")
        said[name] = capsys.readouterr().err
    assert "org/other" in said["other"] and str(tiny_llama_folder) in said["other"]
    assert said["same"] == said["none"] == ""


def some_adapter(model_folder, folder, noted=None, revision=None):
    """An adapter that changes answers, in folder/adapter."""
    model, _ = load_pretrained(model_folder)
    replace_linears(model, LoRALayer, 2, 4, ["v_proj"])
    for layer in find_adapters(model).values():
        torch.nn.init.normal_(layer.B)
    save_adapters(model, folder / "adapter", noted, revision)
    return folder


def test_an_adapter_alone_goes_on_the_base_that_it_notes(tiny_llama_folder, files, tmp_path, monkeypatch, capsys):
    folder, printed = some_adapter(tiny_llama_folder, tmp_path, tiny_llama_folder), []
    for extra in ([], ["--model", tiny_llama_folder]):
        run_program(monkeypatch, "--adapter", folder, "--qa", files[0], *extra)
        printed.append(capsys.readouterr())
    assert printed[0].out == printed[1].out
    assert printed[0].err == f"model: {str(tiny_llama_folder)!r}, which the adapter was trained on\n" and not printed[1].err


def test_the_base_that_an_adapter_notes_is_found_beside_the_programs_too_and_in_its_revision(
    tiny_llama_folder, tmp_path, monkeypatch, capsys
):
    asked, found = [], {"data/base": eval_qa.BASE.resolve(), "org/name": "org/name@v1", None: eval_qa.BASE.resolve()}
    monkeypatch.setattr(eval_qa, "find_model", lambda name: asked.append(name) or tiny_llama_folder)
    for noted, model in found.items():
        folder = some_adapter(tiny_llama_folder, tmp_path, noted, "v1" if noted == "org/name" else None)
        monkeypatch.chdir(tmp_path)
        run_program(monkeypatch, "--adapter", folder, "--ask", "Who?")
        assert asked.pop() == str(model)


def test_a_typo_in_adapter_is_told_before_a_model_is_loaded(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(eval_qa, "load_pretrained", None)  # would not be called
    for name in (tmp_path / "nowhere", "out/nowhere"):
        with pytest.raises(SystemExit) as stopped:
            run_program(monkeypatch, "--model", tiny_llama_folder, "--adapter", name, "--ask", "Who?")
        (said,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and str(name) in said


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", None])
def test_that_ask_does_not_use_a_chat_template_is_said(tiny_llama_folder, tmp_path, monkeypatch, capsys, place):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "chat")
    if place == "chat_template.jinja":
        (folder / place).write_text("{{ messages }}")
    elif place:
        settings = json.loads((folder / place).read_text()) | {"chat_template": "{{ messages }}"}
        (folder / place).write_text(json.dumps(settings))
    run_program(monkeypatch, "--model", folder, "--ask", "Who?")
    note = f"note: {folder} has a chat template, which --ask does not use (--prompt can)\n"
    assert capsys.readouterr().err == (note if place else "")
    run_program(monkeypatch, "--model", folder, "--prompt", "Who?")
    assert capsys.readouterr().err == ""


def test_a_long_text_is_measured_with_progress(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("corpus.progress", lambda items, description: shown.append((description, len(items))) or items)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 500)
    run_program(monkeypatch, "--model", tiny_llama_folder, "--text", tmp_path / "text.txt")
    assert [what for what, _ in shown] == ["perplexity"] and shown[0][1] > 1


def test_questions_and_prompts_are_answered_without_and_with_the_adapter(
    knows_some, tiny_llama_folder, tmp_path, monkeypatch, capsys
):
    model, tokenizer, questions = knows_some
    base, _ = load_pretrained(tiny_llama_folder)
    randomize(base, ["v_proj"])
    save_adapters(base, tmp_path / "adapter")
    without, adapted = (
        [greedy_answer(m, tokenizer, p) for p in ("Question: Who?\nAnswer:", "Question: Why?\nAnswer:")]
        + [continuation(m, tokenizer, "The fox")]
        for m in (load_pretrained(tiny_llama_folder)[0], base.eval())
    )
    assert without != adapted
    line = ["--model", tiny_llama_folder, "--ask", "Who?", "Why?", "--prompt", "The fox"]
    run_program(monkeypatch, *line)
    printed = capsys.readouterr().out
    for text, answer in zip(("Who?", "Why?", "The fox"), without, strict=True):
        assert f"{text}\n  answer: {printable(answer) or '(ends at once)'}\n" in printed
    run_program(monkeypatch, *line, "--adapter", tmp_path / "adapter")
    printed = capsys.readouterr().out
    for text, first, second in zip(("Who?", "Why?", "The fox"), without, adapted, strict=True):
        assert f"{text}\n  untouched: {printable(first) or '(ends at once)'}\n" in printed
        assert f"  with the adapter: {printable(second) or '(ends at once)'}\n" in printed


def test_questions_are_asked_for_where_none_is_given(tiny_llama_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Who?\nWhy?\n\nnot read\n"))
    run_program(monkeypatch, "--model", tiny_llama_folder, "--ask")
    printed = capsys.readouterr().out
    assert "Who?\n  answer: " in printed and "Why?\n  answer: " in printed and "not read" not in printed


def test_nothing_to_measure_is_said(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run_program(monkeypatch, "--model", "data/base")
    said = capsys.readouterr().err
    assert exit.value.code == 2 and all(option in said for option in ("--qa", "--text", "--ask", "--prompt"))


def test_the_strength_of_an_adapter_is_from_the_untouched_model_to_the_whole(
    tiny_llama_folder, files, tmp_path, monkeypatch
):
    model, tokenizer = load_pretrained(tiny_llama_folder)
    questions, found = read_questions(files[0]), {}
    expected = {0: score_questions(model, tokenizer, questions)}
    randomize(model)
    expected[1] = score_questions(model, tokenizer, questions)
    save_adapters(model, tmp_path / "adapter")
    for strength in (0, 0.5, 1):
        line = ["--adapter", tmp_path / "adapter", "--strength", strength, "--qa", files[0]]
        run_program(monkeypatch, "--model", tiny_llama_folder, *line, "--scores", tmp_path / "scores.jsonl")
        lines = (tmp_path / "scores.jsonl").read_text().splitlines()
        found[strength] = [json.loads(line)["loglikelihoods"] for line in lines]
    for strength, scores in expected.items():
        assert found[strength] == [pytest.approx(score.loglikelihoods, abs=1e-4) for score in scores]
    assert found[0] != found[0.5] != found[1]
