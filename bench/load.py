"""How much memory loading a checkpoint takes, and how long: ours beside transformers.

    python -m bench.load                     # a checkpoint of about 1 GB, made on the spot in a temporary folder
    python -m bench.load --layers 2          # a small one

Each load runs in a process of its own, which then reads every weight once. Printed for each: the highest resident
memory above that before loading, as a multiple of the checkpoint's size and of the size of the loaded weights, and the
seconds for loading and for that first reading. Linux only (/proc). Pages of a memory-mapped file count as resident.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.timing import forget_peak, in_a_process, peak, resident, timed
from gpt.model import GPT, GPTConfig
from gpt.weights import load_model, save_pretrained
from tools.cli import Parser

ROW = "{:<30} {:<10} {:<13} {:>12} {:>15} {:>8} {:>8}"
CHECKPOINTS = [("bfloat16", "model.safetensors"), ("float32", "model.safetensors"), ("bfloat16", "pytorch_model.bin")]


def make_checkpoint(folder, dtype, name, layers):
    """Write a random Llama of width 2048 (about 101 MB a layer in 16 bits); returns the path of its weights."""
    torch.manual_seed(0)
    config = GPTConfig("llama", 32000, 2048, 2048, 5632, layers, 32, 4, 64, tie_embeddings=False)
    save_pretrained(GPT(config).to(dtype), folder)
    weights = Path(folder) / "model.safetensors"
    if name != weights.name:  # as older repositories have it
        torch.save(load_file(weights), weights.with_name(name))
        weights.unlink()
    return weights.with_name(name)


def load_and_measure(loader, folder, dtype):
    """In a fresh process: load, read every weight once, and print the figures as JSON."""
    if loader == "ours":
        load = load_model
    else:
        import transformers

        def load(folder, dtype):
            return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    def read():  # a number of every page
        return sum(p.detach().view(-1)[:: 4096 // p.element_size()].double().sum().item() for p in model.parameters())

    before = resident()
    forget_peak()
    load_seconds, model = timed(lambda: load(folder, dtype=getattr(torch, dtype)))
    read_seconds, total = timed(read)
    assert total == total  # not NaN
    size = sum(p.nbytes for p in model.parameters())
    print(json.dumps({"peak": peak() - before, "size": size, "load": load_seconds, "read": read_seconds}))


def main():
    parser = Parser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--layers", type=int, default=9, help="blocks of the checkpoint; 9 make about 1 GB")
    parser.add_argument("--child", nargs=3, metavar=("LOADER", "FOLDER", "DTYPE"), help="used by the program itself")
    args = parser.parse_args()
    if args.child:
        load_and_measure(*args.child)
        return
    print(ROW.format("checkpoint", "loaded as", "by", "peak / file", "peak / weights", "load, s", "read, s"))
    for stored, name in CHECKPOINTS:
        with tempfile.TemporaryDirectory() as folder:
            file_size = make_checkpoint(folder, getattr(torch, stored), name, args.layers).stat().st_size
            for dtype in dict.fromkeys((stored, "float32")):
                for loader in ("ours", "transformers"):
                    f = in_a_process(__spec__.name, "--child", loader, folder, dtype)
                    figures = f["peak"] / file_size, f["peak"] / f["size"], f["load"], f["read"]
                    checkpoint = f"{file_size / 1e9:.2f} GB {stored}, {Path(name).suffix}"
                    print(ROW.format(checkpoint, dtype, loader, *(f"{x:.2f}" for x in figures)), flush=True)


if __name__ == "__main__":
    main()
