"""Open weights in Hugging Face's layout <-> GPT: config.json and *.safetensors files of a folder, or a GGUF file.

Reading order: FAMILIES (what differs between families, as tables), load_model, save_pretrained, then the rest.

Nothing is computed wrongly in silence: a configuration that asks for what model.py does not compute is refused by
name, and every tensor of the files is used and shape-checked. No code from a checkpoint is run: where there is only a
pickled pytorch_model.bin, torch reads it with weights_only=True.
"""

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gpt.gguf import find_gguf, gguf_config, gguf_tensors, is_gguf
from gpt.model import GPT, GPTConfig, RopeScaling
from gpt.tokenizer import load_tokenizer
from tools.cli import atomic
from tools.inputs import LAYERS, SIZE, TOKENS, is_number, is_text, is_whole, read_json, shown


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


# What Llama and its kin have in common, for `fixed`.
ROTARY = {
    "hidden_act": "silu",
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": None,  # outside rope_scaling it would win over the one inside
    "quantization_config": None,
}
# What to do about a key that model.py does not compute.
REMEDIES = {
    "quantization_config": ": if the weights are no longer quantised (merged and saved in 16 or 32 bits), take the key out",
}
LLAMA = Family(
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
    fixed=ROTARY | {"attention_bias": False, "mlp_bias": False},
    tied=False,
    prefix="model.",
    names={},
    ignored=r"rotary_emb\.inv_freq$",
    transposed=False,
)
# In these, transformers takes another default than the number of heads: their files always say it.
LLAMA_KIN = replace(LLAMA, required=LLAMA.required | {"n_kv_heads": "num_key_value_heads"})

FAMILIES = {
    "llama": LLAMA,
    "mistral": replace(LLAMA_KIN, architecture="MistralForCausalLM", fixed=ROTARY),
    "qwen2": replace(
        LLAMA_KIN,
        architecture="Qwen2ForCausalLM",
        fixed=ROTARY | {"use_sliding_window": False, "use_mrope": False},
    ),
    "qwen3": replace(
        LLAMA_KIN,
        architecture="Qwen3ForCausalLM",
        required=LLAMA_KIN.required | {"head_dim": "head_dim"},
        fixed=ROTARY | {"use_sliding_window": False, "attention_bias": False},
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
    """Load (model, tokenizer) from a folder with config.json, the weights and the tokenizer's files, or a GGUF file.

    The weights are converted to `dtype` (None: as the files hold them) and moved to `device`. For a name on the Hugging
    Face Hub see gpt/hub.py.
    Raises FileNotFoundError or ValueError, one sentence, for files that are absent, damaged or not supported.
    """
    if not Path(folder).is_dir() and not find_gguf(folder):
        raise FileNotFoundError(
            f"no folder {folder}: give one with config.json, tokenizer.json and *.safetensors files, or a GGUF file"
        )
    tokenizer = load_tokenizer(folder)
    vocab_size = read_config(folder).vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{folder} does not fit together: the tokenizer has ids up to {tokenizer.vocab_size - 1}, "
            f"but the model a vocab_size of {vocab_size}"
        )
    return load_model(folder, device, dtype), tokenizer


def load_model(folder, device="cpu", dtype=torch.float32):
    """The GPT of a folder, as load_pretrained, where no tokenizer is needed."""
    config = read_config(folder)
    with torch.device("meta"):  # shapes only: the tensors of the files are put in below
        model = GPT(config)
    stored = find_tensors(folder, config)
    check_tensors(folder, model, stored)
    if dtype is None:  # one dtype for all: of a mixture, one that loses nothing
        dtype = reduce(torch.promote_types, (getattr(torch, tensor.dtype) for tensor in stored.values()))

    state = {}
    for name, ours in layout(model).items():
        # Read one by one: in the same dtype it stays a window on the file (memory-mapped) until it is used or moved.
        tensor = check_finite(f"{folder}: {name}", stored.pop(name).read().to(device, dtype))
        if is_transposed(config, ours[0], tensor):
            tensor = tensor.T
        sizes = [model.get_parameter(our).shape[0] for our in ours]
        for our, part in zip(ours, tensor.split(sizes), strict=True):
            state[our] = part.contiguous()
    if config.tie_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight  # load_state_dict made two parameters of it
    return model.eval()


# Keys of config.json that are wrong, or mean something else, beside other weights or without a repository's own code.
NOT_KEPT = {"torch_dtype", "quantization_config", "auto_map", "_name_or_path", "rope_theta", "rope_scaling", "layer_types"}


def check_finite(name, tensor, remedy="give a --dtype of wider range, or another model"):
    """The tensor. Raises ValueError with its name where it holds NaN or infinity: nothing that is computed with it counts."""
    if tensor.numel() and not all(end.isfinite() for end in tensor.detach().aminmax()):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} holds NaN or infinity as {kind}: {remedy}")
    return tensor


def save_pretrained(model, folder, tokenizer=None, source=None):
    """Write a GPT as config.json and model.safetensors, which transformers and load_model open.

    tokenizer: its end-of-text and beginning-of-sequence ids are noted in config.json. Tied embeddings are stored once.
    source: the folder that the model came from, whose config.json keeps what is not about the weights or their type.
    The tokenizer's files are not written: copy them (gpt.tokenizer.copy_tokenizer), if the folder needs them.
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
    if tokenizer is not None:
        content |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eot_id}
    if source is not None and (Path(source) / "config.json").exists():
        raw = read_json(Path(source) / "config.json")
        kept = {key: value for key, value in raw.items() if key not in NOT_KEPT}
        content = kept | content | {key: raw[key] for key in ("bos_token_id", "eos_token_id") if raw.get(key) is not None}
    tensors = {}
    for name, ours in layout(model).items():
        tensor = torch.cat([state[our] for our in ours]) if len(ours) > 1 else state[ours[0]]
        check_finite(name, tensor)
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
    """The GPTConfig of a folder's config.json or of a GGUF file. Raises what load_pretrained does."""
    file = find_gguf(folder)
    path = file or Path(folder) / "config.json"
    raw = None if file else read_json(path)
    try:
        return parse_config(gguf_config(file) if file else raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_config(raw):
    """config.json's content (dict) -> GPTConfig; raises ValueError for what model.py does not compute."""
    kind = raw.get("model_type")
    if kind is None:  # older than the key, as DistilGPT-2's first file is: the class says it
        known = {family.architecture: kind for kind, family in FAMILIES.items()}
        kind = next((known[name] for name in known if raw.get("architectures") == [name]), None)
    if kind not in list(FAMILIES):  # list: `kind` may be anything that JSON can hold
        raise ValueError(f"the model_type {shown(kind)} is not supported: known are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    for key, value in family.fixed.items():
        if raw.get(key) not in (None, value):
            raise ValueError(f"{key}={shown(raw[key])} is not supported: known is {value!r}{REMEDIES.get(key, '')}")
    layers = raw.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise ValueError(f"layer_types={shown(layers)} is not supported: known is 'full_attention' in every layer")

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
    if kind == "mistral":  # the first version's window is 4096, which is also what an absent key means
        window = raw.get("sliding_window", 4096)
        if window is not None and number({"sliding_window": window}, "sliding_window") < fields["context_length"]:
            raise ValueError(
                f"sliding_window={window} is shorter than the context of {fields['context_length']} tokens, which is not "
                f"supported: it is not in force below {window} tokens, so set max_position_embeddings to {window} in a "
                "copy of config.json, or take a version of the model without a sliding window"
            )
    if kind != "gpt2":
        fields["rope_theta"], fields["rope_scaling"] = rope(raw)
        if fields["head_dim"] % 2:
            raise ValueError(f"head_dim={fields['head_dim']} is odd: rotary positions turn pairs of components")
    tied = raw.get("tie_word_embeddings", family.tied)
    if not isinstance(tied, bool):
        raise ValueError(f"tie_word_embeddings={shown(tied)} is neither true nor false")
    return GPTConfig(family=kind, tie_embeddings=tied, **fields)


def number(raw, key):
    """A positive number of config.json: an int, but for the norm's epsilon and those of the rotary positions."""
    value = raw.get(key)
    if value is None:
        raise ValueError(f"the key {key!r} is missing")
    if key.endswith(("eps", "epsilon", "theta", "factor")):
        if not is_number(value, low=1e-30):
            raise ValueError(f"{key}={shown(value)} is not a positive number")
        return value
    most = LAYERS if "layer" in key else TOKENS if "position" in key or key == "sliding_window" else SIZE
    if not is_whole(value, 1, most):
        raise ValueError(f"{key}={shown(value)} is not a positive whole number, at most {most:,}")
    return value


# Field of RopeScaling -> key of config.json.
ROPE_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}


def rope(raw):
    """(rope_theta, RopeScaling or None): in rope_parameters since transformers 5; rope_theta and rope_scaling before.

    Refuses all scaled positions but Llama 3.1's.
    """
    thetas, scalings = [raw.get("rope_theta")], []
    for key in ("rope_scaling", "rope_parameters"):  # a file may have both, for old and new readers
        given = raw.get(key)
        if not given:
            continue
        if not isinstance(given, dict):
            raise ValueError(f"{key}={shown(given)} is not an object")
        kind = given.get("rope_type", given.get("type", "default"))
        known = {"rope_type", "type", "rope_theta"} | (set(ROPE_SCALING.values()) if kind == "llama3" else set())
        if kind not in ("default", "llama3") or not set(given) <= known:
            raise ValueError(
                f"{key}={shown(given)} is not supported: known are the rope_types 'default' and 'llama3'"
            )
        scaling = None
        if kind == "llama3":
            scaling = RopeScaling(**{field: number(given, name) for field, name in ROPE_SCALING.items()})
            if scaling.low_freq_factor >= scaling.high_freq_factor:
                raise ValueError(f"{key}={shown(given)}: low_freq_factor must be below high_freq_factor")
        scalings.append(scaling)
        thetas.append(given.get("rope_theta"))
    thetas = {float(number({"rope_theta": theta}, "rope_theta")) for theta in thetas if theta is not None}
    if len(set(scalings)) > 1 or len(thetas) > 1:
        raise ValueError("rope_theta, rope_scaling and rope_parameters contradict each other")
    return (thetas or {10000.0}).pop(), scalings[0] if scalings else None


def format_config(config):
    """GPTConfig -> config.json's content (dict), the inverse of parse_config. Raises ValueError where there is none."""
    family = FAMILIES[config.family]
    raw = {"architectures": [family.architecture], "model_type": config.family}
    raw |= {key: getattr(config, field) for field, key in (family.required | family.optional).items()}
    raw["tie_word_embeddings"] = config.tie_embeddings
    raw |= {"bos_token_id": None, "eos_token_id": None}  # the tokenizer's affair; transformers' defaults would be wrong
    if config.family == "mistral":
        raw["sliding_window"] = None
    if config.family != "gpt2":
        scaling = {"rope_type": "default"}
        if config.rope_scaling is not None:
            scaling = {key: getattr(config.rope_scaling, field) for field, key in ROPE_SCALING.items()}
            scaling["rope_type"] = "llama3"
            raw["rope_scaling"] = scaling
        raw["rope_theta"] = config.rope_theta
        raw["rope_parameters"] = scaling | {"rope_theta": config.rope_theta}  # since transformers 5
    if parse_config(raw) != config:
        raise ValueError(f"{family.architecture} cannot express {config}")
    return raw


WEIGHTS = ["model.safetensors", "pytorch_model.bin"]  # in one file, or in those that NAME.index.json lists


def shard_names(index):
    """The names of the files that an index lists, sorted. Raises ValueError for what is not the name of a file beside it."""
    shards, suffix = read_json(index).get("weight_map"), Path(index.name.removesuffix(".index.json")).suffix
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index} has no weight_map, download it again")
    for shard in shards.values():
        # Names, not resolved paths: in a Hugging Face cache the files themselves are links out of the folder.
        if not is_text(shard) or re.search(r"[/\\:]", shard) or not shard.endswith(suffix) or not shard.isprintable():
            raise ValueError(f"{index} lists {shown(shard)}, which is not the name of a {suffix} file beside it")
    return sorted(set(shards.values()))


def weight_files(folder):
    """The paths of a folder's weights: model.safetensors or the shards its index lists, else pytorch_model.bin's.

    Of a GGUF file, or a folder that holds one in place of all these, that file.
    """
    if file := find_gguf(folder):
        return [file]
    folder = Path(folder)
    for single in WEIGHTS:
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if index.is_file():
            for shard in (shards := shard_names(index)):
                if not (folder / shard).is_file():
                    raise FileNotFoundError(f"{folder / shard} not found, though {index.name} lists it: download it")
            return [folder / shard for shard in shards]
    other = next(filter(is_gguf, sorted(folder.glob("*"))), None)
    hint = f"name {other} itself, which is a model of its own" if other else "download the weights"
    raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin, nor an index of either: {hint}")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: str  # float32, bfloat16, ...
    read: Callable[[], torch.Tensor]


SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # any other is refused


def open_safetensors(path):
    """{name: Stored} of a *.safetensors file."""

    def read(name):  # opened anew for each tensor: pages of the file leave memory together with it
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    stored = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                entry = file.get_slice(name)
                dtype = SAFETENSORS_DTYPES.get(entry.get_dtype(), entry.get_dtype())
                stored[name] = Stored(tuple(entry.get_shape()), dtype, partial(read, name))
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged, download it again ({shown(str(error))})") from None
    return stored


def is_plain(tensor):
    """Whether it is a tensor with numbers in rows: not sparse, say, and not a shape alone."""
    return isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"


def open_pickle(path):
    """{name: Stored} of a pytorch_model.bin; torch refuses to run code from it."""
    try:  # memory-mapped, but for the format of before PyTorch 1.6, which is no zip file
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damage raises all kinds of errors in torch
        if (isinstance(error, OSError) and error.filename) or "can't allocate memory" in str(error):
            raise
        code = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(f"{path} holds {code[1]}, not only tensors, and code in it is never run") from None
        raise ValueError(f"{path} is truncated or damaged, download it again ({type(error).__name__})") from None
    pairs = tensors.items() if isinstance(tensors, dict) else [(None, tensors)]
    if not all(isinstance(name, str) and is_plain(tensor) for name, tensor in pairs):
        raise ValueError(f"{path} is not a table of tensors with their names: convert it to model.safetensors")
    return {
        name: Stored(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    }


def open_weights(path):
    """{name: Stored} of a *.safetensors, *.bin or *.gguf file. Raises ValueError for what no layer is called."""
    if is_gguf(path):
        return {name: Stored(shape, "float32", read) for name, (shape, read) in gguf_tensors(path).items()}
    stored = (open_pickle if path.suffix == ".bin" else open_safetensors)(path)
    for name in stored:
        if not re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII):
            raise ValueError(f"{path} holds a tensor called {shown(name)}, which no layer is: download it again")
    return stored


def find_tensors(folder, config):
    """{checkpoint name with its prefix: Stored} of a folder's files, constants left out."""
    family = FAMILIES[config.family]
    found = {}
    for path in weight_files(folder):
        for name, stored in open_weights(path).items():
            if re.search(family.ignored, name):
                continue
            full = name if name.startswith((family.prefix, "lm_head.")) else family.prefix + name
            if full in found:
                raise ValueError(f"{path} holds {name}, which was there already under this or another name")
            found[full] = stored
    return found


def check_tensors(folder, model, stored):
    """Compare names and shapes with the model's; raise one ValueError that lists all that differ."""
    config, wrong = model.config, []
    expected = layout(model)
    for name, ours in expected.items():
        parts = [model.get_parameter(our) for our in ours]
        whole = torch.cat(parts)  # on the meta device: a shape
        shape = tuple(reversed(whole.shape)) if is_transposed(config, ours[0], whole) else tuple(whole.shape)
        if name not in stored:
            wrong.append(f"missing {name}")
        elif stored[name].shape != shape:
            wrong.append(f"{name} is {stored[name].shape} instead of {shape}")
        elif stored[name].dtype not in SAFETENSORS_DTYPES.values():
            wrong.append(f"{name} is {stored[name].dtype}, not 16- to 64-bit floating point")
    if config.tie_embeddings and "lm_head.weight" in stored:  # some files store the shared weight twice
        head, embedding = stored.pop("lm_head.weight"), stored.get(checkpoint_name(config, "embed_tokens.weight"))
        if embedding is not None and (head.shape != embedding.shape or (head.read() != embedding.read()).any()):
            wrong.append("lm_head.weight differs from the embedding, though tie_word_embeddings is true")
    wrong += [f"unexpected {name}" for name in stored if name not in expected]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"the weights in {folder} do not fit its configuration: {'; '.join(wrong[:4])}{more}")
