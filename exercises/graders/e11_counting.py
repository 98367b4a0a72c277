"""Grades exercise 11: real layers are made on the meta device, which has shapes but no numbers, and counted."""

import functools

import torch
from torch import nn

from exercises.grading import check_number, judge, part, require
from exercises.process import constant
from lora import LoRALayer, count_trainable
from mica import MiCALayer

TITLE, MINUTES = "counting parameters", 20
SOLUTIONS = ["lora.py: count_trainable"]
WITHHELD = ["bench/footprint.py: row"]
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


@functools.cache
def count(layer_class, shape, rank=4):
    linear = nn.Linear(shape[1], shape[0], bias=False, device="meta")
    with torch.device("meta"):
        return count_trainable(layer_class(linear, rank, rank))[0]


@part("the four numbers", 4)
def check_numbers(student):
    for name, (shapes, layer_class, rank, layers) in QUESTIONS.items():
        found = check_number(student(constant, name), name)
        right = layers * sum(count(layer_class, shapes[linear], rank) for linear in "qv")
        said = f"{name} is not {found:,.9g}, as a whole number, of q_proj and v_proj in all layers"
        near = [n for n in (layers, 2, 1 / 2) if found * n == right]
        require(found == right, f"{said}; it is {1 / near[0]:.3g} times what is right" if near else said)


@part("mica_part", 1)
def check_part(student):
    for shape in ((64, 64), (512, 3584), (18944, 3584), (3584, 18944)):
        found = check_number(student.call("mica_part", *shape), "your part")
        right = count(MiCALayer, shape) / count(LoRALayer, shape)
        said = f"of a {shape[0]} x {shape[1]} weight MiCA does not train {found:.3f} of what LoRA does"
        judge(found, right, said, {"that is B's part, but MiCA trains A": 1 - right})


@part("LARGEST_PART, SMALLEST_PART", 1)
def check_extremes(student):
    parts = {name: count(MiCALayer, shape) / count(LoRALayer, shape) for name, shape in QWEN.items()}
    for name, best in (("LARGEST_PART", max(parts.values())), ("SMALLEST_PART", min(parts.values()))):
        answer = student(constant, name)
        answer = answer if isinstance(answer, (list, tuple)) and answer else [answer]
        for found in (str(item).strip().lower().removesuffix("_proj") for item in answer):
            require(found in parts, f"{name} is {found!r}: give the name of a linear, one of {', '.join(parts)}"[:250])
            wide = f"{name} is not {found}: A is as long as W's input, B as its output; compare the shapes"
            require(parts[found] == best, wide)
