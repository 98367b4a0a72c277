"""The minor subspace: fast/subspace.py beside torch.linalg.svd, and MiCA's set-up beside PEFT's, in one run.

    pip install -r requirements-test.txt
    python -m bench.minor_subspace                     # three to four minutes on two cores
    python -m bench.minor_subspace --shapes 576x576    # a look

Printed for each shape (out x in) and rank, in float32: the median seconds of each, their ratio, and for both the
largest sine of an angle between the subspace found and that of numpy's SVD in float64. The matrices are random, with a
spectrum like that of a trained layer: see trained_like. Then, for a random model of SmolLM2-135M's shape, the seconds
of PEFT's get_peft_model with init_lora_weights="mica" and of replace_linears with MiCALayer, rank 16.
"""

import os
import statistics

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from bench.real_sizes import SHAPES, peer
from bench.timing import median_seconds, timed
from fast.subspace import minor_components
from gpt.model import GPT
from lora import replace_linears
from mica import MiCALayer
from tools.cli import Parser, one_sentence_errors, progress

MATRICES = "576x576 192x576 2048x2048 512x2048 4096x4096 8192x2048 2048x8192".split()
RANKS = (16, 64)
TARGETS = {
    "q_proj, v_proj": ["q_proj", "v_proj"],
    "all linears": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def trained_like(rows, columns):
    """A float32 matrix (rows, columns) with a bulk, a heavy tail and nothing exactly zero, as trained layers have.

    Gaussian noise of variance 1 / columns, its rows and columns scaled by log-normal factors (sigma 0.3), plus a
    quarter of min(rows, columns) random directions with strengths 5 k^-0.7. The smallest singular values of a square
    one are then near zero and evenly spaced; those of a rectangular one are neither.
    """
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    W = randn(rows, columns) / columns**0.5 * torch.exp(0.3 * randn(rows, 1)) * torch.exp(0.3 * randn(1, columns))
    k = min(rows, columns) // 4
    strengths = 5 * torch.arange(1, k + 1) ** -0.7
    return W + (randn(rows, k) / rows**0.5 * strengths) @ (randn(k, columns) / columns**0.5)


def largest_sine(B, U):
    """Of the principal angles between two subspaces given by orthonormal columns (n, r)."""
    B, U = torch.linalg.qr(B.double()).Q, U.double()
    return torch.linalg.matrix_norm(B - U @ (U.T @ B), 2).item()


def bench_shape(rows, columns):
    W = trained_like(rows, columns)
    repeats = 15 if max(rows, columns) < 1000 else 3
    exact = torch.from_numpy(np.linalg.svd(W.double().numpy(), full_matrices=False)[0])  # (rows, min(rows, columns))
    svd_seconds, svd = median_seconds(lambda: torch.linalg.svd(W, full_matrices=False), repeats)
    for rank in RANKS:
        ours_seconds, B = median_seconds(lambda: minor_components(W, rank)[0], repeats)
        sines = largest_sine(B, exact[:, -rank:]), largest_sine(svd.U[:, -rank:], exact[:, -rank:])
        print(
            f"{f'{rows} x {columns}':12} {rank:4} {ours_seconds:9.4f} {svd_seconds:9.4f}"
            f" {svd_seconds / ours_seconds:6.1f} {sines[0]:11.1e} {sines[1]:11.1e}",
            flush=True,
        )


def bench_setup(name, targets, repeats=3):
    """All of a model's adapters made: by PEFT, by us. The models and their weights are made before, and not timed."""
    import peft

    theirs, ours = [], []
    for _ in range(repeats):
        model = peer(SHAPES["smollm2-135m"])
        settings = peft.LoraConfig(r=16, lora_alpha=16, target_modules=targets, init_lora_weights="mica")
        theirs.append(timed(lambda: peft.get_peft_model(model, settings))[0])
        model = GPT(SHAPES["smollm2-135m"])
        ours.append(timed(lambda: replace_linears(model, MiCALayer, 16, 16, targets))[0])
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    print(f"{name:16} ours {ours:6.2f} s   PEFT {theirs:6.2f} s   ratio {theirs / ours:5.1f}", flush=True)


def main():
    parser = Parser(prog="python -m bench.minor_subspace", description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=MATRICES, metavar="OUTxIN", help="of the matrices")
    args = parser.parse_args()
    with one_sentence_errors("python -m bench.minor_subspace"):
        shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes]
        print(f"{torch.get_num_threads()} threads; seconds and largest sines\n")
        print("shape        rank      ours       svd  ratio   sine ours    sine svd", flush=True)
        for rows, columns in progress(shapes, "shapes"):
            bench_shape(rows, columns)
        print("\nall adapters of SmolLM2-135M's shape, rank 16")
        for name, targets in TARGETS.items():
            bench_setup(name, targets)


if __name__ == "__main__":
    main()
