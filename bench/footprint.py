"""How many parameters MiCA trains beside LoRA, at the shapes of real models: "half" holds for square weights only.

    python -m bench.footprint

For one weight (out, in) LoRA trains rank * (in + out) numbers, MiCA rank * in, and its mirror image, which trains B
instead of A, rank * out. The models are made of shapes without memory, adapted and counted by lora.py's own functions.
"""

import torch

from ablations import TransposedMiCALayer
from bench.real_sizes import SHAPES
from gpt.model import GPT
from lora import LoRALayer, count_trainable, replace_linears
from mica import MiCALayer
from tools.cli import Parser
from train import block_linears

ROWS = [  # model, linears, rank of LoRA and rank of MiCA; no linears: all of the blocks
    ("llama-2-7b", ("q_proj", "v_proj"), 128, 16),  # as the paper counts them
    ("qwen2.5-7b", ("q_proj", "v_proj"), 32, 32),
    ("llama-2-7b", ("q_proj",), 16, 16),  # square
    ("llama-3-8b", ("k_proj",), 16, 16),  # few key/value heads: MiCA trains the long side
    ("qwen2.5-7b", ("k_proj",), 16, 16),
    ("llama-2-7b", ("gate_proj", "up_proj"), 16, 16),  # here the short one
    ("llama-2-7b", ("down_proj",), 16, 16),
    ("llama-2-7b", (), 16, 16),
    ("llama-3-8b", (), 16, 16),
    ("qwen2.5-7b", (), 16, 16),
    ("smollm2-135m", (), 16, 16),
]
COLUMNS = ("model", "linears", "LoRA: rank, trained", "MiCA: rank, trained", "MiCA / LoRA", "transposed / LoRA")


def adapted(name, layer_class, rank, targets):
    """The model of SHAPES with adapters of this class, all on the meta device: it has shapes but no numbers."""
    with torch.device("meta"):
        model = GPT(SHAPES[name])
        replace_linears(model, layer_class, rank, rank, targets or block_linears(model))
    return model


def millions(count):
    return f"{count / 1e6:.2f}M"


def row(name, targets, lora_rank, mica_rank):
    """The cells of one line of the table."""
    kinds = (LoRALayer, lora_rank), (MiCALayer, mica_rank), (TransposedMiCALayer, mica_rank)
    lora, mica, transposed = (count_trainable(adapted(name, kind, rank, targets))[0] for kind, rank in kinds)
    return (
        name,
        " ".join(targets) or "all",
        f"{lora_rank}, {millions(lora)}",
        f"{mica_rank}, {millions(mica)}",
        f"{mica / lora:.2%}",
        f"{transposed / lora:.2%}",
    )


def table(rows):
    lines = [COLUMNS, ["---"] * 2 + ["---:"] * 4, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    Parser(prog="python -m bench.footprint", description=__doc__).parse_args()
    print(table([row(*line) for line in ROWS]))
