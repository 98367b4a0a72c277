from fractions import Fraction

import torch

NUMBERS = {
    "LLAMA_LORA_RANK_128": 67_108_864,
    "LLAMA_MICA_RANK_16": 4_194_304,
    "QWEN_LORA_RANK_32": 10_092_544,
    "QWEN_MICA_RANK_32": 6_422_528,
}
REFERENCE = NUMBERS | {"mica_part": lambda out, in_: in_ / (in_ + out), "LARGEST_PART": "k", "SMALLEST_PART": "gate"}
DIFFERENT = {
    "as they are counted": {
        "LLAMA_LORA_RANK_128": 32 * 2 * 128 * (4096 + 4096),
        "LLAMA_MICA_RANK_16": 32 * 2 * 16 * 4096,
        "QWEN_LORA_RANK_32": 28 * 32 * (3584 + 3584 + 512 + 3584),
        "QWEN_MICA_RANK_32": 28 * 32 * 2 * 3584,
        "mica_part": lambda out, in_: 1 / (1 + out / in_),
        "LARGEST_PART": "v_proj",
        "SMALLEST_PART": "up",
    },
    "other kinds": {
        "QWEN_MICA_RANK_32": 6_422_528.0,
        "mica_part": lambda out, in_: Fraction(in_, in_ + out),
        "LARGEST_PART": "K",
        "SMALLEST_PART": ("gate", "up"),
    },
    "a list": {"LARGEST_PART": ["k_proj", "v_proj"], "mica_part": lambda out, in_: torch.tensor(in_ / (in_ + out))},
}
WRONG = {
    "one layer": ({"LLAMA_LORA_RANK_128": 67_108_864 // 32}, "0.0312 times what is right"),
    "q only": ({"LLAMA_LORA_RANK_128": 67_108_864 // 2}, "0.5 times"),
    "in millions": ({"LLAMA_LORA_RANK_128": 67.11}, "whole number"),
    "both factors": ({"LLAMA_MICA_RANK_16": 2 * 4_194_304}, "2 times"),
    "as if k and v were square": ({"QWEN_LORA_RANK_32": 28 * 32 * 4 * 3584}, "not 12,845,056"),
    "B instead of A": ({"QWEN_MICA_RANK_32": 28 * 32 * (3584 + 512)}, "q_proj and v_proj"),
    "one right of two": ({"LARGEST_PART": ("k", "q")}, "not q"),
    "always half": ({"mica_part": lambda out, in_: 0.5}, "512 x 3584"),
    "B's part": ({"mica_part": lambda out, in_: out / (in_ + out)}, "B's part"),
    "the largest linear": ({"LARGEST_PART": "gate"}, "LARGEST_PART"),
    "no linear": ({"LARGEST_PART": "lm_head"}, "name of a linear"),
}
