"""bench/footprint.py: the papers' numbers of trained parameters, and the share of LoRA's that MiCA trains."""

import pytest
import torch

from ablations import TransposedMiCALayer
from bench.footprint import ROWS, SHAPES, adapted, row, table
from gpt.model import GPT
from lora import LoRALayer, count_trainable
from mica import MiCALayer

LLAMA_2, QWEN = ("llama-2-7b", ("q_proj", "v_proj"), 128, 16), ("qwen2.5-7b", ("q_proj", "v_proj"), 32, 32)


def trained(name, layer_class, rank, targets):
    return count_trainable(adapted(name, layer_class, rank, targets))[0]


@pytest.mark.parametrize(
    "line, expected",
    [(LLAMA_2, ["128, 67.11M", "16, 4.19M", "6.25%"]), (QWEN, ["32, 10.09M", "32, 6.42M", "63.64%"])],
)
def test_the_papers_numbers(line, expected):
    assert line in ROWS and list(row(*line)[2:5]) == expected


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("smollm2-135m", 134_515_008),
        ("qwen2.5-0.5b", 494_032_768),
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("qwen2.5-7b", 7_615_616_512),
    ],
)
def test_the_shapes_are_those_of_the_real_models(name, parameters):
    with torch.device("meta"):
        assert count_trainable(GPT(SHAPES[name]))[1] == parameters
    assert len(SHAPES) == 5  # a new shape belongs in this list


@pytest.mark.parametrize("target", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
def test_the_share_follows_from_the_two_sides_of_a_weight(target, name="qwen2.5-7b"):
    config = SHAPES[name]
    width, mlp, kv = config.hidden_size, config.intermediate_size, config.n_kv_heads * config.head_dim
    side_in = {"down_proj": mlp}.get(target, width)
    side_out = {"k_proj": kv, "v_proj": kv, "gate_proj": mlp, "up_proj": mlp}.get(target, width)
    lora, mica, transposed = (trained(name, c, 8, [target]) for c in (LoRALayer, MiCALayer, TransposedMiCALayer))
    assert lora == config.n_layers * 8 * (side_in + side_out)
    assert mica / lora == pytest.approx(side_in / (side_in + side_out))
    assert transposed / lora == pytest.approx(side_out / (side_in + side_out))


def test_the_table():
    assert "| qwen2.5-7b | q_proj v_proj | 32, 10.09M | 32, 6.42M | 63.64% | 36.36% |" in table([row(*QWEN)])
