"""fast/subspace.py: minor and major components against numpy's SVD and mica.py's plain one, and how they are found."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from fast import subspace
from fast.subspace import major_components, minor_components
from mica import minor_directions

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
SQUARE, WIDE, TALL, NEARLY = (130, 130), (130, 300), (300, 130), (257, 256)  # (out, in): from subspace.SMALL on
both = pytest.mark.parametrize("find", [minor_components, major_components])


# --- weights with given singular values ---


def weight(S, shape=None, dtype=F64, seed=0):
    """(out, in) with the singular values S, in any order, and random singular vectors."""
    rng = np.random.default_rng(seed)
    out, columns = shape or (len(S), len(S))
    U, V = (np.linalg.qr(rng.standard_normal((n, len(S))))[0] for n in (out, columns))
    return torch.from_numpy(U * S @ V.T).to(dtype)


def with_gap(shape, rank=4, dtype=F64):
    """The `rank` smallest singular values are far below the others: the span of their vectors is well defined."""
    return weight(np.r_[np.linspace(9, 5, min(shape) - rank), np.linspace(0.3, 0.1, rank)], shape, dtype)


def gaussian(shape, dtype=F32):
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).to(dtype)


SPECTRA = {  # of k singular values, the largest 1
    "generic": lambda k, rng: rng.uniform(0.1, 1, k),
    "equal": lambda k, rng: np.ones(k),  # an orthogonal matrix
    "few levels": lambda k, rng: rng.choice([1, 0.5, 0.1], k),  # most cuts go through equal values
    "clustered": lambda k, rng: 1 - 1e-8 * np.arange(k),
    "close": lambda k, rng: np.linspace(1, 0.99, k),
    "steep": lambda k, rng: np.logspace(0, -5, k),
    "ill conditioned": lambda k, rng: np.logspace(0, -12, k),
    "rank one": lambda k, rng: np.eye(k)[0],
    "half the rank": lambda k, rng: 1.0 * (np.arange(k) <= k // 2),
    "zero": lambda k, rng: np.zeros(k),
}
# Up to the largest numbers that leave room for the singular values, down to denormal ones
SCALES = [(F16, [1, 3e4, 1e-6]), (BF16, [1, 1e36, 1e-39]), (F32, [1, 1e36, 1e-40]), (F64, [1, 1e300, 1e-310])]


def random_weight(seed):
    """(W, rank) of all kinds, up to (40, 40)."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 41))
    shape = tuple(rng.permutation([k, min(k + int(rng.choice([0, 0, 1, 12])), 40)]))
    S = rng.choice(list(SPECTRA.values()))(k, rng)
    if rng.random() < 0.5:
        W = weight(S, shape, seed=rng)
    else:  # the singular vectors are unit vectors
        W = torch.from_numpy(rng.permutation(np.eye(shape[0], k) * S @ np.eye(k, shape[1])))
    if (change := rng.random()) < 0.3:
        W[::3] = 0 if change < 0.2 else W[0].clone()  # zero or equal rows
    dtype, scales = SCALES[int(rng.integers(len(SCALES)))]
    W = (W * rng.choice(scales)).to(dtype)
    return W.T.contiguous().T if rng.random() < 0.5 else W, int(rng.integers(1, k + 1))


# --- what must be true of the components of any weight ---


def assert_components(find, W, rank):
    """Compare find(W, rank) with numpy's SVD in float64 of the same numbers.

    subspace.py promises residuals of 1e-6 of the weight's Frobenius norm in float32 and 1e-9 in float64. Exact singular
    vectors rounded to float32 leave 1e-7, and the small values of any SVD are only as exact as the large ones allow.
    So all errors are in parts of that norm, and vectors are as exact as that part of the distance to the next value.
    """
    before = W.clone()
    U, S, V = factors = find(W, rank)
    exact = W.double().numpy()
    assert torch.equal(W, before)
    assert [tuple(f.shape) for f in factors] == [(W.shape[0], rank), (rank,), (W.shape[1], rank)]
    for factor in factors:
        assert factor.dtype == (F64 if W.dtype == F64 else F32) and factor.device == W.device
        assert factor.is_contiguous() and factor.isfinite().all() and not factor.requires_grad

    scale = np.abs(exact).max() or 1.0  # nothing below over- or underflows
    exact, U, V, (S, smallest) = exact / scale, *numbers(U, V), [s / scale for s in (*numbers(S), least(S.dtype))]
    error = (2e-9 if W.dtype == F64 else 2e-6) * np.linalg.norm(exact) + smallest
    close, k = dict(rtol=0, atol=error), min(W.shape)
    for columns in (U, V):
        np.testing.assert_allclose(columns.T @ columns, np.eye(rank), rtol=0, atol=1e-12 if W.dtype == F64 else 3e-6)
    U0, S0, V0t = np.linalg.svd(exact, full_matrices=False)
    part, rest = (slice(k - rank, k), slice(k - rank)) if find is minor_components else (slice(rank), slice(rank, k))
    np.testing.assert_allclose(S, S0[part], **close)
    np.testing.assert_allclose(values(exact.T @ U), S0[part], **close)
    np.testing.assert_allclose(values(exact @ V), S0[part], **close)
    assert (np.linalg.norm(exact @ V - U * S, axis=0) <= error).all()
    assert (np.linalg.norm(exact.T @ U - V * S, axis=0) <= error).all()
    np.testing.assert_allclose(values(exact - U * S @ V.T)[: k - rank], S0[rest], rtol=0, atol=error * rank)

    gap = np.abs(S0[part][:, None] - S0[rest]).min(initial=np.inf)
    for columns, others in ((U, U0), (V, V0t.T)):
        # What is neither in W's columns nor in its rows has the singular value 0, and its own distance to keep.
        distance = min(gap, S0[part].min()) if others.shape[0] > k else gap
        outside = columns - others[:, part] @ (others[:, part].T @ columns)
        assert np.linalg.norm(outside) <= error * rank / max(distance, 1e-300) + 1e-6


def numbers(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


def least(dtype):
    """The smallest number of a dtype: the rounding error of singular values that are hardly larger."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def values(M):
    return np.linalg.svd(M, compute_uv=False)


def projector(B):
    return B.double().numpy() @ B.double().numpy().T


@both
def test_components_of_any_weight(find):
    for seed in range(240):
        with patch.multiple(subspace, SMALL=8, LARGE=8 if seed % 5 else 512):  # so that all of them take the fast way
            assert_components(find, *random_weight(seed))


@both
@pytest.mark.parametrize(
    "shape, dtype, spectrum",
    [(SQUARE, F32, "half the rank"), (WIDE, F64, "steep"), (TALL, BF16, "few levels"), (NEARLY, F32, "generic")],
)
def test_components_of_a_large_weight(find, shape, dtype, spectrum):
    S = SPECTRA[spectrum](min(shape), np.random.default_rng(0))
    assert_components(find, weight(S, shape, dtype), 5)


@pytest.mark.parametrize("size, rank, gap, dtype", [(256, 2, 5e-5, F32), (200, 1, 6e-8, F64)])
@both
def test_a_nearly_orthogonal_weight_needs_more_than_small_residuals(find, size, rank, gap, dtype):
    """Any vectors at all nearly are singular vectors of it."""
    sign = -1 if find is minor_components else 1
    W = weight(np.r_[np.ones(size - rank), np.full(rank, 1 + sign * gap)], dtype=dtype)
    assert_components(find, W, rank)


@pytest.mark.parametrize("shape, dtype, tolerance", [(SQUARE, F32, 1e-4), (WIDE, BF16, 1e-4), (TALL, F64, 1e-8)])
def test_the_minor_components_span_what_the_plain_svd_finds(shape, dtype, tolerance):
    W = with_gap(shape, dtype=dtype)
    U, S, _ = minor_components(W, 4)
    plain = minor_directions(W.to(U.dtype), 4)
    assert plain.shape == U.shape and plain.dtype == U.dtype and (S < 1).all()
    np.testing.assert_allclose(projector(plain), projector(U), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(30, 12), TALL])
def test_a_tall_weight_does_not_give_its_left_null_space(shape):
    W = with_gap(shape)
    B = minor_components(W, 4)[0]
    Q, _ = np.linalg.qr(W.numpy())  # (out, in): all that W can write to
    assert np.abs(projector(B) - Q @ Q.T @ projector(B)).max() < 1e-8
    assert values((W.T @ B).numpy()).min() > 0.09  # it would be zero in the null space


@pytest.mark.parametrize("shape", [SQUARE, WIDE, TALL])
@both
def test_a_large_weight_is_not_decomposed_as_a_whole(find, shape):
    W = weight(np.r_[np.full(4, 2.0), np.linspace(1, 0.8, min(shape) - 8), np.full(4, 0.1)], shape, F32)
    with patch.object(torch.linalg, "svd", wraps=torch.linalg.svd) as svd:
        assert_components(find, W, 4)
    assert all(max(call.args[0].shape) <= 8 for call in svd.call_args_list)


@pytest.mark.parametrize("shape", [SQUARE, WIDE])
@both
def test_no_seed_matters_and_none_is_used_up_and_no_gradient_is_kept(find, shape):
    W, results = gaussian(shape).requires_grad_(), []
    for seed in range(2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(torch.cat([factor.flatten() for factor in find(W, 4)]))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*results) and not results[0].requires_grad
