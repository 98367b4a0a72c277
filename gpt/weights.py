"""Open weights in Hugging Face's layout <-> GPT: config.json and *.safetensors files of a folder.

Reading order: FAMILIES (what differs between families, as tables), load_model, save_pretrained, then the rest.

Nothing is computed wrongly in silence: a configuration that asks for what model.py does not compute is refused by
name, and every tensor of the files is used and shape-checked. No code from a checkpoint is run, and no pickle is read.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gpt.cli import atomic
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import load_tokenizer, read_json


@dataclass(frozen=True)
class Family:
    architecture: str  # the class in transformers
    required: dict  # field of GPTConfig -> key of config.json
    optional: dict  # the same, for keys that older files leave out (defaults in parse_config)
    fixed: dict  # key of config.json -> the only value that model.py computes, also assumed when the key is absent
    tied: bool  # tie_word_embeddings where config.json does not say
    prefix: str  # before every checkpoint name but lm_head's; left out in some files
    names: dict  # our part of a name -> the checkpoint's, where they differ
    ignored: str  # pattern of checkpoint names that hold constants, not weights
    transposed: bool  # linear weights of the layers are stored (in, out), as GPT-2's Conv1D


FAMILIES = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        required={
            "vocab_size": "vocab_size",
            "context_length": "max_position_embeddings",
            "hidden_size": "hidden_size",
            "intermediate_size": "intermediate_size",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "norm_eps": "rms_norm_eps",
        },
        optional={"n_kv_heads": "num_key_value_heads", "head_dim": "head_dim"},
        fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None},
        tied=False,
        prefix="model.",
        names={},
        ignored=r"rotary_emb\.inv_freq$",
        transposed=False,
    ),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        required={
            "vocab_size": "vocab_size",
            "context_length": "n_positions",
            "hidden_size": "n_embd",
            "n_layers": "n_layer",
            "n_heads": "n_head",
            "norm_eps": "layer_norm_epsilon",
        },
        optional={"intermediate_size": "n_inner"},
        fixed={
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
            "quantization_config": None,
        },
        tied=True,
        prefix="transformer.",
        names={
            "embed_tokens": "wte",
            "embed_positions": "wpe",
            "layers": "h",
            "input_layernorm": "ln_1",
            "self_attn.q_proj": "attn.c_attn",  # one fused matrix: query, key, value, in this order
            "self_attn.k_proj": "attn.c_attn",
            "self_attn.v_proj": "attn.c_attn",
            "self_attn.o_proj": "attn.c_proj",
            "post_attention_layernorm": "ln_2",
            "mlp.up_proj": "mlp.c_fc",
            "mlp.down_proj": "mlp.c_proj",
            "norm": "ln_f",
        },
        ignored=r"\.attn\.(masked_)?bias$",  # the causal mask
        transposed=True,
    ),
}


def load_pretrained(folder, device="cpu", dtype=torch.float32):
    """Load (model, tokenizer) from a folder with config.json, tokenizer.json and *.safetensors files.

    The weights are converted to `dtype` and moved to `device`.
    Raises FileNotFoundError or ValueError, one sentence, for files that are absent, damaged or not supported.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: give one with config.json, tokenizer.json and *.safetensors files"
        )
    tokenizer = load_tokenizer(folder)
    vocab_size = read_config(folder).vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{folder} does not fit together: tokenizer.json has ids up to {tokenizer.vocab_size - 1}, "
            f"but config.json a vocab_size of {vocab_size}"
        )
    return load_model(folder, device, dtype), tokenizer


def load_model(folder, device="cpu", dtype=torch.float32):
    """The GPT of a folder, as load_pretrained, where no tokenizer is needed."""
    config = read_config(folder)
    with torch.device("meta"):  # shapes only: the tensors of the files are put in below
        model = GPT(config)
    tensors = read_tensors(folder, config)  # memory-mapped: read from disk one by one, below
    check_tensors(folder, model, tensors)

    state = {}
    for name, ours in layout(model).items():
        tensor = tensors.pop(name).to(device, dtype)
        if is_transposed(config, ours[0], tensor):
            tensor = tensor.T
        sizes = [model.get_parameter(our).shape[0] for our in ours]
        for our, part in zip(ours, tensor.split(sizes), strict=True):
            state[our] = part.clone(memory_format=torch.contiguous_format) if len(ours) > 1 else part.contiguous()
    if config.tie_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight  # load_state_dict made two parameters of it
    return model.eval()


def save_pretrained(model, folder, eot_id=None):
    """Write a GPT as config.json and model.safetensors, which transformers and load_model open.

    eot_id: the tokenizer's end-of-text, noted in config.json. Tied embeddings are stored once. The tokenizer's files are
    not written: copy them, if the folder needs them.
    Raises ValueError for a configuration that has no counterpart in transformers, and for a model that no longer has
    the weights of its configuration, as one with adapters has not.
    """
    folder, config = Path(folder), model.config
    state = model.state_dict()
    with torch.device("meta"):
        changed = sorted(state.keys() ^ GPT(config).state_dict().keys())
    if changed:
        raise ValueError(
            f"the model has not the weights of its configuration ({changed[0]}, ...): merge adapters first"
        )
    if config.tie_embeddings and model.lm_head.weight is not model.embed_tokens.weight:
        raise ValueError("lm_head has a weight of its own, though the configuration ties it to the embedding")
    content = {"dtype": str(state["norm.weight"].dtype).removeprefix("torch.")} | format_config(config)
    content["eos_token_id"] = eot_id
    tensors = {}
    for name, ours in layout(model).items():
        tensor = torch.cat([state[our] for our in ours]) if len(ours) > 1 else state[ours[0]]
        tensors[name] = (tensor.T if is_transposed(config, ours[0], tensor) else tensor).contiguous()
    with atomic(folder / "model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with atomic(folder / "config.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def checkpoint_name(config, name):
    """The name in a Hugging Face checkpoint of one of our parameters or modules.

    Llama: layers.0.self_attn.q_proj -> model.layers.0.self_attn.q_proj; GPT-2: -> transformer.h.0.attn.c_attn, which
    holds query, key and value together.
    """
    if name.split(".")[0] == "lm_head":
        return name
    family = FAMILIES[config.family]
    for ours, theirs in family.names.items():
        name = re.sub(rf"(?<![^.]){re.escape(ours)}(?![^.])", theirs, name)  # whole dotted parts only
    return family.prefix + name


def layout(model):
    """{checkpoint name: [our parameter names it holds, in order]}; a tied lm_head has none."""
    ours = {}
    for name, _ in model.named_parameters():  # a tied weight comes once, as embed_tokens.weight
        ours.setdefault(checkpoint_name(model.config, name), []).append(name)
    return ours


def is_transposed(config, name, tensor):
    return FAMILIES[config.family].transposed and name.startswith("layers.") and tensor.dim() == 2


def read_config(folder):
    """The GPTConfig of a folder's config.json. Raises FileNotFoundError or ValueError, see load_pretrained."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    try:
        return parse_config(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_config(raw):
    """config.json's content (dict) -> GPTConfig; raises ValueError for what model.py does not compute."""
    kind = raw.get("model_type")
    if kind not in list(FAMILIES):  # list: `kind` may be anything that JSON can hold
        raise ValueError(f"the model_type {kind!r} is not supported: known are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    for key, value in family.fixed.items():
        if raw.get(key) not in (None, value):
            raise ValueError(f"{key}={raw[key]!r} is not supported: known is {value!r}")

    fields = {field: number(raw, key) for field, key in family.required.items()}
    defaults = {
        "intermediate_size": 4 * fields["hidden_size"],
        "n_kv_heads": fields["n_heads"],
        "head_dim": fields["hidden_size"] // fields["n_heads"],
    }
    for field, default in defaults.items():
        key = family.optional.get(field)
        if raw.get(key) is not None:
            fields[field] = number(raw, key)
        else:
            fields.setdefault(field, default)
    if raw.get("head_dim") is None and fields["hidden_size"] % fields["n_heads"]:
        raise ValueError(f"the hidden size {fields['hidden_size']} does not divide into {fields['n_heads']} heads")
    if kind == "llama":
        fields["rope_theta"] = rope_theta(raw)
        if fields["head_dim"] % 2:
            raise ValueError(f"head_dim={fields['head_dim']} is odd: rotary positions turn pairs of components")
    tied = raw.get("tie_word_embeddings", family.tied)
    if not isinstance(tied, bool):
        raise ValueError(f"tie_word_embeddings={tied!r} is neither true nor false")
    return GPTConfig(family=kind, tie_embeddings=tied, **fields)


def number(raw, key):
    """A positive number of config.json: an int, but for the norm's epsilon and the rotary base."""
    if raw.get(key) is None:
        raise ValueError(f"the key {key!r} is missing")
    value, kinds = raw[key], (int, float) if key.endswith(("eps", "epsilon", "theta")) else (int,)
    if type(value) not in kinds or not 0 < value < float("inf"):
        raise ValueError(f"{key}={value!r} is not a positive {'number' if float in kinds else 'whole number'}")
    return value


def rope_theta(raw):
    """The rotary base, in rope_parameters since transformers 5 and at the top level before. Refuses scaled positions."""
    theta = {"rope_theta": 10000.0} | {key: raw[key] for key in ["rope_theta"] if raw.get(key) is not None}
    for key in ("rope_scaling", "rope_parameters"):
        rope = raw.get(key) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{key}={rope!r} is not an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or not set(rope) <= {"rope_type", "type", "rope_theta"}:
            raise ValueError(f"{key}={json.dumps(rope)} is not supported: known is rope_type 'default' with rope_theta")
        theta |= {name: value for name, value in rope.items() if name == "rope_theta"}
    return float(number(theta, "rope_theta"))


def format_config(config):
    """GPTConfig -> config.json's content (dict), the inverse of parse_config. Raises ValueError where there is none."""
    family = FAMILIES[config.family]
    raw = {"architectures": [family.architecture], "model_type": config.family}
    raw |= {key: getattr(config, field) for field, key in (family.required | family.optional).items()}
    raw |= {key: value for key, value in family.fixed.items() if value is not None}
    raw["tie_word_embeddings"] = config.tie_embeddings
    raw |= {"bos_token_id": None, "eos_token_id": None}  # the tokenizer's affair; transformers' defaults would be wrong
    if config.family == "llama":
        raw["rope_theta"] = config.rope_theta
        raw["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}  # since transformers 5
    if parse_config(raw) != config:
        raise ValueError(f"{family.architecture} cannot express {config}")
    return raw


def weight_files(folder):
    """The paths of a folder's *.safetensors files: model.safetensors, or the shards that its index lists."""
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json: "
            "download or convert the weights to safetensors (pickled *.bin files are not read)"
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index} has no weight_map, download it again")
    for shard in shards.values():
        # Names, not resolved paths: in a Hugging Face cache the files themselves are links out of the folder.
        if not isinstance(shard, str) or re.search(r"[/\\:]", shard) or not shard.endswith(".safetensors"):
            raise ValueError(f"{index} lists {shard!r}, which is not the name of a safetensors file in the same folder")
    return [folder / shard for shard in sorted(set(shards.values()))]


def read_tensors(folder, config):
    """{checkpoint name with its prefix: memory-mapped tensor} of a folder's files, constants left out."""
    family = FAMILIES[config.family]
    tensors = {}
    for path in weight_files(folder):
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found, though model.safetensors.index.json lists it: download it")
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():
                    if re.search(family.ignored, stored):
                        continue
                    name = stored if stored.startswith((family.prefix, "lm_head.")) else family.prefix + stored
                    if name in tensors:
                        raise ValueError(f"{path} holds {stored}, which was there already under this or another name")
                    tensors[name] = file.get_tensor(stored)
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or damaged, download it again ({error})") from None
    return tensors


def check_tensors(folder, model, tensors):
    """Compare names and shapes with the model's; raise one ValueError that lists all that differ."""
    config, wrong = model.config, []
    expected = layout(model)
    for name, ours in expected.items():
        parts = [model.get_parameter(our) for our in ours]
        whole = torch.cat(parts)  # on the meta device: a shape
        shape = tuple(reversed(whole.shape)) if is_transposed(config, ours[0], whole) else tuple(whole.shape)
        if name not in tensors:
            wrong.append(f"missing {name}")
        elif tuple(tensors[name].shape) != shape:
            wrong.append(f"{name} is {tuple(tensors[name].shape)} instead of {shape}")
        elif not tensors[name].is_floating_point():
            wrong.append(f"{name} is {tensors[name].dtype}, not floating point")
    if config.tie_embeddings and "lm_head.weight" in tensors:  # some files store the shared weight twice
        head, embedding = tensors.pop("lm_head.weight"), tensors.get(checkpoint_name(config, "embed_tokens.weight"))
        if embedding is not None and (head.shape != embedding.shape or (head != embedding).any()):
            wrong.append("lm_head.weight differs from the embedding, though tie_word_embeddings is true")
    wrong += [f"unexpected {name}" for name in tensors if name not in expected]
    if wrong:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {'; '.join(wrong)}")
