"""mica.py: the minor directions in their plainest form, what MiCA trains and what it leaves alone."""

import numpy as np
import pytest
import torch
from conftest import TINY

from gpt.model import GPT
from lora import count_trainable, find_adapters, replace_linears
from mica import MiCALayer, minor_directions


@pytest.mark.parametrize("shape", [(20, 20), (12, 30), (30, 12)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_minor_directions_are_the_last_columns_of_the_thin_svd(shape, dtype, tolerance):
    W = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).to(dtype)
    B = minor_directions(W, 4)
    U = np.linalg.svd(W.double().numpy(), full_matrices=False)[0][:, -4:]
    assert B.shape == (shape[0], 4) and B.dtype == dtype
    np.testing.assert_allclose(B.double().numpy() @ B.double().numpy().T, U @ U.T, rtol=0, atol=tolerance)
    assert torch.linalg.matrix_norm(W.T @ B, 2) > 1e-3  # in the left null space of a tall weight it would be zero


def test_a_frozen_B_of_minor_directions_is_all_that_the_update_writes_to():
    torch.manual_seed(0)
    model = GPT(TINY)
    names = replace_linears(model, MiCALayer, 4, 8, ["q_proj", "v_proj"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {f"{name}.A" for name in names}
    assert {n for n, _ in model.named_buffers()} == {f"{name}.B" for name in names}
    assert count_trainable(model)[0] == 4 * 4 * 24  # four layers, rank * in each
    for layer in find_adapters(model).values():
        layer.A.data.normal_()
        W, delta = (tensor.detach().double().numpy() for tensor in (layer.linear.weight, layer.delta()))
        U = np.linalg.svd(W, full_matrices=False)[0]
        assert np.abs(U[:, :-4].T @ delta).max() < 1e-5 < np.abs(U[:, -4:].T @ delta).max()
