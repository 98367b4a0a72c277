"""Grades exercise 6 by brute force, one prediction at a time in float64, and against the project's fast scorer."""

import math

import numpy as np
import torch

import eval_qa
from eval_qa import Question, make_question, stop_tokens
from exercises.grading import numpy, require
from exercises.measuring import ROOT, base_model
from gpt.model import GPT, GPTConfig
from lora import LoRALayer, find_adapters, replace_linears


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


def brute_force(model, tokenizer, question):
    """(log-likelihood of each choice, exact), by a forward pass a token."""
    prompt = tokenizer.encode(question.prompt, bos=True)
    totals, exact = [], True
    with torch.no_grad():
        for index, words in enumerate(question.choices):
            whole = tokenizer.encode(f"{question.prompt} {words}", bos=True)
            context, total, greedy = list(prompt), 0.0, True
            for token in whole[len(prompt) :]:
                logits = numpy(model(torch.tensor([context]))[0, -1])
                total += logits[token] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
                greedy &= logits.argmax() == token
                context.append(token)
            totals.append(total)
            if index == question.answer:
                exact = bool(greedy) and model(torch.tensor([context]))[0, -1].argmax().item() in stop_tokens(tokenizer)
    return totals, exact


def toy():
    """(model, tokenizer, questions): random weights, adapters with dropout."""
    torch.manual_seed(0)
    tokenizer = ToyTokenizer()
    config = GPTConfig("llama", tokenizer.vocab_size, 48, 24, 40, 2, 4, 2, 6)
    model = GPT(config)
    replace_linears(model, LoRALayer, 4, 8, ["q_proj", "v_proj"], dropout=0.5)
    for layer in find_adapters(model).values():
        layer.B.data.normal_()
    for parameter in model.parameters():
        parameter.data *= 2
    asked = [("what is it: t:", ("banana", "anger", "b", "xyz")), ("a cat:", ("a", "bad end", "ban"))]
    return model, tokenizer, [Question(prompt, choices, i) for i, (prompt, choices) in enumerate(asked)]


def known():
    """Questions that the shipped model answers word for word, and one whose right choice it would go on writing."""
    questions = eval_qa.read_questions(ROOT / "data/old/asked.jsonl")[:4]
    question = next(q for q in eval_qa.read_questions(ROOT / "data/old/asked.jsonl") if " " in q.choices[q.answer])
    beginning = question.choices[question.answer].split()[0]
    others = [c for i, c in enumerate(question.choices) if i != question.answer][:2]
    asked = question.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    questions += eval_qa.read_questions(ROOT / "data/old/cloze.jsonl")[:1]  # ends in a full stop
    return questions + [make_question({"question": asked, "choices": [beginning, *others], "answer": 0})]


def scoring(student):
    """score_questions."""
    model, tokenizer, questions = toy()
    model.train()
    scores = check(student, model, tokenizer, questions)
    require(model.training, "a model that was in training mode comes back in eval mode: leave it as you found it")
    again = student.score_questions(model, tokenizer, questions)
    require(scores == again, "asked twice, the same model gives other numbers: dropout is on, so compute in eval mode")
    model.eval()
    compare(scores, [brute_force(model, tokenizer, q) for q in questions], questions, model, tokenizer)
    check(student, model, tokenizer, questions)
    require(not model.training, "a model that was in eval mode comes back in training mode")

    model, tokenizer = base_model()
    questions = known()
    scores = check(student, model, tokenizer, questions)
    compare(scores, [brute_force(model, tokenizer, q) for q in questions], questions, model, tokenizer)
    for ours, fast in zip(scores, eval_qa.score_questions(model, tokenizer, questions)):
        close = np.allclose(likelihoods(ours), fast.loglikelihoods, atol=1e-3)
        require(close and ours.exact == fast.exact, "your scores are not those of the project's fast scorer")


def check(student, model, tokenizer, questions):
    scores = student.score_questions(model, tokenizer, questions)
    whole = isinstance(scores, list) and len(scores) == len(questions)
    require(whole, "your score_questions must return a list with a Score for each question")
    require(all(isinstance(s, eval_qa.Score) for s in scores), "make each Score with make_score")
    return scores


def likelihoods(score):
    """As an array, be they numbers or tensors."""
    return np.array([log.item() if isinstance(log, torch.Tensor) else log for log in score.loglikelihoods])


def compare(scores, expected, questions, model, tokenizer):
    for score, (totals, exact), question in zip(scores, expected, questions):
        require(len(score.loglikelihoods) == len(totals), "there must be one log-likelihood for each choice")
        difference = np.abs(likelihoods(score) - totals).max()
        require(
            difference < 1e-3, f"your log-likelihoods are wrong: {guess(score, totals, question, model, tokenizer)}"
        )
        if score.exact != exact:
            why = (
                "it is written and then goes on: ask what follows the choice"
                if score.exact
                else "it is, and stops there"
            )
            require(False, f"exact is {score.exact} for a choice that greedy decoding does not write and stop: {why}"
                    if score.exact else f"exact is {score.exact} for a choice that greedy decoding writes: {why}")  # fmt: skip


def guess(score, totals, question, model, tokenizer):
    """What was computed instead, as far as one can tell."""
    found = likelihoods(score)
    prompt = tokenizer.encode(question.prompt, bos=True)
    lengths = [len(tokenizer.encode(f"{question.prompt} {c}", bos=True)) - len(prompt) for c in question.choices]
    if np.allclose(found * lengths, totals, atol=1e-2):
        return "they are means a token; the sum is wanted"
    if np.allclose(np.log(np.maximum(found, 1e-300)), totals, atol=1e-2) or (found >= 0).all():
        return "a logarithm of a probability is never above 0; take log_softmax and add up"
    if np.allclose(found - totals, (found - totals)[0], atol=1e-2):
        return "the prompt's own tokens are counted too; only the choice's are"
    apart = []
    with torch.no_grad():
        for words in question.choices:
            choice = tokenizer.encode(" " + words)
            logs = model(torch.tensor([prompt + choice]))[0].log_softmax(-1)
            apart.append(sum(logs[len(prompt) + i - 1, token].item() for i, token in enumerate(choice)))
    if np.allclose(found, apart, atol=1e-2):
        return "prompt and choice are encoded apart; together they may have other tokens at the border"
    return "which position predicts the first token of the choice, and is the space before it encoded with it?"
