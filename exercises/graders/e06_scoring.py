"""Grades exercise 6 by brute force, one prediction at a time in float64."""

import functools
from dataclasses import replace

import numpy as np
import torch

import eval_qa
from eval_qa import stop_tokens
from exercises.grading import judge, numpy, part, require
from exercises.measuring import ROOT, base_model
from gpt import GPT, GPTConfig, load_tokenizer
from lora import LoRALayer, find_adapters, replace_linears
from questions import Question, make_question, read_questions

TITLE, MINUTES = "multiple choice by log-likelihood", 40
SOLUTIONS = ["eval_qa.py: encode_question", "fast/scoring.py: answer_questions"]
WITHHELD = ["eval_qa.py: score_question"]


class ToyTokenizer:
    """The shipped one, but whatever is encoded begins with a token of its own, as with Llama 2's tokenizer."""

    def __init__(self):
        self.shipped = load_tokenizer(ROOT / "data/base")

    def __getattr__(self, name):
        return getattr(self.shipped, name)

    def encode(self, text, bos=False):
        return [7, *self.shipped.encode(text, bos=bos)]


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
    """[(question, each choice's log-likelihood and tokens, is the right one written, does a stop follow)] in float64."""
    model, tokenizer, questions = WORLDS[world]()
    stops, rows = stop_tokens(tokenizer), []
    model.eval()

    @torch.no_grad()
    def next_logs(context):
        logits = numpy(model(torch.tensor([context]))[0, -1])
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    for question in questions:
        totals, counts = [], []
        for index, words in enumerate(question.choices):
            context, total, greedy = tokenizer.encode(question.prompt, bos=True), 0.0, True
            for token in tokenizer.encode(f"{question.prompt} {words}", bos=True)[len(context) :]:
                logs = next_logs(context)
                total, greedy = total + logs[token], greedy and logs.argmax() == token
                context.append(token)
            totals.append(total), counts.append(len(context) - len(tokenizer.encode(question.prompt, bos=True)))
            if index == question.answer:
                written, follows = bool(greedy), int(next_logs(context).argmax()) in stops
        rows.append((question, np.array(totals), np.array(counts), written, follows))
    return rows


@part("score_questions", 10)
def check_scoring(student):
    for world, training in (("toy", True), ("toy", False), ("shipped", False)):
        (scores, *again), left = student(scored, world, training)
        what = "your score_questions must return a list with a Score, made by make_score, for each question"
        require(isinstance(scores, (list, tuple)) and len(scores) == len(expected(world)), what)
        require(all(isinstance(score, dict) and "loglikelihoods" in score for score in scores), what)
        require(left == training, "leave the model in the mode you found it in, training or eval")
        same = not again or [s["loglikelihoods"] for s in scores] == [s["loglikelihoods"] for s in again[0]]
        require(same, "asked twice, the same model gives other numbers: dropout is on, so compute in eval mode")
        for score, (question, totals, counts, written, stops) in zip(scores, expected(world)):
            found = np.array([float(log) for log in score["loglikelihoods"]])
            require(len(found) == len(totals), "there must be one log-likelihood for each choice")
            mistakes = {"that is the mean over the choice's tokens; the sum is wanted": totals / counts}
            judge(found, totals, f"your log-likelihoods after {question.prompt[-20:]!r} are wrong", mistakes, 1e-3)
            right, exact = question.choices[question.answer], score["exact"]
            said = f"exact is {exact} for {right!r}, the right choice, but greedy decoding writes"
            require(exact or not (written and stops), f"{said} it and stops there")
            require(not exact or written, f"{said} something else: each of its tokens counts")
            require(not exact or stops, f"{said} it and goes on: ask what follows it")
