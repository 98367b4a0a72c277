"""Rehearsal: the loss by hand, in chunks, its gradient, the untouched model's predictions, text of the model's own."""

import copy

import pytest
import torch
from conftest import TINY

import train
from corpus import IGNORE
from fast import loss as fast_loss
from gpt import GPT
from lora import LoRALayer, find_adapters, replace_linears, without_adapters
from rehearsal import Rehearsal, own_text

TEXTS = ["abcd efg hij klm", "nopq rst", "uvw xyz abc", "the quick brown fox jumps over"] * 6


class Letters:
    """A tokenizer of 64 ids: a letter each."""

    eot_id, bos_id, vocab_size = 0, None, 64

    def encode(self, text, bos=False):
        return [1 + ord(c) % 63 for c in text]

    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids)

    def token_bytes(self, i):
        return bytes([96 + i % 26])


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(TINY).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # predictions that are not all alike
    return model


def changed(model):
    """The model with adapters that are not at their start."""
    replace_linears(model, LoRALayer, 4, 4, ("q_proj", "down_proj"))
    torch.manual_seed(1)
    for layer in find_adapters(model).values():
        torch.nn.init.normal_(layer.B, std=0.5)
    return model


def rehearsal_of(model):
    return Rehearsal(model, Letters(), TEXTS, seq_len=16, batch_size=3, seed=0)


def by_hand(model, untouched, x, y):
    """KL(untouched || model) in float64, token by token."""
    total = 0.0
    before, after = (m.double()(x).softmax(-1) for m in (copy.deepcopy(untouched), copy.deepcopy(model)))
    for p, q, target in zip(before.flatten(0, 1), after.flatten(0, 1), y.flatten()):
        if target != IGNORE:
            total += sum(a * (a.log() - b.log()) for a, b in zip(p, q)).item()
    return total


@pytest.mark.parametrize("chunked", [False, True])
def test_the_loss_is_the_divergence_by_hand(model, monkeypatch, chunked):
    monkeypatch.setattr("rehearsal.head_is_large_and_frozen", lambda head: chunked)
    untouched, rehearsal = copy.deepcopy(model), rehearsal_of(model)
    x, y, hidden = (tensor[-3:] for tensor in rehearsal.windows)  # the last window is filled up
    assert (y == IGNORE).any()
    assert rehearsal.loss(model, x, y, hidden).item() == pytest.approx(0, abs=1e-5)
    changed(model)
    with torch.no_grad():
        assert rehearsal.loss(model, x, y, hidden).item() == pytest.approx(by_hand(model, untouched, x, y), rel=1e-5)


@pytest.mark.parametrize("chunk, dtype", [(64, torch.float64), (1000, torch.float32), (2**25, torch.float64)])
def test_in_chunks_value_and_gradient_are_the_plain_ones(monkeypatch, chunk, dtype):
    monkeypatch.setattr(fast_loss, "CHUNK", chunk)
    torch.manual_seed(0)
    weight, untouched = torch.randn(50, 8, dtype=dtype), torch.randn(3, 7, 8, dtype=dtype)
    targets = torch.randint(0, 50, (3, 7))
    targets[1, 2:] = IGNORE
    results = []
    for plain in (True, False):
        hidden = torch.linspace(-2, 2, 3 * 7 * 8, dtype=dtype).view(3, 7, 8).requires_grad_()
        value = fast_loss.kl_in_chunks(hidden, untouched, weight, targets, IGNORE)
        if plain:
            p, q = (untouched @ weight.T).log_softmax(-1), (hidden @ weight.T).log_softmax(-1)
            value = (p.exp() * (p - q)).sum(-1)[targets != IGNORE].sum()
        (3 * value).backward()
        results.append((value.detach(), hidden.grad))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def test_the_untouched_predictions_are_the_bases_to_the_bit_before_and_after(model):
    base = copy.deepcopy(model)
    x, _, hidden = rehearsal_of(model).windows
    with torch.no_grad():
        expected = torch.cat([base.hidden_states(some) for some in x.split(3)])
        assert torch.equal(hidden, expected)
        changed(model)
        with without_adapters(model):
            assert torch.equal(torch.cat([model.hidden_states(some) for some in x.split(3)]), expected)
        assert not torch.equal(torch.cat([model.hidden_states(some) for some in x.split(3)]), expected)


def test_all_windows_come_in_turn_in_a_new_order_each_time(model):
    rehearsal = rehearsal_of(model)
    windows = len(rehearsal.windows[0])
    seen = torch.cat([rehearsal.next_batch("cpu")[2] for _ in range(2 * windows)]).split(windows)  # batches of 3
    for once in seen:
        assert len({tuple(window.flatten().tolist()) for window in once}) == windows
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("method", ["mica", "full"])
def test_training_keeps_the_predictions_that_are_rehearsed(model, method):
    """Against the same training without: the corpus is learned, and the divergence on what is rehearsed is far smaller."""
    settings = train.Settings(rank=4, epochs=6, batch_size=2, seq_len=16, rehearsal_weight=3.0)
    check = rehearsal_of(model)
    divergence, losses = {}, {}
    for texts in ([], TEXTS):
        taught = copy.deepcopy(model)
        history = train.adapt(taught, Letters(), ["zzz yyy xxx"] * 20, method, settings, 1e-2, rehearse=texts)
        with torch.no_grad():
            divergence[bool(texts)] = check.loss(taught, *check.windows).item()
        losses[bool(texts)] = history
    assert divergence[True] < 0.5 * divergence[False]
    assert losses[True][-1]["loss"] < 0.8 * losses[True][0]["loss"]
    assert "kl" in losses[True][-1] and "kl" not in losses[False][-1]


def test_a_step_in_parts_is_the_same_step(model):
    taught = []
    for accumulate in (1, 3):
        settings = train.Settings(rank=4, epochs=2, batch_size=3, seq_len=16, accumulate=accumulate)
        some = copy.deepcopy(model)
        train.adapt(some, Letters(), TEXTS[:8], "lora", settings, 1e-2, rehearse=TEXTS)
        taught.append(torch.cat([p.flatten() for p in some.parameters() if p.requires_grad]))
    torch.testing.assert_close(*taught, rtol=1e-4, atol=1e-5)


def test_own_text_is_long_enough_and_the_same_each_time(model):
    once, again = (own_text(model, Letters(), 300, seed=3) for _ in range(2))
    assert once == again != own_text(model, Letters(), 300, seed=4)
    assert 200 < sum(map(len, once)) <= 400
