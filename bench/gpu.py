"""All that matters on one GPU, in one command meant to take less than nine minutes from a cold start.

    python bench/gpu.py             # a GPU with 40 GB or more
    python bench/gpu.py --tiny      # does it run at all? On a CPU, with models of nothing much

It needs torch and requirements.txt, no file from elsewhere: the models are random ones of real shapes, made on the
device, weights in bfloat16, adapters in float32. Where transformers and PEFT are installed they are measured beside.
Printed:
    the card, and the rate of a large matrix product on it, in bfloat16
    for each shape: setting MiCA up (rank 16, q_proj and v_proj), a training step, tokens a second, peak memory, and the
        matmul share: the operations that such a step needs at least (see real_sizes.py), as a share of that rate;
        whether attention takes its flash kernel; how often a step makes the host wait; what computes in float64
    questions a second at SmolLM2-135M's shape: prompts of 60 tokens, four endings of 25
    train.py --method all on the shipped data: its seconds and its table
A part that fails says why, and the next one runs; one that would begin after seven minutes is left out.
"""

import gc
import importlib.util
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from bench.real_sizes import SHAPES, matmul_rate, multiplied_weights, peer, random_model
from bench.step import ours, theirs
from bench.timing import forget_peak, peak, timed
from fast.scoring import answer_questions
from gpt import GPTConfig
from tools.cli import Parser, one_sentence_errors

LIMIT = 7 * 60  # seconds after which nothing new begins
WIDE = 1024  # above this width PEFT's adapters start as LoRA's: it decomposes weights as a whole, which takes minutes
TARGETS, RANK = ("q_proj", "v_proj"), 16
WINDOWS = {"smollm2-135m": (32, 512), "qwen2.5-0.5b": (16, 512), "llama-2-7b": (8, 512)}  # a step: windows, tokens each
TINY = {"tiny": GPTConfig("qwen2", 20000, 64, 32, 48, 2, 4, 2, 8)}  # a vocabulary large enough for the loss in chunks


class DoublePrecision(TorchDispatchMode):
    """Names of the operations that gave a float64 tensor on a device."""

    def __init__(self, device):
        super().__init__()
        self.device, self.names = device, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64 and tensor.device == self.device:
                self.names.add(operation.overloadpacket.__name__)
        return result

    def __str__(self):
        return ", ".join(sorted(self.names)) or "nothing"


def bench_step(name, config, shape, steps, device, dtype, rate):
    """Print set-up, step and what is seen in one of our steps, then the same of transformers and PEFT."""
    x = torch.randint(config.vocab_size, shape, device=device)
    y = x.roll(-1, dims=1)
    beside = all(importlib.util.find_spec(package) for package in ("transformers", "peft"))
    for who in ("ours", "theirs") if beside else ("ours",):
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        forget_peak(device)
        model = random_model(config, device, dtype) if who == "ours" else peer(config, device, dtype)
        weights = multiplied_weights(model)
        start = "mica" if config.hidden_size <= WIDE else True
        adapt = partial(ours, model, TARGETS, RANK) if who == "ours" else partial(theirs, model, TARGETS, RANK, start)
        set_up, side = timed(adapt, device)
        side.steps(x, y, 2)  # not counted: kernels are chosen, memory is got
        seconds, loss = timed(partial(side.steps, x, y, steps), device)
        seconds /= steps
        tokens = x.numel() / seconds
        print(f"{name}, {shape[0]} x {shape[1]} tokens, {who}: loss {loss.item():.3f}")
        kind = "" if who == "ours" or start == "mica" else " (as LoRA)"
        print(f"  set-up {set_up:.2f} s{kind}; step {seconds:.4f} s; {tokens:,.0f} tokens/s;", end=" ")
        print(f"matmul share {4 * weights * tokens / rate:.0%}; peak memory {peak(device) / 1e9:.2f} GB", flush=True)
        if who == "ours":
            look(side, x, y, config, device, dtype)
        del model, side


def look(side, x, y, config, device, dtype):
    """Print what only costs: float64, waiting for the device, attention without its flash kernel."""
    with DoublePrecision(device) as step:
        side.step(x, y)
    print(f"  in float64: {step} in a step", end="")
    if config.hidden_size <= WIDE:
        with DoublePrecision(device) as set_up:
            ours(random_model(config, device, dtype), TARGETS, RANK)
        print(f"; {set_up} in the set-up", end="")
    print(flush=True)
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            side.step(x, y)
            torch.cuda.set_sync_debug_mode("default")
        try:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                side.step(x, y)
            flash = "its flash kernel"
        except RuntimeError as error:
            flash = f"no flash kernel ({str(error).splitlines()[0]})"
        print(f"  a step makes the host wait {len(waits)} times; attention takes {flash}", flush=True)


def bench_scoring(name, config, n, device, dtype):
    model = random_model(config, device, dtype).eval()
    generator = torch.Generator().manual_seed(0)

    def ids(length):
        return torch.randint(1, config.vocab_size, (length,), generator=generator).tolist()

    lengths = (60, 25) if config.context_length > 85 else (20, 5)
    questions = [(ids(lengths[0]), [ids(lengths[1]) for _ in range(4)], 0) for _ in range(n)]
    answer_questions(model, questions[: n // 4], {0}, 0)  # not counted
    seconds, _ = timed(lambda: answer_questions(model, questions, {0}, 0), device)
    print(f"{name}: {n / seconds:,.0f} questions/s", flush=True)


def bench_train(device, tiny):
    """train.py in a process of its own, as a reader runs it."""
    with tempfile.TemporaryDirectory() as folder:
        line = ["--method", "all", "--device", device.type, "--out", f"{folder}/out", "--examples", "0"]
        if tiny:  # a few texts and questions
            corpus, asked = (ROOT / "data/new" / file for file in ("corpus.txt", "questions.jsonl"))
            Path(folder, "few.txt").write_text("\n\n".join(corpus.read_text().split("\n\n")[:4]))
            Path(folder, "few.jsonl").write_text("\n".join(asked.read_text().splitlines()[:4]))
            line += ["--corpus", f"{folder}/few.txt", "--qa", f"{folder}/few.jsonl", "--retention", "--text"]
            line += ["--epochs", "1"]
        command = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, timeout=100)
        seconds, done = timed(lambda: command([sys.executable, "train.py", *line]))
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        print(f"train.py --method all: {seconds:.0f} s\n{done.stdout}", flush=True)


def main():
    parser = Parser(prog="bench/gpu.py", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small enough for a CPU: shows that it runs, no more")
    parser.add_argument("--steps", type=int, default=10, help="training steps that are timed")
    args = parser.parse_args()
    began = time.perf_counter()
    with one_sentence_errors("bench/gpu.py"):
        if not (args.tiny or torch.cuda.is_available()):
            raise ValueError("there is no GPU here that torch can use: --tiny shows that it runs, on the CPU")
        device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        rate = matmul_rate(device, dtype, 256 if args.tiny else 8192)
        print(f"{card}, torch {torch.__version__}: {rate / 1e12:,.1f} Tflop/s in a product of bfloat16", flush=True)
        shapes, windows = (TINY, {"tiny": (2, 16)}) if args.tiny else (SHAPES, WINDOWS)
        parts = [
            partial(bench_step, name, shapes[name], shape, args.steps, device, dtype, rate)
            for name, shape in windows.items()
        ]
        smallest = next(iter(windows))
        parts.append(partial(bench_scoring, smallest, shapes[smallest], 8 if args.tiny else 1024, device, dtype))
        parts.append(partial(bench_train, device, args.tiny))
        failed = 0
        for part in parts:
            try:
                if time.perf_counter() - began > LIMIT:
                    raise RuntimeError(f"left out: {LIMIT} seconds have passed")
                part()
            except Exception as error:  # out of memory, say: the other parts are still worth having
                failed += 1
                print(f"failed: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
        print(f"{time.perf_counter() - began:.0f} s in all")
        if failed:
            sys.exit(3)


if __name__ == "__main__":
    main()
