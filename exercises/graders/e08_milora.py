"""Grades exercise 8: the product against NumPy's minor components in float64, and what the start changes: nothing."""

import numpy as np

from exercises.graders.layers import check_factors, check_no_op, start
from exercises.grading import check_number, judge, numpy, part, require, weight

TITLE, MINUTES = "MiLoRA's start", 20
SOLUTIONS = ["milora.py: MiLoRALayer.start"]


@part("MyMiLoRA.start", 6)
def check_start(student):
    for shape in ((30, 20), (20, 30), (24, 24)):
        for alpha in (4, 16, 6):
            W = weight(*shape)
            [made] = student(start, "MyMiLoRA", W, 4, alpha, base="MiLoRALayer")
            A, B = check_factors(made, W, 4)
            U, S, Vh = np.linalg.svd(numpy(W), full_matrices=False)
            minor, scale = U[:, -4:] * S[-4:] @ Vh[-4:], alpha / 4
            mistakes = {
                f"it is {scale:.3g} times as large: divide S_m by alpha / rank before taking the root": scale * minor,
                "it is the major components: that is PiSSA": U[:, :4] * S[:4] @ Vh[:4],
            }
            said = f"(alpha / rank) B A is not U_m S_m V_m^T, the minor components of W (alpha {alpha}, rank 4)"
            judge(scale * B @ A, minor, said, mistakes, 1e-4 * S[-4])
            even = np.allclose(np.linalg.norm(A, axis=1), np.linalg.norm(B, axis=0), rtol=1e-3)
            require(even, "the product is right, but A and B do not share S_m evenly: each gets its square root")
    check_no_op(student, "MyMiLoRA", alpha=16)


@part("left_over", 2)
def check_undivided(student):
    """By taking it off a weight and looking at what is left."""
    for s, alpha, rank in ((0.5, 16, 4), (0.25, 8, 8), (0.5, 2, 4), (1.0, 64, 8)):
        u, v = np.eye(3)[:, :1], np.eye(4)[:, :1]
        rest = s * u @ v.T - alpha / rank * (np.sqrt(s) * u) @ (np.sqrt(s) * v.T)
        found = check_number(student.call("left_over", s, alpha, rank), "your answer")
        said = f"for s = {s}, alpha = {alpha}, rank = {rank} it is not {found:.3g}: B0 A0 alone has s there"
        require(abs(found - (u.T @ rest @ v).item()) < 1e-6, said)
