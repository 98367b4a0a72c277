"""milora.py and the ablations of mica.py: what each start is, by numpy's SVD, and what is computed from there."""

import numpy as np
import pytest
import torch
from test_lora import every_shape
from torch import nn
from torch.nn import functional as F

from ablations import (
    LoRAFALayer,
    MajorMiCALayer,
    OrthonormalMiCALayer,
    RandomMiCALayer,
    TrainedMiCALayer,
    TransposedMiCALayer,
)
from lora import LoRALayer
from mica import MiCALayer
from milora import MiLoRALayer, PiSSALayer

RANK, ALPHA = 4, 12
SCALE = ALPHA / RANK


def linear_with_gaps(shape, dtype=torch.float64):
    """The 4 largest and the 4 smallest singular values are far from the others: their vectors' spans are well defined."""
    rng = np.random.default_rng(0)
    k = min(shape)
    U, _ = np.linalg.qr(rng.standard_normal((shape[0], k)))
    V, _ = np.linalg.qr(rng.standard_normal((shape[1], k)))
    S = np.concatenate([np.linspace(9, 7, RANK), np.linspace(4, 3, k - 2 * RANK), np.linspace(0.5, 0.2, RANK)])
    linear = nn.Linear(shape[1], shape[0], dtype=dtype)
    linear.weight.data = torch.from_numpy(U * S @ V.T).to(dtype)
    return linear


def decompose(linear):
    """U (out, k), S (k) and V (in, k) of its weight, by numpy."""
    U, S, Vt = np.linalg.svd(linear.weight.detach().double().numpy(), full_matrices=False)
    return U, S, Vt.T


def numbers(tensor):
    return tensor.detach().double().numpy()


def projector(columns):
    return columns @ columns.T


# --- MiLoRA and PiSSA ---


@pytest.mark.parametrize(
    "shape, dtype, tolerance",
    [
        ((20, 20), torch.float64, 1e-7), ((30, 12), torch.float64, 1e-7), ((12, 30), torch.bfloat16, 1e-4),
        ((180, 140), torch.float32, 1e-4),  # of these only a few singular vectors are computed
    ],
)  # fmt: skip
@pytest.mark.parametrize("layer_class, part", [(MiLoRALayer, slice(-RANK, None)), (PiSSALayer, slice(RANK))])
def test_the_factors_start_as_components_of_the_weight(layer_class, part, shape, dtype, tolerance):
    linear = linear_with_gaps(shape, dtype)
    layer = layer_class(linear, RANK, ALPHA)
    U, S, V = (factor[..., part] for factor in decompose(linear))
    A, B = numbers(layer.A), numbers(layer.B)
    close = dict(rtol=0, atol=tolerance)
    np.testing.assert_allclose(SCALE * B @ A, U * S @ V.T, **close)
    np.testing.assert_allclose(B.T @ B, np.diag(S / SCALE), **close)  # both factors carry the root of S
    np.testing.assert_allclose(A @ A.T, np.diag(S / SCALE), **close)
    assert layer.A.dtype == layer.B.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_dropout_is_on_what_is_trained_only():
    torch.manual_seed(0)
    layer = MiLoRALayer(linear_with_gaps((20, 20)), RANK, ALPHA, dropout=0.5)
    layer.A.data += 0.1 * torch.randn_like(layer.A)  # some way from its start
    x = torch.randn(3, 20, dtype=torch.float64)
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    dropped = F.dropout(x, 0.5)
    expected = layer.linear(x) + SCALE * (dropped @ layer.A.T @ layer.B.T - x @ layer.A0.T @ layer.B0.T)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(dropped, x)


def test_a_bfloat16_base_is_rounded_no_more_than_without_an_adapter():
    """Rounding W - s B A to bfloat16 would make the error 1.7 times as large before anything is learned."""
    torch.manual_seed(0)
    linear = nn.Linear(128, 128, bias=False, dtype=torch.bfloat16)
    x = torch.randn(256, 128, dtype=torch.bfloat16)
    layer = MiLoRALayer(linear, rank=8, alpha=16)

    def error(y):
        exact = x.double() @ linear.weight.double().T
        return ((y.double() - exact).norm() / exact.norm()).item()

    plain = error(linear(x))
    assert error(layer(x)) == plain
    residual = (linear.weight.float() - 2 * layer.B0 @ layer.A0).bfloat16()
    split = F.linear(x, residual) + (2 * x.float() @ layer.A.T @ layer.B.T).bfloat16()
    assert error(split) > 1.4 * plain


# --- ablations of MiCA: what stands in B, or in A ---


@every_shape
@pytest.mark.parametrize(
    "layer_class, side, part",
    [
        (MiCALayer, "B", slice(-RANK, None)),
        (TrainedMiCALayer, "B", slice(-RANK, None)),
        (MajorMiCALayer, "B", slice(RANK)),
        (TransposedMiCALayer, "A", slice(-RANK, None)),  # reads the minor right directions
    ],
)
def test_one_factor_spans_singular_directions_and_the_other_is_zero(layer_class, side, part, shape):
    layer = layer_class(linear_with_gaps(shape), RANK, ALPHA)
    U, _, V = decompose(layer.linear)
    columns, directions, zero = (layer.B, U, layer.A) if side == "B" else (layer.A.T, V, layer.B)
    np.testing.assert_allclose(numbers(columns.T @ columns), np.eye(RANK), rtol=0, atol=1e-9)
    np.testing.assert_allclose(projector(numbers(columns)), projector(directions[:, part]), rtol=0, atol=1e-9)
    assert layer.B.shape == (shape[0], RANK) and layer.A.shape == (RANK, shape[1]) and not zero.any()


@every_shape
def test_random_directions_are_any_distinct_singular_vectors(shape):
    linear = linear_with_gaps(shape, torch.float32)
    U, all_drawn = decompose(linear)[0], set()
    for seed in range(40):
        torch.manual_seed(seed)
        overlap = np.abs(U.T @ numbers(RandomMiCALayer(linear, RANK, ALPHA).B))  # (k, rank)
        np.testing.assert_allclose(overlap.max(axis=0), 1, rtol=0, atol=1e-6)  # each is one of them, up to its sign
        drawn = set(overlap.argmax(axis=0).tolist())
        assert len(drawn) == RANK
        all_drawn |= drawn
    assert all_drawn == set(range(min(shape)))


def test_orthonormal_directions_are_no_singular_vectors():
    torch.manual_seed(0)
    layer = OrthonormalMiCALayer(linear_with_gaps((30, 12), torch.float32), RANK, ALPHA)
    np.testing.assert_allclose(numbers(layer.B.T @ layer.B), np.eye(RANK), rtol=0, atol=1e-5)
    assert np.abs(np.linalg.svd(layer.linear.weight.numpy())[0].T @ numbers(layer.B)).max() < 0.9


def test_lora_fa_is_lora_with_its_a_left_alone():
    def start(layer_class):
        torch.manual_seed(0)
        return layer_class(nn.Linear(12, 30), RANK, ALPHA)

    assert torch.equal(start(LoRAFALayer).A, start(LoRALayer).A) and not start(LoRAFALayer).B.any()
