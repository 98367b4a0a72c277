import torch

from gpt.gguf import unpair
from gpt.model import rotate

REFERENCE = {"rotate": rotate, "from_interleaved": lambda weight, heads: unpair(weight, heads)}


def as_complex(x, cos, sin):
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half].double(), x[..., half:].double())
    z = z * torch.complex(cos[..., :half].double(), sin[..., :half].double())
    return torch.cat([z.real, z.imag], dim=-1).to(x.dtype)


def by_index(weight, heads):
    size = weight.shape[0] // heads
    order = [h * size + i for h in range(heads) for i in [*range(0, size, 2), *range(1, size, 2)]]
    return weight[order]


def by_matrix(x, cos, sin):
    """x cos + (x J) sin, J the quarter turn of every pair."""
    half = x.shape[-1] // 2
    zero, one = torch.zeros(half, half), torch.eye(half)
    J = torch.cat([torch.cat([zero, one], 1), torch.cat([-one, zero], 1)]).to(x)
    return (x * cos + (x @ J) * sin).to(x.dtype)


DIFFERENT = {
    "complex numbers, an index": {"rotate": as_complex, "from_interleaved": by_index},
    "a matrix, slices": {
        "rotate": by_matrix,
        "from_interleaved": lambda w, heads: torch.cat([torch.cat([h[::2], h[1::2]]) for h in w.chunk(heads)]),
    },
}


def other_way(x, cos, sin):
    return rotate(x, cos, -sin)


def no_sign(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([b, a], dim=-1) * sin).to(x.dtype)


def neighbours(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., ::2], x[..., 1::2]
    c, s = cos[..., :half], sin[..., :half]
    return torch.stack([a * c - b * s, b * c + a * s], dim=-1).flatten(-2).to(x.dtype)


def rotary(function):
    return {"rotate": function}


def convert(rows):
    """rows: what is done to a weight as (heads, head_dim, in)."""
    return {"from_interleaved": lambda w, heads: rows(w.view(heads, -1, w.shape[1])).reshape(w.shape)}


def pairs(h):
    """(heads, head_dim / 2, a or b, in)."""
    return h.unflatten(1, (-1, 2))


WRONG = {
    "a wrong sign": (rotary(other_way), "other way round"),
    "no sign": (rotary(no_sign), "your rotate is not"),
    "interleaved": (rotary(neighbours), "neighbours"),
    "halves exchanged": (rotary(lambda *given: rotate(*given).roll(given[0].shape[-1] // 2, -1)), "your rotate is not"),
    "wider than x": (rotary(lambda x, cos, sin: rotate(x.float(), cos, sin)), "dtype"),
    "in place": (rotary(lambda x, cos, sin: x.copy_(rotate(x, cos, sin))), "changes what"),
    "half of it": (rotary(lambda *given: rotate(*given)[..., ::2]), "shape"),
    "the other conversion": (convert(lambda h: h.unflatten(1, (2, -1)).transpose(1, 2)), "attention scores"),
    "not by head": (convert(lambda h: torch.cat([h.flatten(0, 1)[::2], h.flatten(0, 1)[1::2]])), "attention scores"),
    "nothing converted": (convert(lambda h: h), "nothing has changed places"),
    "b before a": (convert(lambda h: pairs(h).flip(2).transpose(1, 2)), "attention scores"),
    "columns": (convert(lambda h: torch.cat([h[..., ::2], h[..., 1::2]], -1)), "same rows"),
}
