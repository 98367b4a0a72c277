"""Grades exercise 5 by brute force: a stream written out token by token, and what each window must hold of it."""

import random

import torch

from eval_qa import IGNORE
from exercises.grading import Wrong, require

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


def packing(student):
    """pack."""
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
        given = [list(document) for document in documents]
        result = student.pack(given, EOT, length, bos)
        require(given == documents, "your pack changes the documents it is given")
        require(isinstance(result, (tuple, list)) and len(result) == 2, "your pack must return (inputs, targets)")
        inputs, targets = result
        rows = expected(documents, EOT, length, bos)
        for name, tensor in (("inputs", inputs), ("targets", targets)):
            require(isinstance(tensor, torch.Tensor), f"your {name} are a {type(tensor).__name__}: make them a tensor")
            whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
            require(whole, f"your {name} are {tensor.dtype}: token ids are integers")
        require(inputs.shape == targets.shape, "your inputs and targets have different shapes")
        compare(inputs, targets, rows, length, bos)


def compare(inputs, targets, rows, length, bos):
    case = f"(windows of {length}, bos_id {bos})"
    shape = (len(rows), length)
    with_bos = bos not in (None, EOT)
    if with_bos and not (inputs == bos).any():
        raise Wrong("bos_id is ignored: where it is given, every document begins with it")
    if ((inputs == targets) | (targets == IGNORE)).all():
        raise Wrong("your targets are your inputs: a target is the token that comes *after* the input")
    if tuple(inputs.shape) != shape:
        found = tuple(inputs.shape)
        few = inputs.numel() < len(rows) * length
        why = "some tokens are in no window; fill up the last one" if few else "there is a window too many"
        raise Wrong(f"your inputs have the shape {found} where {shape} is wanted {case}: {why}")
    want_in = torch.tensor([[pair[0] for pair in row] for row in rows])
    want_out = torch.tensor([[pair[1] for pair in row] for row in rows])
    if torch.equal(inputs.long(), want_in) and torch.equal(targets.long(), want_out):
        return
    if with_bos and (targets == bos).any():
        raise Wrong("bos_id is a target: it always follows end-of-text, so there is nothing to learn in it (IGNORE)")
    flat_in, flat_out = inputs.flatten(), targets.flatten()
    if with_bos and flat_in[0] != bos:
        raise Wrong("with a bos_id the stream begins with it, not with end-of-text")
    if not with_bos and flat_in[0] != EOT:
        raise Wrong("end-of-text is missing at the beginning, so the first token of the first text is never predicted")
    real_in, real_out = want_out.flatten() != IGNORE, targets.flatten() != IGNORE
    if not with_bos and real_out.sum() > real_in.sum():
        raise Wrong("the filling of the last window counts as a target: mark it with IGNORE")
    if not with_bos and real_out.sum() < real_in.sum():
        missing = int(real_in.sum() - real_out.sum())
        raise Wrong(f"{missing} tokens are no target anywhere {case}: each but the first is one exactly once")
    i = int(((flat_in != want_in.flatten()) | (flat_out != want_out.flatten())).nonzero()[0])
    found, wanted = (flat_in[i].item(), flat_out[i].item()), (want_in.flatten()[i].item(), want_out.flatten()[i].item())
    raise Wrong(
        f"at window {i // length}, place {i % length} {case} input and target are {found} where {wanted} is wanted"
    )
