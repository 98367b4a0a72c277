"""Grades exercise 13: the divergence in NumPy's float64, its gradient (q - p), and a step's loss on an adapted model."""

import numpy as np
import torch
from torch.nn import functional as F

from corpus import IGNORE
from exercises.grading import check_number, check_points, judge, numpy, part, require
from exercises.process import constant
from gpt.model import GPT, GPTConfig
from lora import LoRALayer, find_adapters, replace_linears, without_adapters

TITLE, MINUTES = "rehearsal", 30
SOLUTIONS = ["rehearsal.py: Rehearsal.loss", "train.py: adapt"]


def divergence(student, untouched, logits, targets):
    """The student's value and its gradients."""
    untouched.requires_grad_(), logits.requires_grad_()
    value = student.kl(untouched, logits, targets)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        value.sum().backward()
    return value, logits.grad, untouched.grad


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@part("kl", 5)
def check_kl(student):
    targets = torch.randint(0, 11, (3, 5))
    targets[0, 3:], targets[2, 0] = IGNORE, IGNORE
    counted = (targets != IGNORE).numpy()
    for dtype, size in ((torch.float32, 1), (torch.float32, 200), (torch.bfloat16, 1)):
        untouched, logits = (size * torch.randn(3, 5, 11, dtype=dtype) for _ in range(2))
        value, gradient, others = student(divergence, untouched, logits, targets)
        log_p, log_q = log_softmax(numpy(untouched)), log_softmax(numpy(logits))
        p, q = np.exp(log_p), np.exp(log_q)
        by_token = (p * (log_p - log_q)).sum(-1)  # (batch, time)
        right = by_token[counted].mean()
        mistakes = {
            "it is the other way round, KL(model || untouched)": (q * (log_q - log_p)).sum(-1)[counted].mean(),
            "tokens whose target is IGNORE count too": by_token.mean(),
        }
        what = f"your kl of logits in {dtype} is wrong"
        judge(check_number(value, "your kl"), right, what, mistakes, 1e-4 * max(1, right))
        require(gradient is not None, "no gradient comes back through your kl: nothing would be held to anything")
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        said = "the gradient of your kl with respect to the model's logits is not (q - p) / tokens"
        judge(numpy(gradient), (q - p) * counted[..., None] / counted.sum(), said, (), tolerance)
        require(others is None or not others.any(), "your kl sends a gradient into the untouched logits: detach them")


def adapted(seed=0):
    """A small adapted model as training may leave it."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig("llama", 40, 48, 24, 40, 2, 4, 2, 6))
    replace_linears(model, LoRALayer, 4, 8, ["q_proj", "down_proj"])
    for layer in find_adapters(model).values():
        layer.B.data.normal_()
    for parameter in model.parameters():
        parameter.data *= 2
    return model.train()


def gradients(model):
    factors = [factor for layer in find_adapters(model).values() for factor in (layer.A, layer.B)]
    return torch.cat([torch.zeros_like(f).flatten() if f.grad is None else f.grad.flatten() for f in factors])


def step(student, *given):
    """The student's loss of a step on the model of adapted(), the gradient of all factors, what is left of the model."""
    model = adapted()
    value = student.rehearsed(model, *given)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        value.backward()
    with torch.no_grad():
        return value, gradients(model), model.training, model(given[0])


@part("rehearsed", 4)
def check_step(student):
    x, own_x = torch.randint(0, 40, (2, 12)), torch.randint(0, 40, (3, 12))
    y, own_y = x.roll(-1, 1), own_x.roll(-1, 1)
    y[1, 7:], own_y[0, 9:] = IGNORE, IGNORE
    for weight in (1.0, 0.3):
        value, gradient, training, after = student(step, x, y, own_x, own_y, weight)
        model = adapted()
        with torch.no_grad(), without_adapters(model):
            p = model(own_x).double().softmax(-1)
        q = model(own_x).double().log_softmax(-1)
        kl = (p * (p.log() - q)).sum(-1)[own_y != IGNORE].mean()
        ce = F.cross_entropy(model(x).double().flatten(0, 1), y.flatten(), ignore_index=IGNORE)
        (ce + weight * kl).backward()
        ce, kl = ce.item(), kl.item()
        mistakes = {
            "the untouched predictions are the model's own: turn the adapters off for them": ce,
            "the weight belongs to the divergence": weight * ce + kl,
        }
        what = f"your loss with weight {weight} is wrong"
        judge(check_number(value, "your loss"), ce + weight * kl, what, mistakes, 1e-3)
        said = "your loss is right, but the gradient of A and B is not that of the model that learns"
        judge(numpy(gradient), numpy(gradients(model)), said, (), 1e-3)
        left = training and torch.allclose(after, model(x), atol=1e-4)
        require(left, "your rehearsed leaves the model in eval mode, or its adapters turned off or changed")


@part("KEPT", 1)
def check_predictions(student):
    kept = student(constant, "KEPT")
    require(isinstance(kept, dict) and len(kept) == 3, "KEPT has other weights than it came with: only put numbers in")
    for weight, prediction in kept.items():
        check_points(prediction, f"your prediction for weight {weight}")
