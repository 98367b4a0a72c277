"""GGUF files, llama.cpp's format: configuration, tokenizer and weights in one, these often rounded to 4 or 8 bits.

A file is translated into what a Hugging Face folder would hold, config.json's content and the tensors under their names
there (the tokenizer: gpt/tokenizer.py), and gpt/weights.py goes on from there with all its checks. The gguf package
(pip install gguf), imported only for such a file, takes it apart and makes rounded weights float32 again.
Raised is a ValueError, one sentence, for a file that is damaged, or asks for something that gpt/model.py does not compute.
"""

import functools
from pathlib import Path

import numpy as np
import torch

from gpt.model import GPTConfig, RopeScaling, rotary_tables
from tools.schema import reading, shown

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gpt2"]  # "llama" is Mistral, SmolLM2 and TinyLlama too
KEYS = {  # of a file's metadata, the architecture ("llama.") left out -> field of GPTConfig
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "n_layers",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "attention.layer_norm_epsilon": "norm_eps",
    "rope.freq_base": "rope_theta",
}
# Other keys, with the only value that gpt/model.py computes. All that are neither here nor above are refused.
FIXED = {
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "attention.causal": True,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
}
# config.json's keys of Llama 3.1's rope_scaling, in the order of RopeScaling's fields.
SCALING = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]


def is_gguf(path):
    """Is this the name of a GGUF file?"""
    return Path(path).suffix.lower() == ".gguf"


def below(prefix, metadata):
    """The metadata whose keys begin with a prefix, which is left out."""
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


def gguf_config(path):
    """What config.json would hold for the model of a GGUF file (dict), but under GPTConfig's names."""
    kind, metadata, tensors = open_gguf(path)
    given = below(f"{kind}.", metadata)
    with reading(path, "GGUF file"):
        head_dim = given.get("attention.key_length", given["embedding_length"] // given["attention.head_count"])
        fixed = FIXED | {"attention.value_length": head_dim, "rope.dimension_count": head_dim}
        window = given.get("attention.sliding_window", 0)
        if window == 0 or window >= given["context_length"]:
            fixed["attention.sliding_window"] = window  # there is none, or it is never in force
        raw = {"model_type": kind, "tie_embeddings": "output.weight" not in tensors}
        raw["vocab_size"] = len(metadata["tokenizer.ggml.tokens"])
        for key, value in given.items():
            if key in KEYS:  # a float32 as it was meant: 1e-05, not 9.999999747378752e-06
                raw[KEYS[key]] = float(str(np.float32(value))) if isinstance(value, float) else value
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
    factor = float(max(divisors.tolist(), default=1))  # all that differs between these models
    scaling = RopeScaling(factor, 1.0, 4.0, 8192)

    def frequencies(scaling):
        config = GPTConfig("llama", 1, 1, 1, 1, 1, 1, 1, head_dim, rope_theta=theta, rope_scaling=scaling)
        cos, sin = rotary_tables(torch.ones(1), config)  # at position 1 the angle is the frequency
        return torch.atan2(sin, cos)[0, : head_dim // 2]

    expected = frequencies(None) / frequencies(scaling)
    if divisors.shape != expected.shape or not torch.allclose(divisors, expected, rtol=1e-3):
        raise ValueError("rope_freqs.weight scales rotary positions otherwise than Llama 3.1, which is not supported")
    return {"rope_type": "llama3"} | dict(zip(SCALING, vars(scaling).values()))


def gguf_tensors(path, expected):
    """{name: read} of a GGUF file's tensors, by the names of `expected`, a Hugging Face checkpoint's; read() -> float32.

    Read one by one: of a rounded tensor the file's pages are let go when it has been made float32; a float32 tensor stays
    a window on the file, never written to, until it is used or moved.
    """
    kind, metadata, tensors = open_gguf(path)
    gguf = import_gguf()
    architecture = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, metadata[f"{kind}.block_count"])
    stored = {}
    for name in expected:
        stem, suffix = name.rsplit(".", 1)  # model.layers.0.self_attn.q_proj.weight -> blk.0.attn_q.weight
        stored[f"{names.get_name(stem)}.{suffix}"] = name
    heads = metadata[f"{kind}.attention.head_count"]
    heads = {"attn_q.weight": heads, "attn_k.weight": metadata.get(f"{kind}.attention.head_count_kv", heads)}

    def read(name):
        tensor, ending = read_tensor(path, tensors[name]), ".".join(name.split(".")[-2:])
        if kind == "llama" and ending in heads and tensor.shape[0] % (2 * heads[ending]) == 0:  # else refused by shape
            return unpair(tensor, heads[ending])
        return tensor.T if kind == "gpt2" and name.startswith("blk.") and tensor.dim() == 2 else tensor  # as Conv1D

    others = tensors.keys() - {"rope_freqs.weight"}  # gguf_config has that
    return {stored.get(name, f"GGUF's {name}"): functools.partial(read, name) for name in others}


def unpair(weight, heads):
    """The rows of a query or key projection, (heads * head_dim, in), in Hugging Face's order.

    Rotary positions turn two components together. llama.cpp has them side by side in each head, (a0 b0 a1 b1 ...),
    gpt/model.py and Hugging Face half a head apart, (a0 a1 ... b0 b1 ...).
    """
    return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


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
        if kind not in ARCHITECTURES:
            raise ValueError(f"the architecture {shown(kind)} is not supported: known are {', '.join(ARCHITECTURES)}")
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
