"""bench/gpu.py at a tiny size on the CPU: each part runs and prints its figures. It has no GPU to be right about."""

import re
import subprocess
import sys
from pathlib import Path

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
ROOT = Path(__file__).resolve().parents[2]
CPU, (NAME, CONFIG) = torch.device("cpu"), next(iter(gpu.TINY.items()))


def test_steps_and_scoring_run_and_say_what_they_took(capsys):
    gpu.bench_step(NAME, CONFIG, (2, 16), 2, CPU, torch.bfloat16, rate=1e9)
    gpu.bench_scoring(NAME, CONFIG, 8, CPU, torch.bfloat16)
    out = capsys.readouterr().out
    assert re.findall(r"^tiny, 2 x 16 tokens, (\w+)", out, re.MULTILINE) == ["ours", "theirs"]
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", out)]
    assert losses == pytest.approx([9.9, 9.9], abs=0.2)  # ln(20000): both began as random models
    assert "in float64: nothing in a step" in out and re.search(r"^tiny: [\d,]+ questions/s", out, re.MULTILINE)


def test_both_sides_of_a_step_train_alike(tmp_path):
    """With the same weights, three steps have the same losses."""
    model = random_model(CONFIG, CPU, torch.float32)
    save_pretrained(model, tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    x = torch.randint(CONFIG.vocab_size, (4, 12))
    sides = ours(model, gpu.TARGETS, 4, accumulate=2, checkpointing=True), theirs(other, gpu.TARGETS, 4)
    for side in sides:
        for group in side.optimizer.param_groups:
            group["lr"] = 1.0  # the model is tiny
    assert head_is_large_and_frozen(model.lm_head)  # it is the loss in chunks that is held against theirs
    mine, others = ([side.step(x, x.roll(-1, dims=1)).item() for _ in range(3)] for side in sides)
    assert mine == pytest.approx(others, rel=1e-4) and abs(mine[2] - mine[0]) > 1e-2


def test_what_computes_in_float64_is_named():
    with gpu.DoublePrecision(CPU) as found:
        torch.ones(2).double().sin().float().cos()
    assert "sin" in found.names and "cos" not in found.names and "sin" in str(found)
    with gpu.DoublePrecision(CPU) as found:
        torch.ones(2).sin()
    assert str(found) == "nothing"


@pytest.mark.slow
@pytest.mark.parametrize("given, code", [(["--tiny", "--steps", "1"], 0), ([], 2)])
def test_the_whole_command_runs_at_a_tiny_size_and_is_refused_without_a_gpu(given, code):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run([sys.executable, ROOT / "bench/gpu.py", *given], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    if code:
        assert done.stderr.splitlines()[-1].startswith("bench/gpu.py: there is no GPU here")
    else:
        assert "failed" not in done.stdout and "questions/s" in done.stdout and "train.py --method all: " in done.stdout
