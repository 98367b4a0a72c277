"""eval_qa.py: what is read, how text becomes windows, and scores equal to a naive computation: a sequence a choice."""

import json
import math
import random
import sys

import pytest
import torch
from torch.nn import functional as F

import eval_qa
from adapter_io import save_adapters
from eval_qa import (
    IGNORE,
    Question,
    encode_choices,
    mean_and_error,
    pack,
    perplexity,
    read_documents,
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
]


class PairTokenizer:
    """Every two characters are one token: a prompt of odd length shares its last token with the space of the choice."""

    eot_id, vocab_size = 0, 512

    def encode(self, text):
        return [1 + (7 * ord(text[i]) + sum(map(ord, text[i + 1 : i + 2]))) % 511 for i in range(0, len(text), 2)]

    def decode(self, ids):
        return "x"


class GluingTokenizer(PairTokenizer):
    """Every character is a token, but a space and its two neighbours are one: another one for each choice."""

    def encode(self, text):
        head, _, tail = text.partition(" ")
        return [*map(ord, head[:-1]), ord(head[-1]) + sum(map(ord, tail[:1])), *map(ord, tail[1:])]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_folder):
    return load_tokenizer(tiny_llama_folder)


def naive_loglikelihoods(model, tokenizer, question):
    """Sums of log-probabilities as lm-evaluation-harness defines them: one sequence a choice, no batch, no mask."""
    prompt = question.prompt.rstrip()
    start, sums = len(tokenizer.encode(prompt)), []
    for choice in question.choices:
        ids = tokenizer.encode(f"{prompt} {choice}")
        logs = model(torch.tensor([ids]))[0].log_softmax(-1)
        sums.append(sum(logs[i - 1, ids[i]].item() for i in range(start, len(ids))))
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


# --- choices as tokens ------------------------------------------------------------------------------------------------


def test_choices_share_the_prompt_and_count_all_their_own_tokens(tokenizer):
    question = QUESTIONS[0]
    prompt, branches, scored = encode_choices(tokenizer, question, 96)
    for choice, branch, n in zip(question.choices, branches, scored):
        assert tokenizer.decode(prompt + branch) == f"{question.prompt} {choice}"
        assert tokenizer.decode(branch[-n:]) == f" {choice}"
    assert tokenizer.decode(prompt) == question.prompt


def test_trailing_spaces_of_a_prompt_belong_to_the_choices(tokenizer):
    plain = encode_choices(tokenizer, Question("Round", ("the", "and"), 0), 96)
    assert encode_choices(tokenizer, Question("Round ", ("the", "and"), 0), 96) == plain
    prompt, branches, scored = encode_choices(tokenizer, Question("Round\n", ("the", "and"), 0), 96)
    assert tokenizer.decode(prompt) == "Round"
    assert [tokenizer.decode(branch[-n:]) for branch, n in zip(branches, scored)] == ["\nthe", "\nand"]


def test_a_prompt_that_is_too_long_loses_its_beginning(tokenizer):
    question = Question("fox " * 150 + "The quick brown", ("fox", "dog jumps"), 0)
    prompt, branches, scored = encode_choices(tokenizer, question, 96)
    assert len(prompt) + max(map(len, branches)) == 96
    assert tokenizer.decode(prompt).endswith(" fox fox The quick brown")
    assert [tokenizer.decode(branch) for branch in branches] == [" fox", " dog jumps"]
    with pytest.raises(ValueError, match="do not fit the model's context of 2 tokens"):
        encode_choices(tokenizer, question, 2)


def test_tokens_that_merge_across_the_border_do_not_count():
    pair = PairTokenizer().encode
    prompt, branches, scored = encode_choices(PairTokenizer(), Question("abc", ("de", "fghi"), 0), 96)
    assert prompt == pair("abc ")  # the prompt alone is ab|c: its last token has taken in the space
    assert branches == [pair("de"), pair("fghi")] and scored == [1, 2]


def test_tokens_that_merge_across_the_border_and_differ_move_into_the_branches():
    prompt, branches, scored = encode_choices(GluingTokenizer(), Question("abc", ("de", "fgh"), 0), 96)
    assert prompt == [ord("a"), ord("b")]
    assert branches == [[ord("c") + ord("d"), ord("e")], [ord("c") + ord("f"), ord("g"), ord("h")]]
    assert scored == [1, 2]  # the glued token stands at the prompt's last place


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


def test_scores_are_right_where_tokens_merge_across_the_border_and_where_the_prompt_is_cut(tiny_folder):
    model, tokenizer = load_pretrained(tiny_folder)
    questions = [Question(prompt, ("de", "fghi", "dexy"), 0) for prompt in ("a", "ab", "abc", "abcd")]
    for odd in (PairTokenizer(), GluingTokenizer()):
        for question, got in zip(questions, score_questions(model, odd, questions), strict=True):
            assert got.loglikelihoods == pytest.approx(naive_loglikelihoods(model, odd, question), abs=1e-4)

    long = Question("fox " * 150 + "The quick brown", ("fox", "dog jumps"), 0)
    prompt, branches, _ = encode_choices(tokenizer, long, 96)
    for branch, got in zip(branches, score_questions(model, tokenizer, [long])[0].loglikelihoods):
        logs = model(torch.tensor([prompt + branch]))[0].log_softmax(-1)
        expected = sum(logs[len(prompt) + i - 1, token].item() for i, token in enumerate(branch))
        assert got == pytest.approx(expected, abs=1e-4)


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
