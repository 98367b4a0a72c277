import torch

from corpus import IGNORE, pack

REFERENCE = {"pack": pack}


def different(documents, eot_id, seq_len, bos_id=None):
    """A window at a time, with tensors."""
    begin = [] if bos_id in (None, eot_id) else [bos_id]
    pieces = [torch.tensor([eot_id, *begin, *document]) for document in documents] + [torch.tensor([eot_id])]
    stream = torch.cat(pieces)[len(begin) :]
    inputs, targets = [], []
    for at in range(0, len(stream) - 1, seq_len):
        x, y = stream[at : at + seq_len], stream[at + 1 : at + seq_len + 1]
        x = x[: len(y)]
        missing = seq_len - len(y)
        y = torch.where(y == begin[0], IGNORE, y) if begin else y
        inputs.append(torch.cat([x, torch.full((missing,), eot_id)]))
        targets.append(torch.cat([y, torch.full((missing,), IGNORE)]))
    return torch.stack(inputs), torch.stack(targets)


DIFFERENT = {
    "a window at a time": {"pack": different},
    "int32 inputs, in a list": {"pack": lambda *a: [pack(*a)[0].int(), pack(*a)[1]]},
}


def then(change):
    """pack with its result changed: change(inputs, targets, eot, bos)."""

    def packed(documents, eot, n, bos=None):
        return change(*pack(documents, eot, n, bos), eot, bos)

    return {"pack": packed}


def given(change):
    """pack with its arguments changed."""
    return {"pack": lambda documents, eot, n, bos=None: pack(*change(documents, eot, n, bos))}


def a_window_each(documents, eot, n, bos=None):
    rows = [pack([document], eot, n, bos) for document in documents]
    return torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])


def bos_is_a_target(x, y, eot, bos):
    if bos in (None, eot):
        return x, y
    follows = torch.cat([x.flatten()[1:], x.new_tensor([-1])]).view(x.shape)
    return x, torch.where(follows == bos, bos, y)


def no_end_before(documents, eot, n, bos=None):
    stream = [token for document in documents for token in [*([bos] if bos not in (None, eot) else []), *document, eot]]
    missing = -(len(stream) - 1) % n
    targets = [IGNORE if token == bos and bos != eot else token for token in stream[1:]] + [IGNORE] * missing
    return torch.tensor(stream[:-1] + [eot] * missing).view(-1, n), torch.tensor(targets).view(-1, n)


def one_window_more(x, y, eot, bos):
    return torch.cat([x, torch.full_like(x[:1], eot)]), torch.cat([y, torch.full_like(y[:1], IGNORE)])


def adds_to_a_document(documents, eot, n, bos=None):
    result = pack(documents, eot, n, bos)
    documents[0].append(eot)
    return result


WRONG = {
    "bos_id ignored": (given(lambda d, e, n, b: (d, e, n)), "shape"),
    "a bos_id of 0 is none": (given(lambda d, e, n, b: (d, e, n, b or None)), "shape"),
    "end-of-text is 0": (given(lambda d, e, n, b: (d, 0, n, b)), "where (1, "),
    "no end between documents": (given(lambda d, e, n, b: ([sum(d, [])], e, n, b)), "shape"),
    "a window for each document": ({"pack": a_window_each}, "shape"),
    "no end before the first": ({"pack": no_end_before}, "window 0, place 0"),
    "changes the documents": ({"pack": adds_to_a_document}, "changes what"),
    "bos_id a target": (then(bos_is_a_target), "-100) is wanted"),
    "targets are the inputs": (then(lambda x, y, e, b: (x, torch.where(y == IGNORE, IGNORE, x))), "comes *after*"),
    "the last window dropped": (then(lambda x, y, e, b: (x[:-1], y[:-1])), "shape"),
    "a window of filling alone": (then(one_window_more), "shape"),
    "filling is a target": (then(lambda x, y, e, b: (x, torch.where(y == IGNORE, e, y))), "(1, -100) is wanted"),
    "end-of-text is no target": (then(lambda x, y, e, b: (x, y.masked_fill(y == e, IGNORE))), "-100) where"),
    "lists": (then(lambda x, y, e, b: (x.tolist(), y.tolist())), "tensor"),
    "int32": (then(lambda x, y, e, b: (x.int(), y.int())), "int64"),
    "inputs only": (then(lambda x, y, e, b: x), "return"),
}
