"""What all graders share: how an answer is refused, in one sentence, and how numbers are compared.

The numbers an answer is held against are always computed another way: NumPy in float64, or brute force.
"""

import numpy as np
import torch


class Wrong(Exception):
    """What is wrong with an answer, in one sentence that its author can act on."""


def part(name, points):
    """Marks a grader's function as that of `name`, as it is called in the student's file."""

    def mark(check):
        check.worth = name, points
        return check

    return mark


def require(holds, sentence):
    if not holds:
        raise Wrong(sentence)


def judge(found, right, what, mistakes=(), tolerance=1e-6):
    """Refuse `found` unless it is `right`: with the mistake that gives it, or, where none is known that does, with numbers.

    Numbers or arrays; tolerance: the largest difference, of each element if an array. mistakes: {sentence: its result}.
    """
    found, right = np.asarray(found, dtype=float), np.asarray(right, dtype=float)
    require(np.isfinite(found).all(), f"{what}: there is NaN or infinity in it")

    def near(other):
        return np.shape(other) == found.shape and (np.abs(found - other) <= tolerance).all()

    if near(right):
        return
    known = [sentence for sentence, other in dict(mistakes).items() if near(other)]
    require(not known, f"{what}: {', or '.join(known)}")
    worst = (np.abs(found - right) / tolerance).argmax()
    numbers = f"{found.flat[worst]:.5g} where {right.flat[worst]:.5g} is right"
    raise Wrong(f"{what}: {numbers}; no mistake that is known here gives this")


def numpy(tensor):
    """A tensor of any dtype as a NumPy array in float64."""
    return tensor.double().numpy()


def kind_of(value):
    return value["a"] if isinstance(value, dict) and set(value) == {"a"} else type(value).__name__


def check_tensor(value, shape, name):
    """`value`, if it is a tensor of this shape."""
    require(isinstance(value, torch.Tensor), f"{name} is a {kind_of(value)}: it must be a tensor")
    found, shape = tuple(value.shape), tuple(shape)
    require(found == shape, f"{name} has the shape {found}, where {shape} is wanted")
    return value


def check_number(value, name):
    """`value` as a float, if it is a single number, be it in a tensor or a text."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    try:
        require(isinstance(value, (int, float, str)) and not isinstance(value, bool), "")
        return float(value)
    except (Wrong, ValueError):
        raise Wrong(f"{name} is no number but {value if isinstance(value, str) else kind_of(value)!r}"[:150]) from None


def check_points(value, name):
    """A prediction: written down, in whole points of 100."""
    found = check_number(value, name)
    fits = abs(found) <= 100 and found == round(found)
    require(fits, f"{name} is {found:g}: give whole points, of which there are 100: 5 and not 0.05")


def check_tuple(value, length, name, wanted):
    """The items of a tuple, list or array of this length."""
    if isinstance(value, torch.Tensor) and value.dim() == 1:
        value = value.tolist()
    require(isinstance(value, (tuple, list)) and len(value) == length, f"your {name} must return {wanted}")
    return value


def precision(*dtypes):
    """The largest relative rounding error of these dtypes: what follows from the coarsest one cannot be more exact."""
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def same_bits(found, expected):
    return found.dtype == expected.dtype and torch.equal(found, expected)


def matrix(rows, columns, values, seed=0):
    """U diag(values) V^T in float64 with random U and V: a weight (rows, columns) whose singular values are known."""
    generator = np.random.default_rng(seed)
    U = np.linalg.qr(generator.normal(size=(rows, len(values))))[0]
    V = np.linalg.qr(generator.normal(size=(columns, len(values))))[0]
    return torch.from_numpy((U * values) @ V.T)


def spectrum(size, rank):
    """Singular values that fall from 1 to 0.3, and then `rank` small ones: a gap, so that no dtype can mix them up."""
    return np.concatenate([np.linspace(1, 0.3, size - rank), np.linspace(0.05, 0.01, rank)])


def weight(rows, columns, dtype=torch.float32, rank=4, seed=0):
    return matrix(rows, columns, spectrum(min(rows, columns), rank), seed).to(dtype)


def apart(A, B):
    """The sine of the largest angle between the spans of two orthonormal bases, or of the first and the best of B's."""
    return np.linalg.norm(A - B @ (B.T @ A), 2)
