"""How much memory loading a checkpoint takes, and how long: ours beside transformers.

    python bench/load.py                     # a checkpoint of about 1 GB, made on the spot in a temporary folder
    python bench/load.py --layers 2          # a small one

Each load runs in a process of its own, which then reads every weight once. Printed for each: the highest resident
memory above that before loading, as a multiple of the checkpoint's size and of the size of the loaded weights, and the
seconds for loading and for that first reading. Linux only (/proc). Pages of a memory-mapped file count as resident.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file

from gpt.model import GPT, GPTConfig
from gpt.weights import load_model, save_pretrained
from tools.cli import Parser


def make_checkpoint(folder, dtype, name, layers):
    """Write a random Llama of width 2048 (about 101 MB a layer in 16 bits); returns the path of its weights, called name."""
    torch.manual_seed(0)
    config = GPTConfig("llama", 32000, 2048, 2048, 5632, layers, 32, 4, 64, tie_embeddings=False)
    save_pretrained(GPT(config).to(dtype), folder)
    weights = Path(folder) / "model.safetensors"
    if name != weights.name:  # as older repositories have it
        torch.save(load_file(weights), weights.with_name(name))
        weights.unlink()
    return weights.with_name(name)


def status(field):
    """A size in bytes from /proc/self/status: VmRSS is resident memory now, VmHWM its highest value so far."""
    line = next(line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def load_and_measure(loader, folder, dtype):
    """In a fresh process: load, read every weight once, and print the figures as JSON."""
    if loader == "ours":
        load = load_model
    else:
        import transformers

        def load(folder, dtype):
            return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    began = time.perf_counter()
    model = load(folder, dtype=getattr(torch, dtype))
    loaded = time.perf_counter()
    with torch.no_grad():
        total = sum(p.view(-1)[:: 4096 // p.element_size()].double().sum().item() for p in model.parameters())
    read = time.perf_counter()
    assert total == total  # not NaN
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    figures = {"peak": status("VmHWM") - before, "size": size, "load": loaded - began, "read": read - loaded}
    print(json.dumps(figures))


def main():
    parser = Parser(prog="bench/load.py", description=__doc__)
    parser.add_argument("--layers", type=int, default=9, help="blocks of the checkpoint; 9 make about 1 GB")
    parser.add_argument("--child", nargs=3, metavar=("LOADER", "FOLDER", "DTYPE"), help="used by the program itself")
    args = parser.parse_args()
    if args.child:
        load_and_measure(*args.child)
        return
    print(
        f"{'checkpoint':<30} {'loaded as':<10} {'by':<13} {'peak / file':>12} {'peak / weights':>15} {'load, s':>8} {'read, s':>8}"
    )
    for stored, name in (
        ("bfloat16", "model.safetensors"),
        ("float32", "model.safetensors"),
        ("bfloat16", "pytorch_model.bin"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            file_size = make_checkpoint(folder, getattr(torch, stored), name, args.layers).stat().st_size
            for dtype in dict.fromkeys((stored, "float32")):
                for loader in ("ours", "transformers"):
                    command = [sys.executable, __file__, "--child", loader, folder, dtype]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(done.stderr)
                    f = json.loads(done.stdout.splitlines()[-1])
                    print(
                        f"{f'{file_size / 1e9:.2f} GB {stored}, {Path(name).suffix}':<30} {dtype:<10} {loader:<13} {f['peak'] / file_size:>12.2f}"
                        f" {f['peak'] / f['size']:>15.2f} {f['load']:>8.2f} {f['read']:>8.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
