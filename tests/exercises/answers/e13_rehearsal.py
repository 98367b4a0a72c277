import torch
from torch.nn import functional as F

from corpus import IGNORE
from lora import scale, without_adapters


def kl(untouched, logits, targets, reduce=lambda by_token, n: by_token.sum() / n):
    p, q = untouched.detach().float().log_softmax(-1), logits.float().log_softmax(-1)
    counted = targets != IGNORE
    return reduce(F.kl_div(q, p, log_target=True, reduction="none").sum(-1)[counted], counted.sum())


def rehearsed(model, x, y, own_x, own_y, weight):
    with torch.no_grad(), without_adapters(model):
        untouched = model(own_x)
    ce = F.cross_entropy(model(x).float().flatten(0, 1), y.flatten(), ignore_index=IGNORE)
    return ce + weight * kl(untouched, model(own_x), own_y)


REFERENCE = {"kl": kl, "rehearsed": rehearsed, "KEPT": {0.0: 77, 0.1: 90, 1.0: 97}}


def by_entropies(untouched, logits, targets):
    """Cross-entropy less entropy, by torch's cross_entropy with probabilities for targets."""
    p, log_q = untouched[targets != IGNORE].detach().float(), logits[targets != IGNORE].float()
    return F.cross_entropy(log_q, p.softmax(-1)) - F.cross_entropy(p, p.softmax(-1))


def in_float64(untouched, logits, targets):
    """p log p by xlogy, which knows that it is 0 where p is."""
    p, log_q = untouched.detach().double().softmax(-1), logits.double().log_softmax(-1)
    by_token = (torch.special.xlogy(p, p) - p * log_q).sum(-1)
    mask = (targets != IGNORE).double()
    return (by_token * mask).sum() / mask.sum()


def detached(model, x, y, own_x, own_y, weight):
    """One forward pass over both texts."""
    with without_adapters(model):
        untouched = model(own_x).detach()
    both = model(torch.cat([x, own_x]))
    corpus = -both[: len(x)].log_softmax(-1).gather(-1, y.clamp(min=0)[..., None]).squeeze(-1)[y != IGNORE].mean()
    return corpus + weight * by_entropies(untouched, both[len(x) :], own_y)


DIFFERENT = {
    "by entropies": {"kl": by_entropies, "KEPT": {0.0: 50, 0.1: "60", 1.0: 70.0}},
    "in float64, one pass": {"kl": in_float64, "rehearsed": detached},
}


def of_all(untouched, logits, targets):
    return kl(untouched, logits, torch.zeros_like(targets))


def naive(untouched, logits, targets):
    p, q = untouched.detach().float().softmax(-1), logits.float().softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)[targets != IGNORE].mean()


def step(untouched=None, ce_weight=lambda w: 1.0, kl_weight=lambda w: w, reduction="mean", off=without_adapters):
    def rehearsed(model, x, y, own_x, own_y, weight):
        with torch.no_grad(), off(model):
            before = model(own_x)
        ce = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction=reduction)
        before = untouched(model, own_x) if untouched else before
        return ce_weight(weight) * ce + kl_weight(weight) * kl(before, model(own_x), own_y)

    return {"rehearsed": rehearsed}


def in_eval_mode(model, *given):
    model.eval()
    return rehearsed(model, *given)


def left_off(model, *given):
    loss = rehearsed(model, *given)
    scale(model, 0.0)
    return loss


WRONG = {
    "the other way round": ({"kl": lambda p, q, t: kl(q, p.requires_grad_(), t) + 0 * q.sum()}, "the other way round"),
    "IGNORE counts": ({"kl": of_all}, "IGNORE count too"),
    "IGNORE divides": ({"kl": lambda p, q, t: kl(p, q, t, lambda d, n: d.sum() / t.numel())}, "divided by"),
    "a sum": ({"kl": lambda p, q, t: kl(p, q, t, lambda d, n: d.sum())}, "the sum"),
    "batchmean": ({"kl": lambda p, q, t: kl(p, q, t, lambda d, n: d.sum() / len(t))}, "batchmean"),
    "averaged over the vocabulary": ({"kl": lambda p, q, t: kl(p, q, t) / p.shape[-1]}, "vocabulary"),
    "cross-entropy": (
        {
            "kl": lambda p, q, t: (
                -(p.detach().float().softmax(-1) * q.float().log_softmax(-1)).sum(-1)[t != IGNORE].mean()
            )
        },
        "p log p",
    ),
    "0 times infinity": ({"kl": naive}, "NaN"),
    "in bfloat16": (
        {
            "kl": lambda p, q, t: (
                F.kl_div(q.log_softmax(-1), p.detach().log_softmax(-1), log_target=True, reduction="none")
                .sum(-1)[t != IGNORE]
                .mean()
            )
        },
        "bfloat16",
    ),  # fmt: skip
    "no gradient": ({"kl": lambda p, q, t: kl(p, q, t).detach()}, "no gradient"),
    "a gradient for both": (
        {
            "kl": lambda p, q, t: (
                F.kl_div(q.float().log_softmax(-1), p.float().log_softmax(-1), log_target=True, reduction="none")
                .sum(-1)[t != IGNORE]
                .mean()
            )
        },
        "detach",
    ),  # fmt: skip
    "its own predictions": (step(untouched=lambda model, x: model(x)), "the model's own"),
    "no weight": (step(kl_weight=lambda w: 1.0), "weight is missing"),
    "the other weight": (step(ce_weight=lambda w: w, kl_weight=lambda w: 1.0), "belongs to the divergence"),
    "rehearsal alone": (step(ce_weight=lambda w: 0.0), "corpus's part is missing"),
    "a sum of the corpus": (step(reduction="sum"), "not the mean"),
    "left in eval mode": ({"rehearsed": in_eval_mode}, "eval mode"),
    "left without adapters": ({"rehearsed": left_off}, "turned off"),
    "shares": ({"KEPT": {0.0: 0.5, 0.1: 0.6, 1.0: 0.9}}, "whole points"),
    "two weights": ({"KEPT": {0.0: 50, 1.0: 90}}, "other weights"),
}
