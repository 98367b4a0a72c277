"""Grades exercise 5 by brute force: a stream written out token by token, and what each window must hold of it."""

import random

import torch

from corpus import IGNORE
from exercises.grading import check_tensor, check_tuple, part, require

TITLE, MINUTES = "packing", 25
SOLUTIONS = ["corpus.py: pack"]
EOT, BOS = 1, 0


def expected(documents, eot, length, bos):
    """Rows of (input, target), one token after the other."""
    stream = []
    for document in documents:
        stream.append(("eot", eot))
        if bos not in (None, eot):
            stream.append(("bos", bos))
        stream += [("text", token) for token in document]
    stream.append(("eot", eot))
    if bos not in (None, eot):
        stream = stream[1:]  # bos itself comes first
    rows = []
    for i in range(len(stream) - 1):
        if i % length == 0:
            rows.append([])
        kind, token = stream[i + 1]
        rows[-1].append((stream[i][1], IGNORE if kind == "bos" else token))
    rows[-1] += [(eot, IGNORE)] * (length - len(rows[-1]))
    return rows


@part("pack", 8)
def check_packing(student):
    rng = random.Random(0)
    texts = [[rng.randrange(2, 50) for _ in range(rng.randrange(1, 9))] for _ in range(12)]
    total = sum(map(len, texts)) + len(texts)  # so many targets
    cases = [
        (texts, 8, None),
        (texts, total, None),
        (texts, 5, BOS),
        (texts, 7, EOT),
        ([[2, 3]], 16, BOS),
        ([[5]], 1, None),
    ]
    for documents, length, bos in cases:
        rows, case = expected(documents, EOT, length, bos), f"with windows of {length} and bos_id {bos}"
        result = check_tuple(student.call("pack", documents, EOT, length, bos), 2, "pack", "(inputs, targets)")
        inputs, targets = (
            check_tensor(tensor, (len(rows), length), f"{case} your {name}")
            for tensor, name in zip(result, ("inputs", "targets"))
        )
        whole = not inputs.is_floating_point() and targets.dtype == torch.int64
        require(whole, f"your targets are {targets.dtype}, inputs {inputs.dtype}: cross_entropy takes int64 only")
        same = "your targets are your inputs: a target is the token that comes *after* the input"
        require(not ((inputs == targets) | (targets == IGNORE)).all(), same)
        found = torch.stack([inputs.long(), targets], -1)
        for row, column in (found != torch.tensor(rows)).any(-1).nonzero().tolist()[:1]:
            pair = tuple(found[row, column].tolist())
            said = f"at window {row}, place {column} {case} input and target are {pair}"
            require(False, f"{said} where {rows[row][column]} is wanted ({EOT} is end-of-text, {IGNORE} IGNORE)")
