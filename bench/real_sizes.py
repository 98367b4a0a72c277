"""Train a few steps at the shape of a real model, with random weights: seconds, tokens a second, memory.

    python -m bench.real_sizes smollm2-135m qwen2.5-0.5b
    python -m bench.real_sizes qwen2.5-0.5b --accumulate 4 --checkpointing
    python -m bench.real_sizes llama-2-7b --dtype bfloat16 --device cuda --targets q_proj v_proj --rank 16

The loop is train.py's own. "matmul share": the floating-point operations that training an adapter needs at least (4 for
every weight and token: 2 forward, 2 backward to the activations; the gradients of the factors are left out) a second,
as a share of the rate that one large matrix product reaches on the same device in the same run.
"""

import statistics
import time
from dataclasses import fields

import torch

from bench.timing import CPU, forget_peak, peak, synchronize, timed
from gpt.model import GPT, GPTConfig
from gpt.weights import format_config
from lora import count_trainable
from tools.cli import Parser, one_sentence_errors, pick_device
from train import METHODS, Settings, adapt

SHAPES = {  # vocabulary, context, width, MLP, layers, heads, key/value heads, head_dim
    "smollm2-135m": GPTConfig("llama", 49152, 8192, 576, 1536, 30, 9, 3, 64, rope_theta=1e5),
    "qwen2.5-0.5b": GPTConfig("qwen2", 151936, 32768, 896, 4864, 24, 14, 2, 64, norm_eps=1e-6, rope_theta=1e6),
    "llama-2-7b": GPTConfig("llama", 32000, 4096, 4096, 11008, 32, 32, 32, 128, tie_embeddings=False),
    "llama-3-8b": GPTConfig("llama", 128256, 8192, 4096, 14336, 32, 32, 8, 128, rope_theta=5e5, tie_embeddings=False),
    "qwen2.5-7b": GPTConfig(
        "qwen2", 152064, 131072, 3584, 18944, 28, 28, 4, 128, norm_eps=1e-6, rope_theta=1e6, tie_embeddings=False
    ),
}


class NoTokenizer:
    """Documents are lists of ids already."""

    eot_id, bos_id = 0, None

    def encode(self, ids):
        return ids


def matmul_rate(device, dtype, n=4096):
    """Floating-point operations a second of an (n, n) x (n, n) product: the best of a few."""
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / min(timed(lambda: a @ b, device)[0] for _ in range(5))


def random_model(config, device=CPU, dtype=torch.float32):
    """A GPT with weights as before training, made on `device`."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # the weights are made where and as they stay
    with device:
        model = GPT(config)
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def peer(config, device=CPU, dtype=torch.float32):
    """The same shape in transformers."""
    import transformers

    raw = {key: value for key, value in format_config(config).items() if key != "architectures"}
    with device:
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw), dtype=dtype)


def multiplied_weights(model):
    """How many numbers the weights of a model's linears hold, the head's among them."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))


def bench(name, args, device, dtype):
    model = random_model(SHAPES[name], device, dtype)
    windows = args.batch_size * args.seq_len
    document = torch.randint(1, SHAPES[name].vocab_size, (windows - 1,)).tolist()  # with end-of-text, a batch exactly
    asked_for = {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}
    settings = Settings(epochs=args.steps, **asked_for)  # an epoch is one step here
    forget_peak(device)
    times = [time.perf_counter()]

    def on_epoch(epoch):
        synchronize(device)
        times.append(time.perf_counter())

    prepared = time.perf_counter()
    history = adapt(model, NoTokenizer(), [document], args.method, settings, seed=0, on_epoch=on_epoch)
    steps = [later - earlier for earlier, later in zip(times[1:], times[2:])]
    seconds = statistics.median(steps)
    trained, total = count_trainable(model)
    share = 4 * multiplied_weights(model) * windows / seconds / matmul_rate(device, dtype)
    print(f"{name}, {dtype}, {device}, {args.method}, rank {args.rank}, {' '.join(args.targets or ['all linears'])}")
    if args.accumulate > 1 or args.checkpointing:
        print(f"  accumulate {args.accumulate}, checkpointing {args.checkpointing}")
    print(f"  trained {trained:,} of {total:,} parameters; loss {history[0]['loss']:.4f} -> {history[-1]['loss']:.4f}")
    print(f"  preparing and first step {times[1] - prepared:.1f} s; ", end="")
    print(f"then {seconds:.2f} s a step of {windows} tokens (median)")
    memory = f"peak memory {peak(device) / 1e9:.2f} GB"
    print(f"  {windows / seconds:,.0f} tokens/s; matmul share {share:.0%}; {memory}", flush=True)


def main():
    parser = Parser(prog="python -m bench.real_sizes", description=__doc__)
    add = parser.add_argument
    add("shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help=f"of {', '.join(SHAPES)}")
    add("--method", default="mica", choices=METHODS, metavar="METHOD", help=f"one of {', '.join(METHODS)}")
    add("--targets", nargs="+", metavar="NAME", help="linears to adapt, such as q_proj v_proj; None: all of the blocks")
    add("--rank", type=int, default=16, help="of the adapters")
    add("--steps", type=int, default=4, help="training steps, at least 2; the first is not timed")
    add("--batch-size", type=int, default=8, help="windows a step")
    add("--seq-len", type=int, default=128, help="window, in tokens")
    add("--accumulate", type=int, default=1, help="parts to compute a step in, to save memory")
    add("--checkpointing", action="store_true", help="keep blocks' inputs only, compute the rest twice: saves memory")
    add("--device", default="auto", help="cpu, cuda, mps or auto: the fastest there is")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights; adapters are float32")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    with one_sentence_errors("python -m bench.real_sizes"):
        for name in args.shapes:
            bench(name, args, pick_device(args.device), getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
