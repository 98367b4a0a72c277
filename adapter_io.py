"""Adapters on disk, in PEFT's file format: save_adapters(model, folder) and load_adapters(model, folder).

Whatever method trained them, the files hold plain LoRA factors relative to the original weights, under the names of
the Hugging Face checkpoint. So PEFT opens them, and loading here needs no SVD and no knowledge of the method.
GPT-2 is the exception: its checkpoints fuse q, k and v into one c_attn, which has no name for a part of it. Its
adapters are saved under our own names (layers.0.self_attn.q_proj): they load here, not in PEFT.
"""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gpt.cli import atomic
from gpt.weights import FAMILIES, checkpoint_name
from lora import LoRALayer, find_adapters, replace_linears

CONFIG, FACTORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrapper around the model
CLASS = "base_model_class"  # in "auto_mapping", where PEFT notes what an adapter was made for

# The settings of PEFT that are honoured here, and their types...
READ = {"r": int, "lora_alpha": (int, float), "lora_dropout": (int, float), "target_modules": list}
# ...those that are honoured at one value only...
PLAIN = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True}
# ...and those that say nothing about what the factors mean. Any other one must be off: null, false or empty.
NOTES = {
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "auto_mapping",
    "megatron_core",
    "qalora_group_size",
}


def base_class(model):
    """The class in transformers of a GPT's family: LlamaForCausalLM, ..."""
    return FAMILIES[model.config.family].architecture


def saved_name(config, name):
    """The name a layer has in the files: the checkpoint's, or for GPT-2 our own."""
    return name if config.family == "gpt2" else checkpoint_name(config, name)


def save_adapters(model, folder, base_model=None, revision=None):
    """Write the adapters of a GPT to folder/adapter_config.json and folder/adapter_model.safetensors.

    base_model, revision: where the original weights come from (a folder, or a name on the Hub and its branch, tag or
    commit), noted in the config for PEFT.
    Raises ValueError when the model has no adapters, or adapters of different rank, alpha or dropout.
    """
    layers = {saved_name(model.config, name): layer for name, layer in find_adapters(model).items()}
    if not layers:
        raise ValueError("the model has no adapters to save")
    settings = {(layer.rank, layer.alpha, layer.dropout.p) for layer in layers.values()}
    if len(settings) > 1:
        raise ValueError("one folder holds adapters of one rank, alpha and dropout: adapt every layer with the same")
    rank, alpha, dropout = settings.pop()

    # PEFT adapts every layer whose name ends in a target: short targets will do only if all such layers are adapted.
    targets = {name.rpartition(".")[2] for name in layers}
    left = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    config = PLAIN | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model and str(base_model),
        "revision": revision,
        "auto_mapping": {CLASS: base_class(model), "parent_library": "transformers"},
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(layers if targets & left else targets),
    }
    factors = {}
    for name, layer in layers.items():
        factors[f"{PREFIX}{name}.lora_A.weight"] = layer.A.detach().cpu().contiguous()  # (rank, in)
        factors[f"{PREFIX}{name}.lora_B.weight"] = layer.B.detach().cpu().contiguous()  # (out, rank)
    with atomic(Path(folder) / FACTORS) as path:
        save_file(factors, path, metadata={"format": "pt"})
    with atomic(Path(folder) / CONFIG) as path:  # last: the config makes a folder an adapter
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapters(model, folder):
    """Adapt a GPT with what save_adapters, or PEFT, wrote; return the layers' names.

    The model holds the original weights, or others of the same shape: on an instruct model the change learned on its base
    model is added to what instruction tuning changed (MiCA's transfer, arXiv 2604.01694).

    The base is frozen; the layers are plain LoRALayers, whose A and B are both trained if training goes on. The logits
    are those of the model that was saved. Raises ValueError for files that are missing, damaged or not for this model,
    and for settings of PEFT that are not supported; the model is then as it was.
    """
    if find_adapters(model):
        raise ValueError("the model is already adapted: merge its adapters first, or load the model again")
    folder = Path(folder)
    if (folder / "adapter").is_dir() and not (folder / CONFIG).exists():  # a run of train.py
        folder = folder / "adapter"
    if (folder / "model").is_dir() and not (folder / CONFIG).exists():
        raise ValueError(
            f"{folder} has no adapter but a whole model: load {folder / 'model'} instead of the base model"
        )
    settings = read_settings(folder / CONFIG)
    factors = read_factors(folder / FACTORS)
    note = settings.get("auto_mapping")
    ours, theirs = base_class(model), note.get(CLASS) if isinstance(note, dict) else None
    if theirs not in (None, ours):  # Mistral's layers, say, can have the shapes of Llama's
        raise ValueError(f"{folder} adapts a {theirs}, but this model is a {ours}: load a model of the same family")
    rank, remedy = settings["r"], "load the model it was made for, or save the adapter again"

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    saved_names = {name: saved_name(model.config, name) for name in linears}
    chosen = {}  # the part of saved_names that the files adapt
    for target in settings["target_modules"]:
        matches = {name: saved for name, saved in saved_names.items() if f".{saved}".endswith(f".{target}")}
        if not matches:
            raise ValueError(f"{folder} adapts {target}, which this model does not have: {remedy}")
        chosen |= matches
    shapes = {}
    for name, saved in chosen.items():
        rows, columns = linears[name].weight.shape  # (out, in)
        shapes[f"{PREFIX}{saved}.lora_A.weight"] = (rank, columns)
        shapes[f"{PREFIX}{saved}.lora_B.weight"] = (rows, rank)
    for key in [*shapes, *factors]:
        if key not in factors or key not in shapes:
            raise ValueError(f"{folder} {'lacks' if key in shapes else 'has the unexpected'} {key}: {remedy}")
    for key, shape in shapes.items():
        if factors[key].shape != shape:
            raise ValueError(f"{folder} has {key} of shape {tuple(factors[key].shape)}, not {shape}: {remedy}")

    replace_linears(model, LoRALayer, rank, settings["lora_alpha"], list(chosen), settings["lora_dropout"])
    for name, layer in find_adapters(model).items():
        layer.A.data.copy_(factors[f"{PREFIX}{chosen[name]}.lora_A.weight"])
        layer.B.data.copy_(factors[f"{PREFIX}{chosen[name]}.lora_B.weight"])
    return list(find_adapters(model))


def read_settings(path):
    """adapter_config.json as a dict. Raises ValueError unless it is whole and describes plain LoRA."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing: give a folder that save_adapters or PEFT wrote") from None
    except ValueError:  # not JSON, or not even text
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged: save the adapter again")
    for name in [*PLAIN, *settings]:  # peft_type first: another type has other settings
        value = settings.get(name)
        plain = value == PLAIN[name] if name in PLAIN else not value or name in READ or name in NOTES
        if not plain:
            raise ValueError(f"{path} has {name} = {value!r}, not plain LoRA: merge it with PEFT, load the result")
    for name, kind in READ.items():
        if not isinstance(settings.get(name), kind):
            raise ValueError(f"{path} has no usable {name} ({settings.get(name)!r}): save the adapter again")
    return settings


def read_factors(path):
    """The tensors of adapter_model.safetensors, on the CPU. Raises ValueError when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: give a folder that save_adapters or PEFT wrote") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): save the adapter again") from None
