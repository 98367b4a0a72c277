"""bench/gpu.py at a tiny size on the CPU: it runs, and both sides of a step train alike."""

import re
import sys

import pytest
import torch
from conftest import transformers

from bench import gpu
from bench.real_sizes import random_model
from bench.step import ours, theirs
from fast.loss import head_is_large_and_frozen
from gpt import save_pretrained

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and transformers say of themselves
CPU, (NAME, CONFIG) = torch.device("cpu"), next(iter(gpu.TINY.items()))


def test_it_runs_and_says_what_it_took(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--steps", "2"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    out = capsys.readouterr().out
    assert not ended.value.code, out
    assert re.findall(r"^tiny, 2 x 16 tokens, (\w+)", out, re.MULTILINE) == ["ours", "theirs"]
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", out)]
    assert losses == pytest.approx([9.9, 9.9], abs=0.2)  # ln(20000): both began as random models
    assert re.search(r"^tiny: [\d,]+ questions/s", out, re.MULTILINE)


def test_both_sides_of_a_step_train_alike(tmp_path):
    """With the same weights, three steps have the same losses."""
    model = random_model(CONFIG, CPU, torch.float32)
    save_pretrained(model, tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    x = torch.randint(CONFIG.vocab_size, (4, 12))
    sides = ours(model, gpu.TARGETS, 4, accumulate=2), theirs(other, gpu.TARGETS, 4)
    for side in sides:
        for group in side.optimizer.param_groups:
            group["lr"] = 1.0  # the model is tiny
    assert head_is_large_and_frozen(model.lm_head)  # it is the loss in chunks that is held against theirs
    mine, others = ([side.step(x, x.roll(-1, dims=1)).item() for _ in range(3)] for side in sides)
    assert mine == pytest.approx(others, rel=1e-4) and abs(mine[2] - mine[0]) > 1e-2
