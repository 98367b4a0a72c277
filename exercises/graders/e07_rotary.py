"""Grades exercise 7: turning pairs as complex numbers in float64, transformers where it is installed, and conversion."""

from importlib.util import find_spec

import numpy as np
import torch

from exercises.grading import check_tensor, numpy, require
from gpt.model import GPTConfig, rotary_tables

CONFIG = GPTConfig("llama", 16, 64, 48, 64, 1, 6, 6, 8, rope_theta=100.0)


def turned(x, positions, interleaved=False):
    """x (..., time, head_dim) in float64, its pairs as complex numbers times e^(i angle)."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * 100.0 ** (-np.arange(half) / half)
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    z = (a + 1j * b) * np.exp(1j * angles)
    if interleaved:
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)
    return np.concatenate([z.real, z.imag], axis=-1)


def rotation(student):
    """rotate."""
    positions = torch.arange(3, 12)
    cos, sin = rotary_tables(positions, CONFIG)
    for dtype, tolerance in (
        (torch.float32, 1e-5),
        (torch.float64, 1e-5),
        (torch.bfloat16, 0.06),
        (torch.float16, 0.01),
    ):
        x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
        before = x.clone()
        y = check_tensor(student.rotate(x, cos.to(dtype), sin.to(dtype)), x.shape, "your result")
        require(torch.equal(x, before), "your rotate changes x in place")
        require(y.dtype == dtype, f"for an x of {dtype} your result is {y.dtype}: it must keep x's dtype")
        expected = turned(numpy(x), positions.numpy())
        if np.abs(numpy(y) - expected).max() > tolerance * 4:
            backwards = turned(numpy(x), -positions.numpy())
            neighbours = turned(numpy(x), positions.numpy(), interleaved=True)
            a, b = expected[..., :4], expected[..., 4:]
            found, near = numpy(y), lambda other: np.allclose(found, other, atol=tolerance * 4)
            why = (
                "x comes back as it was" if near(numpy(x))
                else "it turns the other way round: mind the sign" if near(backwards)
                else "it pairs neighbours, the interleaved convention" if near(neighbours)
                else "the halves come back in the wrong order" if near(np.concatenate([b, a], -1))
                else "lengths are not kept, so it is no rotation" if not lengths_kept(found, numpy(x))
                else "it turns, but by other angles"
            )  # fmt: skip
            require(False, f"your rotate is not a' = a cos - b sin, b' = b cos + a sin of the half-split pairs: {why}")
    x = torch.randn(2, 6, 9, 8)
    y = check_tensor(student.rotate(x.bfloat16(), cos, sin), x.shape, "your result")
    require(y.dtype == torch.bfloat16, "for a bfloat16 x and float32 tables your result is float32: keep x's dtype")
    positions = torch.stack([torch.arange(9), torch.arange(20, 29)])
    tables = [table.unsqueeze(1) for table in rotary_tables(positions, CONFIG)]
    expected = np.stack([turned(numpy(x[i]), positions[i].numpy()) for i in range(2)])
    y = check_tensor(student.rotate(x, *tables), x.shape, "with a table for each sequence, your result")
    require(
        np.abs(numpy(y) - expected).max() < 1e-4,
        "with a table for each sequence (batch, 1, time, head_dim) it is wrong",
    )
    if find_spec("transformers"):
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        theirs = apply_rotary_pos_emb(x, x, cos[None], sin[None])[0]
        require(torch.allclose(student.rotate(x, cos, sin), theirs, atol=1e-5), "your rotate is not transformers'")


def lengths_kept(y, x):
    return np.allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=0.05)


def conversion(student):
    """from_interleaved: the same attention scores from the converted weights."""
    rng, positions = np.random.default_rng(0), np.arange(5)
    for heads, size in ((6, 8), (2, 8), (1, 8), (3, 16)):  # size: head_dim
        weight = rng.normal(size=(heads * size, 12))
        given = torch.from_numpy(weight.copy())
        found = check_tensor(student.from_interleaved(given, heads), (heads * size, 12), "your converted weight")
        require(np.array_equal(numpy(given), weight), "your from_interleaved changes the weight it is given")
        rows = {tuple(row) for row in weight.round(9)}
        whole = {tuple(row) for row in numpy(found).round(9)} == rows
        require(whole, "your converted weight does not hold the same rows: they only change places")
        x = rng.normal(size=(5, 12))

        def scores(W, interleaved):
            y = turned((x @ W.T).reshape(5, heads, size).swapaxes(0, 1), positions, interleaved)
            return y @ y.swapaxes(1, 2)

        wanted = scores(weight, True)
        if np.allclose(scores(numpy(found), False), wanted):
            continue
        swapped = weight.reshape(heads, size // 2, 2, 12).swapaxes(1, 2)[:, ::-1].reshape(heads * size, 12)
        inverse = weight.reshape(heads, 2, size // 2, 12).swapaxes(1, 2).reshape(heads * size, 12)
        across = np.concatenate([weight[::2], weight[1::2]])
        why = (
            "nothing has changed places" if np.array_equal(numpy(found), weight)
            else "it converts the other way, from half-split to interleaved" if np.array_equal(numpy(found), inverse)
            else "the halves are swapped: a goes before b" if np.array_equal(numpy(found), swapped)
            else "rows of different heads are mixed: each head has its own pairs" if np.array_equal(numpy(found), across)
            else "within a head, rows 0, 2, 4, ... are the a of each pair and go first, then rows 1, 3, 5, ..."
        )  # fmt: skip
        require(False, f"with {heads} heads, attention scores from the converted weight are others than before: {why}")
