"""Grades exercise 9: the error after some rounds against NumPy's decomposition, and the rate against what is observed."""

import numpy as np
import torch

from exercises.grading import check_number, check_tensor, matrix, numpy, precision, require
from fast.subspace import random_columns

SIZE, RANK = 60, 4


def values():
    """Singular values that fall geometrically, so that every column more helps by the same factor."""
    return 2.0 * 0.85 ** np.arange(SIZE)


def outside(basis, found):
    """The sine of the largest angle between a space and the best of found's span."""
    return np.linalg.norm(basis - found @ (found.T @ basis), 2)


def iteration(student):
    """inverse_iteration."""
    M = matrix(SIZE, SIZE, values())
    U, S, Vh = np.linalg.svd(M.numpy())
    minor_left, minor_right = U[:, -RANK:], Vh[-RANK:].T
    errors, first = {}, {}  # first: {columns: Q after one round}
    for dtype in (torch.float64, torch.float32):
        for columns in (RANK, 8):
            for rounds in (1, 2, 6, 12):
                given = M.to(dtype)
                result = student.inverse_iteration(given, columns, rounds)
                require(
                    isinstance(result, (tuple, list)) and len(result) == 2, "your inverse_iteration must return (Q, Y)"
                )
                require(torch.equal(given, M.to(dtype)), "your inverse_iteration changes M")
                pair = []
                for name, basis in zip("QY", result):
                    basis = check_tensor(basis, (SIZE, columns), f"your {name} ({columns} columns)")
                    require(basis.dtype == dtype, f"your {name} is {basis.dtype} for an M of {dtype}")
                    basis = numpy(basis)
                    tolerance = 1000 * precision(dtype)
                    level = np.isfinite(basis).all() and np.abs(basis.T @ basis - np.eye(columns)).max() < tolerance
                    require(
                        level,
                        f"your {name}'s columns are not orthonormal after {rounds} rounds: make them so each time",
                    )
                    pair.append(basis)
                if dtype == torch.float64:
                    first.setdefault(columns, pair[0])
                    errors[columns, rounds] = outside(minor_left, pair[0])
                last = pair
            found, other = last
            require(
                outside(U[:, :RANK], found) > 0.5, "your Q holds the *major* directions: solve with M, do not multiply"
            )
            if columns == 8:
                swapped = outside(minor_right, found) < 1e-2 and outside(minor_left, found) > 0.1
                require(not swapped, "your Q and Y have changed places: Q is the left one, Y the right one")
                for name, space, basis in (("Q", minor_left, found), ("Y", minor_right, other)):
                    away = outside(space, basis)
                    require(
                        away < 1e-3,
                        f"after 12 rounds your {name} is still {away:.1e} away from the minor directions: "
                        "a round solves with M, and then with M's transpose",
                    )
    for columns, Q in first.items():
        begins(M, columns, Q)
    speed(errors)


def begins(M, columns, Q):
    """After one round (or two: miscounting is for speed to find) Q's span is known, for it begins the same everywhere."""
    inverse, X, away = np.linalg.inv(numpy(M)), numpy(random_columns(M, columns)), []
    for _ in range(2):
        X = np.linalg.qr(inverse.T @ (inverse @ X))[0]
        away.append(outside(X, Q))
    require(
        min(away) < 1e-3,
        "after one round your Q spans another space than a round gives: begin with random_columns(M, columns)",
    )


def speed(errors):
    """A round must do as much as it can, and no more than it can."""
    for columns in (RANK, 8):
        rate = 0.85 ** (2 * (columns - RANK + 1))
        for few, many in ((1, 2), (2, 6)):
            ratio = errors[columns, many] / errors[columns, few]
            slow = ratio > 4 * rate ** (many - few) and errors[columns, many] > 1e-12
            fast = ratio < rate ** (many - few) / 40 and errors[columns, many] > 1e-12
            require(
                not slow,
                f"from {few} to {many} rounds the error shrinks by {ratio:.2g} only: does each round go on from the last?",
            )
            require(
                not fast,
                f"from {few} to {many} rounds the error shrinks by {ratio:.2g}, more than rounds can: count them",
            )


def rate(student):
    """shrinking, against the error of an iteration of our own, in NumPy."""
    for columns in (RANK, 6, 9):
        M = matrix(SIZE, SIZE, values()).numpy()
        U, S, _ = np.linalg.svd(M)
        inverse = np.linalg.inv(M)
        Q = np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, columns)))[0]
        seen = []
        while not seen or seen[-1] > 1e-7:
            Q = np.linalg.qr(inverse.T @ (inverse @ Q))[0]
            seen.append(outside(U[:, -RANK:], Q))
        late = [error for error in seen if error < 1e-2]
        observed = (late[-1] / late[0]) ** (1 / (len(late) - 1))
        found = check_number(student.shrinking(torch.from_numpy(S.copy()), RANK, columns), "your factor")
        if abs(found - observed) > 0.12 * observed:
            root = abs(found**2 - observed) < 0.12 * observed
            over = found > 1
            why = (
                "a round divides by S twice, so the ratio is squared" if root
                else "an error that shrinks has a factor below 1" if over
                else "which is the largest value kept, and which the smallest one that the columns have no room for?"
            )  # fmt: skip
            require(
                False,
                f"with {columns} columns for {RANK} vectors a round shrinks the error by {observed:.3f}, not {found:.3f}: {why}",
            )
