"""Grades exercise 3: A and B as they start, what moves when everything is trained, and the first gradients by autograd."""

import numpy as np
import torch
from torch import nn

from exercises.graders.layers import check_factors, check_frozen, check_no_op, start
from exercises.grading import apart, numpy, part, require, weight
from exercises.process import constant
from lora import LoRALayer

TITLE, MINUTES = "frozen means frozen", 20
SOLUTIONS = ["lora.py: LoRALayer.__init__", "mica.py: MiCALayer.start"]


@part("MyMiCA.init_factors", 6)
def check_start(student):
    for shape in ((30, 20), (20, 30), (24, 24)):
        W = weight(*shape)
        [made] = student(start, "MyMiCA", W, 4, 8)
        A, B = check_factors(made, W, 4)
        require(B.any(), "your B is zero: that is LoRA in another dress; take the minor directions of W")
        require(not A.any(), "your A is not zero, so the layer does not start as the linear it was")
        U = np.linalg.svd(numpy(W), full_matrices=False)[0][:, -4:]
        spans = apart(U, np.linalg.qr(B)[0]) < 1e-3
        require(spans, "your B does not span U[:, -r:], the minor directions of W (exercise 2)")
        level = np.abs(B.T @ B - np.eye(4)).max() < 1e-3
        require(level, "your B spans the minor directions, but its columns are not orthonormal, as U's are")
    check_frozen(student, "MyMiCA", "B", "A")
    check_no_op(student, "MyMiCA")


def read(answer):
    """An answer in whatever way it is written ("ab", ["B"], None, "neither") as "A", "B", "AB" or "", else as it is."""
    text = "" if answer is None else answer if isinstance(answer, str) else " ".join(map(str, answer))
    text = text.upper().strip()
    return "" if text in ("NEITHER", "NONE", "NOTHING") else "".join(sorted(set(text) - set(" ,;+&/")))


@part("FIRST_GRADIENTS", 2)
def check_first_gradients(student):
    answers = student(constant, "FIRST_GRADIENTS")
    whole = isinstance(answers, dict) and len(answers) == 3
    require(whole, "FIRST_GRADIENTS has other questions than it came with: only put your answers in place of ...")
    for (question, answer), zero in zip(answers.items(), ("B", "A", "AB")):
        layer = LoRALayer(nn.Linear(6, 5, dtype=torch.float64), 2, 2)
        layer.A.data = torch.randn_like(layer.A) * ("A" not in zero)
        layer.B.data = torch.randn_like(layer.B) * ("B" not in zero)
        layer(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
        right = "".join(name for name in "AB" if getattr(layer, name).grad.any())
        said = f"{question}: autograd finds otherwise than {answer!r}"[:150]
        require(read(answer) == right, f"{said}; A's gradient is B^T times something, B's is something times A x")
