"""Grades exercise 9: the error after some rounds against NumPy's decomposition, and the rate against what is observed."""

import functools

import numpy as np
import torch

from exercises.grading import (
    apart,
    check_number,
    check_tensor,
    check_tuple,
    judge,
    matrix,
    numpy,
    part,
    precision,
    require,
)
from fast.subspace import random_columns

TITLE, MINUTES = "inverse iteration", 35
SOLUTIONS = ["fast/subspace.py: inverse_iteration"]
SIZE, RANK = 60, 4
# Falling unevenly, so that a neighbour taken for the right one shows.
VALUES = 2.0 * np.cumprod(np.resize([0.95, 0.75, 0.9, 0.8], SIZE))


def predicted(rank, columns):
    return (VALUES[-rank] / VALUES[-columns - 1]) ** 2


@part("inverse_iteration", 6)
def test_iteration(student):
    M = matrix(SIZE, SIZE, VALUES)
    U, _, Vh = np.linalg.svd(M.numpy())
    left, right = U[:, -RANK:], Vh[-RANK:].T
    seen = {}  # {columns: (Q after one round, {rounds: error})}
    for columns in (RANK, 8):
        errors, first = {}, None
        for dtype, rounds in [(torch.float64, n) for n in (1, 2, 6, 12)] + [(torch.float32, 12)]:
            result = student.call("inverse_iteration", M.to(dtype), columns, rounds)
            Q, Y = (
                orthonormal(basis, name, dtype, columns, rounds)
                for name, basis in zip("QY", check_tuple(result, 2, "inverse_iteration", "(Q, Y)"))
            )
            errors[rounds] = errors.get(rounds, apart(left, Q))  # float64's
            first = Q if rounds == 1 else first
        major = apart(U[:, :RANK], Q) < 0.5
        require(not major, "your Q holds the *major* directions: solve with M, do not multiply")
        swapped = columns == 8 and apart(right, Q) < 1e-2 and apart(left, Q) > 0.1
        require(not swapped, "your Q and Y have changed places: Q is the left one, Y the right one")
        for name, away in (("Q", apart(left, Q)), ("Y", apart(right, Y))) if columns == 8 else ():
            said = f"after 12 rounds your {name} is still {away:.1e} away from the minor directions"
            require(away < 1e-3, f"{said}: a round solves with M, and then with M's transpose")
        seen[columns] = first, errors
    for columns, (first, errors) in seen.items():
        begins(M, columns, first)
        speed(errors, predicted(RANK, columns))


def orthonormal(basis, name, dtype, columns, rounds):
    basis = check_tensor(basis, (SIZE, columns), f"your {name} ({columns} columns)")
    require(basis.dtype == dtype, f"your {name} is {basis.dtype} for an M of {dtype}")
    found = numpy(basis)
    level = np.isfinite(found).all() and np.abs(found.T @ found - np.eye(columns)).max() < 1000 * precision(dtype)
    require(level, f"your {name}'s columns are not orthonormal after {rounds} rounds: make them so each time")
    return found


def begins(M, columns, Q):
    """After one round (or two: miscounting is for speed to find) Q's span is known, for it begins the same everywhere."""
    inverse, X, away = np.linalg.inv(numpy(M)), numpy(random_columns(M, columns)), []
    for _ in range(2):
        X = np.linalg.qr(inverse.T @ (inverse @ X))[0]
        away.append(apart(X, Q))
    said = "after one round your Q spans another space than a round gives: begin with random_columns(M, columns)"
    require(min(away) < 1e-3, said)


def speed(errors, rate):
    """A round must do as much as it can, and no more than it can."""
    for few, many in ((1, 2), (2, 6)):
        ratio = errors[many] / errors[few]
        said = f"from {few} to {many} rounds the error shrinks by {ratio:.2g}"
        if errors[many] > 1e-12:
            require(ratio <= 4 * rate ** (many - few), f"{said} only: does each round go on from the last?")
            require(ratio >= rate ** (many - few) / 40, f"{said}, more than rounds can: count them")


@functools.cache
def observed(rank, columns):
    """By how much a round shrinks the error of an iteration of our own, in NumPy."""
    M = matrix(SIZE, SIZE, VALUES).numpy()
    U, inverse, seen = np.linalg.svd(M)[0], np.linalg.inv(M), []
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, columns)))[0]
    while not seen or seen[-1] > 1e-7:
        Q = np.linalg.qr(inverse.T @ (inverse @ Q))[0]
        seen.append(apart(U[:, -rank:], Q))
    late = [error for error in seen if error < 1e-2]
    return (late[-1] / late[0]) ** (1 / (len(late) - 1))


@part("shrinking", 3)
def test_rate(student):
    S = VALUES
    for rank, columns in ((4, 4), (4, 6), (3, 5), (2, 5), (4, 9)):
        found = check_number(student.call("shrinking", torch.from_numpy(S.copy()), rank, columns), "your factor")
        right = observed(rank, columns)
        mistakes = {
            "a round divides by S twice, so the ratio is squared": right**0.5,
            "an error that shrinks has a factor below 1": 1 / right,
            "S comes with the largest value first, and the minor directions are those at its end": (S[columns] / S[rank - 1]) ** 2,
            "which is the smallest value that the columns have no room for?": (S[-rank] / S[-columns]) ** 2,
            "the slowest of the wanted directions counts, that of the largest value among them": (S[-1] / S[-columns - 1]) ** 2,
        }
        said = f"with {columns} columns for {rank} vectors a round shrinks the error by another factor than {found:.3f}"
        judge(found, right, said, mistakes, 0.12 * right)
