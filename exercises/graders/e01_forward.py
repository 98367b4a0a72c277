"""Grades exercise 1: the start of the factors, and forward against float64, in every dtype, with dropout, and PEFT's."""

from importlib.util import find_spec

import numpy as np
import torch
from torch import nn

from exercises.grading import LargestTensor, apart, check_tensor, numpy, precision, require, same_bits
from lora import LoRALayer

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def start(student):
    """init_factors."""
    written = student.MyLoRA.init_factors is not LoRALayer.init_factors
    require(written, "init_factors is still LoRALayer's own: put yours back into the class")
    layer_class = type("Start", (student.MyLoRA,), {"forward": LoRALayer.forward})
    for dtype in (torch.float32, torch.float64):
        layer = layer_class(nn.Linear(40, 30, dtype=dtype), rank=4, alpha=8)
        for name, shape in (("A", (4, 40)), ("B", (30, 4))):
            factor = check_tensor(getattr(layer, name, None), shape, f"your {name}")
            trained = isinstance(factor, nn.Parameter) and factor.requires_grad
            require(trained, f"your {name} would not be trained: make it an nn.Parameter")
            require(factor.dtype == dtype, f"your {name} is {factor.dtype} for a W of {dtype}: it must be of W's dtype")
            require(factor.isfinite().all(), f"your {name} holds NaN or infinity: it was never filled")
        zero_A, zero_B = not layer.A.any(), not layer.B.any()
        require(not (zero_A and zero_B), "your A and B are both zero: so are both gradients, and nothing ever learns")
        require(zero_B, "your B is not zero, so the layer does not start as the linear it was: only A is random")
        rank = np.linalg.matrix_rank(numpy(layer.A))
        require(rank == 4, f"your A has rank {rank}, not 4: rows that start alike stay alike, so draw each at random")
        size = layer.A.std().item() * 40**0.5
        require(
            0.05 < size < 20, "your A is far from 1 / sqrt(in) large, the size that keeps x A^T about as large as x"
        )
    torch.manual_seed(1)
    other = layer_class(nn.Linear(40, 30, dtype=dtype), rank=4, alpha=8)
    require(not torch.equal(other.A, layer.A), "your A is the same whatever the seed: do not fix torch's seed yourself")


def made(student, linear, rank, alpha, dropout=0.0, random=True):
    """The student's layer with the project's start, or with factors as training may leave them."""
    layer_class = type("Given", (student.MyLoRA,), {"init_factors": LoRALayer.init_factors})
    layer = layer_class(linear, rank, alpha, dropout)
    if random:
        layer.B.data = torch.randn_like(layer.B)
    return layer


def formula(layer, x):
    """(y, what A and B add, the sizes of the terms that are added up), all in float64."""
    linear = layer.linear
    W, A, B, X = (numpy(tensor) for tensor in (linear.weight, layer.A, layer.B, x))
    b = 0 if linear.bias is None else numpy(linear.bias)
    scale = layer.alpha / layer.rank
    change = scale * (X @ A.T) @ B.T
    terms = np.abs(X) @ np.abs(W).T + np.abs(b) + scale * (np.abs(X) @ np.abs(A).T) @ np.abs(B).T
    return X @ W.T + b + change, change, terms


def silent(*shape, dtype, bias=False):
    """A linear that gives zeros, so that only the adapter is heard."""
    linear = nn.Linear(*shape, dtype=dtype, bias=bias)
    linear.weight.data.zero_()
    return linear


def forward(student):
    """forward."""
    written = student.MyLoRA.forward is not LoRALayer.forward
    require(written, "forward is still LoRALayer's own: put yours back into the class")
    for dtype in (torch.float32, torch.float64):
        layer, x = made(student, nn.Linear(24, 18, dtype=dtype), 3, 8), torch.randn(2, 5, 24, dtype=dtype)
        before = x.clone()
        y = check_tensor(layer(x), (2, 5, 18), "your y")
        require(torch.equal(x, before), "your forward changes its input x in place: others need it as it was")
        expected, change, terms = formula(layer, x)
        if apart(y, expected, terms) > 100 * precision(dtype):
            unscaled = apart(y, expected - change + change * 3 / 8, terms) < 1e-4
            base = apart(y, expected - change, terms) < 1e-4
            bias = apart(y, expected - numpy(layer.linear.bias), terms) < 1e-4
            why = "alpha / rank is missing" if unscaled else "A and B do nothing in it" if base else ""
            why = why or ("the bias is missing: call self.linear(x)" if bias else "compare it with eq. 3 term by term")
            require(False, f"your y is not W x + b + (alpha / rank) B A x: {why}")
    gradients(student)
    no_large_tensor(student)
    changes_no_bit(student)
    keeps_the_factors_precision(student)
    dropout(student)
    if find_spec("peft"):
        as_peft(student)


def gradients(student):
    layer, x = made(student, nn.Linear(6, 5, dtype=torch.float64), 2, 4), torch.randn(3, 6, dtype=torch.float64)
    y = layer(x)
    require(
        y.requires_grad, "no gradient reaches A and B: something in your forward cuts them off (no_grad, .data, ...)"
    )
    y.sum().backward()
    ones, A, B, X = np.ones((3, 5)), numpy(layer.A), numpy(layer.B), numpy(x)
    for name, expected in (("A", 2 * B.T @ ones.T @ X), ("B", 2 * ones.T @ (X @ A.T))):
        found = getattr(layer, name).grad
        right = found is not None and np.allclose(numpy(found), expected, rtol=1e-9, atol=1e-9)
        require(right, f"the gradient of {name} is not that of eq. 3, though y is: something is detached on the way")


def changes_no_bit(student):
    for dtype in DTYPES:
        linear, x = nn.Linear(24, 18, dtype=dtype), torch.randn(4, 24, dtype=dtype)
        layer = made(student, linear, 4, 12, random=False)
        y, before = layer(x), linear(x)
        require(y.dtype == dtype, f"with W in {dtype} your y is {y.dtype}: cast what is added to the linear's dtype")
        require(same_bits(y, before), f"with W in {dtype} and B = 0 your y is not the linear's output to the bit")
    linear, x = nn.Linear(24, 18), torch.randn(4, 24)
    layer = made(student, linear, 4, 12, random=False)
    with torch.autocast("cpu", torch.bfloat16):
        before = linear(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    require(
        same_bits(y, before),
        f"under autocast the linear gives bfloat16 though x is float32, and your y is {y.dtype}: "
        "cast what is added to the dtype of the linear's output, not of x",
    )


def keeps_the_factors_precision(student):
    for dtype in (torch.bfloat16, torch.float16):
        layer, x = made(student, silent(64, 64, dtype=dtype), 4, 12), torch.randn(64, 64, dtype=dtype)
        _, change, terms = formula(layer, x)
        allowed = 1.01 * precision(dtype) * np.abs(change) + 1e-5 * terms  # rounded twice at most
        require(
            (np.abs(numpy(layer(x)) - change) <= allowed).all(),
            f"with W in {dtype} your factors are rounded down to it: compute x A^T and B in float32, cast only their result",
        )


def dropout(student):
    """With square orthonormal factors, what was dropped can be read off the output."""
    layer = made(student, silent(8, 8, dtype=torch.float64), 8, 16, dropout=0.5)
    layer.A.data, layer.B.data = (torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q for _ in range(2))
    x = torch.ones(64, 8, dtype=torch.float64)
    y = layer(x)
    read = numpy(y) / 2 @ numpy(layer.B) @ numpy(layer.A)  # what A was given
    require(not np.allclose(read, 1), "no dropout acts in training: A's input is self.dropout(x)")
    dropped = np.isclose(read, 0, atol=1e-9)
    if not (dropped | np.isclose(read, 2, atol=1e-9)).all():
        on_output = (y == 0).double().mean() > 0.2
        after_A = np.isclose(numpy(y) / 2 @ numpy(layer.B), 0, atol=1e-9).mean() > 0.2
        where = "on the output" if on_output else "between A and B" if after_A else "somewhere else"
        require(False, f"dropout belongs on the input of A, and yours acts {where}")
    require(0.3 < dropped.mean() < 0.7, "dropout drops another share of A's input than self.dropout says")
    layer.eval()
    require(np.allclose(numpy(layer(x)), formula(layer, x)[0]), "dropout acts in eval mode too: use self.dropout")
    layer = made(student, nn.Linear(8, 8), 2, 4, dropout=0.5, random=False)
    x = torch.randn(16, 8)
    require(same_bits(layer(x), layer.linear(x)), "dropout reaches the frozen linear: its input is x as it came")


def no_large_tensor(student):
    layer, x = made(student, nn.Linear(80, 96), 2, 4), torch.randn(1, 80)
    with torch.no_grad(), LargestTensor(layer.linear.weight) as largest:
        layer(x)
    require(
        largest.numel < 80 * 96,
        "your forward makes a tensor as large as W at every step, such as B A: multiply x by A first, then by B",
    )


def as_peft(student):
    from peft import LoraConfig, get_peft_model

    ours = made(student, nn.Linear(12, 20), 4, 12)
    theirs = nn.Sequential()
    theirs.q_proj = nn.Linear(12, 20)
    theirs.q_proj.load_state_dict(ours.linear.state_dict())
    theirs = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"]))
    inner = theirs.base_model.model.q_proj
    inner.lora_A["default"].weight.data, inner.lora_B["default"].weight.data = ours.A.data, ours.B.data
    x = torch.randn(5, 12)
    require(torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5), "your y is not the PEFT library's")
