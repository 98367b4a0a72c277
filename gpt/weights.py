"""Open weights in Hugging Face's layout <-> GPT: config.json and *.safetensors files of a folder, or a GGUF file.

Reading order: Llama and GPT2 (what a config.json may hold), FAMILIES, load_model, save_pretrained, then the rest.

Nothing is computed wrongly in silence: a configuration that asks for what model.py does not compute is refused by
name, and every tensor of the files must be one of the model's, in its shape. No code from a checkpoint is run: where
there is only a pickled pytorch_model.bin, torch reads it with weights_only=True.
"""

import json
import re
import zipfile
from dataclasses import dataclass, field, fields
from functools import partial, reduce
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gpt.gguf import SCALING, gguf_config, gguf_tensors, is_gguf
from gpt.model import GPT, GPTConfig, RopeScaling
from gpt.tokenizer import load_tokenizer
from tools.cli import atomic
from tools.schema import build, printable, read_json, reading, shown

# --- what config.json may hold -----------------------------------------------------------------------------------------


def known_as(name, **default):
    """A key of config.json that is a field of GPTConfig, of this name. (Of the others, a Literal or None lists every value
    that model.py computes. Keys that change nothing here are left out.)"""
    return field(metadata={"name": name}, **default)


@dataclass(frozen=True, kw_only=True)
class Llama:
    """config.json of Llama, Mistral, Qwen2 and Qwen3."""

    vocab_size: int = known_as("vocab_size")
    max_position_embeddings: int = known_as("context_length")
    hidden_size: int = known_as("hidden_size")
    intermediate_size: int = known_as("intermediate_size")
    num_hidden_layers: int = known_as("n_layers")
    num_attention_heads: int = known_as("n_heads")
    num_key_value_heads: int | None = known_as("n_kv_heads", default=None)
    head_dim: int | None = known_as("head_dim", default=None)
    rms_norm_eps: float = known_as("norm_eps")
    tie_word_embeddings: bool = known_as("tie_embeddings", default=False)
    rope_theta: float | None = None
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None  # both of these, since transformers 5; a file may have all three
    hidden_act: Literal["silu", None] = "silu"
    layer_types: list[Literal["full_attention"]] | None = None
    sliding_window: int | None = 4096  # only Mistral's: where the key is absent, as long as in its first version
    use_sliding_window: Literal[False, None] = False
    partial_rotary_factor: Literal[1, None] = 1
    original_max_position_embeddings: None = None  # here it would win over the one inside rope_scaling
    quantization_config: None = None


@dataclass(frozen=True, kw_only=True)
class GPT2:
    """config.json of GPT-2."""

    vocab_size: int = known_as("vocab_size")
    n_positions: int = known_as("context_length")
    n_embd: int = known_as("hidden_size")
    n_inner: int | None = known_as("intermediate_size", default=None)
    n_layer: int = known_as("n_layers")
    n_head: int = known_as("n_heads")
    layer_norm_epsilon: float = known_as("norm_eps")
    tie_word_embeddings: bool = known_as("tie_embeddings", default=True)
    activation_function: Literal["gelu_new", None] = "gelu_new"
    scale_attn_weights: Literal[True, None] = True
    scale_attn_by_inverse_layer_idx: Literal[False, None] = False
    quantization_config: None = None


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """rope_scaling or rope_parameters of config.json."""

    rope_type: Literal["default", "llama3"] = "default"
    rope_theta: float | None = None
    factor: float | None = None  # the next four: SCALING
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


@dataclass(frozen=True)
class Family:
    architecture: str  # the class in transformers
    settings: type = Llama  # what config.json may hold
    prefix: str = "model."  # before every checkpoint name but lm_head's; left out in some files
    names: dict = field(default_factory=dict)  # our part of a name -> the checkpoint's, where they differ
    ignored: str = r"rotary_emb\.inv_freq$"  # pattern of checkpoint names that hold constants, not weights
    transposed: bool = False  # linear weights of the layers are stored (in, out), as GPT-2's Conv1D

    @property
    def keys(self):
        """{field of GPTConfig: key of config.json}"""
        return {one.metadata["name"]: one.name for one in fields(self.settings) if one.metadata}


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM"),
    "qwen3": Family("Qwen3ForCausalLM"),
    "gpt2": Family(
        "GPT2LMHeadModel",
        settings=GPT2,
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


# --- loading and saving ------------------------------------------------------------------------------------------------


def load_pretrained(folder, device="cpu", dtype=torch.float32):
    """Load (model, tokenizer) from a folder with config.json, the weights and the tokenizer's files, or a GGUF file.

    The weights are converted to `dtype` (None: as the files hold them) and moved to `device`. For a name on the Hugging
    Face Hub see gpt/hub.py.
    Raises FileNotFoundError or ValueError, one sentence, for files that are absent, damaged or not supported.
    """
    tokenizer, vocab_size = load_tokenizer(folder), read_config(folder).vocab_size
    if tokenizer.vocab_size > vocab_size:
        last = tokenizer.vocab_size - 1
        raise ValueError(f"{folder}: the tokenizer has ids up to {last}, but the model a vocab_size of {vocab_size}")
    return load_model(folder, device, dtype), tokenizer


def load_model(folder, device="cpu", dtype=torch.float32):
    """The GPT of a folder, as load_pretrained, where no tokenizer is needed."""
    config = read_config(folder)
    with torch.device("meta"):  # shapes only: the tensors of the files are put in below
        model = GPT(config)
    expected, state = layout(model), {}
    for name, read in find_tensors(folder, model).items():
        # Read one by one: in the same dtype it stays a window on the file (memory-mapped) until it is used or moved.
        tensor = read()
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise ValueError(f"{folder}: {shown(name)} is {tensor.dtype}, not 16- to 64-bit floating point")
        tensor = check_finite(f"{folder}: {shown(name)}", tensor.to(device, dtype))
        ours = expected.get(name, [name])
        tensor = tensor.T if is_transposed(config, ours[0], tensor) else tensor
        state |= {our: part.contiguous() for our, part in zip(ours, torch.atleast_1d(tensor).chunk(len(ours)))}
    if config.tie_embeddings and "embed_tokens.weight" in state:  # some files hold it twice
        embedding = state["embed_tokens.weight"]
        if not torch.equal(state.setdefault("lm_head.weight", embedding), embedding):
            raise ValueError(f"{folder}: lm_head.weight differs from the embedding, though tie_word_embeddings is true")
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:  # what is missing, unexpected or of another shape, a line for each
        said = printable(str(error).splitlines()[1], 220)
        raise ValueError(f"the weights in {folder} do not fit its configuration: {said}") from None
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight  # load_state_dict made two parameters of it
    if dtype is None:  # one dtype for all: of a mixture, one that loses nothing
        model.to(reduce(torch.promote_types, (parameter.dtype for parameter in model.parameters())))
    return model.eval()


def check_finite(name, tensor, remedy="give a --dtype of wider range, or another model"):
    """The tensor. Raises ValueError with its name where it holds NaN or infinity: nothing that is computed with it counts."""
    if tensor.numel() and not all(end.isfinite() for end in tensor.detach().aminmax()):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} holds NaN or infinity as {kind}: {remedy}")
    return tensor


# Keys of config.json that are wrong, or mean something else, beside other weights or without a repository's own code.
NOT_KEPT = "torch_dtype quantization_config auto_map _name_or_path rope_theta rope_scaling layer_types".split()


def save_pretrained(model, folder, tokenizer=None, source=None):
    """Write a GPT as config.json and model.safetensors, which transformers and load_model open.

    tokenizer: its end-of-text and beginning-of-sequence ids are noted in config.json. Tied embeddings are stored once.
    source: the folder that the model came from, whose config.json keeps what is not about the weights or their type.
    The tokenizer's files are not written: copy them (gpt.tokenizer.copy_tokenizer), if the folder needs them.
    Raises ValueError for a configuration that has no counterpart in transformers, and for a model that no longer has
    the weights of its configuration, as one with adapters has not.
    """
    folder, config, state = Path(folder), model.config, model.state_dict()
    with torch.device("meta"):
        changed = sorted(state.keys() ^ GPT(config).state_dict().keys())
    if changed:
        raise ValueError(f"the model has other weights than its configuration ({changed[0]}): merge adapters first")
    if config.tie_embeddings and model.lm_head.weight is not model.embed_tokens.weight:
        raise ValueError("lm_head has a weight of its own, though the configuration ties it to the embedding")
    content = {"dtype": str(state["norm.weight"].dtype).removeprefix("torch.")} | format_config(config)
    if tokenizer is not None:
        content |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eot_id}
    if source is not None and (Path(source) / "config.json").exists():
        raw = read_json(Path(source) / "config.json")
        kept = {key: value for key, value in raw.items() if key not in NOT_KEPT}
        ids = {key: raw[key] for key in ("bos_token_id", "eos_token_id") if raw.get(key) is not None}
        content = kept | content | ids
    tensors = {}
    for name, ours in layout(model).items():
        tensor = check_finite(name, torch.cat([state[our] for our in ours]) if len(ours) > 1 else state[ours[0]])
        tensors[name] = (tensor.T if is_transposed(config, ours[0], tensor) else tensor).contiguous()
    with atomic(folder / "model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with atomic(folder / "config.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --- names -------------------------------------------------------------------------------------------------------------


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


# --- configurations ----------------------------------------------------------------------------------------------------


def read_config(folder):
    """The GPTConfig of a folder's config.json or of a GGUF file. Raises what load_pretrained does."""
    path = Path(folder) if is_gguf(folder) else Path(folder) / "config.json"
    raw = gguf_config(path) if is_gguf(path) else read_json(path)
    with reading(path, "configuration"):
        if is_gguf(path):
            keys = FAMILIES[raw["model_type"]].keys
            raw = {keys.get(name, name): value for name, value in raw.items()}
        return parse_config(raw)


# No model is larger: what is not to be built is not to be looped over or multiplied out of 64 bits either.
LARGEST = {"n_layers": 1000, "context_length": 2**31}  # of the others 2**20


def parse_config(raw):
    """config.json's content (dict) -> GPTConfig; raises ValueError for what model.py does not compute."""
    kind = raw.get("model_type")
    if kind not in list(FAMILIES):  # list: `kind` may be anything that JSON can hold
        raise ValueError(f"the model_type {shown(kind)} is not supported: known are {', '.join(FAMILIES)}")
    keys, given = FAMILIES[kind].keys, build(FAMILIES[kind].settings, raw)
    config = {name: getattr(given, key) for name, key in keys.items() if getattr(given, key) is not None}
    for name in config.keys() - {"tie_embeddings"}:
        if not 1e-30 < config[name] <= LARGEST.get(name, 2**20):
            raise ValueError(f'"{keys[name]}" is {shown(config[name])}, which no model has')
    hidden, heads = config["hidden_size"], config["n_heads"]
    config = {"intermediate_size": 4 * hidden, "n_kv_heads": heads, "head_dim": hidden // heads} | config
    if kind == "gpt2":
        return GPTConfig(kind, **config)
    if config["head_dim"] % 2:
        raise ValueError(f"head_dim={config['head_dim']} is odd: rotary positions turn pairs of components")
    window, context = given.sliding_window, config["context_length"]
    if kind == "mistral" and window is not None and window < context:
        said = f"sliding_window={window} is shorter than the context of {context} tokens, which is not supported"
        raise ValueError(f"{said}: set max_position_embeddings to {window} in a copy of config.json")
    theta, scaling = rope(given)
    return GPTConfig(kind, rope_theta=theta, rope_scaling=scaling, **config)


def rope(given):
    """(rope_theta, RopeScaling or None) of a Llama. Raises ValueError for all scaled positions but Llama 3.1's."""
    merged = {}
    for raw in ({"rope_theta": given.rope_theta}, given.rope_scaling or {}, given.rope_parameters or {}):
        for key, value in raw.items():
            key = "rope_type" if key == "type" else key  # as older files have it
            if value is not None and merged.setdefault(key, value) != value:
                raise ValueError(f"rope_theta, rope_scaling and rope_parameters contradict each other on {shown(key)}")
    rotary = build(Rotary, merged)
    theta = 10000.0 if rotary.rope_theta is None else rotary.rope_theta
    numbers = [getattr(rotary, key) for key in SCALING] if rotary.rope_type == "llama3" else []
    unknown = merged.keys() - {"rope_type", "rope_theta", *(SCALING if numbers else ())}
    if unknown or not all(number is not None and 1e-30 < number < 1e12 for number in [theta, *numbers]):
        raise ValueError(f"rotary positions {shown(merged)} are not supported: only plain ones, or all of llama3")
    scaling = RopeScaling(*numbers) if numbers else None
    return theta, scaling


def format_config(config):
    """GPTConfig -> config.json's content (dict), the inverse of parse_config. Raises ValueError where there is none."""
    family = FAMILIES[config.family]
    raw = {"architectures": [family.architecture], "model_type": config.family}
    raw |= {key: getattr(config, name) for name, key in family.keys.items()}
    raw |= {"bos_token_id": None, "eos_token_id": None}  # the tokenizer's affair; transformers' defaults would be wrong
    if config.family == "mistral":
        raw["sliding_window"] = None
    if config.family != "gpt2":
        rotary = {"rope_type": "default"}
        if config.rope_scaling is not None:
            rotary = {"rope_type": "llama3"} | dict(zip(SCALING, vars(config.rope_scaling).values()))
            raw["rope_scaling"] = rotary
        raw["rope_theta"] = config.rope_theta
        raw["rope_parameters"] = rotary | {"rope_theta": config.rope_theta}  # since transformers 5
    if parse_config(raw) != config:
        raise ValueError(f"{family.architecture} cannot express {config}")
    return raw


# --- files -------------------------------------------------------------------------------------------------------------

WEIGHTS = ["model.safetensors", "pytorch_model.bin"]  # in one file, or in those that NAME.index.json lists


def shard_names(index):
    """The names of the files that an index lists, sorted. Raises ValueError for what is not the name of a file beside it."""
    raw, suffix = read_json(index), Path(index.name.removesuffix(".index.json")).suffix
    with reading(index, "index"):
        shards = sorted(set(raw["weight_map"].values()))
        for shard in shards:
            # Names, not resolved paths: in a Hugging Face cache the files themselves are links out of the folder.
            if not re.fullmatch(rf"[\w.-]+\{suffix}", shard):
                raise ValueError(f"it lists {shown(shard)}, which is not the name of a {suffix} file beside it")
    return shards


def weight_files(folder):
    """The paths of a folder's weights: model.safetensors or the shards its index lists, else pytorch_model.bin's."""
    for single in WEIGHTS:
        if (Path(folder) / single).is_file():
            return [Path(folder) / single]
        index = Path(folder) / f"{single}.index.json"
        if index.is_file():
            return [index.with_name(shard) for shard in shard_names(index)]
    raise FileNotFoundError(f"{folder} has neither {' nor '.join(WEIGHTS)}, nor an index of one: download the weights")


def open_safetensors(path):
    """{name: read} of a *.safetensors file."""

    def read(name):  # opened anew for each tensor: pages of the file leave memory together with it
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    try:
        with safe_open(path, framework="pt") as file:
            return {name: partial(read, name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged, download it again ({shown(str(error))})") from None


def open_pickle(path):
    """{name: read} of a pytorch_model.bin; torch refuses to run code from it."""
    try:  # memory-mapped, but for the format of before PyTorch 1.6, which is no zip file
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damage raises all kinds of errors in torch
        if isinstance(error, OSError) and error.filename:
            raise
        code = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        said = f"holds {code[1]}: code in it is never run" if code else f"is damaged ({type(error).__name__})"
        raise ValueError(f"{path} {said}: download it again, or convert it to model.safetensors") from None
    plain = isinstance(tensors, dict) and all(
        isinstance(one, torch.Tensor) and one.layout == torch.strided for one in tensors.values()
    )
    if not plain:
        raise ValueError(f"{path} is not a table of plain tensors with their names: convert it to model.safetensors")
    return {str(name): lambda tensor=tensor: tensor for name, tensor in tensors.items()}


def open_weights(path):
    """{name: read} of a *.safetensors or *.bin file; read() gives the tensor, memory-mapped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: download it")
    return (open_pickle if path.suffix == ".bin" else open_safetensors)(path)


def find_tensors(folder, model):
    """{checkpoint name with its prefix: read} of a folder's files or a GGUF file, constants left out."""
    if is_gguf(folder):
        return gguf_tensors(folder, layout(model))
    family, found = FAMILIES[model.config.family], {}
    for path in weight_files(folder):
        for name, read in open_weights(path).items():
            full = name if name.startswith((family.prefix, "lm_head.")) else family.prefix + name
            if full in found:
                raise ValueError(f"{path} holds {shown(name)}, which was there already under this or another name")
            if not re.search(family.ignored, name):
                found[full] = read
    return found
