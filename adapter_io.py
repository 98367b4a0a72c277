"""Adapters on disk, in PEFT's file format: save_adapters(model, folder) and load_adapters(model, folder). The command

    python adapter_io.py --adapter out/mica/seed0 --out merged

writes a model with its adapter merged into the weights, as a folder that transformers and every program here open.

Whatever method trained them, the files hold plain LoRA factors relative to the original weights, under the names of
the Hugging Face checkpoint: MiLoRA's and PiSSA's are [B, -B0] and [A; A0] at twice the rank, and GPT-2's q, k and v one
block-diagonal pair for its fused c_attn. So PEFT opens them, and loading here needs no SVD and no knowledge of the method.

What PEFT trained as LoRA or MiCA is read too, with rank and alpha patterns and rsLoRA's scaling. What changes the base's
weights (PEFT's PiSSA or OLoRA start, unless converted when saved) or is more than LoRA (DoRA, biases, whole modules) is
refused by name.
"""

import json
import math
import re
import sys
from argparse import SUPPRESS
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import nn

from gpt import find_model, load_pretrained, save_pretrained
from gpt.hub import HUB_NAME, base_of, fetch_from_hub
from gpt.tokenizer import copy_tokenizer
from gpt.weights import FAMILIES, check_finite, checkpoint_name, load_model, open_weights
from lora import LoRALayer, check_method, check_settings, factor_dtype, find_adapters, merge_adapters, scale
from tools.cli import (
    MADE_BY,
    Parser,
    atomic,
    check_apart,
    one_sentence_errors,
    remove,
    shipped,
    whole_folder,
    write_json,
    write_text,
)
from tools.schema import build, printable, read_json, reading, shown

CONFIG, FACTORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
CLASS = "base_model_class"  # in "auto_mapping", where PEFT notes what an adapter was made for


def base_class(model):
    """The class in transformers of a GPT's family: LlamaForCausalLM, ..."""
    return FAMILIES[model.config.family].architecture


def checkpoint_linears(model):
    """{checkpoint's name: our names of what it holds}: one linear, but for GPT-2's c_attn q, k and v, in this order."""
    ours = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, LoRALayer)) and not name.endswith(".linear"):  # the one inside a LoRALayer
            ours.setdefault(checkpoint_name(model.config, name), []).append(name)
    return ours


def factor_key(name, factor):
    """The name in the files of factor "A" or "B" of a layer: base_model.model is PEFT's wrapper around the model."""
    return f"base_model.model.{name}.lora_{factor}.weight"


def leaf(name):
    """The last part of a name: q_proj."""
    return name.rpartition(".")[2]


def rescale(alpha, rank, new_rank):
    """The alpha that keeps alpha / rank at another rank, rounded once: the same alpha comes back from the files."""
    alpha = Fraction(alpha) * new_rank / rank
    return alpha.numerator if alpha.denominator == 1 else float(alpha)


# --- saving -----------------------------------------------------------------------------------------------------------


def save_adapters(model, folder, base_model=None, revision=None):
    """Write the adapters of a GPT to folder/adapter_config.json and folder/adapter_model.safetensors.

    base_model, revision: where the original weights come from (a folder, or a name on the Hub and its branch, tag or
    commit), noted in the config for PEFT.
    Raises ValueError when the model has no adapters, for factors that are not finite, and for a method that changes the
    weights otherwise than its plain_factors say.
    """
    adapters, linears = find_adapters(model), checkpoint_linears(model)
    if not adapters:
        raise ValueError("the model has no adapters to save")
    for name, layer in adapters.items():
        check_method(name, layer)
    factors, ranks, alphas = {}, {}, {}
    for name, ours in linears.items():
        if adapters.keys() & set(ours):
            A, B, alphas[name] = fuse([model.get_submodule(our) for our in ours])
            factors |= {factor_key(name, "A"): A, factor_key(name, "B"): B}
            ranks[name] = len(A)
    for key, factor in factors.items():
        check_finite(key, factor, "train again with a smaller learning rate")
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    others = {leaf(name) for name in linears.keys() - ranks.keys()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model and str(base_model),
        "revision": revision,
        "auto_mapping": {CLASS: base_class(model), "parent_library": "transformers"},
        "r": rank,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "lora_alpha": alpha,
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        # If PEFT goes on training, it also drops inputs of MiLoRA's and PiSSA's subtracted start, which we do not.
        "lora_dropout": next(iter(adapters.values())).dropout.p,
        # "q_proj" is every layer of this name; where some are not adapted, each that is has its full name
        "target_modules": sorted({name if leaf(name) in others else leaf(name) for name in ranks}),
        "bias": "none",
        "fan_in_fan_out": FAMILIES[model.config.family].transposed,
        "init_lora_weights": True,
    }
    remove(Path(folder) / CONFIG)  # the config makes a folder an adapter: it comes last
    with atomic(Path(folder) / FACTORS) as path:
        save_file(factors, path, metadata={"format": "pt"})
    write_text(Path(folder) / CONFIG, json.dumps(config, indent=2) + "\n")


def save_trained(model, tokenizer, out, name, folder):
    """Write what was trained: the adapters to out/adapter, or of a model without any, which was trained whole, all of it.

    name: of the base model, as --model gives it; folder: where its files are.
    """
    if find_adapters(model):
        save_adapters(model, out / "adapter", *base_of(name))
    else:
        save_pretrained(model, out / "model", tokenizer, folder)
        copy_tokenizer(folder, out / "model")


def write_card(folder, model, facts):
    """Write folder/README.md, a model card as the Hub shows it, so that an adapter can be shared as it is.

    model: the base, as --model gives it; facts: {"method": "mica", "rank": 8, ...}, which become a table.
    """
    name, revision = base_of(model)
    head = {"library_name": "peft", "tags": ["lora", facts.get("method", "lora")]}
    if "/" in name and not Path(name).exists():  # of others, the Hub knows nothing
        head["base_model"] = name
    facts = {"base model": name, "revision": revision or "-"} | facts
    rows = [f"| {key} | {printable(str(value)).replace('|', '/')} |" for key, value in facts.items()]
    front = "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())
    how = "`PeftModel.from_pretrained(base_model, this_folder)` applies it."
    text = "\n".join([f"---\n{front}---\n# An adapter in PEFT's format\n\n{how}\n", "| | |", "| --- | --- |", *rows])
    write_text(Path(folder) / "README.md", text + "\n")


def fuse(parts):
    """(A (k, in), B (out, k), alpha) of the one plain LoRA that changes the rows of a weight as its parts' adapters do.

    parts: LoRALayers, or nn.Linears that are not adapted; more than one only for a fused weight. A is the parts' A
    below each other. B is block-diagonal: each part's B in its own rows and columns, zero elsewhere.
    """
    first = next(part for part in parts if isinstance(part, LoRALayer))
    scale, As, Bs = first.alpha / first.rank, [], []  # the files know one scale: B makes up for another (else times 1)
    for part in parts:
        if isinstance(part, LoRALayer):
            A, B = part.plain_factors()  # (k, in), (out, k)
            As.append(A.cpu())
            Bs.append(B.cpu() * (part.strength * part.scaling / scale))
        else:
            Bs.append(torch.zeros(part.out_features, 0))
    A, B = torch.cat(As), torch.block_diag(*Bs)
    return A, B, rescale(first.alpha, first.rank, len(A))


# --- what is accepted -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdapterConfig:
    """What is read of PEFT's adapter_config.json; the names are its LoraConfig's."""

    peft_type: Literal["LORA"]
    r: int
    lora_alpha: int | float
    target_modules: list[str] | str
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int | float] = field(default_factory=dict)
    lora_dropout: int | float = 0.0
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    init_lora_weights: bool | str = True
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    auto_mapping: dict | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None


# Starts that leave the model's own weights as they are: with others, the factors are relative to changed weights.
STARTS = {"true", "false", "gaussian", "mica", "eva", "orthogonal"}
# Settings that say nothing about the factors, or nothing that the factors do not. All others must be off.
NOTES = set(
    "task_type inference_mode peft_version megatron_core qalora_group_size fan_in_fan_out layers_pattern "
    "eva_config corda_config lora_ga_config loftq_config".split()
)


def read_config(path):
    """adapter_config.json as an AdapterConfig. Raises ValueError unless it is whole and describes plain LoRA."""
    raw = {name: value for name, value in read_json(path, "save the adapter again").items() if value is not None}
    if "fine_tune_type" in raw:
        raise ValueError(f"{path} is of an MLX adapter: fuse it with its model (mlx_lm.fuse) and load what that gives")
    with reading(path, "LoRA adapter", "save it again, or merge it with PEFT and load the merged model"):
        config = build(AdapterConfig, raw)
        for name, value in raw.items():
            if value and name not in NOTES and name not in {known.name for known in fields(AdapterConfig)}:
                raise ValueError(f'"{name}" is {shown(value)}, which is more than plain LoRA')
        if str(config.init_lora_weights).lower() not in STARTS:
            raise ValueError(
                f"\"init_lora_weights\" is {shown(config.init_lora_weights)}, which changes the model's own weights (PEFT's "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...) converts it)"
            )
    return config


def find_adapter(name):
    """(its own folder, its AdapterConfig) of an adapter; name: that folder, a run's of train.py, or org/name on the Hub.

    Of a run of full fine-tuning: (the folder of the whole model, None). Raises ValueError or OSError where there is none that can be read; its factors are not read yet.
    """
    folder = Path(name)
    if not folder.exists() and (on_hub := HUB_NAME.fullmatch(str(name))):
        folder = fetch_from_hub(*on_hub.groups(), [CONFIG, FACTORS])
        if not (folder / FACTORS).exists():
            fetch_from_hub(*on_hub.groups(), [PICKLED])
    if not (folder / CONFIG).exists() and (folder / "adapter").is_dir():
        folder = folder / "adapter"
    elif not (folder / CONFIG).exists() and (folder / "model").is_dir():
        return folder / "model", None
    config = read_config(folder / CONFIG)
    if not any((folder / file).is_file() for file in (FACTORS, PICKLED)):
        raise ValueError(f"{folder} has neither {FACTORS} nor {PICKLED}: save the adapter again")
    return folder, config


def base_for(config, model=None):
    """The base model for an adapter: `model` or, with None, what the adapter notes, else the shipped one.

    stderr says what the adapter notes where that decides, or is another than `model`: it may be a mistake.
    """
    noted, revision = (config.base_model_name_or_path, config.revision) if config else (None, None)
    if noted and not Path(noted).exists():  # a folder beside the programs, or a name on the Hub
        noted = str(shipped(noted)) if shipped(noted).exists() else f"{noted}@{revision}" if revision else noted
    if noted and model is None:
        print(f"model: {shown(noted)}, which the adapter was trained on", file=sys.stderr)
    elif noted and Path(noted).resolve() != Path(model).resolve():
        print(f"note: this adapter was trained on {shown(noted)}, not on {model} (--model)", file=sys.stderr)
    return model or noted or str(shipped("data/base"))


def load_trained(model, folder, strength=1.0):
    """Add `strength` times what was learned to a GPT with the original weights: W + strength * change.

    folder: as find_adapter gives it, of an adapter or of a whole model that was trained from these weights.
    """
    if (Path(folder) / CONFIG).exists():
        load_adapters(model, folder)
        return scale(model, strength)
    taught = load_model(folder, device=model.device)
    if taught.config != model.config:
        raise ValueError(f"{folder} was trained from a model of another shape: give that one as --model")
    for p, learned in zip(model.parameters(), taught.parameters(), strict=True):
        p.data = torch.lerp(p.detach(), learned.detach().to(p), strength)


# --- loading ----------------------------------------------------------------------------------------------------------


def load_adapters(model, folder):
    """Adapt a GPT with what save_adapters, or PEFT, wrote; return the layers' names.

    The model holds the original weights, or others of the same shape: on an instruct model the change learned on its
    base model is added to what instruction tuning changed (MiCA's transfer, arXiv 2604.01694).

    The base is frozen; the layers are plain LoRALayers, whose A and B are both trained if training goes on. The logits
    are those of the model that was saved. Raises ValueError for files that are missing, damaged or not for this model,
    and for settings of PEFT that are not supported; the model is then as it was.
    """
    if find_adapters(model):
        raise ValueError("the model is already adapted: merge its adapters first, or load the model again")
    folder, config = find_adapter(folder)
    ours, theirs = base_class(model), (config.auto_mapping or {}).get(CLASS)
    with reading(folder, f"adapter of this {ours}", "load the model it was made for, or save the adapter again"):
        if theirs not in (None, ours):  # Mistral's layers, say, can have the shapes of Llama's
            raise ValueError(f"it is one of a {shown(theirs)}")
        factors, linears = read_factors(folder), checkpoint_linears(model)
        starts = {}  # our name -> (linear, A, B, alpha)
        for name in adapted_names(config, factors, linears):
            rank = matching(config.rank_pattern, name, config.r)
            alpha = matching(config.alpha_pattern, name, config.lora_alpha)
            if config.use_rslora:  # the change is scaled by alpha / sqrt(rank)
                alpha *= math.sqrt(rank)
            parts = [model.get_submodule(our) for our in linears[name]]
            sizes = [part.out_features for part in parts]
            A, B = (factors[factor_key(name, factor)].to(factor_dtype(parts[0].weight)) for factor in "AB")
            for factor, tensor, shape in (("A", A, (rank, parts[0].in_features)), ("B", B, (sum(sizes), rank))):
                if tensor.shape != shape:
                    raise ValueError(f"{factor_key(name, factor)} is of shape {tuple(tensor.shape)}, not {shape}")
                check_finite(factor_key(name, factor), tensor, "train it again with a smaller learning rate")
            for our, part, pair in zip(linears[name], parts, split(A, B, sizes), strict=True):
                if pair:
                    A, B = fit(*pair)
                    starts[our] = (part, A, B, rescale(alpha, rank, len(A)))
        for linear, A, _, alpha in starts.values():  # all are checked before any is touched
            check_settings(linear, len(A), alpha, config.lora_dropout)
    model.requires_grad_(False)
    for name, (linear, A, B, alpha) in starts.items():
        layer = LoRALayer(linear, len(A), alpha, config.lora_dropout)
        layer.A.data.copy_(A)
        layer.B.data.copy_(B)
        model.set_submodule(name, layer)
    return list(starts)


def read_factors(folder):
    """{key: tensor on the CPU} of adapter_model.safetensors or, where there is none, adapter_model.bin.

    Names that a wrapper around the model has left in the keys (torch.compile's, DistributedDataParallel's) are taken out.
    """
    path = folder / FACTORS if (folder / FACTORS).is_file() else folder / PICKLED
    wrapper = re.compile(r"(?<![^.])(_orig_mod|module)\.")
    return {wrapper.sub("", key): read() for key, read in open_weights(path).items()}


def adapted_names(config, factors, linears):
    """The checkpoint's names of the adapted layers: those with factors. Raises ValueError where others should have some.

    So whatever decides in PEFT which layers are meant (a regular expression, exclude_modules, layers_to_transform), its
    outcome is read off the files.
    """
    found = [name for name in linears if factor_key(name, "A") in factors]
    unexpected = factors.keys() - {factor_key(name, factor) for name in found for factor in "AB"}
    if unexpected or not found:
        raise ValueError(f"no layer of the model is adapted by {min(unexpected) if unexpected else 'it'}")
    ends = config.target_modules if isinstance(config.target_modules, list) else []
    if config.exclude_modules or config.layers_to_transform is not None:
        ends = []
    for name in linears:
        if name not in found and any(f".{name}".endswith(f".{end}") for end in ends):
            raise ValueError(f"it has no factors of {name}, which its target_modules name")
    return found


def matching(patterns, name, default):
    """The value of the first pattern that the end of a name matches, as in PEFT."""
    return next((value for end, value in patterns.items() if re.match(rf"(.*\.)?({end})$", name)), default)


def split(A, B, sizes):
    """[(A (k, in), B (size, k)), or None where nothing is adapted] of a weight's parts, from those of the whole.

    Undoes fuse: columns of B that are zero in a part are not its own. What PEFT trained on the whole has none of them.
    """
    if len(sizes) == 1 or not B.any():  # B = 0 is LoRA before the first step
        return [(A, part) for part in B.split(sizes)]
    used = [(part, part.any(dim=0)) for part in B.split(sizes)]  # (size, rank), (rank)
    return [(A[columns], part[:, columns]) if columns.any() else None for part, columns in used]


def fit(A, B):
    """The same product of factors of rank min(out, in) at most: PEFT sets no limit, nor does doubling for MiLoRA."""
    limit = min(len(B), A.shape[1])
    if len(A) <= limit:
        return A, B
    product, one = B @ A, torch.eye(limit, dtype=A.dtype)
    return (product, one) if limit == len(B) else (one, product)


# --- the program ------------------------------------------------------------------------------------------------------


def main():
    parser = Parser(prog="adapter_io.py", description="Write a model with its adapter merged into the weights.")
    add = parser.add_argument
    add("--model", help="a folder, *.gguf, package:NAME, or org/name[@revision]; None: what the adapter was trained on")
    help = "folder of a run of train.py or of an adapter, PEFT's too, or org/name[@revision] on the Hub"
    add("--adapter", required=True, default=SUPPRESS, help=help)
    add("--out", required=True, default=SUPPRESS, help="folder for the merged model and its tokenizer")
    add("--strength", type=float, default=1.0, help="how much of what the adapter learned is added, 0 to 1")
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    add("--dtype", default="auto", choices=dtypes, help="of the written weights; auto: the model's own")
    args = parser.parse_args()
    with one_sentence_errors("adapter_io.py", "model, or more memory: it is merged as a whole"):
        adapter, config = find_adapter(args.adapter)  # what is wrong with it is said before a model is loaded
        args.model = base_for(config, args.model)
        source = find_model(args.model)
        check_apart([args.out], [source, args.adapter])
        with whole_folder(args.out) as new:
            # Any other dtype comes last, so that the sum of weight and change is rounded once.
            model, tokenizer = load_pretrained(source, dtype=None if args.dtype == "auto" else torch.float32)
            load_trained(model, adapter, args.strength)
            # A merged lm_head was perhaps the embedding, which has not changed.
            if find_adapters(model) and "lm_head" in merge_adapters(model):
                model.config = replace(model.config, tie_embeddings=False)
            if args.dtype != "auto":
                model.to(getattr(torch, args.dtype))
            save_pretrained(model, new, tokenizer, source)
            copy_tokenizer(source, new)
            write_json(new / MADE_BY, {"program": "adapter_io.py"} | vars(args))
        print(f"written to {args.out}: config.json, model.safetensors and the tokenizer's files", file=sys.stderr)


if __name__ == "__main__":
    main()
