"""Look at a model and let it continue a text:

python -m gpt data/base "Question: Where was"
python -m gpt HuggingFaceTB/SmolLM2-135M "Once upon a time"
"""

import torch

from gpt.generate import generate
from gpt.hub import find_model
from gpt.weights import load_pretrained
from tools.cli import Parser, one_sentence_errors, pick_device


def parse_args():
    description = "Print a model's configuration and sizes, and continue a text."
    parser = Parser(texts=["prompt"], prog="python -m gpt", description=description)
    add = parser.add_argument
    add("model", help="a model's folder, *.gguf, package:NAME, or org/name[@revision] on the Hub")
    add("prompt", help="the text to continue")
    add("--max-new-tokens", type=int, default=100, help="length of the continuation, in tokens")
    add("--temperature", type=float, default=0.8, help="0: always the likeliest token; higher: more varied")
    add("--top-k", type=int, help="sample among this many likeliest tokens only; None: all")
    add("--top-p", type=float, help="sample among the likeliest tokens with this total probability; None: all")
    add("--seed", type=int, default=0, help="of the random choices: the same seed gives the same text")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the model's weights")
    return parser.parse_args()


def count_parameters(model):
    """{part: number of parameters}; a tied embedding counts once."""
    parts = {"self_attn": "attention", "mlp": "MLP", "norm": "norms", "": "embeddings"}  # the last: and the head
    counts = dict.fromkeys(["embeddings", "attention", "MLP", "norms"], 0)
    for name, parameter in model.named_parameters():
        counts[next(part for key, part in parts.items() if key in name)] += parameter.numel()
    return counts


def main():
    args = parse_args()
    device = pick_device(args.device)
    model, tokenizer = load_pretrained(find_model(args.model), device, getattr(torch, args.dtype))
    for name, value in vars(model.config).items():
        print(f"{name:<18} {value}")
    counts = count_parameters(model)
    total = sum(counts.values())
    print(f"{'parameters':<18} {total:,}")
    for part, count in counts.items():
        print(f"  {part:<16} {count:,} ({count / total:.1%})")

    ids = tokenizer.encode(args.prompt, bos=True) or [tokenizer.eot_id]  # no prompt: the beginning of a document
    tokens = generate(
        model,
        torch.tensor([ids], device=device),
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        eot_id=tokenizer.eot_id,
        generator=torch.Generator(device).manual_seed(args.seed),
    )[0].tolist()
    print(f"\n{tokenizer.decode(tokens[1:] if tokens[0] == tokenizer.bos_id else tokens)}")


if __name__ == "__main__":
    with one_sentence_errors("python -m gpt"):
        main()
