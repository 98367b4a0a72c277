"""Grades exercise 5 by brute force: a stream written out token by token, and what each window must hold of it."""

import random

import torch

from corpus import IGNORE
from exercises.grading import Wrong, check_tuple, kind_of, part, require

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
def test_packing(student):
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
        result = student.call("pack", documents, EOT, length, bos)
        inputs, targets = check_tuple(result, 2, "pack", "(inputs, targets)")
        for name, tensor in (("inputs", inputs), ("targets", targets)):
            require(isinstance(tensor, torch.Tensor), f"your {name} are a {kind_of(tensor)}: make them a tensor")
            whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
            require(whole, f"your {name} are {tensor.dtype}: token ids are integers")
        long = f"your targets are {targets.dtype}: torch's cross_entropy takes classes as int64 only"
        require(targets.dtype == torch.int64, long)
        require(inputs.shape == targets.shape, "your inputs and targets have different shapes")
        compare(inputs.long(), targets, expected(documents, EOT, length, bos), length, bos)


def compare(inputs, targets, rows, length, bos):
    case = f"(windows of {length}, bos_id {bos})"
    shape = (len(rows), length)
    with_bos = bos not in (None, EOT)
    if with_bos and not (inputs == bos).any():
        raise Wrong("bos_id is ignored: where it is given, every document begins with it")
    if ((inputs == targets) | (targets == IGNORE)).all():
        raise Wrong("your targets are your inputs: a target is the token that comes *after* the input")
    if tuple(inputs.shape) != shape:
        few = inputs.numel() < len(rows) * length
        why = "some tokens are in no window; fill up the last one" if few else "there is a window too many"
        raise Wrong(f"your inputs have the shape {tuple(inputs.shape)} where {shape} is wanted {case}: {why}")
    want_in, want_out = torch.tensor(rows).unbind(-1)
    if torch.equal(inputs, want_in) and torch.equal(targets, want_out):
        return
    if with_bos and (targets == bos).any():
        raise Wrong("bos_id is a target: it always follows end-of-text, so there is nothing to learn in it (IGNORE)")
    if inputs[0, 0] != want_in[0, 0]:
        first = "with a bos_id the stream begins with it, not with end-of-text"
        missing = "end-of-text is missing at the beginning, so the first token of the first text is never predicted"
        raise Wrong(first if with_bos else missing)
    missing = int((want_out != IGNORE).sum() - (targets != IGNORE).sum())
    if not with_bos and missing < 0:
        raise Wrong("the filling of the last window counts as a target: mark it with IGNORE")
    if not with_bos and missing > 0:
        raise Wrong(f"{missing} tokens are no target anywhere {case}: each but the first is one exactly once")
    row, column = ((inputs != want_in) | (targets != want_out)).nonzero()[0].tolist()
    found, wanted = (inputs[row, column].item(), targets[row, column].item()), rows[row][column]
    raise Wrong(f"at window {row}, place {column} {case} input and target are {found} where {wanted} is wanted")
