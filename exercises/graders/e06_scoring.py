"""Grades exercise 6 by brute force, one prediction at a time in float64."""

import functools
from dataclasses import replace

import numpy as np
import torch

import eval_qa
from eval_qa import stop_tokens
from exercises.grading import judge, numpy, part, require
from exercises.measuring import ROOT, base_model
from gpt.model import GPT, GPTConfig
from lora import LoRALayer, find_adapters, replace_linears
from questions import Question, make_question, read_questions

TITLE, MINUTES = "multiple choice by log-likelihood", 40
SOLUTIONS = ["eval_qa.py: encode_question", "fast/scoring.py: answer_questions"]
WITHHELD = ["eval_qa.py: score_question"]


class ToyTokenizer:
    """Letters and a few pieces; whatever is encoded begins with a piece of its own, as with Llama 2's tokenizer."""

    pieces = [" ", ".", "\n", *"abcdefghijklmnopqrstuvwxyz?:", " a", " b", "an", "er"]
    start, bos_id, eot_id = len(pieces), len(pieces) + 1, len(pieces) + 2
    vocab_size = len(pieces) + 3

    def encode(self, text, bos=False):
        ids = [*([self.bos_id] if bos else []), self.start]
        while text:
            piece = max((p for p in self.pieces if text.startswith(p)), key=len)
            ids.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return ids

    def token_bytes(self, token):
        return self.pieces[token].encode() if token < len(self.pieces) else b""

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode()


def toy():
    """(model, tokenizer, questions): random weights, adapters with dropout."""
    torch.manual_seed(0)
    tokenizer = ToyTokenizer()
    model = GPT(GPTConfig("llama", tokenizer.vocab_size, 96, 24, 40, 2, 4, 2, 6))
    replace_linears(model, LoRALayer, 4, 8, ["q_proj", "v_proj"], dropout=0.5)
    for layer in find_adapters(model).values():
        layer.B.data.normal_()
    for parameter in model.parameters():
        parameter.data *= 2
    asked = [("what is it: t:", ("banana", "anger", "b", "xyz")), ("a cat:", ("a", "bad end", "ban"))]
    return model, tokenizer, [Question(prompt, choices, i) for i, (prompt, choices) in enumerate(asked)]


def shipped():
    """The shipped model, and what it answers word for word, or nearly."""
    asked = read_questions(ROOT / "data/old/asked.jsonl")
    long = next(question for question in asked if " " in question.choices[question.answer])  # of two words
    text = long.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    first = long.choices[long.answer].split()[0]
    others = [choice for i, choice in enumerate(long.choices) if i != long.answer][:2]
    nearly = [
        make_question({"question": text, "choices": [c, *others], "answer": 0}) for c in (first, f"{first} bread")
    ]
    another = replace(asked[0], answer=(asked[0].answer + 1) % len(asked[0].choices))  # it writes a wrong choice
    cloze = read_questions(ROOT / "data/old/cloze.jsonl")[:1]  # ends in a full stop
    return *base_model(), [*asked[:4], *cloze, *nearly, another]


WORLDS = {"toy": toy, "shipped": shipped}


def scored(student, world, training):
    """The student's Scores in a world, twice, as dicts, and the mode that the model is left in."""
    model, tokenizer, questions = WORLDS[world]()
    model.train(training)
    answers = [student.score_questions(model, tokenizer, questions) for _ in range(2 if world == "toy" else 1)]
    as_dicts = [[vars(s) if isinstance(s, eval_qa.Score) else s for s in some] for some in answers]
    return as_dicts, model.training


@functools.cache
def expected(world):
    """[(question, log-likelihood of each choice, whether the right one is written, whether a stop follows)], float64."""
    model, tokenizer, questions = WORLDS[world]()
    stops, rows = stop_tokens(tokenizer), []
    model.eval()

    @torch.no_grad()
    def next_logs(context):
        logits = numpy(model(torch.tensor([context]))[0, -1])
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    for question in questions:
        totals = []
        for index, words in enumerate(question.choices):
            context, total, greedy = tokenizer.encode(question.prompt, bos=True), 0.0, True
            for token in tokenizer.encode(f"{question.prompt} {words}", bos=True)[len(context) :]:
                logs = next_logs(context)
                total, greedy = total + logs[token], greedy and logs.argmax() == token
                context.append(token)
            totals.append(total)
            if index == question.answer:
                written, follows = bool(greedy), int(next_logs(context).argmax()) in stops
        rows.append((question, np.array(totals), written, follows))
    return rows


@torch.no_grad()
def mistakes(world, question, totals):
    """{sentence: the log-likelihoods it gives}."""
    model, tokenizer, _ = WORLDS[world]()
    model.eval()
    prompt = tokenizer.encode(question.prompt, bos=True)
    wholes = [tokenizer.encode(f"{question.prompt} {words}", bos=True) for words in question.choices]

    def likelihoods(sequences, first=len(prompt), shift=1):
        logs = [numpy(model(torch.tensor([ids]))[0].double().log_softmax(-1)) for ids in sequences]
        return [sum(log[i - shift, ids[i]] for i in range(first, len(ids))) for log, ids in zip(logs, sequences)]

    return {
        "they are means a token; the sum is wanted": totals / [len(ids) - len(prompt) for ids in wholes],
        "they are divided by the number of characters; the sum is wanted": totals / [len(c) for c in question.choices],
        "they are probabilities; take log_softmax and add up": np.exp(totals),
        "the prompt's own tokens are counted too; only the choice's are": likelihoods(wholes, first=1),
        "prompt and choice are encoded apart; together they may have other tokens at the border": likelihoods(
            [prompt + tokenizer.encode(" " + words) for words in question.choices]
        ),
        "logits[0, i] predict the token at i + 1, not the one at i": likelihoods(wholes, shift=0),
        "the space between prompt and choice is missing": likelihoods(
            [tokenizer.encode(question.prompt + words, bos=True) for words in question.choices]
        ),
    }


@part("score_questions", 10)
def test_scoring(student):
    for world, training in (("toy", True), ("toy", False), ("shipped", False)):
        (scores, *again), left = student(scored, world, training)
        what = "your score_questions must return a list with a Score for each question"
        require(isinstance(scores, (list, tuple)) and len(scores) == len(expected(world)), what)
        made = all(isinstance(score, dict) and "loglikelihoods" in score for score in scores)
        require(made, "make each Score with make_score")
        mode = "a model that was in {} mode comes back in {} mode: leave it as you found it"
        require(left == training, mode.format(*(("training", "eval") if training else ("eval", "training"))))
        same = not again or [s["loglikelihoods"] for s in scores] == [s["loglikelihoods"] for s in again[0]]
        require(same, "asked twice, the same model gives other numbers: dropout is on, so compute in eval mode")
        for score, (question, totals, written, stops) in zip(scores, expected(world)):
            found = np.array([float(log) for log in score["loglikelihoods"]])
            require(len(found) == len(totals), "there must be one log-likelihood for each choice")
            if not np.abs(found - totals).max() < 1e-3:
                judge(found, totals, "your log-likelihoods are wrong", mistakes(world, question, totals), 1e-2)
            right, exact = question.choices[question.answer], score["exact"]
            said = f"exact is {exact} for {right!r}, the right choice"
            require(exact or not (written and stops), f"{said}, but greedy decoding writes it and stops there")
            require(
                not exact or written, f"{said}, but greedy decoding writes something else: each of its tokens counts"
            )
            require(not exact or stops, f"{said}, but greedy decoding writes it and goes on: ask what follows it")
