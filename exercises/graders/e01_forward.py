"""Grades exercise 1: the start of the factors, and forward and its gradients against float64, in every dtype."""

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from exercises.graders.layers import check_factors, linear_of, out_of_reach, start
from exercises.grading import check_tensor, judge, numpy, part, precision, require, same_bits, weight
from lora import LoRALayer

TITLE, MINUTES = "the layer: no bit changes, in any dtype", 20
SOLUTIONS = ["lora.py: LoRALayer.start", "lora.py: LoRALayer.forward", "lora.py: LoRALayer.update"]


@part("MyLoRA.start", 3)
def check_start(student):
    drawn = []
    for seed, dtype in ((0, torch.float32), (1, torch.float32), (0, torch.float64)):
        W = weight(30, 400, dtype)
        [made] = student(start, "MyLoRA", W, 4, 8, seed, base="LoRALayer")
        A, B = check_factors(made, W, 4)
        require(not B.any(), "your B is not zero, so the layer does not start as the linear it was: only A is random")
        rank = np.linalg.matrix_rank(A)
        require(rank == 4, f"your A has rank {rank}, not 4: rows that start alike stay alike, so draw each at random")
        size = A.std() * 400**0.5
        require(0.4 < size < 2.5, f"your A is {size:.3g} / sqrt(in) large, where about 1 keeps x A^T as large as x")
        negative = (A < 0).mean()
        require(0.4 < negative < 0.6, f"{100 * negative:.0f}% of your A is negative: draw it around zero")
        drawn.append(A)
    require(not np.array_equal(*drawn[:2]), "your A is the same whatever the seed: do not fix torch's seed")


def run(student, W, b, A, B, x, alpha, dropout=0.0, training=True, autocast=False):
    """The student's forward with these factors: y, x as it is left, the gradients of y's sum, the operations it took."""
    require(student.MyLoRA.forward is not LoRALayer.forward, "forward is still LoRALayer's own: put yours back")
    given = type("Given", (student.MyLoRA,), {"start": LoRALayer.start})
    layer = given(linear_of(W, b), A.shape[0], alpha, dropout).train(training)
    layer.A.data, layer.B.data = A.clone(), B.clone()
    x.requires_grad_()
    with out_of_reach(LoRALayer, "forward", "update"), FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x)
    flops = counter.get_total_flops()
    if isinstance(y, torch.Tensor) and y.requires_grad:
        y.sum().backward()
    return {"y": y, "x": x, "A": layer.A.grad, "B": layer.B.grad, "gradient of x": x.grad, "flops": flops}


def case(out, in_, rank, dtype=torch.float32, batch=(16,), silent=False):
    """W, b, A, B, x as training may leave them. silent: W and b are zero, so that only the adapter is heard."""
    wide = torch.promote_types(dtype, torch.float32)
    W, b = torch.randn(out, in_, dtype=dtype) * (not silent), torch.randn(out, dtype=dtype) * (not silent)
    A, B = torch.randn(rank, in_, dtype=wide), torch.randn(out, rank, dtype=wide)
    return W / in_**0.5, b, A / in_**0.5, B, torch.randn(*batch, in_, dtype=dtype)


def formula(W, b, A, B, x, scale):
    """(y, what A and B add, the sizes of the terms that are added up), all in float64."""
    W, b, A, B, x = (numpy(tensor) for tensor in (W, b, A, B, x))
    terms = np.abs(x) @ np.abs(W).T + np.abs(b) + scale * (np.abs(x) @ np.abs(A).T) @ np.abs(B).T
    change = scale * (x @ A.T) @ B.T
    return x @ W.T + b + change, change, terms


@part("MyLoRA.forward", 7)
def check_forward(student):
    for dtype in (torch.float32, torch.float64):
        given = case(18, 24, 3, dtype, (2, 5))
        ran = student(run, *given, 8)
        y = check_tensor(ran["y"], (2, 5, 18), "your y")
        require(torch.equal(ran["x"], given[-1]), "your forward changes its input x in place: others need it as it was")
        right, change, terms = formula(*given, 8 / 3)
        mistakes = {"alpha / rank is missing": right - change * 5 / 8, "the bias is missing": right - numpy(given[1])}
        tolerance = 100 * precision(dtype) * terms
        judge(numpy(y), right, "your y is not W x + b + (alpha / rank) B A x", mistakes, tolerance)
    check_gradients(student)
    flops = student(run, *case(96, 80, 2, batch=(1,)), 4)["flops"]
    wide = "your forward computes with a matrix as large as W, such as B A: multiply x by A first, then by B"
    require(flops < 1.5 * 2 * 96 * 80, wide)
    check_no_bit_changes(student)
    for dtype in (torch.bfloat16, torch.float16):
        given = case(64, 64, 4, dtype, silent=True)
        _, change, terms = formula(*given, 3)
        error = np.abs(numpy(student(run, *given, 12)["y"]) - change)
        exact = (error <= 1.01 * precision(dtype) * np.abs(change) + 1e-5 * terms).all()  # rounded twice at most
        require(exact, f"with W in {dtype} your factors are rounded down to it: cast only their result")
    check_dropout(student)


def check_gradients(student):
    W, b, A, B, x = given = case(5, 6, 2, torch.float64, (3,))
    ran = student(run, *given, 4)
    W, A, B, x = map(numpy, (W, A, B, x))
    ones = np.ones((3, 5))
    right = {"A": 2 * B.T @ ones.T @ x, "B": 2 * ones.T @ (x @ A.T), "gradient of x": ones @ (W + 2 * B @ A)}
    mistakes = {
        "none comes back through the linear: the layers below need it, though W is frozen": 2 * ones @ B @ A,
        "none comes back through A and B: x is detached on the way to them": ones @ W,
    }
    for name, gradient in right.items():
        what = f"the gradient of {name[-1]} is not that of eq. 3, though y is"
        require(ran[name] is not None, f"{what}: none arrives; something cuts it off (no_grad, detach, .data, ...)")
        judge(numpy(ran[name]), gradient, what, mistakes)


def check_no_bit_changes(student):
    """With B = 0, dropout or not, autocast or not."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        W, b, A, B, x = case(18, 24, 4, dtype)
        y = student(run, W, b, A, 0 * B, x, 12, dropout=0.5)["y"]
        require(y.dtype == dtype, f"with W in {dtype} your y is {y.dtype}: cast what is added to the linear's dtype")
        same = f"with W in {dtype} and B = 0 your y is not the linear's output to the bit (its input is x as it came)"
        require(same_bits(y, F.linear(x, W, b)), same)
    W, b, A, B, x = case(18, 24, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = F.linear(x, W, b)
    y = student(run, W, b, A, 0 * B, x, 12, autocast=True)["y"]
    same = f"under autocast the linear gives bfloat16 though x is float32, and your y is {y.dtype}: "
    require(same_bits(y, before), same + "cast what is added to the dtype of the linear's output, not of x")


def check_dropout(student):
    """With square orthonormal factors, what was dropped can be read off the output."""
    W, b, A, B, _ = case(8, 8, 8, torch.float64, silent=True)
    A, B = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    given = (W, b, A, B, torch.ones(64, 8, dtype=torch.float64))
    read = numpy(student(run, *given, 16, 0.5)["y"]) / 2 @ numpy(B) @ numpy(A)
    values = sorted({float(value) for value in (read + 0.0).round(6).flat})
    said = f"of an x of ones your A is given {', '.join(f'{value:.3g}' for value in values[:4])} ... in training"
    require(values == [0, 2], f"{said}: dropout of 0.5 on its input, and nowhere else, gives 0 and 2")
    y = numpy(student(run, *given, 16, 0.5, training=False)["y"])
    require(np.allclose(y, formula(*given, 2)[0]), "dropout acts in eval mode too: use self.dropout")
