"""Exercise 2: minor directions. Where in its output does a weight write least?

Goal: from W = U S V^T, its singular value decomposition, take the columns of U that go with the smallest singular
values.

    B = U[:, -r:]                                                MiCA, arXiv 2604.01694

Shapes: W (out, in), tall, wide or square; U (out, k), S (k,) with the largest first, V^T (k, in), k = min(out, in); B
(out, r) with orthonormal columns. Signs are arbitrary. W may be bfloat16, which torch decomposes in no version:
compute in another dtype. Whatever you compute in, the grader asks for no more digits than that dtype has.

Measure before you look on: there is also a "full" decomposition, in which U is (out, out). For a tall W, how much
does W write to *its* last r columns, beside those of the thin one?  python -m exercises 2 --measure
"""

import torch

from exercises import NotWritten
from exercises.measuring import base_model


def minor_directions(W, rank):
    """W (out, in) -> B (out, rank), float32 or better for a float32 W."""
    raise NotWritten


def never_written(out_features, in_features):
    """How many independent directions of its output does a W of full rank, out x in, never write to, whatever it reads?"""
    raise NotWritten


def measure():
    """||W^T b|| is how much W writes to a direction b; here its root mean square over the columns of B."""
    torch.manual_seed(0)
    model, _ = base_model()
    block = model.layers[0]
    print(f"{'':32}{'mine':>10}{'full, last':>12}{'random':>10}")
    for name, linear in (("q_proj", block.self_attn.q_proj), ("gate_proj", block.mlp.gate_proj)):
        W = linear.weight.detach()
        choices = [
            minor_directions(W, 8),
            torch.linalg.svd(W, full_matrices=True).U[:, -8:],
            torch.linalg.qr(torch.randn(W.shape[0], 8)).Q,
        ]
        written = [(W.T @ B.to(W)).square().sum(0).mean().sqrt().item() for B in choices]
        print(f"{name:12}{str(tuple(W.shape)):20}{written[0]:10.4f}{written[1]:12.6f}{written[2]:10.4f}")
