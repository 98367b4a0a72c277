"""Grades exercise 7: turning pairs as complex numbers in float64, and conversion by the attention scores that it keeps."""

import numpy as np
import torch

from exercises.grading import check_tensor, judge, numpy, part, require
from gpt.model import GPTConfig, rotary_tables

TITLE, MINUTES = "rotary positions", 30
SOLUTIONS = ["gpt/model.py: rotate", "gpt/gguf.py: unpair"]
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


@part("rotate", 5)
def check_rotation(student):
    x, positions = torch.randn(2, 6, 9, 8), np.arange(3, 12)
    cos, sin = rotary_tables(torch.from_numpy(positions), CONFIG)
    said = "your rotate is not a' = a cos - b sin, b' = b cos + a sin of the half-split pairs"
    bfloat16 = x.bfloat16(), cos, sin
    for given in ((x, cos, sin), (x.double(), cos.double(), sin.double()), bfloat16):
        y = check_tensor(student.call("rotate", *given), x.shape, "your result")
        same = f"for an x of {given[0].dtype} and {cos.dtype} tables your result is {y.dtype}: keep x's dtype"
        require(y.dtype == given[0].dtype, same)
        mistakes = {
            "it turns the other way round: mind the sign": turned(numpy(x), -positions),
            "it pairs neighbours, the interleaved convention": turned(numpy(x), positions, interleaved=True),
        }
        tolerance = 0.24 if given is bfloat16 else 4e-5
        judge(numpy(y), turned(numpy(x), positions), said, mistakes, tolerance)
    positions = torch.stack([torch.arange(9), torch.arange(20, 29)])
    tables = [table.unsqueeze(1) for table in rotary_tables(positions, CONFIG)]
    right = np.stack([turned(numpy(x[i]), positions[i].numpy()) for i in range(2)])
    y = check_tensor(student.call("rotate", x, *tables), x.shape, "with a table for each sequence, your result")
    judge(numpy(y), right, "with a table for each sequence (batch, 1, time, head_dim) it is wrong", (), 1e-4)


@part("from_interleaved", 4)
def check_conversion(student):
    """The same attention scores from the converted weights."""
    rng, positions = np.random.default_rng(0), np.arange(5)
    for heads, size in ((6, 8), (2, 8), (1, 8), (3, 16)):  # size: head_dim
        weight, x = rng.normal(size=(heads * size, 12)), rng.normal(size=(5, 12))
        found = student.call("from_interleaved", torch.from_numpy(weight.copy()), heads)
        found = numpy(check_tensor(found, weight.shape, "your converted weight"))
        whole = {tuple(row) for row in found.round(9)} == {tuple(row) for row in weight.round(9)}
        require(whole, "your converted weight does not hold the same rows: they only change places")

        def scores(W, interleaved=False):
            y = turned((x @ W.T).reshape(5, heads, size).swapaxes(0, 1), positions, interleaved)
            return y @ y.swapaxes(1, 2)

        said = f"with {heads} heads, attention scores from the converted weight are others than before"
        mistakes = {"nothing has changed places": scores(weight)}
        judge(scores(found), scores(weight, True), said, mistakes)
