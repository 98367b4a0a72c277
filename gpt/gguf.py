"""GGUF files, llama.cpp's format: configuration, tokenizer and weights in one, these often rounded to 4 or 8 bits.

Reading order: ARCHITECTURES, gguf_config, gguf_tensors, gguf_tokenizer, then how a file is read.

Nothing here knows the model. A file is translated into what a Hugging Face folder would hold, the content of config.json,
of tokenizer.json and so on, and gpt/weights.py and gpt/tokenizer.py go on from there with all their checks. The file is
taken apart, and its rounded weights are made float32 again, by the gguf package (pip install gguf), which is imported
only when there is a GGUF file to read. Every function raises ValueError, one sentence, for a file that is damaged, asks
for something that gpt/model.py does not compute, or names something not known here.
"""

import functools
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gpt.model import GPTConfig, RopeScaling, rotary_tables
from tools.inputs import NUMBER, SIZE, TOKENS, shown


@dataclass(frozen=True)
class Architecture:
    keys: dict  # of the metadata, "llama." left out -> of config.json
    names: dict  # part of a tensor's name -> of a checkpoint's name
    paired: tuple = ()  # tensors whose rows are pairs of neighbours, where Hugging Face has halves
    transposed: tuple = ()  # tensors that Hugging Face stores (in, out)


KEYS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk": "model.layers",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ARCHITECTURES = {
    "llama": Architecture(KEYS, NAMES, paired=("attn_q.weight", "attn_k.weight")),  # Mistral and TinyLlama too
    "qwen2": Architecture(KEYS, NAMES),
    "qwen3": Architecture(KEYS, NAMES),
    "gpt2": Architecture(
        keys={
            "vocab_size": "vocab_size",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "block_count": "n_layer",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        names={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
            "blk": "transformer.h",
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        transposed=("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight"),
    ),
}
# Keys of any architecture with the only value that gpt/model.py computes. All that are neither here nor above are refused.
FIXED = {
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "attention.causal": True,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
}
MOST_ELEMENTS = 10_000_000  # of all lists in the metadata: a vocabulary has some 100,000 tokens, and as many merges


def find_gguf(name):
    """The *.gguf file that `name` is, or that the folder `name` holds in place of a config.json; else None.

    Raises ValueError for a folder with several.
    """
    path = Path(name)
    if path.is_file():
        return path if is_gguf(path) else None
    files = [] if (path / "config.json").exists() else sorted(path.glob("*"))
    found = [file for file in files if is_gguf(file) and file.is_file() and not file.name.startswith(".")]
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} GGUF files ({found[0].name}, ...): give the path of one of them")
    return found[0] if found else None


def is_gguf(path):
    """Is this the name of a GGUF file?"""
    return path.suffix.lower() == ".gguf"


def gguf_config(path):
    """What config.json would hold for the model of a GGUF file (dict)."""
    file = open_gguf(path)
    kind, architecture = architecture_of(file)
    given = {key.removeprefix(f"{kind}."): v for key, v in file.metadata.items() if key.startswith(f"{kind}.")}
    sizes = {"vocab_size": len(get_list(file, "tokenizer.ggml.tokens", str))}
    for key in architecture.keys.keys() & given.keys():
        value = given.pop(key)
        largest = {"context_length": TOKENS, "rope.freq_base": NUMBER}.get(key, SIZE)
        if type(value) not in (int, float) or not 0 < value <= largest:
            raise ValueError(f"{kind}.{key}={shown(value)} is not a number that a model can have there")
        # A float32 as it was meant: 1e-05, not 9.999999747378752e-06.
        sizes[key] = value if type(value) is int else float(str(np.float32(value)))
    for key in ("context_length", "embedding_length", "block_count", "attention.head_count"):
        if type(sizes.get(key)) is not int:
            raise ValueError(f"the metadata have no whole number {kind}.{key}")
    if sizes["block_count"] > len(file.tensors):
        raise ValueError(f"{kind}.block_count={sizes['block_count']}, but there are only {len(file.tensors)} tensors")
    heads = sizes["attention.head_count"]
    head_dim = sizes.get("attention.key_length", sizes["embedding_length"] // heads)
    if type(head_dim) is not int:
        raise ValueError(f"{kind}.attention.key_length={head_dim} is not a whole number")

    window = given.get("attention.sliding_window")
    if type(window) is int and (window == 0 or window >= sizes["context_length"]):
        del given["attention.sliding_window"]  # there is none, or it is never in force
    fixed = FIXED | {"attention.value_length": head_dim, "rope.dimension_count": head_dim}
    fixed["attention.head_count_kv"] = heads  # gpt2's: the others' was taken above
    for key, value in given.items():
        if key not in fixed or value != fixed[key]:
            known = f": known is {fixed[key]!r}" if key in fixed else ""
            raise ValueError(f"{kind}.{key}={shown(value)} is not supported{known}")

    raw = {"model_type": kind, "tie_word_embeddings": "output.weight" not in file.tensors}
    if kind != "gpt2":
        sizes = {"attention.head_count_kv": heads, "attention.key_length": head_dim, "rope.freq_base": 10000.0} | sizes
        raw["rope_scaling"] = rope_scaling(file, sizes["rope.freq_base"], head_dim)
    return raw | {architecture.keys[key]: value for key, value in sizes.items()}


def rope_scaling(file, theta, head_dim):
    """config.json's rope_scaling, a dict or None.

    llama.cpp stores what it comes to, by how much each frequency is divided, in rope_freqs.weight (head_dim / 2,).
    Raises ValueError where these are not what Llama 3.1, 3.2 or 3.3 divide by.
    """
    if "rope_freqs.weight" not in file.tensors:
        return None
    divisors = read_tensor(file, "rope_freqs.weight")
    unknown = ValueError("rope_freqs.weight scales rotary positions otherwise than Llama 3.1, which is not supported")
    if head_dim < 2 or divisors.shape != (head_dim // 2,):
        raise unknown
    scaling = RopeScaling(float(divisors.max()), 1.0, 4.0, 8192)  # all that differs between these models is the factor

    def frequencies(scaling):
        config = GPTConfig("llama", 1, 1, 1, 1, 1, 1, 1, head_dim, rope_theta=theta, rope_scaling=scaling)
        cos, sin = rotary_tables(torch.ones(1), config)  # at position 1 the angle is the frequency
        return torch.atan2(sin, cos)[0, : head_dim // 2]

    expected = frequencies(None) / frequencies(scaling)
    if not torch.allclose(divisors, expected, rtol=1e-3):
        raise unknown
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def gguf_tensors(path):
    """{name in a Hugging Face checkpoint: (shape, read)} of a GGUF file; read() gives the tensor in float32.

    Read one by one: of a rounded tensor the file's pages are let go when it has been made float32; a float32 tensor stays
    a window on the file, never written to, until it is used or moved.
    """
    file = open_gguf(path)
    kind, architecture = architecture_of(file)
    heads = {"attn_q": file.metadata.get(f"{kind}.attention.head_count")}
    heads["attn_k"] = file.metadata.get(f"{kind}.attention.head_count_kv", heads["attn_q"])
    found = {}
    for name, tensor in file.tensors.items():
        if name == "rope_freqs.weight":
            continue  # gguf_config has it
        parts, shape, read = name.split("."), tensor.shape, partial(read_tensor, file, name)
        if not all(part in architecture.names or part in ("weight", "bias") or part.isdecimal() for part in parts):
            raise ValueError(f"{path}: the architecture {kind} has no tensor {shown(name)}")
        end = ".".join(parts[-2:])
        if end in architecture.paired:
            read = partial(unpair, read, heads[parts[-2]])
        if end in architecture.transposed:
            shape, read = shape[::-1], lambda read=read: read().T
        found[".".join(architecture.names.get(part, part) for part in parts)] = shape, read
    return found


def unpair(read, heads):
    """The rows of a query or key projection, (heads * head_dim, in), in Hugging Face's order.

    Rotary positions turn two components together. llama.cpp has them side by side in each head, (a0 b0 a1 b1 ...),
    gpt/model.py and Hugging Face half a head apart, (a0 a1 ... b0 b1 ...).
    """
    weight = read()
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


# --- the tokenizer -----------------------------------------------------------------------------------------------------

# Kinds of token, as SentencePiece and GGUF number them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def gguf_tokenizer(path, pre_tokenizers):
    """{file name: content, a dict} of a GGUF file's tokenizer, as in a Hugging Face folder.

    pre_tokenizers: {llama.cpp's name: (pre_tokenizer, normalizer)}, as tokenizer.json spells them.
    """
    file = open_gguf(path)
    given = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
    model, pre = given.get("model"), given.get("pre")
    if model not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer.ggml.model={shown(model)} is not supported: known are 'gpt2' and 'llama'")
    if model == "gpt2" and pre not in list(pre_tokenizers):
        known = ", ".join(pre_tokenizers)
        raise ValueError(f"the pre-tokenizer tokenizer.ggml.pre={shown(pre)} is not supported: known are {known}")
    for key in ("add_eos_token", "precompiled_charsmap", "remove_extra_whitespaces"):
        if given.get(key):
            raise ValueError(f"tokenizer.ggml.{key} is not supported")
    for key in ("add_bos_token", "add_space_prefix"):
        if type(given.get(key, False)) is not bool:
            raise ValueError(f"tokenizer.ggml.{key}={shown(given[key])} is neither true nor false")
    tokens = get_list(file, "tokenizer.ggml.tokens", str)
    kinds = get_list(file, "tokenizer.ggml.token_type", int, len(tokens))
    if odd := [kind for kind in kinds if not NORMAL <= kind <= BYTE]:
        raise ValueError(f"tokenizer.ggml.token_type has the kind {odd[0]}: known are {NORMAL} to {BYTE}")
    used = [i for i, kind in enumerate(kinds) if kind != UNUSED]  # unused ones only pad the vocabulary
    vocab = {tokens[i]: i for i in used}
    if len(vocab) < len(used):
        raise ValueError("two entries of tokenizer.ggml.tokens are the same")

    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if template := file.metadata.get("tokenizer.chat_template"):
        if not isinstance(template, str):
            raise ValueError(f"tokenizer.chat_template={shown(template)} is not a text")
        settings["chat_template"] = template
    special = {i: tokens[i] for i in used if kinds[i] in (UNKNOWN, CONTROL, USER_DEFINED)}
    begins = given.get("add_bos_token", model == "llama" or pre == "llama-bpe")
    # Where a file does not say it
    defaults = {"bos": 1, "eos": 2} if model == "llama" else {"eos": vocab.get("<|endoftext|>")}
    for name, why in (("bos", "texts are to begin with a token"), ("eos", "a text must end with a token")):
        token = given.get(f"{name}_token_id", defaults.get(name))
        if type(token) is int and token in special:
            settings[f"{name}_token"] = tokens[token]
        elif name == "eos" or begins:
            raise ValueError(
                f"{why}, but tokenizer.ggml.{name}_token_id={shown(token)} is not the id of a control token"
            )
    content = {"version": "1.0", "added_tokens": [], "post_processor": None}
    plain = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    for i, text in special.items():
        content["added_tokens"].append({"id": i, "content": text, "special": kinds[i] != USER_DEFINED} | plain)
    if begins:
        bos, text = settings["bos_token"], {"Sequence": {"id": "A", "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, text],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
        }
    files = {"tokenizer.json": content, "tokenizer_config.json": settings}
    if model == "gpt2":
        content["pre_tokenizer"], content["normalizer"] = pre_tokenizers[pre]
        content |= byte_pairs(vocab, get_list(file, "tokenizer.ggml.merges", str), ignore_merges=pre == "llama-bpe")
    else:
        scores = get_list(file, "tokenizer.ggml.scores", float, len(tokens))
        unknown = next((tokens[i] for i in used if kinds[i] == UNKNOWN), None)
        vocab = dict(zip(tokens, range(len(tokens)))) | vocab  # unused ones too: ids there must have no gaps
        made = {tokens[i]: scores[i] for i in used if kinds[i] == NORMAL}
        content |= sentencepiece_as_json(vocab, unknown, made, given.get("add_space_prefix", True))
    return files


def byte_pairs(vocab, merges, ignore_merges):
    """What tokenizer.json says of byte-level BPE."""
    if odd := [merge for merge in merges if merge.count(" ") != 1]:
        raise ValueError(f"tokenizer.ggml.merges has {shown(odd[0])}, which is not a pair")
    return {
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges},
    }


def sentencepiece_as_json(vocab, unknown, scores, prefix):
    """What tokenizer.json says of SentencePiece's BPE, as transformers converts it.

    scores: {piece: score} of the pieces that are made by merging. prefix: whether a text, and what follows a special
    token, gets a space in front.
    """

    def replace(old, new):
        return {"type": "Replace", "pattern": {"String": old}, "content": new}

    begin = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*begin, replace(" ", "▁")]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges_of(scores),
        },
    }


def merges_of(scores):
    """The pairs to merge, in order, that {piece: score} comes to.

    SentencePiece joins whichever two neighbours make the piece with the highest score. Raises ValueError where two pieces
    have the same: no order says what it does then, and such scores are made up by converters that found none.
    """
    pairs, made = [], {}  # made: {score: piece}
    for piece, score in scores.items():
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found = [(-score, -len(left), left, right) for left, right in cuts if left in scores and right in scores]
        if found and made.setdefault(score, piece) != piece:
            both = f"{shown(made[score])} and {shown(piece)}"
            raise ValueError(f"tokenizer.ggml.scores do not say which of {both} is merged first")
        pairs += found
    return [[left, right] for _, _, left, right in sorted(pairs)]


# --- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """A tensor in the file, not read yet."""

    kind: object  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # of the weights, (out, in)
    offset: int  # in the file, where it is stored_shape elements of stored_dtype
    stored_shape: tuple[int, ...]
    stored_dtype: np.dtype


@dataclass(frozen=True)
class GGUF:
    path: Path
    metadata: dict  # {key: int, float, bool, str or a list of these}
    tensors: dict  # {name: Tensor}


def open_gguf(path):
    """The GGUF of a path; the same again without reading, as long as the file is the same."""
    path = Path(path)
    status = path.stat()
    return read_gguf(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def read_gguf(path, size, changed):
    """Read all but the weights. size, changed: of the file, so that the cache notices another one."""
    gguf = import_gguf()

    class Reader(gguf.GGUFReader):
        """Stops at the end of the file, whatever its counts and lengths say, and at lists that no model has."""

        elements = 0

        def _get(self, offset, dtype, count=1, override_order=None):
            if offset + int(count) * np.dtype(dtype).itemsize > size:
                raise EOFError("it ends too early")
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs, raw_type):
            if raw_type == gguf.GGUFValueType.ARRAY:
                self.elements += int(self._get(orig_offs + 4, np.uint64)[0])
                if self.elements > min(size, MOST_ELEMENTS):
                    raise EOFError(f"its lists have {self.elements} elements")
            return super()._get_field_parts(orig_offs, raw_type)

    with open(path, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError("this is not a GGUF file")
        version = opened.read(4)
    if version[:2] == b"\0\0":  # the version is a small number
        raise ValueError("this is written for machines of the other byte order: take a little-endian GGUF file")
    try:
        with np.errstate(over="raise"):  # else a place that overflows would wrap around
            reader = Reader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        tensors = {}
        for each in reader.tensors:
            shape = tuple(map(int, reversed(each.shape)))
            tensors[each.name] = Tensor(each.tensor_type, shape, each.data_offset, each.data.shape, each.data.dtype)
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, EOFError, RecursionError) as error:
        if "not a valid GGMLQuantizationType" in str(error):
            number = re.search(r"\d+(?=\D*$)", str(error))[0]
            raise ValueError(f"it has tensors of type {number}, which the gguf package does not know") from None
        raise ValueError(f"the file is truncated or damaged, download it again ({error})") from None
    for kind in {tensor.kind for tensor in tensors.values()}:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            raise ValueError(f"it has tensors of type {kind.name}, which the gguf package cannot read") from None
    if metadata.get("split.count", 1) not in (0, 1):
        raise ValueError(f"this is one of {metadata['split.count']} parts of a model: join them with llama-gguf-split")
    return GGUF(path, metadata, tensors)


def import_gguf():
    try:
        import gguf
    except ImportError:
        raise ValueError("a GGUF file needs one more package: pip install gguf") from None
    return gguf


def read_tensor(file, name):
    """A tensor of a GGUF in float32."""
    tensor = file.tensors[name]
    # A mapping of its own for each: pages of the file leave memory together with it. "c": changes stay in memory.
    stored = np.memmap(file.path, tensor.stored_dtype, "c", tensor.offset, tensor.stored_shape)
    with np.errstate(all="ignore"):  # what is not finite is reported when the model is loaded
        return torch.from_numpy(import_gguf().dequantize(stored, tensor.kind))


def architecture_of(file):
    """(name, Architecture)"""
    kind = file.metadata.get("general.architecture")
    if kind not in list(ARCHITECTURES):  # list: `kind` may be anything that metadata can hold
        raise ValueError(f"the architecture {shown(kind)} is not supported: known are {', '.join(ARCHITECTURES)}")
    return kind, ARCHITECTURES[kind]


def get_list(file, key, kind, length=None):
    """The list under a key of the metadata, each element of type `kind`, `length` of them if given."""
    value = file.metadata.get(key)
    right = isinstance(value, list) and all(type(each) is kind for each in value)
    if not right or length not in (None, len(value)):
        raise ValueError(f"the metadata have no list {key} of {length or 'some'} {kind.__name__}")
    return value
