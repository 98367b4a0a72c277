import torch
from torch.nn import functional as F

from corpus import IGNORE
from lora import scale, without_adapters


def kl(untouched, logits, targets):
    p, q = untouched.detach().float().log_softmax(-1), logits.float().log_softmax(-1)
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)[targets != IGNORE].mean()


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


def step(untouched=None, ce_weight=lambda w: 1.0, kl_weight=lambda w: w, reduction="mean", at_end=lambda model: None):
    def rehearsed(model, x, y, own_x, own_y, weight):
        with torch.no_grad(), without_adapters(model):
            before = model(own_x)
        ce = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction=reduction)
        before = untouched(model, own_x) if untouched else before
        loss = ce_weight(weight) * ce + kl_weight(weight) * kl(before, model(own_x), own_y)
        at_end(model)
        return loss

    return {"rehearsed": rehearsed}


def divergence(p=lambda z: z.detach().float(), q=lambda z: z.float(), reduce=lambda by_token, n: by_token.sum() / n):
    """kl with the logits or the mean made otherwise."""

    def found(untouched, logits, targets):
        log_p, log_q, counted = p(untouched).log_softmax(-1), q(logits).log_softmax(-1), targets != IGNORE
        by_token = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        return reduce(by_token[counted], counted.sum())

    return {"kl": found}


def naive(untouched, logits, targets):
    p, q = untouched.detach().float().softmax(-1), logits.float().softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)[targets != IGNORE].mean()


WRONG = {
    "the other way round": ({"kl": lambda p, q, t: kl(q, p.requires_grad_(), t) + 0 * q.sum()}, "the other way round"),
    "IGNORE counts": ({"kl": lambda p, q, t: kl(p, q, torch.zeros_like(t))}, "IGNORE count too"),
    "a sum": (divergence(reduce=lambda by_token, n: by_token.sum()), "your kl of logits"),
    "batchmean": (divergence(reduce=lambda by_token, n: by_token.sum() / 3), "your kl of logits"),
    "0 times infinity": ({"kl": naive}, "NaN"),
    "in bfloat16": (divergence(p=torch.Tensor.detach, q=lambda z: z), "bfloat16"),
    "no gradient": (divergence(q=lambda z: z.detach().float()), "no gradient"),
    "a gradient for both": (divergence(p=torch.Tensor.float), "detach"),
    "its own predictions": (step(untouched=lambda model, x: model(x)), "the model's own"),
    "no weight": (step(kl_weight=lambda w: 1.0), "your loss with weight"),
    "the other weight": (step(ce_weight=lambda w: w, kl_weight=lambda w: 1.0), "belongs to the divergence"),
    "a sum of the corpus": (step(reduction="sum"), "your loss with weight"),
    "left in eval mode": (step(at_end=lambda model: model.eval()), "eval mode"),
    "left without adapters": (step(at_end=lambda model: scale(model, 0.0)), "turned off"),
    "shares": ({"KEPT": {0.0: 0.5, 0.1: 0.6, 1.0: 0.9}}, "whole points"),
    "two weights": ({"KEPT": {0.0: 50, 1.0: 90}}, "other weights"),
}
