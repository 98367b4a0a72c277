"""study/directions.py: what each layer's frozen factor spans, by numpy and by planted inputs; OPLoRA's two projections."""

import numpy as np
import pytest
import torch
from torch import nn

from gpt import load_pretrained
from lora import check_method
from study.directions import (
    DIRECTIONS,
    LAYERS,
    MOMENTS,
    OPLoRALayer,
    PlacedMiCALayer,
    QuietInputLayer,
    QuietOutputLayer,
    measure_moments,
)
from train import METHODS

RANK = 2
every_shape = pytest.mark.parametrize("shape", [(12, 12), (20, 12), (12, 20)])


def linear_of(shape):
    torch.manual_seed(0)
    return nn.Linear(shape[1], shape[0], bias=False)


def same_span(columns, others, atol=1e-5):
    np.testing.assert_allclose(columns @ columns.T, others @ others.T, rtol=0, atol=atol)


@every_shape
@pytest.mark.parametrize("place, first", [(0, 0), (0.4, 4), (1, 10)])
def test_b_stands_where_it_is_placed(shape, place, first):
    linear = linear_of(shape)
    layer = type("Placed", (PlacedMiCALayer,), {"place": place})(linear, RANK, RANK)
    U = np.linalg.svd(linear.weight.detach().double().numpy(), full_matrices=False)[0]
    same_span(layer.B.double().numpy(), U[:, first : first + RANK])


@every_shape
def test_quiet_factors_hear_and_move_what_the_text_hardly_has(shape):
    linear = linear_of(shape)
    X = torch.randn(500, shape[1], dtype=torch.double)
    quiet = torch.linalg.qr(torch.randn(shape[1], RANK, dtype=torch.double)).Q
    X = X - 0.999 * X @ quiet @ quiet.T
    MOMENTS[linear.weight.data_ptr()] = X.T @ X
    same_span(QuietInputLayer(linear, RANK, RANK).A.T.double().numpy(), quiet.numpy(), atol=1e-3)
    B = QuietOutputLayer(linear, RANK, RANK).B.double()
    W = linear.weight.detach().double()
    outputs, U = X @ W.T, torch.linalg.svd(W, full_matrices=False).U
    assert torch.allclose(U @ (U.T @ B), B, atol=1e-5)  # where W writes to at all
    least = np.linalg.svd((outputs @ U).numpy(), compute_uv=False)[-RANK:]
    np.testing.assert_allclose((outputs @ B).square().sum(), np.square(least).sum(), rtol=1e-3)
    del MOMENTS[linear.weight.data_ptr()]


@every_shape
def test_oplora_changes_nothing_in_the_major_directions(shape, monkeypatch):
    monkeypatch.setattr(OPLoRALayer, "kept", 3)
    linear = linear_of(shape)
    layer = OPLoRALayer(linear, RANK, 2 * RANK)
    x = torch.randn(5, shape[1])
    assert torch.equal(layer(x), linear(x))
    nn.init.normal_(layer.B)
    U, S, Vh = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
    dW = layer.delta()
    assert dW.norm() > 0.1 and (U[:, :3].T @ dW).abs().max() < 1e-5 and (dW @ Vh[:3].T).abs().max() < 1e-5
    torch.testing.assert_close(layer(x), linear(x) + x @ dW.T)
    check_method("oplora", layer)


def test_moments_are_of_what_comes_in(tiny_llama_folder):
    base, tokenizer = load_pretrained(tiny_llama_folder)
    measure_moments(base, tokenizer, tokens=400)
    linears = [module for module in base.layers.modules() if isinstance(module, nn.Linear)]
    moments = [MOMENTS.pop(linear.weight.data_ptr()) for linear in linears]
    assert not MOMENTS and all(torch.linalg.eigvalsh(M)[0] > -1e-6 * M.trace() for M in moments)
    assert torch.equal(moments[0], moments[1])  # q_proj and k_proj read the same


def test_every_arm_has_a_method_and_every_pair_its_arms():
    names = {arm.name for arm in DIRECTIONS.arms}
    assert {arm.method for arm in DIRECTIONS.arms} - {None} <= METHODS.keys() | LAYERS.keys()
    assert all({*pair} <= names for pair in DIRECTIONS.pairs) and DIRECTIONS.pairs[0] == ("mica", "B at 0.6")
