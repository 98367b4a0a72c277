"""The language model: one decoder that is Llama, Mistral, Qwen2, Qwen3 or GPT-2 by its configuration.

Reading order: GPTConfig, then GPT at the end of the file, then the parts in between.
Names follow Hugging Face's Llama, so that `layers.0.self_attn.q_proj` here is
`model.layers.0.self_attn.q_proj` in a checkpoint; gpt/weights.py knows the rest.

Shapes: batch, time (tokens of this call), total (cached tokens + time), heads, head_dim, hidden.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and 3.2 stretch rotary positions to a longer context ("llama3" in config.json): see rotary_tables.

    "Turns" are those that a pair of components makes over the original context.
    """

    factor: float  # slow rotations are slowed down by this much
    low_freq_factor: float  # slow: fewer turns than this
    high_freq_factor: float  # fast, and left as they are: more turns than this; between the two, a blend
    original_context: int  # in tokens, before stretching


@dataclass(frozen=True)
class GPTConfig:
    # "llama" (2, 3, TinyLlama, SmolLM2) and "mistral": RMSNorm, rotary positions, SwiGLU, no biases.
    # "qwen2" (and 2.5): the same, with biases on q, k and v. "qwen3": the same, with each head's q and k normalised.
    # "gpt2": LayerNorm, learned positions, tanh-GELU, biases everywhere.
    family: str
    vocab_size: int
    context_length: int  # the longest sequence, in tokens
    hidden_size: int
    intermediate_size: int  # width of the MLP
    n_layers: int
    n_heads: int
    n_kv_heads: int  # fewer than n_heads: grouped-query attention
    head_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0  # base of the rotary frequencies; not gpt2
    rope_scaling: RopeScaling | None = None  # Llama 3.1 and 3.2
    tie_embeddings: bool = True  # lm_head shares the embedding's weight

    def __post_init__(self):
        if self.family not in ("llama", "mistral", "qwen2", "qwen3", "gpt2"):
            raise ValueError(f"unknown model family {self.family!r}: known are llama, mistral, qwen2, qwen3, gpt2")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} query heads cannot share {self.n_kv_heads} key/value heads evenly")


class KVCache:
    """Keys and values of the tokens seen so far, so that each new token is computed once."""

    def __init__(self, config, batch_size, max_length, device=None, dtype=None):
        shape = (config.n_layers, batch_size, config.n_kv_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # tokens held; GPT.hidden_states moves it on after the last layer

    def append(self, layer, k, v):
        """Store k, v (batch, kv_heads, time, head_dim); return all so far (batch, kv_heads, total, head_dim)."""
        total = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : total] = k
        self.values[layer, :, :, self.length : total] = v
        return self.keys[layer, :, :, :total], self.values[layer, :, :, :total]


# Rotary positions: components i and i + head_dim / 2 of a query or key are a point in a plane, which is turned by its
# position times the pair's frequency. Turning both by the same angle changes no dot product: only distances count.
#
#     x = [ a0 a1 a2 | b0 b1 b2 ]     the pairs (a0, b0), (a1, b1), (a2, b2) of a head_dim of 6
#
#     b
#     |     (a', b')                  a' = a cos - b sin
#     |    /                          b' = b cos + a sin
#     |   /   . (a, b)
#     |  / .                          angle = position * frequency: pair 0 turns by a radian a position,
#     | /.  angle                     each further pair more slowly
#     +------------------ a
#
# (Hugging Face's half-split convention. Meta's original code pairs neighbours instead, a0 b0 a1 b1 a2 b2.)


def rotary_tables(positions, config):
    """Cosines and sines of the rotary angles (RoFormer, arXiv 2104.09864), each positions.shape + (head_dim,)."""
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents  # (head_dim / 2,), in radians a position
    if config.rope_scaling is not None:  # Llama 3.1 and 3.2
        scaling = config.rope_scaling
        turns = frequencies * scaling.original_context / (2 * math.pi)
        fast = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        fast = fast.clamp(0, 1)  # 0: slow, 1: fast
        frequencies = (1 - fast) * frequencies / scaling.factor + fast * frequencies
    angles = positions[..., None].float() * frequencies  # (..., time, head_dim / 2)
    angles = torch.cat([angles, angles], dim=-1)  # (..., time, head_dim)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn queries or keys x (batch, heads, time, head_dim) by their positions' angles."""
    first, second = x.chunk(2, dim=-1)  # (batch, heads, time, head_dim / 2) each
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        bias = config.family in ("qwen2", "gpt2")
        self.index, self.head_dim = index, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.n_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, config.n_kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, config.n_kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.hidden_size, bias=config.family == "gpt2")
        if config.family == "qwen3":
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(self, x, rotary, mask, cache):
        batch, time, _ = x.shape

        def heads(y):
            return y.view(batch, time, -1, self.head_dim).transpose(1, 2)  # (batch, heads, time, head_dim)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))  # k and v may have fewer heads
        if hasattr(self, "q_norm"):  # qwen3, of each head alone
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:  # not gpt2
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.append(self.index, k, v)  # (batch, kv_heads, total, head_dim)
        # With no mask, `time` is either the whole sequence (causal) or one token, which sees all that is cached.
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and time > 1, enable_gqa=q.shape[1] != k.shape[1]
        )  # (batch, heads, time, head_dim)
        return self.o_proj(y.transpose(1, 2).reshape(batch, time, -1))  # (batch, time, hidden)


class SwiGLU(nn.Module):
    """The MLP of Llama and its kin (arXiv 2002.05202)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GELUMLP(nn.Module):
    """GPT-2's MLP, with GELU in its tanh approximation."""

    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


def make_norm(config):
    norm = nn.LayerNorm if config.family == "gpt2" else nn.RMSNorm
    return norm(config.hidden_size, eps=config.norm_eps)


class Block(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = GELUMLP(config) if config.family == "gpt2" else SwiGLU(config)

    def forward(self, x, rotary, mask, cache):
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    """A decoder-only language model: token ids (batch, time) -> logits (batch, time, vocab)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpointing = False  # True: a block in training keeps only its input and computes the rest twice
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.family == "gpt2":
            self.embed_positions = nn.Embedding(config.context_length, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.n_layers))
        self.norm = make_norm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def device(self):
        return self.embed_tokens.weight.device

    def hidden_states(self, input_ids, positions=None, mask=None, cache=None):
        """The last layer's normalised output (batch, time, hidden), before the head.

        positions: (time,) or (batch, time), by default those that follow the cache; below config.context_length.
        mask: bool (batch, 1, time, total), True where attention is allowed; causal by default.
        Raises ValueError when, without positions, the sequence is longer than the model's context.
        """
        past = cache.length if cache is not None else 0
        time = input_ids.shape[1]
        if positions is None:
            if past + time > self.config.context_length:
                raise ValueError(f"{past + time} tokens do not fit the model's context of {self.config.context_length}")
            positions = torch.arange(past, past + time, device=input_ids.device)
        if mask is None and past and time > 1:  # several new tokens on top of cached ones
            mask = torch.ones(time, past + time, dtype=torch.bool, device=input_ids.device).tril(past)

        x = self.embed_tokens(input_ids)  # (batch, time, hidden)
        rotary = None
        if self.config.family == "gpt2":
            x = x + self.embed_positions(positions)
        else:
            cos, sin = rotary_tables(positions, self.config)
            if positions.dim() == 2:  # one table a sequence, the same for all its heads
                cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (batch, 1, time, head_dim)
            rotary = (cos.to(x.dtype), sin.to(x.dtype))  # (..., time, head_dim) each
        for layer in self.layers:
            if self.checkpointing and self.training:  # computed again for the gradient
                x = checkpoint(layer, x, rotary, mask, cache, use_reentrant=False)
            else:
                x = layer(x, rotary, mask, cache)  # (batch, time, hidden)
        if cache is not None:
            cache.length += time
        return self.norm(x)

    def forward(self, input_ids, positions=None, mask=None, cache=None):
        """Logits (batch, time, vocab) of the token after each of input_ids; arguments as in hidden_states."""
        return self.lm_head(self.hidden_states(input_ids, positions, mask, cache))
