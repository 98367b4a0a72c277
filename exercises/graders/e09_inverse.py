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


@functools.cache
def iterated(columns, rounds, dtype, by="solving"):
    """(Q, Y) after so many rounds from random_columns, in NumPy, or what other ways of going round give."""
    M = numpy(matrix(SIZE, SIZE, VALUES))
    inverse = np.linalg.inv(M)
    to_Y, to_Q = {"solving": (inverse, inverse.T), "multiplying": (M.T, M), "no transpose": (inverse, inverse)}[by]
    Q = numpy(random_columns(torch.from_numpy(M).to(dtype), columns))
    for _ in range(rounds):
        Y = np.linalg.qr(to_Y @ Q)[0]
        Q = np.linalg.qr(to_Q @ Y)[0]
    return Q, Y


@part("inverse_iteration", 6)
def test_iteration(student):
    M = matrix(SIZE, SIZE, VALUES)
    for columns in (RANK, 8):
        for dtype, rounds in ((torch.float64, 1), (torch.float64, 2), (torch.float64, 6), (torch.float32, 3)):
            result = student.call("inverse_iteration", M.to(dtype), columns, rounds)
            for i, basis in enumerate(check_tuple(result, 2, "inverse_iteration", "(Q, Y)")):
                name = "QY"[i]
                found = numpy(check_tensor(basis, (SIZE, columns), f"your {name} ({columns} columns)"))
                require(basis.dtype == dtype, f"your {name} is {basis.dtype} for an M of {dtype}")
                off = np.abs(found.T @ found - np.eye(columns)).max()  # NaN is not level either
                level = f"your {name}'s columns are not orthonormal after {rounds} rounds: make them so each time"
                require(off < 1000 * precision(dtype), level)
                near = 1e-6 if dtype == torch.float64 else 0.05
                away = apart(iterated(columns, rounds, dtype)[i], found)
                if away < near:
                    continue
                case = columns, rounds, dtype
                mistakes = {
                    "Q and Y have changed places: Q is the left one, Y the right one": iterated(*case)[1 - i],
                    "multiplying finds the major directions: solve with M": iterated(*case, "multiplying")[i],
                    "a round solves with M, and then with M's transpose": iterated(*case, "no transpose")[i],
                }
                for n in range(1, 13):
                    mistakes[f"that is after {n} rounds: count them"] = iterated(columns, n, dtype)[i]
                known = [why for why, other in mistakes.items() if apart(other, found) < near]
                why = " or: ".join(known) or f"begin with random_columns(M, columns); yours is {away:.2g} away"
                require(False, f"your {name} does not span what {rounds} rounds with {columns} columns give: {why}")


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
            "S comes with the largest value first, and the minor directions are those at its end": (
                S[columns] / S[rank - 1]
            )
            ** 2,
            "which is the smallest value that the columns have no room for?": (S[-rank] / S[-columns]) ** 2,
            "the slowest of the wanted directions counts, that of the largest value among them": (
                S[-1] / S[-columns - 1]
            )
            ** 2,
        }
        said = f"with {columns} columns for {rank} vectors a round shrinks the error by another factor than {found:.3f}"
        judge(found, right, said, mistakes, 0.12 * right)
