"""What all graders share: how an answer is refused, in one sentence, and how numbers are compared.

The numbers an answer is held against are always computed another way: NumPy in float64, brute force, transformers, PEFT.
"""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Wrong(Exception):
    """What is wrong with an answer, in one sentence that its author can act on."""


def require(holds, sentence):
    if not holds:
        raise Wrong(sentence)


def numpy(tensor):
    """A tensor of any dtype as a NumPy array in float64."""
    return tensor.detach().cpu().double().numpy()


def check_tensor(value, shape, name):
    """`value`, if it is a tensor of this shape."""
    require(value is not None, f"{name} is None: return the result")
    require(isinstance(value, torch.Tensor), f"{name} is a {type(value).__name__}: it must be a tensor")
    found, shape = tuple(value.shape), tuple(shape)
    require(found == shape, f"{name} has the shape {found}, where {shape} is wanted")
    return value


def check_number(value, name):
    """`value` as a float, if it is a single number."""
    require(value is not None, f"{name} is None: return the result")
    if isinstance(value, (torch.Tensor, np.ndarray)):
        require(value.size == 1 if isinstance(value, np.ndarray) else value.numel() == 1, f"{name} must be one number")
        value = value.item()
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    require(number, f"{name} is a {type(value).__name__}: it must be a number")
    return float(value)


def precision(*dtypes):
    """The largest relative rounding error of these dtypes: what follows from the coarsest one cannot be more exact."""
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def apart(found, expected, terms):
    """The largest error of `found` in parts of `terms`: the sizes of what was added up to get `expected`, in float64."""
    found = numpy(found) if isinstance(found, torch.Tensor) else found
    if not np.isfinite(found).all():
        return np.inf
    return float((np.abs(found - expected) / np.maximum(terms, 1e-300)).max())


def same_bits(found, expected):
    return found.dtype == expected.dtype and torch.equal(found, expected)


def matrix(rows, columns, values, seed=0):
    """U diag(values) V^T in float64 with random U and V: a weight (rows, columns) whose singular values are known."""
    generator = np.random.default_rng(seed)
    U = np.linalg.qr(generator.normal(size=(rows, len(values))))[0]
    V = np.linalg.qr(generator.normal(size=(columns, len(values))))[0]
    return torch.from_numpy((U * values) @ V.T)


class LargestTensor(TorchDispatchMode):
    """While it is active: .numel is the size of the largest tensor that was made, views of `known` ones aside."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.numel = max(self.numel, tensor.numel())
        return result
