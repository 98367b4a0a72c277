"""mica.py: the minor subspace against numpy's SVD and PEFT's, and what MiCA trains and leaves alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from conftest import TINY
from gpt.model import GPT
from lora import count_trainable, find_adapters, replace_linears
from mica import MiCALayer, minor_subspace

TARGETS = ["q_proj", "v_proj"]
SHAPES = {"tall": (30, 12), "wide": (12, 30), "square": (20, 20)}  # (out, in)


def weight_with_gap(shape, rank, dtype=torch.float64):
    """A weight whose `rank` smallest singular values are far below the others, so that their span is well defined."""
    rng = np.random.default_rng(0)
    k = min(shape)
    U, _ = np.linalg.qr(rng.standard_normal((shape[0], k)))
    V, _ = np.linalg.qr(rng.standard_normal((shape[1], k)))
    S = np.concatenate([np.linspace(9, 5, k - rank), np.linspace(0.3, 0.1, rank)])
    return torch.from_numpy(U * S @ V.T).to(dtype)


def projector(B):
    B = B.detach().double().numpy()
    return B @ B.T


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_minor_subspace_is_numpys(shape, dtype):
    W = weight_with_gap(shape, 4, dtype)
    B = minor_subspace(W, 4)
    assert B.shape == (shape[0], 4) and B.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(B.T @ B, torch.eye(4, dtype=B.dtype), rtol=0, atol=1e-5)
    U = np.linalg.svd(W.double().numpy(), full_matrices=False)[0]
    assert np.abs(projector(B) - U[:, -4:] @ U[:, -4:].T).max() < 1e-3
    assert np.abs(projector(B) - U[:, :4] @ U[:, :4].T).max() > 0.1  # the major subspace is another one


def test_a_tall_weight_does_not_give_its_left_null_space():
    W = weight_with_gap((30, 12), 4)
    B = minor_subspace(W, 4)
    Q, _ = np.linalg.qr(W.numpy())  # (30, 12): all that W can write to
    assert np.abs(projector(B) - Q @ Q.T @ projector(B)).max() < 1e-6
    assert (W.T @ B).norm() > 0.1  # it is zero on the null space


def test_full_rank_spans_the_whole_column_space():
    W = weight_with_gap((30, 12), 4)
    Q, _ = np.linalg.qr(W.numpy())
    assert np.abs(projector(minor_subspace(W, 12)) - Q @ Q.T).max() < 1e-6


@given(st.integers(1, 14), st.integers(1, 14), st.data())
@settings(max_examples=60, deadline=None)
def test_minor_subspace_on_any_shape(rows, columns, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    W = torch.from_numpy(np.random.default_rng(data.draw(st.integers(0, 999))).standard_normal((rows, columns))).float()
    B = minor_subspace(W, rank).double()
    torch.testing.assert_close(B.T @ B, torch.eye(rank).double(), rtol=0, atol=1e-5)
    smallest = np.linalg.svd(W.double().numpy(), compute_uv=False)[-rank:]
    np.testing.assert_allclose(torch.linalg.svdvals(W.double().T @ B).numpy(), smallest, atol=1e-5)


@pytest.mark.parametrize("rank", [-1, 0, 13])
def test_impossible_rank(rank):
    with pytest.raises(ValueError, match=f"rank {rank} does not fit"):
        minor_subspace(torch.randn(30, 12), rank)


def test_the_subspace_is_the_one_peft_starts_from():
    peft = pytest.importorskip("peft")
    models = []
    for _ in range(2):
        model = nn.Sequential()
        model.q_proj, model.v_proj = nn.Linear(30, 12), nn.Linear(12, 30)
        for linear in model:
            linear.weight.data = weight_with_gap(linear.weight.shape, 4, torch.float32)
        models.append(model)
    ours, theirs = models
    replace_linears(ours, MiCALayer, 4, 4, TARGETS)
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS, init_lora_weights="mica")
    theirs = peft.get_peft_model(theirs, config).base_model.model
    for name in TARGETS:
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert np.abs(projector(mine.B) - projector(other.lora_B["default"].weight)).max() < 1e-3
        assert not mine.A.any() and not other.lora_A["default"].weight.any()
        assert not other.lora_B["default"].weight.requires_grad


@pytest.fixture
def adapted():
    torch.manual_seed(0)
    model = GPT(TINY)
    return model, replace_linears(model, MiCALayer, 4, 8, TARGETS)


def test_only_A_is_a_parameter(adapted):
    model, names = adapted
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {f"{name}.A" for name in names}
    assert {n for n, _ in model.named_buffers()} == {f"{name}.B" for name in names}
    assert count_trainable(model)[0] == 4 * 4 * 24  # four layers, rank * in each


def test_training_moves_every_A_and_nothing_else(adapted):
    model, names = adapted
    ids = torch.randint(64, (2, 10), generator=torch.Generator().manual_seed(1))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(3):
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        assert all(layer.A.grad.any() for layer in find_adapters(model).values()), f"no gradient at step {step}"
        optimizer.step()
        optimizer.zero_grad()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {f"{name}.A" for name in names}


def test_the_update_writes_only_into_the_minor_subspace(adapted):
    model, names = adapted
    for layer in find_adapters(model).values():
        layer.A.data.normal_()
        W, delta = layer.linear.weight.double().numpy(), layer.delta().double().numpy()
        U = np.linalg.svd(W, full_matrices=False)[0]
        assert np.abs(U[:, :-4].T @ delta).max() < 1e-5 < np.abs(U[:, -4:].T @ delta).max()
