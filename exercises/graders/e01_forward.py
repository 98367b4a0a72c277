"""Grades exercise 1: the start of the factors, and forward and its gradients against float64, in every dtype."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exercises.graders.layers import check_shapes, linear_of, out_of_reach, start
from exercises.grading import check_tensor, judge, numpy, part, precision, require, same_bits, weight
from lora import LoRALayer

TITLE, MINUTES = "the layer: no bit changes, in any dtype", 20
SOLUTIONS = ["lora.py: LoRALayer.start", "lora.py: LoRALayer.forward", "lora.py: LoRALayer.update"]


@part("MyLoRA.start", 3)
def test_start(student):
    seeds = {}
    for dtype in (torch.float32, torch.float64):
        W = weight(30, 400, dtype)
        for seed in (0, 1):
            [made] = student(start, "MyLoRA", W, 4, 8, seed, base="LoRALayer")
            check_shapes(made, W, 4)
            A, B = (numpy(made[name]) for name in "AB")
            require(A.any() or B.any(), "your A and B are both zero: so are both gradients, and nothing ever learns")
            require(
                not B.any(), "your B is not zero, so the layer does not start as the linear it was: only A is random"
            )
            rank = np.linalg.matrix_rank(A)
            require(
                rank == 4, f"your A has rank {rank}, not 4: rows that start alike stay alike, so draw each at random"
            )
            size = A.std() * 400**0.5
            require(0.4 < size < 2.5, f"your A is {size:.3g} / sqrt(in) large, where about 1 keeps x A^T as large as x")
            negative = (A < 0).mean()
            require(0.4 < negative < 0.6, f"{100 * negative:.0f}% of your A is negative: draw it around zero")
            seeds[seed] = A
        require(not np.array_equal(*seeds.values()), "your A is the same whatever the seed: do not fix torch's seed")


class LargestTensor(TorchDispatchMode):
    """While it is active: .numel is the size of the largest tensor that was made, views of `known` aside."""

    def __init__(self, known):
        super().__init__()
        self.known, self.numel = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.known:
                self.numel = max(self.numel, tensor.numel())
        return result


def run(student, W, b, A, B, x, alpha, dropout=0.0, training=True, autocast=False):
    """The student's forward with these factors: y, x as it is left, the gradients of y's sum, the largest tensor made."""
    require(student.MyLoRA.forward is not LoRALayer.forward, "forward is still LoRALayer's own: put yours back")
    given = type("Given", (student.MyLoRA,), {"start": LoRALayer.start})
    layer = given(linear_of(W, b), A.shape[0], alpha, dropout).train(training)
    layer.A.data, layer.B.data = A.clone(), B.clone()
    x.requires_grad_()
    with out_of_reach(LoRALayer, "forward", "update"), LargestTensor(layer.linear.weight) as largest:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x)
    numel = largest.numel
    if isinstance(y, torch.Tensor) and y.requires_grad:
        y.sum().backward()
    return {"y": y, "x": x, "A": layer.A.grad, "B": layer.B.grad, "gradient of x": x.grad, "largest": numel}


def case(out, in_, rank, dtype=torch.float32, batch=(16,), bias=True, silent=False):
    """W, b, A, B, x as training may leave them. silent: W and b are zero, so that only the adapter is heard."""
    wide = torch.promote_types(dtype, torch.float32)
    W, b = torch.randn(out, in_, dtype=dtype) * (not silent), torch.randn(out, dtype=dtype) * (not silent)
    A, B = torch.randn(rank, in_, dtype=wide), torch.randn(out, rank, dtype=wide)
    return W / in_**0.5, b if bias else None, A / in_**0.5, B, torch.randn(*batch, in_, dtype=dtype)


def formula(W, b, A, B, x, scale):
    """(y, what A and B add, the sizes of the terms that are added up), all in float64."""
    W, A, B, x = (numpy(tensor) for tensor in (W, A, B, x))
    b = 0.0 if b is None else numpy(b)
    terms = np.abs(x) @ np.abs(W).T + np.abs(b) + scale * (np.abs(x) @ np.abs(A).T) @ np.abs(B).T
    change = scale * (x @ A.T) @ B.T
    return x @ W.T + b + change, change, terms


@part("MyLoRA.forward", 7)
def test_forward(student):
    for dtype in (torch.float32, torch.float64):
        W, b, A, B, x = given = case(18, 24, 3, dtype, (2, 5))
        ran = student(run, *given, 8)
        y = check_tensor(ran["y"], (2, 5, 18), "your y")
        require(torch.equal(ran["x"], x), "your forward changes its input x in place: others need it as it was")
        right, change, terms = formula(*given, 8 / 3)
        mistakes = {
            "alpha / rank is missing": right - change + change * 3 / 8,
            "A and B do nothing in it": right - change,
            "the bias is missing: call self.linear(x)": right - numpy(b),
        }
        tolerance = 100 * precision(dtype) * terms
        judge(numpy(y), right, "your y is not W x + b + (alpha / rank) B A x", mistakes, tolerance)
    gradients(student)
    large = student(run, *case(96, 80, 2, batch=(1,)), 4)["largest"]
    wide = "your forward makes a tensor as large as W at every step, such as B A: multiply x by A first, then by B"
    require(large < 80 * 96, wide)
    changes_no_bit(student)
    keeps_the_factors_precision(student)
    dropout(student)


def gradients(student):
    W, b, A, B, x = given = case(5, 6, 2, torch.float64, (3,))
    ran = student(run, *given, 4)
    cut = "no gradient reaches A and B: something in your forward cuts them off (no_grad, .data, ...)"
    require(ran["A"] is not None and ran["B"] is not None, cut)
    W, A, B, x = map(numpy, (W, A, B, x))
    ones = np.ones((3, 5))
    whole, linear, adapter = ones @ (W + 2 * B @ A), ones @ W, 2 * ones @ B @ A
    for name, right in (("A", 2 * B.T @ ones.T @ x), ("B", 2 * ones.T @ (x @ A.T))):
        said = f"the gradient of {name} is not that of eq. 3, though y is: something is detached on the way"
        judge(numpy(ran[name]), right, said)
    mistakes = {
        "none comes back through the linear: the layers below need it, though W is frozen": adapter,
        "none comes back through A and B: x is detached on the way to them": linear,
    }
    require(ran["gradient of x"] is not None, "no gradient reaches x: the layers below would not learn")
    judge(numpy(ran["gradient of x"]), whole, "the gradient of x is not that of eq. 3", mistakes)


def changes_no_bit(student):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        W, b, A, B, x = case(18, 24, 4, dtype)
        y = student(run, W, b, A, 0 * B, x, 12)["y"]
        require(y.dtype == dtype, f"with W in {dtype} your y is {y.dtype}: cast what is added to the linear's dtype")
        same = same_bits(y, F.linear(x, W, b))
        require(same, f"with W in {dtype} and B = 0 your y is not the linear's output to the bit")
    W, b, A, B, x = case(18, 24, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = nn.functional.linear(x, W, b)
    y = student(run, W, b, A, 0 * B, x, 12, autocast=True)["y"]
    same = f"under autocast the linear gives bfloat16 though x is float32, and your y is {y.dtype}: "
    require(same_bits(y, before), same + "cast what is added to the dtype of the linear's output, not of x")


def keeps_the_factors_precision(student):
    for dtype in (torch.bfloat16, torch.float16):
        given = case(64, 64, 4, dtype, silent=True)
        _, change, terms = formula(*given, 3)
        error = np.abs(numpy(student(run, *given, 12)["y"]) - change)
        wide = (error <= 1.01 * precision(dtype) * np.abs(change) + 1e-5 * terms).all()  # rounded twice at most
        down = f"with W in {dtype} your factors are rounded down to it: compute x A^T and B in float32, cast only their"
        require(wide, f"{down} result")


def dropout(student):
    """With square orthonormal factors, what was dropped can be read off the output."""
    W, _, A, B, _ = case(8, 8, 8, torch.float64, silent=True)
    A, B = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    given = (W, None, A, B, torch.ones(64, 8, dtype=torch.float64))
    y = numpy(student(run, *given, 16, 0.5)["y"]) / 2
    read = y @ numpy(B) @ numpy(A)  # what A was given
    require(not np.allclose(read, 1), "no dropout acts in training: A's input is self.dropout(x)")
    dropped = np.isclose(read, 0, atol=1e-9)
    if not (dropped | np.isclose(read, 2, atol=1e-9)).all():
        after_A = np.isclose(y @ numpy(B), 0, atol=1e-9).mean() > 0.2
        where = "on the output" if (y == 0).mean() > 0.2 else "between A and B" if after_A else "somewhere else"
        require(False, f"dropout belongs on the input of A, and yours acts {where}")
    require(0.3 < dropped.mean() < 0.7, "dropout drops another share of A's input than self.dropout says")
    y = numpy(student(run, *given, 16, 0.5, training=False)["y"])
    require(np.allclose(y, formula(*given, 2)[0]), "dropout acts in eval mode too: use self.dropout")
    W, b, A, B, x = case(8, 8, 2)
    y = student(run, W, b, A, 0 * B, x, 4, 0.5)["y"]
    require(same_bits(y, F.linear(x, W, b)), "dropout reaches the frozen linear: its input is x as it came")
