"""A text as a model is trained and measured on it: documents laid end to end and cut into windows; perplexity."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.cli import progress

IGNORE = -100  # cross_entropy's mark for "no target here"
BATCH_LOGITS = 2**25  # numbers computed at once, at most, where all logits of a text are needed


def pack(documents: list[list[int]], eot_id: int, seq_len: int, bos_id: int | None = None) -> tuple[Tensor, Tensor]:
    """Lay token lists end to end, end-of-text before, between and after them, and cut the stream into windows.

    bos_id: what the model's texts begin with, if anything: each document then does, and nothing else comes first.
    Returns inputs and targets, both (windows, seq_len): every token but the first is a target once, except bos_id, which
    follows end-of-text by convention. The last window is filled up with end-of-text, which is no target there (IGNORE).
    """
    between = [eot_id] if bos_id in (None, eot_id) else [eot_id, bos_id]
    stream = between[-1:]
    for ids in documents:
        stream += [*ids, *between]
    stream = stream[: len(stream) + 1 - len(between)]  # nothing begins after the last
    missing = -(len(stream) - 1) % seq_len
    inputs = torch.tensor(stream[:-1] + [eot_id] * missing).view(-1, seq_len)
    targets = torch.tensor(stream[1:] + [IGNORE] * missing).view(-1, seq_len)
    if len(between) == 2:
        targets[targets == bos_id] = IGNORE
    return inputs, targets


@torch.inference_mode()
def perplexity(model, tokenizer, documents: list[str], seq_len=128, batch_size=32) -> float:
    """exp of the mean negative log-likelihood a token of `documents` (strings), packed into windows of seq_len tokens."""
    was_training = model.training
    model.eval()
    seq_len = min(seq_len, model.config.context_length)
    documents = [tokenizer.encode(text) for text in documents]
    inputs, targets = pack(documents, tokenizer.eot_id, seq_len, tokenizer.bos_id)
    batch_size = max(1, min(batch_size, BATCH_LOGITS // (seq_len * model.config.vocab_size)))
    total = torch.zeros((), dtype=torch.float64)
    for x, y in progress(list(zip(inputs.split(batch_size), targets.split(batch_size))), "perplexity"):
        logits = model(x.to(model.device)).float().flatten(0, 1)  # (batch * seq_len, vocab)
        losses = F.cross_entropy(logits, y.to(model.device).flatten(), ignore_index=IGNORE, reduction="none")
        total += losses.cpu().double().sum()
    model.train(was_training)
    return (total / (targets != IGNORE).sum()).exp().item()  # inf where math.exp would raise
