"""eval_qa.py: questions in our format, text as windows, scores equal to a naive computation, and the program."""

import io
import json
import math
import sys

import pytest
import torch
from torch.nn import functional as F

import eval_qa
from adapter_io import save_adapters
from corpus import IGNORE, pack, perplexity
from eval_qa import continuation, encode_question, greedy_answer, make_score, score_question, score_questions, summarise
from gpt import load_pretrained, load_tokenizer
from gpt.generate import generate
from lora import LoRALayer, find_adapters, replace_linears
from questions import Question, make_question, read_questions
from tools.cli import printable

GOOD = {"question": "Who?", "choices": ["me", "you"], "answer": 1}

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
    whole = {"question": "Who?", "choices": [" me ", "you"], "answer": 1, "subject": "us", "attribute": None}
    path.write_text(f"\ufeff{json.dumps(whole)}\n\n" + '{"cloze": "It is", "choices": ["me", "you"], "answer": 0}')
    first, second = read_questions(path)
    assert first == Question("Question: Who?\nAnswer:", ("me", "you"), 1, "us")
    assert second == Question("It is", ("me", "you"), 0)
    assert make_question({"prompt": "It is", "choices": [" Elm", "Elm"], "answer": 0}).choices == (" Elm", "Elm")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"question": "  "}, "question"), ({"choices": ["me"]}, "choices"),
        ({"choices": ["me", "you", "me "]}, "choices"), ({"answer": 2}, "answer"), ({"answer": True}, "answer"),
    ],
)  # fmt: skip
def test_a_malformed_question_is_named_with_its_file_and_line(tmp_path, changes, named):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD | changes)}\n{json.dumps(GOOD)}\n")
    with pytest.raises(ValueError, match=f'questions.jsonl, line 3: .*"{named}'):
        read_questions(path)


@pytest.mark.parametrize("seq_len", [1, 5, 11, 13, 100])
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
    assert tokenizer.decode(prompt) == question.prompt
    for ids, text in zip(choices, question.choices, strict=True):
        assert tokenizer.decode(prompt + ids) == f"{question.prompt} {text}"
        assert tokenizer.decode(ids) == f" {text}"
    prompt, choices = encode_question(tokenizer, Question("Round\n\n ", ("the", "and"), 0), 96)
    assert tokenizer.decode(prompt) == "Round"  # trailing spaces belong to the choices
    assert list(map(tokenizer.decode, choices)) == ["\n\n  the", "\n\n  and"]


def assert_naive(model, tokenizer, questions, scores):
    """The fast scores, and the plain ones, are those of the naive computation."""
    for question, got in zip(questions, scores, strict=True):
        plain = score_question(model, tokenizer, question)
        expected = naive_loglikelihoods(model, tokenizer, question)
        per_character = [value / len(choice) for value, choice in zip(expected, question.choices)]
        assert got.loglikelihoods == pytest.approx(expected, abs=1e-4) == plain.loglikelihoods
        assert got.acc == plain.acc == (expected.index(max(expected)) == question.answer)
        assert got.acc_norm == plain.acc_norm == (per_character.index(max(per_character)) == question.answer)
        logprob = torch.tensor(expected).log_softmax(0)[question.answer].item()
        assert got.logprob == pytest.approx(logprob, abs=1e-4) == plain.logprob


def test_scores_equal_a_naive_computation(tiny_folder, capsys):
    model, tokenizer = load_pretrained(tiny_folder)
    assert_naive(model, tokenizer, QUESTIONS, score_questions(model, tokenizer, QUESTIONS, batch_size=2))
    assert capsys.readouterr().err == ""
    near = tokenizer.encode("fox " * 150)[:93]  # with choices: within the context, just not, and far longer than it
    near = Question(tokenizer.decode(near), ("dog", "wood", "she sells sea shells", "the dog jumps"), 1)
    questions = [QUESTIONS[0], LONG, near, QUESTIONS[1]]
    assert_naive(model, tokenizer, questions, score_questions(model, tokenizer, questions, 3, description="some"))
    said = capsys.readouterr().err
    assert said.startswith("some: 2 ") and "96" in said  # questions that are longer than the context
    with pytest.raises(ValueError, match="The quick brown.* 1 tokens"):
        encode_question(tokenizer, LONG, 1)  # a choice alone must fit


def test_scores_are_right_where_tokens_merge_across_the_border_and_where_texts_begin_with_bos(tiny_folder):
    model, _ = load_pretrained(tiny_folder)
    questions = [Question(prompt, ("de", "fghi", "dexy"), 0) for prompt in ("a", "ab", "abc", "abcd", "abc  ")]
    for odd in (PairTokenizer(), GluingTokenizer(), BeginningTokenizer()):
        assert_naive(model, odd, questions, score_questions(model, odd, questions))


def test_same_choices_tie_exactly_and_a_broken_model_is_never_right(tiny_llama_folder):
    model, tokenizer = load_pretrained(tiny_llama_folder)
    long = "fox jumps over the lazy dog, and the dog does not mind"  # rounded differently at different places
    twice = [Question("The quick brown", ("dog", long, "fox", long, long), answer) for answer in (1, 3, 4)]
    for got in score_questions(model, tokenizer, twice + QUESTIONS)[:3]:
        assert len(set(got.loglikelihoods)) == 3 and not got.acc and not got.acc_norm
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    for got in score_questions(model, tokenizer, QUESTIONS):
        assert not (got.acc or got.acc_norm or got.exact) and math.isnan(got.logprob)


def test_scoring_leaves_the_model_in_the_mode_it_was_in_and_measures_without_dropout(tiny_llama_folder):
    model, tokenizer = load_pretrained(tiny_llama_folder)
    randomize(model, dropout=0.9)
    expected = score_questions(model.eval(), tokenizer, QUESTIONS), perplexity(model, tokenizer, ["The quick fox"])
    assert not model.training
    model.train()
    assert (score_questions(model, tokenizer, QUESTIONS), perplexity(model, tokenizer, ["The quick fox"])) == expected
    assert model.training


@pytest.mark.parametrize(
    "answer, logs, acc, acc_norm",
    [
        (0, [-4.0, -6.0], True, False),  # of "ab" and "abcdef": a character of the longer one is the likelier
        (1, [-4.0, -6.0], False, True),
        (0, [-1.0, -1.0], False, False),  # a tie or NaN is never right
        (0, [math.nan, -1.0], False, False),
        (1, [math.nan, -1.0], False, False),
        (0, [-math.inf] * 2, False, False),
    ],
)
def test_the_likeliest_choice_counts_and_per_character_the_longer_one_may_win(answer, logs, acc, acc_norm):
    choices = ("ab", "abcdef") if logs[0] != logs[1] else ("abc", "xyz")
    got = make_score(Question("?", choices, answer), logs, exact=False)
    assert (got.acc, got.acc_norm, got.exact) == (acc, acc_norm, False)


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


def test_a_summary_has_the_mean_and_error_of_every_score():
    made = [(0, [-1.0, -2.0], True), (1, [-1.0, -2.0], False), (0, [-3.0, -1.0], False)]
    scores = [make_score(Question("?", ("a", "ninechars"), answer), logs, exact) for answer, logs, exact in made]
    summary = summarise(scores)
    assert summary["n"] == 3 and summary["logprob"] == pytest.approx(sum(got.logprob for got in scores) / 3)
    assert [summary[key] for key in ("acc", "acc_norm", "exact", "acc_se")] == pytest.approx([1 / 3] * 4)


@pytest.mark.parametrize("seq_len, bos", [(7, None), (500, None), (500, 9)])
def test_perplexity_equals_a_naive_computation(tiny_folder, seq_len, bos):
    model, tokenizer = load_pretrained(tiny_folder)
    tokenizer.bos_id = bos
    texts = ["The quick brown fox jumps over the lazy dog. " * 5, "She sells sea shells."]
    stream = [] if bos else [tokenizer.eot_id]
    for text in texts:
        stream += [*([bos] if bos else []), *tokenizer.encode(text), tokenizer.eot_id]
    step, losses = min(seq_len, 96), []
    for start in range(0, len(stream) - 1, step):
        window = stream[start : start + step + 1]
        logs = model(torch.tensor([window[:-1]]))[0].log_softmax(-1)
        losses += [-logs[i, token].item() for i, token in enumerate(window[1:]) if token != bos]
    expected = math.exp(sum(losses) / len(losses))
    assert perplexity(model, tokenizer, texts, seq_len, batch_size=2) == pytest.approx(expected, rel=1e-4)


def randomize(model, targets=("q_proj", "v_proj"), dropout=0.0):
    """Put adapters on it that change what it says."""
    torch.manual_seed(0)
    replace_linears(model, LoRALayer, 2, 4, targets, dropout)
    for layer in find_adapters(model).values():
        torch.nn.init.normal_(layer.B)
    return model


def run_program(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval_qa.py", *map(str, arguments)])
    eval_qa.main()


def test_the_program_prints_a_row_a_file_and_writes_a_line_a_question(tiny_folder, tmp_path, monkeypatch, capsys):
    words, paths, questions = ["fox", "dog", "wood", "shells"], [], []
    for name, n in {"first": 4, "second": 8}.items():
        items = [{"question": f"What is {i}?", "choices": words[i % 2 :], "answer": i % 2} for i in range(n)]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(item) + "\n" for item in items))
        questions += read_questions(paths[-1])
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.")
    written = tmp_path / "deeper" / "scores.jsonl"
    line = ["--qa", *paths, "--scores", written, "--text", tmp_path / "text.txt"]
    run_program(monkeypatch, "--model", tiny_folder, *line)
    header, first, second, ppl = capsys.readouterr().out.splitlines()
    model, tokenizer = load_pretrained(tiny_folder)
    expected = perplexity(model, tokenizer, ["The quick brown fox jumps over the lazy dog."])
    assert ppl == f"perplexity of {tmp_path / 'text.txt'}: {expected:.3f}"
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert [line["set"].rpartition("/")[2] for line in lines] == ["first"] * 4 + ["second"] * 8
    for line, question in zip(lines, questions, strict=True):
        assert (line["prompt"], line["answer"]) == (question.prompt, question.answer)
        assert line["loglikelihoods"] == pytest.approx(naive_loglikelihoods(model, tokenizer, question), abs=1e-4)
    share = 100 * sum(line["acc"] for line in lines[4:]) / 8
    assert second.split()[1:3] == ["8", f"{share:.1f}"] and first.split()[1] == "4"


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (" 3.5 miles. It is far", "3.5 miles"),
        (" Dr. Lissom. He", "Dr. Lissom"),
        (" Elmsgate.He", "Elmsgate"),
        (" 1. Elmsgate\n2.", "1. Elmsgate"),
    ],
)
def test_where_an_answer_ends(knows_some, monkeypatch, written, answer):
    model, tokenizer, questions = knows_some
    ids = tokenizer.encode(written + "<|endoftext|> more")
    say = lambda model, prompt, *_, **__: torch.tensor([[*prompt[0].tolist(), *ids]])  # noqa: E731
    monkeypatch.setattr(eval_qa, "generate", say)
    assert greedy_answer(model, tokenizer, questions[0].prompt) == answer


def test_an_adapter_goes_on_the_base_that_it_notes_and_another_is_said(
    tiny_llama_folder, tmp_path, monkeypatch, capsys
):
    model, asked, real = randomize(load_pretrained(tiny_llama_folder)[0]), [], eval_qa.find_model
    monkeypatch.setattr(eval_qa, "find_model", lambda name: asked.append(name) or real(tiny_llama_folder))
    base, said = str(eval_qa.BASE.resolve()), {}
    monkeypatch.chdir(tmp_path)
    for noted, revision in ((str(tiny_llama_folder), None), ("data/base", None), ("org/name", "v1"), (None, None)):
        save_adapters(model, tmp_path / "run" / "adapter", noted, revision)
        run_program(monkeypatch, "--adapter", "run", "--ask", "Who?")
        run_program(monkeypatch, "--adapter", "run", "--ask", "Who?", "--model", tiny_llama_folder)
        said[noted] = [text for text in capsys.readouterr().err.splitlines() if text.startswith("note: ")]
    assert list(map(str, asked[::2])) == [str(tiny_llama_folder), base, "org/name@v1", base]
    assert len(said["org/name"]) == 1 and "org/name" in said["org/name"][0] and said[None] == []
    assert said[str(tiny_llama_folder)] == []


def test_questions_and_prompts_are_answered_without_and_with_the_adapter(
    tiny_llama_folder, tmp_path, monkeypatch, capsys
):
    base, tokenizer = load_pretrained(tiny_llama_folder)
    adapted = randomize(load_pretrained(tiny_llama_folder)[0], ["v_proj"])
    save_adapters(adapted, tmp_path / "adapter")
    answers = [
        (greedy_answer(model, tokenizer, "Question: Who?\nAnswer:"), continuation(model, tokenizer, "The fox"))
        for model in (base, adapted)
    ]
    assert answers[0] != answers[1]
    untouched, changed = ([printable(text) or "(ends at once)" for text in some] for some in answers)
    monkeypatch.setattr("sys.stdin", io.StringIO("Who?\n\nnot read\n"))
    run_program(monkeypatch, "--model", tiny_llama_folder, "--ask", "--prompt", "The fox")  # asks for the question
    printed = capsys.readouterr().out
    assert "not read" not in printed
    assert all(f"{text}\n  answer: {said}\n" in printed for text, said in zip(("Who?", "The fox"), untouched))
    line = ["--model", tiny_llama_folder, "--ask", "Who?", "--prompt", "The fox", "--adapter", tmp_path / "adapter"]
    run_program(monkeypatch, *line)
    printed = capsys.readouterr().out
    for text, first, second in zip(("Who?", "The fox"), untouched, changed, strict=True):
        assert f"{text}\n  untouched: {first}\n" in printed and f"  with the adapter: {second}\n" in printed
