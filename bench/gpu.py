"""MiCA's set-up, a training step and scoring on one GPU, in one command meant to take less than nine minutes.

    python -m bench.gpu             # a GPU with 40 GB or more
    python -m bench.gpu --tiny      # does it run at all? On a CPU, with models of nothing much

It needs torch and requirements.txt, no file from elsewhere: the models are random ones of real shapes, made on the
device, weights in bfloat16, adapters in float32. Where transformers and PEFT are installed they are measured beside.
Printed:
    the card, and the rate of a large matrix product on it, in bfloat16
    for each shape: setting MiCA up (rank 16, q_proj and v_proj), a training step, tokens a second, peak memory, and the
        matmul share: the operations that such a step needs at least (see real_sizes.py), as a share of that rate
    questions a second at SmolLM2-135M's shape: prompts of 60 tokens, four endings of 25
A part that fails says why, and the next one runs.
"""

import gc
import importlib.util
import sys
from functools import partial

import torch

from bench.real_sizes import SHAPES, matmul_rate, multiplied_weights, peer, random_model
from bench.step import ours, theirs
from bench.timing import forget_peak, peak, timed
from fast.scoring import answer_questions
from gpt import GPTConfig
from tools.cli import Parser, one_sentence_errors

WIDE = 1024  # above this width PEFT's adapters start as LoRA's: it decomposes weights as a whole, which takes minutes
TARGETS, RANK = ("q_proj", "v_proj"), 16
WINDOWS = {"smollm2-135m": (32, 512), "qwen2.5-0.5b": (16, 512), "llama-2-7b": (8, 512)}  # a step: windows, tokens each
TINY = {"tiny": GPTConfig("qwen2", 20000, 64, 32, 48, 2, 4, 2, 8)}  # a vocabulary large enough for the loss in chunks


def bench_step(name, config, shape, steps, device, dtype, rate):
    """Print set-up and step of ours, then the same of transformers and PEFT."""
    x = torch.randint(config.vocab_size, shape, device=device)
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
        side.steps(x, x.roll(-1, dims=1), 2)  # not counted: kernels are chosen, memory is got
        seconds, loss = timed(partial(side.steps, x, x.roll(-1, dims=1), steps), device)
        tokens = x.numel() * steps / seconds
        print(f"{name}, {shape[0]} x {shape[1]} tokens, {who}: loss {loss.item():.3f}")
        kind = "" if who == "ours" or start == "mica" else " (as LoRA)"
        print(f"  set-up {set_up:.2f} s{kind}; step {seconds / steps:.4f} s; {tokens:,.0f} tokens/s;", end=" ")
        print(f"matmul share {4 * weights * tokens / rate:.0%}; peak memory {peak(device) / 1e9:.2f} GB", flush=True)
        del model, side


def bench_scoring(name, config, n, device, dtype):
    model = random_model(config, device, dtype).eval()
    lengths = (60, 25) if config.context_length > 85 else (20, 5)
    prompts, choices = (torch.randint(1, config.vocab_size, (n, 4, length)).tolist() for length in lengths)
    questions = [(prompt[0], endings, 0) for prompt, endings in zip(prompts, choices)]
    answer_questions(model, questions[: n // 4], {0}, 0)  # not counted
    seconds, _ = timed(lambda: answer_questions(model, questions, {0}, 0), device)
    print(f"{name}: {n / seconds:,.0f} questions/s", flush=True)


def main():
    parser = Parser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small enough for a CPU: shows that it runs, no more")
    parser.add_argument("--steps", type=int, default=10, help="training steps that are timed")
    args = parser.parse_args()
    with one_sentence_errors("python -m bench.gpu"):
        if not (args.tiny or torch.cuda.is_available()):
            raise ValueError("there is no GPU here that torch can use: --tiny shows that it runs, on the CPU")
        device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        rate = matmul_rate(device, dtype, 256 if args.tiny else 8192)
        print(f"{card}, torch {torch.__version__}: {rate / 1e12:,.1f} Tflop/s in a product of bfloat16", flush=True)
        shapes, windows = (TINY, {"tiny": (2, 16)}) if args.tiny else (SHAPES, WINDOWS)
        parts = [partial(bench_step, name, shapes[name], shape, args.steps) for name, shape in windows.items()]
        parts = [partial(part, device, dtype, rate) for part in parts]
        smallest = next(iter(windows))
        parts.append(partial(bench_scoring, smallest, shapes[smallest], 8 if args.tiny else 1024, device, dtype))
        failed = 0
        for part in parts:
            try:
                part()
            except Exception as error:  # out of memory, say: the other parts are still worth having
                failed += 1
                print(f"failed: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
        sys.exit(3 if failed else 0)


if __name__ == "__main__":
    main()
