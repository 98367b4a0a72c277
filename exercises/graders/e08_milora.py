"""Grades exercise 8: the product against NumPy's minor components in float64, what is kept, and what the start changes."""

import copy

import numpy as np
import torch
from torch import nn

from exercises.graders.e02_directions import spectrum
from exercises.grading import check_number, check_tensor, matrix, numpy, require, same_bits
from milora import MiLoRALayer


def made(student, shape=(30, 20), alpha=16, dtype=torch.float32):
    linear = nn.Linear(shape[1], shape[0], dtype=dtype)
    linear.weight.data = matrix(*shape, spectrum(min(shape), 4)).to(dtype)
    return student.MyMiLoRA(linear, 4, alpha)


def start(student):
    """MyMiLoRA."""
    written = student.MyMiLoRA.init_factors is not MiLoRALayer.init_factors
    require(written, "init_factors is still MiLoRALayer's own: put yours back into the class")
    for shape in ((30, 20), (20, 30), (24, 24)):
        for alpha in (4, 16, 6):
            one_start(made(student, shape, alpha), shape, alpha)
    keeps(student)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layer, x = made(student, dtype=dtype), torch.randn(5, 20, dtype=dtype)
        require(
            same_bits(layer(x), layer.linear(x)), f"with W in {dtype} your layer does not start as the linear it was"
        )


def one_start(layer, shape, alpha):
    wanted = {"A": (4, shape[1]), "B": (shape[0], 4)}
    for name in ("A", "B", "A0", "B0"):
        check_tensor(getattr(layer, name, None), wanted[name[0]], f"your {name}")
    for name in ("A", "B"):
        require(
            isinstance(getattr(layer, name), nn.Parameter), f"your {name} would not be trained: make it an nn.Parameter"
        )
    A, B, A0, B0 = (numpy(getattr(layer, name)) for name in ("A", "B", "A0", "B0"))
    require(np.array_equal(A, A0) and np.array_equal(B, B0), "your A0 and B0 are not A and B as they start")
    U, S, Vh = np.linalg.svd(numpy(layer.linear.weight), full_matrices=False)
    minor = U[:, -4:] * S[-4:] @ Vh[-4:]
    found = alpha / 4 * B @ A
    if not np.allclose(found, minor, atol=1e-4 * S[-4]):
        major = U[:, :4] * S[:4] @ Vh[:4]
        ratio = (found * minor).sum() / (minor * minor).sum()
        why = (
            "it is the major components: that is PiSSA" if np.abs((found * major).sum()) > 0.5 * (major * major).sum() * 4 / alpha
            else f"it is {ratio:.3g} times as large: divide S_m by alpha / rank before taking the root"
            if np.allclose(found, ratio * minor, atol=1e-4 * S[-4]) and ratio > 1e-6
            else "each factor gets the square root of S_m, so that the product has S_m"
        )  # fmt: skip
        require(
            False, f"(alpha / rank) B A is not U_m S_m V_m^T, the minor components of W (alpha {alpha}, rank 4): {why}"
        )
    even = np.allclose(np.linalg.norm(A, axis=1), np.linalg.norm(B, axis=0), rtol=1e-3)
    require(even, "the product is right, but A and B do not share S_m evenly: each gets its square root")


def keeps(student):
    layer = made(student)
    start_A, start_B = layer.A0.detach().clone(), layer.B0.detach().clone()
    layer.requires_grad_(True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1)
    x = torch.randn(16, 20)
    for _ in range(3):
        (layer(x) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    same = torch.equal(layer.A0, start_A) and torch.equal(layer.B0, start_B)
    shared = layer.A0.untyped_storage().data_ptr() == layer.A.untyped_storage().data_ptr()
    shared |= layer.B0.untyped_storage().data_ptr() == layer.B.untyped_storage().data_ptr()
    require(
        not shared, "your A0 or B0 is the same memory as A or B and moves with it: the change is always 0; clone it"
    )
    require(same, "your A0 or B0 drifts as everything is trained: make them nn.Buffers")
    require(not torch.equal(layer.A, start_A) and not torch.equal(layer.B, start_B), "your A or B never moves")
    require(
        {"A0", "B0"} <= layer.state_dict().keys(), "your A0 and B0 are not saved with the layer: make them nn.Buffers"
    )
    require(copy.deepcopy(layer).to("meta").A0.is_meta, "your A0 stays behind when the layer moves to another device")


def undivided(student):
    """left_over, by taking it off a weight and decomposing what is left."""
    for s, alpha, rank in ((0.5, 16, 4), (0.25, 8, 8), (0.5, 2, 4), (1.0, 64, 8)):
        u, v = np.eye(3)[:, :1], np.eye(4)[:, :1]
        rest = s * u @ v.T - alpha / rank * (np.sqrt(s) * u) @ (np.sqrt(s) * v.T)
        found = check_number(student.left_over(s, alpha, rank), "your answer")
        require(
            abs(found - (u.T @ rest @ v).item()) < 1e-6,
            f"for s = {s}, alpha = {alpha}, rank = {rank} it is another number than {found:.3g}: B0 A0 alone has s there",
        )
