"""Adapters on disk, in PEFT's file format: save_adapters(model, folder) and load_adapters(model, folder). The command

    python adapter_io.py --model data/base --adapter out/mica/seed0 --out merged

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
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from gpt import find_model, load_pretrained, save_pretrained
from gpt.hub import base_of
from gpt.tokenizer import copy_tokenizer
from gpt.weights import FAMILIES, check_finite, checkpoint_name, open_weights
from lora import LoRALayer, check_settings, factor_dtype, find_adapters, merge_adapters
from tools.cli import MADE_BY, Parser, atomic, check_apart, one_sentence_errors, remove, whole_folder, write_json
from tools.inputs import SIZE, is_number, is_whole, read_json, shown

CONFIG, FACTORS = "adapter_config.json", "adapter_model.safetensors"
REMEDY = "train again with a smaller learning rate"
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


def rescale(alpha, rank, new_rank):
    """The alpha that keeps alpha / rank at another rank, rounded once: the same alpha comes back from the files."""
    alpha = Fraction(alpha) * new_rank / rank
    return alpha.numerator if alpha.denominator == 1 else float(alpha)


# --- saving -----------------------------------------------------------------------------------------------------------


def save_adapters(model, folder, base_model=None, revision=None):
    """Write the adapters of a GPT to folder/adapter_config.json and folder/adapter_model.safetensors.

    base_model, revision: where the original weights come from (a folder, or a name on the Hub and its branch, tag or
    commit), noted in the config for PEFT.
    Raises ValueError when the model has no adapters, or adapters of different dropout (PEFT knows one for all), and for
    factors that are not finite.
    """
    adapters = find_adapters(model)
    if not adapters:
        raise ValueError("the model has no adapters to save")
    dropouts = {layer.dropout.p for layer in adapters.values()}
    if len(dropouts) > 1:
        raise ValueError("one folder holds adapters of one dropout: adapt every layer with the same")
    linears = checkpoint_linears(model)
    factors, ranks, alphas = {}, {}, {}
    for name, ours in linears.items():
        if adapters.keys() & set(ours):
            A, B, alphas[name] = fuse([model.get_submodule(our) for our in ours])
            factors[factor_key(name, "A")], factors[factor_key(name, "B")] = A, B
            ranks[name] = len(A)
    for key, factor in factors.items():
        check_finite(key, factor, REMEDY)
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model and str(base_model),
        "revision": revision,
        "auto_mapping": {CLASS: base_class(model), "parent_library": "transformers"},
        "r": rank,
        "rank_pattern": exceptions(ranks, rank),
        "lora_alpha": alpha,
        "alpha_pattern": exceptions(alphas, alpha),
        # If PEFT goes on training, it also drops inputs of MiLoRA's and PiSSA's subtracted start, which we do not.
        "lora_dropout": dropouts.pop(),
        "target_modules": short_names(ranks, linears.keys() - ranks.keys()),
        "bias": "none",
        "fan_in_fan_out": FAMILIES[model.config.family].transposed,
        "init_lora_weights": True,
    }
    remove(Path(folder) / CONFIG)  # the config makes a folder an adapter: of an earlier one, it goes first, and comes last
    with atomic(Path(folder) / FACTORS) as path:
        save_file(factors, path, metadata={"format": "pt"})
    with atomic(Path(folder) / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_trained(model, tokenizer, out, name, folder):
    """Write what was trained: the adapters to out/adapter, or of a model without any, which was trained whole, all of it.

    name: of the base model, as --model gives it; folder: where its files are.
    """
    if find_adapters(model):
        save_adapters(model, out / "adapter", *base_of(name))
    else:
        save_pretrained(model, out / "model", tokenizer, folder)
        copy_tokenizer(folder, out / "model")


def fuse(parts):
    """(A (k, in), B (out, k), alpha) of the one plain LoRA that changes the rows of a weight as its parts' adapters do.

    parts: LoRALayers, or nn.Linears that are not adapted; more than one only for a fused weight. A is the parts' A
    below each other. B is block-diagonal: each part's B in its own rows and columns, zero elsewhere.
    """
    adapters = [part for part in parts if isinstance(part, LoRALayer)]
    scale = adapters[0].alpha / adapters[0].rank  # of the whole: B makes up for another one of a part (else times 1.0)
    As, Bs = [], []
    for part in parts:
        if part in adapters:
            A, B = part.plain_factors()  # (k, in), (out, k)
            As.append(A.cpu())
            Bs.append(B.cpu() * (part.alpha / part.rank / scale))
        else:
            Bs.append(torch.zeros(part.out_features, 0))
    A, B = torch.cat(As), torch.block_diag(*Bs)
    return A, B, rescale(adapters[0].alpha, adapters[0].rank, len(A))


def short_names(names, others):
    """Names as PEFT's settings take them, which is for every layer that ends in them: as short as excludes the others.

    "c_attn", or "attn.c_proj" where mlp.c_proj is not meant, or the whole "transformer.h.0.attn.c_proj".
    """
    short = set()
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-n:]) for n in (1, 2)]
        short.add(next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), name))
    return sorted(short)


def exceptions(values, usual):
    """{short name: value} of layers with another value than the usual one: PEFT's rank_pattern and alpha_pattern."""
    patterns = {}
    for value in set(values.values()) - {usual}:
        names = [name for name in values if values[name] == value]
        patterns |= dict.fromkeys(short_names(names, values.keys() - set(names)), value)
    return dict(sorted(patterns.items()))


# --- loading ----------------------------------------------------------------------------------------------------------


def adapter_folder(folder):
    """The adapter's own folder, of it or of a run of train.py."""
    folder = Path(folder)
    return folder / "adapter" if (folder / "adapter").is_dir() and not (folder / CONFIG).exists() else folder


def check_base(folder, model):
    """Say on stderr when an adapter notes that it was trained on another model than the one named: it may be a mistake."""
    noted = read_settings(adapter_folder(folder) / CONFIG).get("base_model_name_or_path")
    name, _ = base_of(str(model))
    if isinstance(noted, str) and noted != name and Path(noted).resolve() != Path(name).resolve():
        print(f"note: this adapter was trained on {shown(noted)}, not on {model} (--model)", file=sys.stderr)


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
    folder = adapter_folder(folder)
    if (folder / "model").is_dir() and not (folder / CONFIG).exists():
        raise ValueError(
            f"{folder} has no adapter but a whole model: load {folder / 'model'} instead of the base model"
        )
    settings = read_settings(folder / CONFIG)
    factors = read_factors(folder)
    note = settings.get("auto_mapping")
    ours, theirs = base_class(model), note.get(CLASS) if isinstance(note, dict) else None
    if theirs not in (None, ours):  # Mistral's layers, say, can have the shapes of Llama's
        raise ValueError(f"{folder} adapts a {shown(theirs)}, but this model is a {ours}: load a model of the same family")

    linears, starts = checkpoint_linears(model), {}  # starts: our name -> (linear, A, B, alpha)
    for name in adapted_names(folder, settings, factors, linears):
        rank = matching(settings["rank_pattern"], name, settings["r"])
        alpha = matching(settings["alpha_pattern"], name, settings["lora_alpha"])
        if settings["use_rslora"]:  # the change is scaled by alpha / sqrt(rank)
            alpha *= math.sqrt(rank)
        parts = [model.get_submodule(our) for our in linears[name]]
        sizes = [part.out_features for part in parts]
        A, B = (factors[factor_key(name, factor)].to(factor_dtype(parts[0].weight)) for factor in "AB")
        for factor, tensor, shape in (("A", A, (rank, parts[0].in_features)), ("B", B, (sum(sizes), rank))):
            has = f"{folder} has {factor_key(name, factor)}"
            if tensor.shape != shape:
                raise ValueError(f"{has} of shape {tuple(tensor.shape)}, not {shape}: load the model it was made for")
            check_finite(f"{folder}: {factor_key(name, factor)}", tensor, REMEDY)
        for our, part, pair in zip(linears[name], parts, split(A, B, sizes), strict=True):
            if pair:
                A, B = fit(*pair)
                starts[our] = (part, A, B, rescale(alpha, rank, len(A)))

    dropout = settings["lora_dropout"]
    for linear, A, _, alpha in starts.values():  # all are checked before any is touched
        check_settings(linear, len(A), alpha, dropout)
    model.requires_grad_(False)
    for name, (linear, A, B, alpha) in starts.items():
        layer = LoRALayer(linear, len(A), alpha, dropout)
        layer.A.data.copy_(A)
        layer.B.data.copy_(B)
        model.set_submodule(name, layer)
    return list(starts)


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


def adapted_names(folder, settings, factors, linears):
    """The checkpoint's names of the adapted layers. Raises ValueError unless settings, factors and model agree.

    Where PEFT has further rules (a regular expression, exclude_modules, layers_to_transform) their outcome is read off
    the names of the factors. No expression from a file is run: some take Python's `re` practically for ever.
    """
    remedy = "load the model it was made for, or save the adapter again (in PEFT with save_embedding_layers=False)"
    found = [name for name in linears if {factor_key(name, factor) for factor in "AB"} & factors.keys()]
    names, targets = found, settings["target_modules"]
    if isinstance(targets, list):
        names = set()
        for target in targets:
            matches = {name for name in linears if f".{name}".endswith(f".{target}")}
            if not matches:
                raise ValueError(f"{folder} adapts {shown(target)}, which this model does not have: {remedy}")
            if settings.get("exclude_modules") or settings.get("layers_to_transform") is not None:
                matches &= set(found)
                if not matches:
                    raise ValueError(f"{folder} lacks factors of {shown(target)}: {remedy}")
            names |= matches
    keys = [factor_key(name, factor) for name in linears if name in names for factor in "AB"]
    for key in [*keys, *factors]:
        if key not in factors or key not in keys:
            raise ValueError(f"{folder} {'lacks' if key in keys else 'has the unexpected'} {key}: {remedy}")
    if not keys:
        raise ValueError(f"{folder} adapts nothing: {remedy}")
    return [name for name in linears if name in names]


def matching(patterns, name, default):
    """The value of the first pattern that the end of a name matches, as in PEFT."""
    return next((value for end, value in patterns.items() if re.match(rf"(.*\.)?({end})$", name)), default)


# --- what is accepted -------------------------------------------------------------------------------------------------


is_amount = partial(is_number, low=0)
is_rank = partial(is_whole, low=1, high=SIZE)


def is_pattern(value, is_value):
    """Whether it is {name: value} with plain names: PEFT takes any regular expression (see adapted_names)."""
    plain = re.compile(r"\^?([\w-]|\\?\.)+")
    return isinstance(value, dict) and all(plain.fullmatch(name) and is_value(v) for name, v in value.items())


# The settings of PEFT that are honoured here: what they must be...
READ = {
    "r": is_rank,
    "rank_pattern": lambda value: is_pattern(value, is_rank),
    "lora_alpha": is_amount,
    "alpha_pattern": lambda value: is_pattern(value, is_amount),
    "lora_dropout": is_amount,
    "use_rslora": lambda value: isinstance(value, bool),
    "target_modules": lambda value: isinstance(value, (list, str)),
}
# ...those that are honoured at one value only...
PLAIN = {"peft_type": "LORA", "bias": "none"}
# ...starts that leave the model's own weights as they are: for others, the factors are relative to changed weights...
STARTS = {"true", "false", "gaussian", "mica", "eva", "orthogonal"}
# ...and settings that say nothing about the factors, or nothing that the factors do not. Others must be off.
NOTES = set(
    "task_type base_model_name_or_path inference_mode peft_version revision auto_mapping megatron_core "
    "qalora_group_size fan_in_fan_out exclude_modules layers_to_transform layers_pattern init_lora_weights "
    "eva_config corda_config lora_ga_config loftq_config".split()
)


def read_settings(path):
    """adapter_config.json as a dict. Raises ValueError unless it is whole and describes plain LoRA."""
    settings = read_json(path, "save the adapter again")
    for name in [*PLAIN, *settings]:  # peft_type first: another type has other settings
        value = settings.get(name)
        if not (value == PLAIN[name] if name in PLAIN else not value or name in READ or name in NOTES):
            raise ValueError(
                f"{path} has {name} = {shown(value)}, which is not plain LoRA: merge it with PEFT, load the merged model"
            )
    start = settings.get("init_lora_weights", True)
    if str(start).lower() not in STARTS:
        raise ValueError(
            f"{path} has init_lora_weights = {shown(start)}, which changes the model's own weights: convert it with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...), or merge it with PEFT, load the result"
        )
    settings = {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False} | {
        name: value for name, value in settings.items() if value is not None
    }
    for name, is_usable in READ.items():
        if not is_usable(settings.get(name)):
            raise ValueError(
                f"{path} has no usable {name} ({shown(settings.get(name))}): save the adapter again, with names of layers "
                "and numbers"
            )
    return settings


def read_factors(folder):
    """{key: tensor on the CPU} of adapter_model.safetensors or, where there is none, adapter_model.bin.

    Names that a wrapper around the model has left in the keys (torch.compile's, DistributedDataParallel's) are taken out.
    """
    path = next((folder / name for name in (FACTORS, "adapter_model.bin") if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has neither {FACTORS} nor adapter_model.bin: save the adapter again")
    factors = {}
    for key, stored in open_weights(path).items():
        plain = re.sub(r"(?<![^.])(_orig_mod|module)\.", "", key)
        if plain in factors:
            raise ValueError(f"{path} has two tensors {plain}: save the adapter again")
        factors[plain] = stored.read()
    return factors


# --- the program ------------------------------------------------------------------------------------------------------


def main():
    parser = Parser(prog="adapter_io.py", description="Write a model with its adapter merged into the weights.")
    add = parser.add_argument
    add(
        "--model", default="data/base", help="a model's folder, *.gguf, package:NAME, or org/name[@revision] on the Hub"
    )
    add("--adapter", required=True, default=SUPPRESS, help="folder of a run of train.py, or PEFT's of an adapter")
    add("--out", required=True, default=SUPPRESS, help="folder for the merged model and its tokenizer")
    add(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="of the written weights; auto: the model's own",
    )
    args = parser.parse_args()
    with one_sentence_errors("adapter_io.py", "model, or more memory: it is merged as a whole"):
        source = find_model(args.model)
        check_apart([args.out], [source, args.adapter])
        with whole_folder(args.out) as new:
            # Any other dtype comes last, so that the sum of weight and change is rounded once.
            model, tokenizer = load_pretrained(source, dtype=None if args.dtype == "auto" else torch.float32)
            load_adapters(model, args.adapter)
            check_base(args.adapter, args.model)
            if "lm_head" in merge_adapters(model):  # it was perhaps the embedding, which has not changed
                model.config = replace(model.config, tie_embeddings=False)
            if args.dtype != "auto":
                model.to(getattr(torch, args.dtype))
            save_pretrained(model, new, tokenizer, source)
            copy_tokenizer(source, new)
            made_by = {"program": "adapter_io.py", "model": args.model, "adapter": args.adapter, "dtype": args.dtype}
            write_json(new / MADE_BY, made_by)
        print(f"written to {args.out}: config.json, model.safetensors and the tokenizer's files", file=sys.stderr)


if __name__ == "__main__":
    main()
