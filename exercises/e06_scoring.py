"""Exercise 6: multiple choice by log-likelihood. A model that only continues texts answers a question all the same.

Goal: of each choice, how likely is it after the prompt? The likeliest is the model's answer.

    log p(choice | prompt) = sum over the choice's tokens of log p(token | all before it)
                                                            (as lm-evaluation-harness does; GPT-3, arXiv 2005.14165, 2.4)
    Picture: pictures/scoring.png

Shapes and tokens: what the model reads is question.prompt, a space, and a choice, encoded *together* by
tokenizer.encode(text, bos=True); the prompt's tokens are those it has alone, and what comes after as many of them is
the choice's. (At the end of a prompt stands no space here, and every text fits the context.) model(ids) takes ids (1,
time) and gives logits (1, time, vocab): logits[0, i] predict the token at i + 1.

`exact` of a question: would greedy decoding (always the likeliest token) write the *right* choice, all its tokens, and
then one of stop_tokens(tokenizer)? make_score(question, log-likelihoods, exact) makes the Score, in which ties are
never right.

Adapters may have dropout, so compute in eval mode; and leave the model in the mode you found it in.

Measure before you look on: how many times faster is the project's scorer, which reads a prompt once for all its
choices, and by how much do the numbers differ?  python -m exercises 6 --measure
"""

import time

import torch  # noqa: F401

import eval_qa
from eval_qa import make_score, stop_tokens  # noqa: F401
from exercises import NotWritten
from exercises.measuring import ROOT, base_model
from questions import read_questions


def score_questions(model, tokenizer, questions):
    """[eval_qa.Question, ...] (each has .prompt, .choices, .answer) -> [eval_qa.Score, ...]."""
    raise NotWritten


def measure():
    model, tokenizer = base_model()
    questions = read_questions(ROOT / "data/old/never_asked.jsonl")[:100]
    results = []
    for name, score in (("mine", score_questions), ("the project's", eval_qa.score_questions)):
        began = time.perf_counter()
        results.append(score(model, tokenizer, questions))
        right = sum(s.acc for s in results[-1])
        print(f"{name:14} {right} of {len(questions)} right, {time.perf_counter() - began:.2f} s")
    pairs = [(a, b) for s, t in zip(*results) for a, b in zip(s.loglikelihoods, t.loglikelihoods)]
    print(f"largest difference of a log-likelihood: {max(abs(a - b) for a, b in pairs):.1e} nats")
