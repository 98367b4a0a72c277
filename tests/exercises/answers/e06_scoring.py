from dataclasses import replace

import torch
from torch.nn import functional as F

from eval_qa import greedy_answer, make_score, score_questions, stop_tokens

REFERENCE = {"score_questions": score_questions}


def scorer(
    encode=lambda tokenizer, q, words: tokenizer.encode(f"{q.prompt} {words}", bos=True),
    shift=1, reduce=sum, from_start=False, exact=lambda written, stops: written and stops,
    first_only=False, of_any=False, keep_mode=True, eval_mode=True, cut=None, apart=False, stops=stop_tokens,
):  # fmt: skip
    """A plain scorer, with one thing that can be done otherwise."""

    @torch.no_grad()
    def score(model, tokenizer, questions):
        was = model.training
        if eval_mode:
            model.eval()
        ends, scores = stops(tokenizer), []
        for q in questions:
            prompt, totals, right = tokenizer.encode(q.prompt, bos=True), [], False
            for index, words in enumerate(q.choices):
                whole = prompt + tokenizer.encode(" " + words) if apart else encode(tokenizer, q, words)
                logits = model(torch.tensor([whole]))[0]
                logs = F.log_softmax(logits, -1)
                at = range(1 if from_start else len(prompt), len(whole))
                totals.append(float(reduce([logs[i - shift, whole[i]].item() for i in at])))
                if index == q.answer or of_any:
                    choice = range(len(prompt), len(prompt) + 1 if first_only else len(whole))
                    written = all(logits[i - 1].argmax().item() == whole[i] for i in choice)
                    right |= exact(written, logits[-1].argmax().item() in ends)
            scores.append(make_score(q, totals, right))
        if keep_mode:
            model.train(was)
        return scores

    return {"score_questions": score}


def as_tensors(model, tokenizer, questions):
    """Log-likelihoods that are tensors with a gradient."""
    weight = torch.ones((), requires_grad=True)
    scores = score_questions(model, tokenizer, questions)
    return [replace(s, loglikelihoods=[weight * log for log in s.loglikelihoods]) for s in scores]


def by_text(model, tokenizer, questions):
    """A tuple; exact by what is written, as text."""
    scores = score_questions(model, tokenizer, questions)
    model_mode = model.training
    model.eval()
    said = [greedy_answer(model, tokenizer, q.prompt) for q in questions]
    model.train(model_mode)
    return tuple(replace(s, exact=text == q.choices[q.answer]) for s, text, q in zip(scores, said, questions))


DIFFERENT = {
    "plainly": scorer(),
    "tensors": {"score_questions": as_tensors},
    "a tuple, by text": {"score_questions": by_text},
}


def then(change):
    """The project's scores, each changed: change(score, question)."""

    def score(model, tokenizer, questions):
        return [change(s, q) for s, q in zip(score_questions(model, tokenizer, questions), questions)]

    return {"score_questions": score}


def scaled(by):
    return then(lambda s, q: replace(s, loglikelihoods=[log * by(c) for log, c in zip(s.loglikelihoods, q.choices)]))


WRONG = {
    "exact match always False": (scorer(exact=lambda written, stops: False), "exact is False"),
    "end-of-text only": (scorer(stops=lambda tokenizer: {tokenizer.eot_id}), "exact is False"),
    "the stop ignored": (scorer(exact=lambda written, stops: written), "goes on"),
    "exact for any choice": (scorer(of_any=True), "something else"),
    "exact from the first token": (scorer(first_only=True), "something else"),
    "a model left in eval mode": (scorer(keep_mode=False), "the mode you found it in"),
    "dropout on": (scorer(eval_mode=False), "dropout"),
    "a choice encoded apart": (scorer(apart=True), "log-likelihoods after"),
    "no space": (scorer(encode=lambda t, q, words: t.encode(q.prompt + words, bos=True)), "log-likelihoods after"),
    "the position itself": (scorer(shift=0), "log-likelihoods after"),
    "the prompt counted too": (scorer(from_start=True), "log-likelihoods after"),
    "divided by characters": (scaled(lambda choice: 1 / len(choice)), "no mistake that is known"),
    "means": (scorer(reduce=lambda logs: sum(logs) / len(logs)), "mean over the choice's tokens"),
    "one score": ({"score_questions": lambda m, t, some: score_questions(m, t, some)[:1]}, "a Score"),
    "pairs": (then(lambda s, q: ([0.0], False)), "make_score"),
}
