"""Grades exercise 3: A and B as they start, what moves when everything is trained, and the first gradients by autograd."""

import copy

import numpy as np
import torch
from torch import nn

from exercises import NotWritten
from exercises.graders.e02_directions import spectrum
from exercises.grading import Wrong, check_tensor, matrix, numpy, require, same_bits
from lora import LoRALayer


def made(student, shape=(30, 20), dtype=torch.float32):
    linear = nn.Linear(shape[1], shape[0], dtype=dtype)
    linear.weight.data = matrix(*shape, spectrum(min(shape), 4)).to(dtype)
    return student.MyMiCA(linear, rank=4, alpha=8)


def train(layer, steps=3):
    """A few steps over *all* parameters, as somebody would who knows nothing of the layer."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1)
    x = torch.randn(16, layer.A.shape[1], dtype=layer.linear.weight.dtype)
    for _ in range(steps):
        (layer(x) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def frozen(student):
    """MyMiCA."""
    for shape in ((30, 20), (20, 30), (24, 24)):
        layer = made(student, shape)
        A = check_tensor(getattr(layer, "A", None), (4, shape[1]), "your A")
        B = check_tensor(getattr(layer, "B", None), (shape[0], 4), "your B")
        require(A.any() or B.any(), "your A and B are both zero: both gradients are zero, for ever")
        require(B.any(), "your B is zero: that is LoRA in another dress; take the minor directions of W")
        require(not A.any(), "your A is not zero, so the layer does not start as the linear it was")
        require(isinstance(A, nn.Parameter) and A.requires_grad, "your A would not be trained: make it an nn.Parameter")
        U = np.linalg.svd(numpy(layer.linear.weight), full_matrices=False)[0][:, -4:]
        error = np.linalg.norm(numpy(B) @ numpy(B).T - U @ U.T, 2)
        require(error < 1e-3, "your B does not span U[:, -r:], the minor directions of W (exercise 2)")
    stays(student)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layer, x = made(student, dtype=dtype), torch.randn(5, 20, dtype=dtype)
        require(
            same_bits(layer(x), layer.linear(x)), f"with W in {dtype} your layer does not start as the linear it was"
        )


def stays(student):
    layer = made(student)
    before = layer.B.detach().clone()
    parameter = isinstance(layer.B, nn.Parameter)
    train(layer)
    moved = not torch.equal(layer.B, before)
    require(not moved, "your B drifts: it has 1 as a parameter" if parameter else "your B drifts as A is trained")
    require(layer.A.any(), "your A never moves: no gradient reaches it")
    require(not parameter, "your B drifts as soon as somebody calls model.requires_grad_(True): make it an nn.Buffer")
    layer.requires_grad_(True)
    train(layer)
    require(torch.equal(layer.B, before), "your B drifts after model.requires_grad_(True): make it an nn.Buffer")
    require("B" in layer.state_dict(), "your B is not saved: a plain tensor is not part of the module, an nn.Buffer is")
    other = made(student)
    other.B.zero_()
    other.load_state_dict(layer.state_dict())
    require(torch.equal(other.B, before), "your B does not come back when a saved layer is loaded")
    moved = copy.deepcopy(layer).to("meta")
    require(moved.B.is_meta, "your B stays behind when the layer moves to another device: make it an nn.Buffer")


def first_gradients(student):
    """FIRST_GRADIENTS, by autograd."""
    answers = student.FIRST_GRADIENTS
    if any(answer is ... for answer in answers.values()):
        raise NotWritten
    found = {}
    for zero_A, zero_B in ((False, True), (True, False), (True, True)):
        layer = LoRALayer(nn.Linear(6, 5, dtype=torch.float64), 2, 2)
        layer.A.data = torch.zeros_like(layer.A) if zero_A else torch.randn_like(layer.A)
        layer.B.data = torch.zeros_like(layer.B) if zero_B else torch.randn_like(layer.B)
        layer(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
        found[zero_A, zero_B] = "".join(name for name in "AB" if getattr(layer, name).grad.any())
    for (question, answer), right in zip(answers.items(), found.values(), strict=True):
        given = "".join(sorted(str(answer).upper().replace(",", "").replace(" ", "")))
        if given != right:
            raise Wrong(
                f"{question}: autograd finds another answer than {answer!r}; "
                "A's gradient is B^T times something, B's is something times A x"
            )
