"""Each method that PEFT also has, trained beside it: the same start, then the same losses and factors, step by step."""

import numpy as np
import pytest
import torch
from conftest import reference
from torch import nn
from torch.nn import functional as F

from gpt import load_pretrained
from lora import LoRALayer, find_adapters, replace_linears
from mica import MiCALayer
from milora import MiLoRALayer, PiSSALayer

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and transformers say of themselves

TARGETS = ["q_proj", "v_proj", "gate_proj", "down_proj"]  # square or wide or tall, and one of grouped heads
RANK, ALPHA, STEPS = 4, 12, 20
SCALE = ALPHA / RANK


def in_float64(model):
    """transformers' norms compute in float32 whatever their input: torch's own stand in for them."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(module.weight.shape[0], eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model.double()


def both(folder, layer_class, init):
    """Our adapted model, PEFT's, and the pairs of their layers; made in float32, which is all that PEFT starts from."""
    ours = load_pretrained(folder)[0]
    names = replace_linears(ours, layer_class, RANK, ALPHA, TARGETS)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=init)
    theirs = peft.get_peft_model(reference(folder), config)
    layers = find_adapters(ours)
    pairs = [(layers[name], theirs.get_submodule(f"base_model.model.model.{name}")) for name in names]
    return ours.double(), in_float64(theirs), pairs


def factors(layer):
    """PEFT's A and B."""
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def assert_same_start(mine, other, layer_class):
    """As far as float32 and the arbitrary signs of singular vectors let two decompositions agree."""
    (A, B), weight = factors(other), other.base_layer.weight
    close = dict(rtol=0, atol=1e-4)
    if layer_class is PiSSALayer:
        torch.testing.assert_close(mine.B0 @ mine.A0, B @ A, **close)
        torch.testing.assert_close(mine.linear.weight - SCALE * mine.B0 @ mine.A0, weight, **close)
        torch.testing.assert_close(mine.B0 @ mine.B0.T, B @ B.T, **close)
    else:
        assert torch.equal(mine.linear.weight, weight)
    if layer_class is MiCALayer:
        torch.testing.assert_close(mine.B @ mine.B.T, B @ B.T, **close)
        assert not mine.A.any() and not A.any()
    if layer_class is LoRALayer:
        assert not mine.B.any() and not B.any() and A.any()


@torch.no_grad()
def copy_start(mine, other):
    """Give PEFT's layer our factors and, where ours are subtracted, the weight that is left without them."""
    for theirs, factor in zip(factors(other), (mine.A, mine.B), strict=True):
        theirs.copy_(factor)
    if isinstance(mine, MiLoRALayer):
        other.base_layer.weight.copy_(mine.linear.weight - SCALE * mine.B0 @ mine.A0)


def train(model, forward, batches):
    """The losses of twenty steps; AdamW gets all parameters, as requires_grad is what each side freezes with."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for ids in batches:
        loss = F.cross_entropy(forward(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "layer_class, init",
    [
        (LoRALayer, True),
        (MiCALayer, "mica"),
        (PiSSALayer, "pissa"),
        (MiLoRALayer, True),  # PEFT has no MiLoRA: its plain LoRA gets the start by hand
    ],
    ids=["lora", "mica", "pissa", "milora"],
)
def test_twenty_steps_are_pefts(folder_of, layer_class, init):
    torch.manual_seed(0)
    ours, theirs, pairs = both(folder_of("llama"), layer_class, init)
    for mine, other in pairs:
        if layer_class is not MiLoRALayer:
            assert_same_start(mine, other, layer_class)
        copy_start(mine, other)
    few = torch.randint(512, (4, 2, 16), generator=torch.Generator().manual_seed(1))
    batches = [few[step % 4] for step in range(STEPS)]  # few enough to learn
    torch.testing.assert_close(ours(few[0]), theirs(few[0]).logits, rtol=1e-12, atol=1e-12)
    starts = [(mine.A.detach().clone(), mine.B.detach().clone()) for mine, _ in pairs]

    losses = train(ours, ours, batches)
    np.testing.assert_allclose(losses, train(theirs, lambda ids: theirs(ids).logits, batches), rtol=1e-9)
    assert len(losses) == STEPS and max(losses[-4:]) < 0.9 * min(losses[:4])
    for (mine, other), start in zip(pairs, starts, strict=True):
        for name, now, theirs_now, first in zip("AB", (mine.A, mine.B), factors(other), start, strict=True):
            assert (now - theirs_now).norm() <= 1e-9 * now.norm()
            frozen = name not in dict(mine.named_parameters())
            assert torch.equal(now, first) == frozen == (not theirs_now.requires_grad)
            assert frozen or (now - first).norm() > 1e-2
        change = other.base_layer.weight + SCALE * factors(other)[1] @ factors(other)[0] - mine.linear.weight
        assert (mine.delta() - change).norm() <= 1e-9 * mine.delta().norm()
