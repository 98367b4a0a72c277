"""The no-op: adapters that are not trained yet change no bit of what a model computes, and can be trained."""

import pytest
import torch
from torch.nn import functional as F

from gpt.model import GPT, GPTConfig
from lora import find_adapters, replace_linears
from train import METHODS, block_linears

CONFIG = GPTConfig(  # Qwen2's kind: square, wide and tall weights, some with a bias
    family="qwen2",
    vocab_size=64,
    context_length=32,
    hidden_size=24,
    intermediate_size=40,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=6,
)
LAYERS = {name: method.layer for name, method in METHODS.items() if method.layer}  # "full" has no adapters


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request):
    torch.manual_seed(0)
    return GPT(CONFIG).to(request.param)


@pytest.fixture
def ids():
    return torch.randint(CONFIG.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))


def loss_of(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@pytest.mark.parametrize("method", LAYERS)
def test_an_untrained_adapter_changes_no_bit_and_has_a_gradient(model, ids, method):
    before = model(ids)  # logits (2, 16, vocab)
    names = replace_linears(model, LAYERS[method], rank=4, alpha=8, targets=block_linears(model))
    after = model(ids)
    assert len(names) == 7 * CONFIG.n_layers
    assert after.dtype == before.dtype and torch.equal(after, before)

    loss_of(after, ids).backward()
    for name, adapter in find_adapters(model).items():
        gradients = [p.grad for p in adapter.parameters() if p.requires_grad]
        assert any(gradient.any() for gradient in gradients), f"{name} would never learn"

    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0).step()
    assert not torch.equal(model(ids), before)  # so the adapters are in the path


@pytest.mark.parametrize("method", LAYERS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nor_does_it_under_autocast_and_with_dropout(model, ids, method, training):
    # Dropout is on what is trained, not on the start that is subtracted: the two are equal without it only.
    dropout = 0.0 if training and method in ("milora", "pissa") else 0.5

    def logits():  # one region a call: autocast caches its casts of the weights within a region
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.train(training)(ids)

    before = logits()
    replace_linears(model, LAYERS[method], rank=4, alpha=8, targets=block_linears(model), dropout=dropout)
    assert torch.equal(logits(), before)
