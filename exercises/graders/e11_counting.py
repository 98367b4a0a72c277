"""Grades exercise 11: real layers are made on the meta device, which has shapes but no numbers, and counted."""

import torch
from torch import nn

from exercises import NotWritten
from exercises.grading import check_number, require
from lora import LoRALayer, count_trainable
from mica import MiCALayer

LLAMA = {"q": (4096, 4096), "v": (4096, 4096)}
QWEN = {
    "q": (3584, 3584), "k": (512, 3584), "v": (512, 3584), "o": (3584, 3584),
    "gate": (18944, 3584), "up": (18944, 3584), "down": (3584, 18944),
}  # fmt: skip
QUESTIONS = {
    "LLAMA_LORA_RANK_128": (LLAMA, LoRALayer, 128, 32),
    "LLAMA_MICA_RANK_16": (LLAMA, MiCALayer, 16, 32),
    "QWEN_LORA_RANK_32": (QWEN, LoRALayer, 32, 28),
    "QWEN_MICA_RANK_32": (QWEN, MiCALayer, 32, 28),
}


def count(layer_class, shape, rank):
    linear = nn.Linear(shape[1], shape[0], bias=False, device="meta")
    with torch.device("meta"):
        return count_trainable(layer_class(linear, rank, rank))[0]


def numbers(student):
    """The four numbers."""
    if any(getattr(student, name) is ... for name in QUESTIONS):
        raise NotWritten
    for name, (shapes, layer_class, rank, layers) in QUESTIONS.items():
        one = sum(count(layer_class, shapes[linear], rank) for linear in ("q", "v"))
        found, right = check_number(getattr(student, name), name), one * layers
        why = (
            "that is one layer's" if found == one
            else "q and v are two linears; LoRA trains two factors, MiCA one" if found in (right / 2, right * 2)
            else "write the whole number, not millions" if found * 1e6 == round(right / 1e4) * 1e4 or found < 1000
            else "q_proj and v_proj only" if found > 3 * right
            else "which side of W does each factor have, and which factors are trained?"
        )  # fmt: skip
        require(found == right, f"{name} is not {found:,.0f}: {why}")


def part(student):
    """mica_part."""
    for shape in ((64, 64), (512, 3584), (18944, 3584), (3584, 18944)):
        found = check_number(student.mica_part(*shape), "your part")
        right = count(MiCALayer, shape, 4) / count(LoRALayer, shape, 4)
        if abs(found - right) > 1e-6:
            other = abs(found - (1 - right)) < 1e-6
            why = "that is B's part, but MiCA trains A" if other else "A is (rank, in), B is (out, rank)"
            require(
                False, f"of a {shape[0]} x {shape[1]} weight MiCA does not train {found:.3f} of what LoRA does: {why}"
            )


def extremes(student):
    """LARGEST_PART and SMALLEST_PART."""
    parts = {name: count(MiCALayer, shape, 4) / count(LoRALayer, shape, 4) for name, shape in QWEN.items()}
    if student.LARGEST_PART is ... or student.SMALLEST_PART is ...:
        raise NotWritten
    for name, best in (("LARGEST_PART", max(parts.values())), ("SMALLEST_PART", min(parts.values()))):
        found = str(getattr(student, name)).removesuffix("_proj")
        require(found in parts, f"{name} is {found!r}: give the name of a linear, one of {', '.join(parts)}")
        require(
            parts[found] == best,
            f"{name} is not {found}: A is as long as W's input, B as its output; compare the shapes",
        )
