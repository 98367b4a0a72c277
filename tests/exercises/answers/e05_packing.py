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


def wrong(function):
    """pack with its result, or its arguments, changed."""
    return {"pack": function}


def no_shift(documents, eot, n, bos=None):
    inputs, targets = pack(documents, eot, n, bos)
    return inputs, torch.where(targets == IGNORE, IGNORE, inputs)


def drop_last(documents, eot, n, bos=None):
    inputs, targets = pack(documents, eot, n, bos)
    keep = max(1, len(inputs) - int((targets[-1] == IGNORE).any()))
    return inputs[:keep], targets[:keep]


def filling_counts(documents, eot, n, bos=None):
    inputs, targets = pack(documents, eot, n, bos)
    bos_too = targets == IGNORE if bos in (None, eot) else (targets == IGNORE) & (inputs == eot)
    return inputs, torch.where(bos_too, eot, targets)


def a_window_each(documents, eot, n, bos=None):
    rows = [pack([document], eot, n, bos) for document in documents]
    return torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])


def bos_is_a_target(documents, eot, n, bos=None):
    inputs, targets = pack(documents, eot, n, bos)
    if bos not in (None, eot):
        flat_in, flat_out = inputs.flatten(), targets.flatten().clone()
        flat_out[:-1][flat_in[1:] == bos] = bos
        targets = flat_out.view(targets.shape)
    return inputs, targets


def no_end_between(documents, eot, n, bos=None):
    return pack([[token for document in documents for token in document]], eot, n, bos)


def no_end_before(documents, eot, n, bos=None):
    stream = [token for document in documents for token in [*([bos] if bos not in (None, eot) else []), *document, eot]]
    missing = -(len(stream) - 1) % n
    targets = [IGNORE if token == bos and bos != eot else token for token in stream[1:]]
    return torch.tensor(stream[:-1] + [eot] * missing).view(-1, n), torch.tensor(targets + [IGNORE] * missing).view(
        -1, n
    )


def one_window_more(documents, eot, n, bos=None):
    inputs, targets = pack(documents, eot, n, bos)
    more_in, more_out = torch.full((1, n), eot), torch.full((1, n), IGNORE)
    return torch.cat([inputs, more_in]), torch.cat([targets, more_out])


def empties_documents(documents, eot, n, bos=None):
    result = pack(documents, eot, n, bos)
    documents[0].append(eot)
    return result


def zeros(documents, eot, n, bos=None):
    inputs, targets = pack(documents, eot, n, bos)
    filling = (targets == IGNORE).flatten().long().flip(0).cumprod(0).flip(0).view(targets.shape)
    filling[-1, 0] = 0  # at least one token is no filling
    return torch.where((filling == 1) & (inputs == eot), 0, inputs), targets


WRONG = {
    "bos_id ignored": (wrong(lambda d, e, n, b=None: pack(d, e, n)), "bos_id is ignored"),
    "bos_id a target": (wrong(bos_is_a_target), "bos_id is a target"),
    "targets are the inputs": (wrong(no_shift), "comes *after*"),
    "the last window dropped": (wrong(drop_last), "no window"),
    "filling is a target": (wrong(filling_counts), "filling"),
    "a window for each document": (wrong(a_window_each), "window too many"),
    "no end between documents": (wrong(no_end_between), "no window"),
    "no end before the first": (wrong(no_end_before), "beginning"),
    "a window of filling alone": (wrong(one_window_more), "window too many"),
    "changes the documents": (wrong(empties_documents), "changes what"),
    "lists": (wrong(lambda *a: [t.tolist() for t in pack(*a)]), "tensor"),
    "int32": (wrong(lambda *a: [t.int() for t in pack(*a)]), "int64"),
    "floats": (wrong(lambda *a: [t.float() for t in pack(*a)]), "integers"),
    "filled up with zeros": (wrong(zeros), "(0, -100) where (1, -100) is wanted"),
    "end-of-text is 0": (wrong(lambda d, e, n, b=None: pack(d, 0, n, b)), "beginning"),
    "a bos_id of 0 is none": (wrong(lambda d, e, n, b=None: pack(d, e, n, b or None)), "bos_id is ignored"),
    "end-of-text is no target": (
        wrong(lambda d, e, n, b=None: (lambda x, y: (x, y.masked_fill(y == e, IGNORE)))(*pack(d, e, n, b))),
        "no target anywhere",
    ),
    "inputs only": (wrong(lambda *a: pack(*a)[0]), "return"),
}
