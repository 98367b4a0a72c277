"""Answers to many questions at once: a prompt is computed once for all its choices, and a beginning that many prompts
share, as after a primer, once for all of them.

The plain version is eval_qa.score_question, one forward pass a choice; a test holds this one against it. A question
here is token ids: (prompt, choices, answer), answer being the index of the right choice.
"""

import sys
from dataclasses import dataclass, replace
from itertools import accumulate
from os.path import commonprefix

import torch
from torch.nn import functional as F

from gpt import KVCache
from tools.cli import progress

BATCH_TOKENS = 2**14  # computed at once, at most, when questions are long
BATCH_LOGITS = 2**25  # likewise: numbers, not tokens, so that a large vocabulary fits
ENOUGH = 256  # tokens that keep the processor busy: with so many, a batch is not padded up for ever shorter rows,
SIMILAR = 0.9  # but ends at one that is shorter than this part of its longest
ROW_TOKENS = 2**10  # of choices in one row: attention takes their square
SHARED = 64  # prompts that begin with this many tokens alike have their beginning computed once


@dataclass(frozen=True)
class Row:
    """What is computed together: a prompt, once, and after it each branch as if it were alone."""

    question: int
    prompt: list[int]
    branches: dict[int, list[int]]  # choice -> its tokens
    ends: int | None  # the choice after which the model is asked what follows; None where that leaves its context

    def read(self, choice):
        """A branch's tokens but the last one, after which nothing is asked."""
        return self.branches[choice] if choice == self.ends else self.branches[choice][:-1]

    def __len__(self):
        return len(self.prompt) + sum(len(self.read(choice)) for choice in self.branches)


def rows_of(index, question, context):
    """The Rows of a question: one with all its choices (or some thousand tokens of them: ROW_TOKENS), or one for each choice
    where its text does not fit the context."""
    prompt, choices, answer = question
    if len(prompt) + max(map(len, choices)) <= context:
        groups, room = [], 0
        for choice, branch in enumerate(choices):
            if not groups or len(branch) > room:
                groups.append({})
                room = ROW_TOKENS
            groups[-1][choice] = branch
            room -= len(branch)
        return [Row(index, prompt, branches, ends=answer) for branches in groups]
    rows = []
    for choice, branch in enumerate(choices):
        room = context + 1 - len(branch)  # the last token is predicted, not read
        rows.append(Row(index, prompt[-room:], {choice: branch}, ends=answer if len(prompt) < room else None))
    return rows


def lay_out(rows, padding):
    """A batch of Rows as one tensor each of ids, positions, mask, and of the predictions to read off.

    A row is its prompt followed by all its branches. A branch sees the prompt and itself, and its positions continue the
    prompt's, so the prompt is computed once for all choices.
        ids, positions (batch, time); mask (batch, 1, time, time), True where attention is allowed
        predictions (n, 6): row, index that predicts, token predicted, question, choice,
            1 if it counts for the choice's likelihood (0: it is the stop after the right choice's last token)
    """
    time = max(map(len, rows))
    ids = torch.full((len(rows), time), padding)
    positions = torch.zeros(len(rows), time, dtype=torch.long)
    segment = torch.full((len(rows), time), -1)  # 0 prompt, 1.. branches, -1 padding
    predictions = []
    for i, row in enumerate(rows):
        end = len(row.prompt)
        ids[i, :end], positions[i, :end], segment[i, :end] = torch.tensor(row.prompt), torch.arange(end), 0
        for choice, branch in row.branches.items():
            read = row.read(choice)
            start, end = end, end + len(read)
            ids[i, start:end] = torch.tensor(read)
            positions[i, start:end] = torch.arange(len(row.prompt), len(row.prompt) + len(read))
            segment[i, start:end] = choice + 1
            for j, token in enumerate(branch):
                at = start + j - 1 if j else len(row.prompt) - 1
                predictions.append((i, at, token, row.question, choice, 1))
            if choice == row.ends:
                predictions.append((i, end - 1, padding, row.question, choice, 0))
    causal = torch.ones(time, time, dtype=torch.bool).tril()
    sees, seen = segment[:, :, None], segment[:, None, :]
    mask = causal & ((seen == 0) | (seen == sees))  # (batch, time, time)
    return ids, positions, mask.unsqueeze(1), torch.tensor(predictions)


def batches_of(rows, batch_size):
    """[(beginning, rows), ...]: at most batch_size Rows alike in length, and BATCH_TOKENS tokens unless one alone has more.

    beginning: the tokens that begin all prompts of the batch, taken off the rows; [] where less than SHARED are alike.
    """
    groups = {}  # the first tokens, or () for rows that share too few -> rows
    for row in rows:
        groups.setdefault(tuple(row.prompt[:SHARED]), []).append(row)
    alone = [start for start, group in groups.items() if len(start) < SHARED or len(group) == 1]
    groups[()] = [row for start in alone for row in groups.pop(start)]
    batches = []
    for start, group in groups.items():
        beginning = commonprefix([row.prompt[:-1] for row in group]) if start else []  # a prompt keeps its last token
        longest = room = tokens = 0  # room for rows, and tokens with padding, in the last batch
        for row in sorted(group, key=len, reverse=True):
            row = replace(row, prompt=row.prompt[len(beginning) :])
            if not room or tokens >= ENOUGH and len(row) < SIMILAR * longest:
                batches.append((beginning, []))
                longest, tokens = len(row), 0
                room = max(1, min(batch_size, BATCH_TOKENS // longest))
            batches[-1][1].append(row)
            room -= 1
            tokens += longest
    return batches


class SharedBeginning:
    """In place of a KVCache: keys and values of a beginning that all rows of a batch have in common, computed once.

    cache: a KVCache with a batch of one, full with the beginning. For one call: what comes after is not kept.
    """

    def __init__(self, cache):
        self.cache, self.length = cache, cache.length

    def append(self, layer, k, v):
        """The beginning's keys and values before each row's k, v (batch, kv_heads, time, head_dim); nothing is stored."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # (1, kv_heads, beginning, head_dim)
        return (
            torch.cat([keys.expand(len(k), -1, -1, -1), k], dim=2),  # (batch, kv_heads, total, head_dim)
            torch.cat([values.expand(len(v), -1, -1, -1), v], dim=2),
        )


def predict(model, hidden, places, tokens):
    """(log-probability in nats of each of `tokens` (n,), likeliest token there), both (n,), on the CPU.

    hidden: (batch, time, hidden); places (n,): where each is predicted, row * time + index. All choices begin at the
    prompt's last token, which goes through the head but once.
    """
    wanted, which = places.unique(return_inverse=True)
    size = max(1, BATCH_LOGITS // model.config.vocab_size)
    logs, greedy = torch.empty(len(tokens)), torch.empty_like(tokens)
    for first, some in zip(range(0, len(wanted), size), wanted.split(size)):
        logits = model.lm_head(hidden.flatten(0, 1)[some.to(hidden.device)]).float()  # (size, vocab)
        here = (which >= first) & (which < first + size)
        at = (which[here] - first).to(hidden.device)
        logs[here] = logits.log_softmax(-1)[at, tokens[here].to(hidden.device)].cpu()
        greedy[here] = logits.argmax(-1)[at].cpu()
    return logs, greedy


@torch.inference_mode()
def answer_questions(model, questions, stops, padding, batch_size=64, description="questions"):
    """[(log-likelihood of each choice in nats, whether greedy decoding writes the right one and then stops), ...].

    questions: [(prompt, choices, answer), ...] as token ids; stops: ids that end an answer; padding: any id;
    batch_size: questions computed at once, at most. The model is in eval mode.
    """
    device, context = model.device, model.config.context_length
    rows = [row for i, question in enumerate(questions) for row in rows_of(i, question, context)]
    if cut := sum(len(prompt) + max(map(len, choices)) > context for prompt, choices, _ in questions):
        said = f"{cut} do not fit the context of {context} tokens; they lose their beginning"
        print(f"{description}: {said}", file=sys.stderr)
    stops = torch.tensor(sorted(stops))
    sizes = [len(choices) for _, choices, _ in questions]
    starts = torch.tensor([0, *accumulate(sizes)])  # of each question's choices, one after the other
    loglikelihoods = torch.zeros(sum(sizes), dtype=torch.float64)
    misses = torch.zeros(sum(sizes), dtype=torch.long)  # predictions that are not what greedy decoding would write
    for row in rows:
        answer = questions[row.question][2]
        if row.ends is None and answer in row.branches:  # whether it stops there lies outside the context
            misses[starts[row.question] + answer] = 1
    cache, cached = None, []  # of the latest beginning
    for beginning, batch in progress(batches_of(rows, batch_size), description):
        ids, positions, mask, predictions = lay_out(batch, padding)
        if beginning:
            if beginning != cached:
                cached = beginning
                cache = KVCache(model.config, 1, len(beginning), device, model.embed_tokens.weight.dtype)
                model.hidden_states(torch.tensor([beginning], device=device), cache=cache)
            positions += len(beginning)
            mask = F.pad(mask, (len(beginning), 0), value=True)  # (batch, 1, time, total): all see the beginning
        shared = SharedBeginning(cache) if beginning else None
        hidden = model.hidden_states(ids.to(device), positions.to(device), mask.to(device), shared)
        row, at, token, question, choice, counts = predictions.T
        logs, greedy = predict(model, hidden, row * ids.shape[1] + at, token)
        loglikelihoods.index_put_((starts[question] + choice,), logs.double() * counts, accumulate=True)
        as_greedy = torch.where(counts == 1, greedy == token, torch.isin(greedy, stops))
        misses.index_put_((starts[question] + choice,), (~as_greedy).long(), accumulate=True)
    return [
        (logs.tolist(), missed[answer].item() == 0)
        for (*_, answer), logs, missed in zip(questions, loglikelihoods.split(sizes), misses.split(sizes), strict=True)
    ]
