"""Grades exercise 9: the error after some rounds against NumPy's decomposition, and the rate against what is observed."""

import functools

import numpy as np
import torch

from exercises.grading import apart, check_number, check_tensor, check_tuple, judge, matrix, numpy, part, require
from fast.subspace import random_columns

TITLE, MINUTES = "inverse iteration", 35
SOLUTIONS = ["fast/subspace.py: inverse_iteration"]
SIZE, RANK = 60, 4
# Falling unevenly, so that a neighbour taken for the right one shows.
VALUES = 2.0 * np.cumprod(np.resize([0.95, 0.75, 0.9, 0.8], SIZE))


@functools.cache
def iterated(columns, rounds, dtype):
    """(Q, Y) after so many rounds from random_columns, in NumPy."""
    M = numpy(matrix(SIZE, SIZE, VALUES))
    inverse = np.linalg.inv(M)
    Q = numpy(random_columns(torch.from_numpy(M).to(dtype), columns))
    for _ in range(rounds):
        Y = np.linalg.qr(inverse @ Q)[0]
        Q = np.linalg.qr(inverse.T @ Y)[0]
    return Q, Y


@part("inverse_iteration", 6)
def check_iteration(student):
    M = matrix(SIZE, SIZE, VALUES)
    cases = ((torch.float64, 1), (torch.float64, 2), (torch.float64, 6), (torch.float32, 3))
    for columns, (dtype, rounds) in ((columns, case) for columns in (RANK, 8) for case in cases):
        result = student.call("inverse_iteration", M.to(dtype), columns, rounds)
        for i, basis in enumerate(check_tuple(result, 2, "inverse_iteration", "(Q, Y)")):
            found = numpy(check_tensor(basis, (SIZE, columns), f"your {'QY'[i]} ({columns} columns)"))
            require(basis.dtype == dtype, f"your {'QY'[i]} is {basis.dtype} for an M of {dtype}")
            off = np.abs(found.T @ found - np.eye(columns)).max()  # NaN is not level either
            level = f"your {'QY'[i]}'s columns are not orthonormal after {rounds} rounds: make them so each time"
            require(off < 1000 * torch.finfo(dtype).eps, level)
            near, right = 1e-6 if dtype == torch.float64 else 0.05, iterated(columns, rounds, dtype)
            away = apart(right[i], found)
            said = f"your {'QY'[i]} does not span what {rounds} rounds with {columns} columns give"
            require(away < near or apart(right[1 - i], found) >= near, f"{said}: Q and Y have changed places")
            require(away < near, f"{said} from random_columns(M, columns): it is {away:.2g} away")


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
def check_rate(student):
    for rank, columns in ((4, 4), (4, 6), (3, 5), (2, 5), (4, 9)):
        found = check_number(student.call("shrinking", torch.from_numpy(VALUES.copy()), rank, columns), "your factor")
        right = observed(rank, columns)
        mistakes = {
            "a round divides by S twice, so the ratio is squared": right**0.5,
            "an error that shrinks has a factor below 1": 1 / right,
        }
        said = f"with {columns} columns for {rank} vectors a round shrinks the error by another factor than {found:.3f}"
        judge(found, right, said, mistakes, 0.12 * right)
