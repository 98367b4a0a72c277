import torch

from gpt.gguf import unpair
from gpt.model import rotary_tables, rotate  # noqa: F401, the tables for test_graders.py

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


def halves(x):
    return x.chunk(2, dim=-1)


def other_way(x, cos, sin):
    a, b = halves(x)
    return (x * cos + torch.cat([b, -a], dim=-1) * sin).to(x.dtype)


def no_sign(x, cos, sin):
    a, b = halves(x)
    return (x * cos + torch.cat([b, a], dim=-1) * sin).to(x.dtype)


def neighbours(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., ::2], x[..., 1::2]
    c, s = cos[..., :half], sin[..., :half]
    return torch.stack([a * c - b * s, b * c + a * s], dim=-1).flatten(-2).to(x.dtype)


def exchanged(x, cos, sin):
    a, b = halves(rotate(x, cos, sin))
    return torch.cat([b, a], dim=-1)


def in_place(x, cos, sin):
    return x.copy_(rotate(x, cos, sin))


def half_only(x, cos, sin):
    a, b = halves(x)
    half = x.shape[-1] // 2
    return (a * cos[..., :half] - b * sin[..., :half]).to(x.dtype)


def rotary(function):
    return {"rotate": function}


def convert(function):
    return {"from_interleaved": function}


WRONG = {
    "a wrong sign": (rotary(other_way), "other way round"),
    "no sign": (rotary(no_sign), "no rotation"),
    "interleaved": (rotary(neighbours), "neighbours"),
    "halves exchanged": (rotary(exchanged), "wrong order"),
    "not turned": (rotary(lambda x, cos, sin: x), "as it was"),
    "wider than x": (rotary(lambda x, cos, sin: rotate(x.float(), cos, sin)), "dtype"),
    "in place": (rotary(in_place), "changes what"),
    "half of it": (rotary(half_only), "shape"),
    "the other conversion": (
        convert(lambda w, h: w.view(h, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape)),
        "other way",
    ),
    "not by head": (convert(lambda w, h: torch.cat([w[::2], w[1::2]])), "heads"),
    "heads of eight": (
        convert(lambda w, h: w.view(-1, 4, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)),
        "with 3 heads",
    ),
    "nothing converted": (convert(lambda w, h: w), "nothing has changed places"),
    "b before a": (convert(lambda w, h: by_index(w, h).view(h, 2, -1, w.shape[1]).flip(1).reshape(w.shape)), "swapped"),
    "columns": (convert(lambda w, h: torch.cat([w[:, ::2], w[:, 1::2]], 1)), "same rows"),
}
