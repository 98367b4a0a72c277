"""Continue a text, one token at a time: greedy or sampled, with a key/value cache."""

import math

import torch

from gpt.model import KVCache

NOT_FINITE = "the model computes NaN or infinity: it diverged in training, or needs a --dtype of wider range"


def next_tokens(logits, temperature=0.0, top_k=None, top_p=None, generator=None):
    """Choose one token for each row of logits (batch, vocab); returns ids (batch,). Arguments as in generate."""
    if not logits.isfinite().all():
        raise ValueError(NOT_FINITE)
    if temperature == 0:
        return logits.argmax(dim=-1)
    if top_k is None and top_p is None:
        return torch.multinomial((logits.float() / max(temperature, 1e-30)).softmax(-1), 1, generator=generator)[:, 0]
    # Sorted, the likeliest tokens are the first ones: both cuts are then a matter of rank.
    logits, order = logits.float().sort(dim=-1, descending=True)  # (batch, vocab) each
    logits = (logits - logits[:, :1]) / max(temperature, 1e-30)  # 0 and below: nothing overflows, nor is it 0 / 0
    if top_k is not None:
        logits[:, top_k:] = -math.inf
    probabilities = logits.softmax(dim=-1)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # the probability of all that is likelier
        before[:, 0] = 0  # rounding must not cut the likeliest
        probabilities[before >= top_p] = 0
    choice = torch.multinomial(probabilities, 1, generator=generator)  # (batch, 1); it normalises
    return order.gather(-1, choice).squeeze(-1)


def generate(
    model, input_ids, max_new_tokens, temperature=0.0, top_k=None, top_p=None, eot_id=None, generator=None, use_cache=True,
    progress=iter,
) -> torch.Tensor:  # fmt: skip
    """Continue input_ids (batch, time) by up to max_new_tokens; returns ids (batch, time + new).

    temperature: 0 takes the likeliest token; above 0 samples from softmax(logits / temperature),
        among the top_k likeliest tokens only, and among the fewest tokens whose probability sums to top_p.
    eot_id: a row that produced this token is finished and filled up with it; all rows finished ends the call.
    generator: torch.Generator on the model's device, for reproducible samples.
    use_cache: False computes all tokens anew for each new one: the same text, slower.
    progress: wraps the range of the new positions, to show how far it is.
    Ends early when the model's context is full. Rows have no padding: all prompts of a batch have the same length.
    Raises ValueError for arguments out of range, a prompt that fills the context, and a model that computes NaN.
    """
    if not (0 <= temperature < math.inf and (top_k is None or top_k >= 1) and (top_p is None or 0 < top_p <= 1)):
        raise ValueError(f"temperature {temperature}, top_k {top_k}, top_p {top_p}: from 0, from 1, above 0 to 1")
    batch, time = input_ids.shape
    context = model.config.context_length
    if not 0 < time < context:
        raise ValueError(f"a prompt of {time} tokens: it needs one, and must leave room in the context of {context}")
    length = min(time + max_new_tokens, context)
    tokens = torch.zeros(batch, length, dtype=torch.long, device=model.device)  # (batch, time + new)
    tokens[:, :time] = input_ids
    finished = torch.zeros(batch, dtype=torch.bool, device=model.device)
    with torch.inference_mode():
        cache = None
        if use_cache:
            cache = KVCache(model.config, batch, length, model.device, model.embed_tokens.weight.dtype)
        for end in progress(range(time, length)):
            start = cache.length if use_cache else 0
            hidden = model.hidden_states(tokens[:, start:end], cache=cache)  # (batch, end - start, hidden)
            logits = model.lm_head(hidden[:, -1])  # (batch, vocab): only the last position is needed
            new = next_tokens(logits, temperature, top_k, top_p, generator)  # (batch,)
            if eot_id is not None:
                new = new.masked_fill(finished, eot_id)
                finished |= new == eot_id
            tokens[:, end] = new
            if eot_id is not None and finished.all():
                return tokens[:, : end + 1]
    return tokens
