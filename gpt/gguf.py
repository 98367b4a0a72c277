"""GGUF files, llama.cpp's format: configuration, tokenizer and weights in one, these often rounded to 4 or 8 bits.

Reading order: KEYS, gguf_config, gguf_tensors, gguf_tokenizer, then how a file is read.

A file is translated into what a Hugging Face folder would hold, the content of config.json and of tokenizer.json and the
tensors under their names there, and gpt/weights.py and gpt/tokenizer.py go on from there with all their checks. The file
is taken apart, and its rounded weights are made float32 again, by the gguf package (pip install gguf), which is imported
only when there is a GGUF file to read. Raised is a ValueError, one sentence, for a file that is damaged, asks for something
that gpt/model.py does not compute, or names something not known here.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gpt.model import GPTConfig, RopeScaling, rotary_tables
from tools.schema import build, reading, shown

# Keys of a file's metadata, the architecture ("llama.") left out -> of config.json.
LLAMA = {
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
GPT2 = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
KEYS = {"llama": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gpt2": GPT2}  # "llama" is Mistral, SmolLM2 and TinyLlama too
# config.json's keys of Llama 3.1's rope_scaling, in the order of RopeScaling's fields.
SCALING = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
# Other keys, with the only value that gpt/model.py computes. All that are neither here nor above are refused.
FIXED = {
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "attention.causal": True,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
}


def find_gguf(name):
    """The *.gguf file that `name` is, or that the folder `name` holds in place of a config.json; else None.

    Raises ValueError for a folder with several.
    """
    path = Path(name)
    if path.is_file():
        return path if is_gguf(path) else None
    files = [] if (path / "config.json").exists() else sorted(path.glob("[!.]*"))
    found = [file for file in files if is_gguf(file) and file.is_file()]
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} GGUF files ({found[0].name}, ...): give the path of one of them")
    return found[0] if found else None


def is_gguf(path):
    """Is this the name of a GGUF file?"""
    return path.suffix.lower() == ".gguf"


def below(prefix, metadata):
    """The metadata whose keys begin with a prefix, which is left out."""
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


def gguf_config(path):
    """What config.json would hold for the model of a GGUF file (dict)."""
    kind, metadata, tensors = open_gguf(path)
    given = below(f"{kind}.", metadata)
    with reading(path, "GGUF file"):
        heads = given["attention.head_count"]
        head_dim = given.get("attention.key_length", given["embedding_length"] // heads)
        fixed = FIXED | {"attention.value_length": head_dim, "rope.dimension_count": head_dim}
        fixed["attention.head_count_kv"] = heads  # of gpt2: the others may have fewer, and have a key for it
        window = given.get("attention.sliding_window", 0)
        if window == 0 or window >= given["context_length"]:
            fixed["attention.sliding_window"] = window  # there is none, or it is never in force
        raw = {"model_type": kind, "tie_word_embeddings": "output.weight" not in tensors}
        raw[KEYS[kind]["vocab_size"]] = len(metadata["tokenizer.ggml.tokens"])
        for key, value in given.items():
            if key in KEYS[kind]:  # a float32 as it was meant: 1e-05, not 9.999999747378752e-06
                raw[KEYS[kind][key]] = float(str(np.float32(value))) if isinstance(value, float) else value
            elif key not in fixed or value != fixed[key]:
                raise ValueError(f"the key {shown(f'{kind}.{key}')} with the value {shown(value)} is not supported")
        if "rope_freqs.weight" in tensors:
            divisors = read_tensor(path, tensors["rope_freqs.weight"])
            raw["rope_scaling"] = rope_scaling(divisors, raw.get("rope_theta", 10000.0), head_dim)
    return raw


def rope_scaling(divisors, theta, head_dim):
    """config.json's rope_scaling, a dict, of rope_freqs.weight (head_dim / 2,), by which each frequency is divided.

    Raises ValueError where these are not what Llama 3.1, 3.2 or 3.3 divide by.
    """
    wrong = ValueError("rope_freqs.weight scales rotary positions otherwise than Llama 3.1, which is not supported")
    if head_dim < 2 or divisors.shape != (head_dim // 2,):
        raise wrong
    scaling = RopeScaling(float(divisors.max()), 1.0, 4.0, 8192)  # all that differs between these models is the factor

    def frequencies(scaling):
        config = GPTConfig("llama", 1, 1, 1, 1, 1, 1, 1, head_dim, rope_theta=theta, rope_scaling=scaling)
        cos, sin = rotary_tables(torch.ones(1), config)  # at position 1 the angle is the frequency
        return torch.atan2(sin, cos)[0, : head_dim // 2]

    if not torch.allclose(divisors, frequencies(None) / frequencies(scaling), rtol=1e-3):
        raise wrong
    return {"rope_type": "llama3"} | dict(zip(SCALING, vars(scaling).values()))


def gguf_tensors(path, expected):
    """{name: read} of a GGUF file's tensors, by the names of `expected`, a Hugging Face checkpoint's; read() -> float32.

    Read one by one: of a rounded tensor the file's pages are let go when it has been made float32; a float32 tensor stays
    a window on the file, never written to, until it is used or moved. Raises ValueError for one that is not expected.
    """
    kind, metadata, tensors = open_gguf(path)
    gguf = import_gguf()
    architecture = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, metadata[f"{kind}.block_count"])
    stored = {}
    for name in expected:
        stem, suffix = name.rsplit(".", 1)  # model.layers.0.self_attn.q_proj.weight -> blk.0.attn_q.weight
        stored[f"{names.get_name(stem)}.{suffix}"] = name
    if unknown := tensors.keys() - stored.keys() - {"rope_freqs.weight"}:  # gguf_config has that
        raise ValueError(f"{path}: a model of the architecture {kind} has no tensor {shown(min(unknown))}")

    heads = metadata[f"{kind}.attention.head_count"]
    heads = {"attn_q.weight": heads, "attn_k.weight": metadata.get(f"{kind}.attention.head_count_kv", heads)}

    def read(name):
        tensor, ending = read_tensor(path, tensors[name]), ".".join(name.split(".")[-2:])
        if kind == "llama" and ending in heads and tensor.shape[0] % (2 * heads[ending]) == 0:  # else refused by shape
            return unpair(tensor, heads[ending])
        return tensor.T if kind == "gpt2" and name.startswith("blk.") and tensor.dim() == 2 else tensor  # as Conv1D

    return {theirs: functools.partial(read, name) for name, theirs in stored.items() if name in tensors}


def unpair(weight, heads):
    """The rows of a query or key projection, (heads * head_dim, in), in Hugging Face's order.

    Rotary positions turn two components together. llama.cpp has them side by side in each head, (a0 b0 a1 b1 ...),
    gpt/model.py and Hugging Face half a head apart, (a0 a1 ... b0 b1 ...).
    """
    return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


# --- the tokenizer -----------------------------------------------------------------------------------------------------

# Kinds of token, as SentencePiece and GGUF number them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The metadata that begin with "tokenizer.ggml."; of a Literal or None, anything else would give other ids."""

    model: Literal["gpt2", "llama"]  # byte-level BPE, or SentencePiece's BPE
    tokens: list[str]
    token_type: list[int]
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    add_bos_token: bool | None = None
    add_eos_token: Literal[False] = False
    add_space_prefix: bool = True
    remove_extra_whitespaces: Literal[False] = False
    precompiled_charsmap: None = None


@dataclass(frozen=True, kw_only=True)
class BytePairs(Vocabulary):
    pre: str  # llama.cpp's name of how a text is cut into words
    merges: list[str]


@dataclass(frozen=True, kw_only=True)
class SentencePieces(Vocabulary):
    scores: list[float]


def gguf_tokenizer(path, pre_tokenizers):
    """{file name: content, a dict} of a GGUF file's tokenizer, as in a Hugging Face folder.

    pre_tokenizers: {llama.cpp's name: (pre_tokenizer, normalizer)}, as tokenizer.json spells them.
    """
    _, metadata, _ = open_gguf(path)
    raw = below("tokenizer.ggml.", metadata)
    bytewise = raw.get("model") == "gpt2"
    with reading(path, "GGUF file"):
        given = build(BytePairs if bytewise else SentencePieces, raw)
        if bytewise and given.pre not in pre_tokenizers:
            known = ", ".join(pre_tokenizers)
            raise ValueError(f"tokenizer.ggml.pre={shown(given.pre)} is not supported: known are {known}")
        tokens, kinds = given.tokens, given.token_type
        used = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
        if len(used) < len(tokens) - kinds.count(UNUSED):
            raise ValueError("two entries of tokenizer.ggml.tokens are the same")
        plain = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
        added = [
            {"id": i, "content": token, "special": kinds[i] != USER_DEFINED} | plain
            for token, i in used.items()
            if kinds[i] in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
        special = {token["id"]: token["content"] for token in added}

        def token_of(name, default):
            given_id = getattr(given, f"{name}_token_id")
            token = default if given_id is None else given_id
            if token not in special:
                raise ValueError(f"tokenizer.ggml.{name}_token_id={token} is not the id of a control token")
            return special[token]

        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings["eos_token"] = token_of("eos", used.get("<|endoftext|>") if bytewise else 2)
        if metadata.get("tokenizer.chat_template"):
            settings["chat_template"] = str(metadata["tokenizer.chat_template"])
        content = {"version": "1.0", "added_tokens": added, "post_processor": None}
        begins = given.add_bos_token
        if begins or begins is None and (not bytewise or given.pre == "llama-bpe"):
            bos, text = token_of("bos", None if bytewise else 1), {"Sequence": {"id": "A", "type_id": 0}}
            settings["bos_token"] = bos
            content["post_processor"] = {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, text],
                "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {bos: {"id": bos, "ids": [used[bos]], "tokens": [bos]}},
            }
        if bytewise:
            content["pre_tokenizer"], content["normalizer"] = pre_tokenizers[given.pre]
            content["decoder"] = {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
            content["model"] = {"ignore_merges": given.pre == "llama-bpe", "vocab": used, "merges": given.merges}
        else:
            content |= spaces(given.add_space_prefix)
            scores = {token: given.scores[i] for token, i in used.items() if kinds[i] == NORMAL}
            unknown = next((token for token, i in used.items() if kinds[i] == UNKNOWN), None)
            vocab = dict(zip(tokens, range(len(tokens)))) | used  # unused ones too: ids there must have no gaps
            content["model"] = {"unk_token": unknown, "vocab": vocab, "merges": merges_of(scores)}
            content["model"] |= {"fuse_unk": True, "byte_fallback": True}
        content["model"]["type"] = "BPE"
    return {"tokenizer.json": content, "tokenizer_config.json": settings}


def spaces(prefix):
    """What tokenizer.json says of SentencePiece's spaces, which are written ▁. prefix: whether a text begins with one."""

    def replace(old, new):
        return {"type": "Replace", "pattern": {"String": old}, "content": new}

    begin = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders = [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*begin, replace(" ", "▁")]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
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

MOST_READS = 10_000_000  # of values before the weights: a vocabulary of 128,000 tokens has about a million


def open_gguf(path):
    """(architecture, {key: value} of the metadata, {name: the gguf package's ReaderTensor}) of a file.

    The same again without reading, as long as the file is the same.
    """
    status = Path(path).stat()
    return read_gguf(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def read_gguf(path, size, changed):
    """open_gguf; size, changed: of the file, so that the cache notices another one."""

    class Reader(import_gguf().GGUFReader):
        """Believes no count or length that goes beyond the file's end."""

        reads = 0

        def _get(self, offset, dtype, count=1, override_order=None):
            self.reads += 1
            if offset + int(count) * np.dtype(dtype).itemsize > size or self.reads > MOST_READS:
                raise EOFError("it is truncated or damaged, download it again")
            return super()._get(offset, dtype, count, override_order)

    with reading(path, "GGUF file"), np.errstate(over="raise"):  # else a place that overflows would wrap around
        reader = Reader(path)
        if reader.byte_order == "S":
            raise ValueError("it is written for machines of the other byte order: take a little-endian GGUF file")
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        kind = metadata["general.architecture"]
        if kind not in list(KEYS):  # list: `kind` may be anything that metadata can hold
            raise ValueError(f"the architecture {shown(kind)} is not supported: known are {', '.join(KEYS)}")
        if metadata.get("split.count", 1) > 1:
            raise ValueError(f"it is one of {metadata['split.count']} parts: join them with llama-gguf-split")
    return kind, metadata, {tensor.name: tensor for tensor in reader.tensors}


def import_gguf():
    try:
        import gguf
    except ImportError:
        raise ValueError("a GGUF file needs one more package: pip install gguf") from None
    return gguf


def read_tensor(path, tensor):
    """A tensor of a GGUF file in float32."""
    # A mapping of its own for each: pages of the file leave memory together with it. "c": changes stay in memory.
    stored = np.memmap(path, tensor.data.dtype, "c", tensor.data_offset, tensor.data.shape)
    try:
        with np.errstate(all="ignore"):  # what is not finite is reported when the model is loaded
            return torch.from_numpy(import_gguf().dequantize(stored, tensor.tensor_type))
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise ValueError(f"{path}: {tensor.name} is of type {kind}, which the gguf package cannot read") from None
