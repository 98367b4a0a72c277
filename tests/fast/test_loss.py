"""fast/loss.py against the plain loss: train.next_token_loss of all logits at once."""

import pytest
import torch
from conftest import TINY
from test_rehearsal import Letters
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fast.loss
import train
from corpus import IGNORE
from eval_qa import BASE
from fast.loss import compiled, head_is_large_and_frozen, loss_in_chunks
from gpt import GPT, load_pretrained
from lora import LoRALayer, without_adapters
from rehearsal import Rehearsal
from train import METHODS, Settings, next_token_loss, prepare

TOKENS, HIDDEN, VOCAB = 50, 12, 70


def plain(hidden, weight, targets):
    logits = F.linear(hidden, weight)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def problem(dtype, scale=1.0):
    torch.manual_seed(0)
    hidden = (scale * torch.randn(2, TOKENS // 2, HIDDEN)).to(dtype)
    targets = torch.randint(VOCAB, (2, TOKENS // 2))
    targets[0, ::3] = targets[1, -7:] = IGNORE
    return hidden, torch.randn(VOCAB, HIDDEN).to(dtype), targets


def with_gradient(loss_of, hidden, weight, targets, *more):
    hidden = hidden.clone().requires_grad_()
    loss = loss_of(hidden, weight, targets, *more)
    (3 * loss).backward()  # not 1: what is above the loss counts
    return loss.detach(), hidden.grad


# The largest difference, in parts of the largest value. bfloat16 has 8 bits: both round the logits and their gradient to it.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize(  # a token at a time, seven with some left over, all at once
    "dtype, chunk", [(torch.float64, 1), (torch.float32, 7 * VOCAB), (torch.bfloat16, 10**9), (torch.float64, 10**9)]
)
def test_loss_and_gradient_are_the_plain_ones_to_rounding(dtype, chunk, monkeypatch):
    monkeypatch.setattr(fast.loss, "CHUNK", chunk)
    arguments = problem(dtype)
    loss, gradient = with_gradient(loss_in_chunks, *arguments, IGNORE)
    expected, its_gradient = with_gradient(plain, *arguments)
    assert loss.dtype == expected.dtype and gradient.dtype == dtype
    assert (loss - expected).abs() <= TOLERANCES[dtype] * expected
    assert (gradient - its_gradient).abs().max() <= TOLERANCES[dtype] * its_gradient.abs().max()
    assert not gradient[arguments[2] == IGNORE].any()
    assert loss_in_chunks(*arguments[:2], torch.full_like(arguments[2], IGNORE), IGNORE) == 0  # nothing is asked


def test_logits_too_large_for_an_exponential_are_no_trouble():
    arguments = problem(torch.float32, scale=300)
    assert F.linear(*arguments[:2]).max() > 1000
    for got, expected in zip(with_gradient(loss_in_chunks, *arguments, IGNORE), with_gradient(plain, *arguments)):
        torch.testing.assert_close(got, expected)


def test_no_more_logits_are_held_than_a_chunk_of_them(monkeypatch):
    """The largest tensor that any operation makes, seen by a mode that all operations pass through."""
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    monkeypatch.setattr(fast.loss, "CHUNK", 10 * VOCAB)
    hidden, weight, targets = problem(torch.float32)
    with Sizes():
        with_gradient(loss_in_chunks, hidden, weight, targets, IGNORE)
        assert max(sizes) <= max(10 * VOCAB, weight.numel(), hidden.numel())
        with_gradient(plain, hidden, weight, targets)
        assert max(sizes) == TOKENS * VOCAB


def test_inside_autocast_both_products_are_made_in_its_dtype():
    arguments = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = with_gradient(loss_in_chunks, *arguments, IGNORE)
        expected = with_gradient(plain, *arguments)
    exact = with_gradient(plain, *arguments)
    for one, other, neither in zip(got, expected, exact):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).abs().max() <= 2e-2 * other.abs().max()
        assert (one - neither).abs().max() > 1e-5 * neither.abs().max()  # it was rounded


# --- in training ------------------------------------------------------------------------------------------------------


def tiny_model(method="lora", targets=("q_proj", "v_proj"), dtype=torch.float32):
    torch.manual_seed(0)
    model = GPT(TINY).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 2:  # so that the predictions are not all alike
            torch.nn.init.normal_(parameter, std=0.3)
    prepare(model, METHODS[method].layer, Settings(rank=2, targets=targets))
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):  # with B = 0 half of the gradients would be zero
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def with_gradients(model, loss_of, *batch):
    """The loss and the gradient of every factor."""
    loss = loss_of(model, *batch)
    loss.backward()
    found = [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]
    model.zero_grad()
    return found


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_every_factor_gets_the_gradient_of_the_plain_loss(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(fast.loss, "CHUNK", 6 * TINY.vocab_size)
    model, found, calls = tiny_model(dtype=dtype), [], []
    monkeypatch.setattr(train, "loss_in_chunks", lambda *given: calls.append(1) or loss_in_chunks(*given))
    x = torch.randint(TINY.vocab_size, (3, 9))
    for large in (TINY.vocab_size, TINY.vocab_size + 1):
        monkeypatch.setattr(fast.loss, "LARGE", large)
        found.append(with_gradients(model, next_token_loss, x, x.roll(-1, dims=1).masked_fill(x < 20, IGNORE)))
    assert len(calls) == 1 and len(found[0]) == 1 + 2 * 2 * TINY.n_layers
    assert_close(*found, tolerance)


@pytest.mark.slow
def test_compiled_losses_are_the_plain_ones_to_rounding(monkeypatch):
    """What is learned and what is rehearsed, each in chunks: the custom gradients are compiled too."""
    monkeypatch.setattr(fast.loss, "LARGE", TINY.vocab_size)
    monkeypatch.setattr(fast.loss, "CHUNK", 10 * TINY.vocab_size)
    texts, model = ["abcd efg hij klm", "the quick brown fox jumps over"] * 4, tiny_model()
    with without_adapters(model):
        rehearsal = Rehearsal(model, Letters(), texts, seq_len=9, batch_size=3, seed=0)
    x, y, untouched = rehearsal.next_batch(model.device)
    for loss_of, batch in ((next_token_loss, (x, y)), (rehearsal.loss, (x, y, untouched))):
        plain = with_gradients(model, loss_of, *batch)
        assert plain[0] > 0
        assert_close(with_gradients(model, compiled(loss_of, model.device), *batch), plain, 1e-5)


@pytest.mark.parametrize(
    "method, targets, suited",
    [("lora", ("q_proj",), True), ("mica", ("up_proj",), True), ("lora", ("lm_head",), False), ("full", None, False)],
)
def test_the_chunks_are_for_large_heads_that_are_frozen_and_have_no_adapter(method, targets, suited, monkeypatch):
    assert not head_is_large_and_frozen(tiny_model(method, targets).lm_head)  # 64 words are few
    monkeypatch.setattr(fast.loss, "LARGE", TINY.vocab_size)
    model = tiny_model(method, targets)
    assert head_is_large_and_frozen(model.lm_head) == suited
    assert isinstance(model.lm_head, LoRALayer) == (targets == ("lm_head",))


def test_the_shipped_model_has_a_small_vocabulary():
    """Its results are published to the bit, so its loss stays the plain one."""
    model, _ = load_pretrained(BASE)
    assert not head_is_large_and_frozen(model.requires_grad_(False).lm_head)
