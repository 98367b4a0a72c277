import torch

from fast.subspace import orthonormal, random_columns


def reference(M, columns, rounds):
    """fast.subspace.inverse_iteration, with the rounds and columns left open."""
    LU, pivots, _ = torch.linalg.lu_factor_ex(M)
    Q = random_columns(M, columns)
    for _ in range(rounds):
        Y = orthonormal(torch.linalg.lu_solve(LU, pivots, Q))
        Q = orthonormal(torch.linalg.lu_solve(LU, pivots, Y, adjoint=True))
    return Q, Y


def shrinking(S, rank, columns):
    return (S[-rank] / S[-columns - 1]) ** 2


REFERENCE = {"inverse_iteration": reference, "shrinking": shrinking}


def by_inverse(M, columns, rounds):
    """The inverse itself, and columns made orthonormal before the first round too."""
    return iterated(torch.linalg.inv(M), torch.linalg.qr(random_columns(M, columns))[0], rounds)


def another_start(M, columns, rounds):
    return iterated(torch.linalg.inv(M), torch.randn(len(M), columns, dtype=M.dtype), rounds)


def iterated(inverse, Q, rounds):
    for _ in range(rounds):
        Y = torch.linalg.qr(inverse @ Q)[0]
        Q = torch.linalg.qr(inverse.T @ Y)[0]
    return Q, Y


def with_gram(M, columns, rounds):
    """Q by M M^T alone, and Y from it by one more half round before the last."""
    Q, before = random_columns(M, columns), None
    for _ in range(rounds):
        before, Q = Q, torch.linalg.qr(torch.linalg.solve(M.T, torch.linalg.qr(torch.linalg.solve(M, Q))[0]))[0]
    return [Q, torch.linalg.qr(torch.linalg.solve(M, before))[0]]


DIFFERENT = {
    "by the inverse": {
        "inverse_iteration": by_inverse,
        "shrinking": lambda S, r, c: float(S.sort().values[r - 1] / S.sort().values[c]) ** 2,
    },
    "a list": {
        "inverse_iteration": with_gram,
        "shrinking": lambda S, r, c: S[len(S) - r] ** 2 / S[len(S) - c - 1] ** 2,
    },
}


def iteration(solve=torch.linalg.solve, back=None, finish=orthonormal, each=orthonormal):
    def iterate(M, columns, rounds):
        Q = random_columns(M, columns)
        for _ in range(rounds):
            Y = each(solve(M, Q))
            Q = each((back or solve)(M.T, Y))
        return finish(Q), finish(Y)

    return {"inverse_iteration": iterate}


def decomposed(M, columns, rounds):
    U, _, Vh = torch.linalg.svd(M)
    return U[:, -columns:], Vh[-columns:].T


WRONG = {
    "no iteration": ({"inverse_iteration": decomposed}, "from random_columns"),
    "another start": ({"inverse_iteration": another_start}, "from random_columns"),
    "products": (iteration(lambda M, Q: M.T @ Q), "does not span"),
    "no transpose": (iteration(back=lambda Mt, Y: torch.linalg.solve(Mt.T, Y)), "does not span"),
    "never orthonormal": (iteration(finish=lambda Q: Q, each=lambda Q: Q / Q.norm(dim=0)), "orthonormal"),
    "Q and Y exchanged": ({"inverse_iteration": lambda *a: reference(*a)[::-1]}, "changed places"),
    "twice the rounds": ({"inverse_iteration": lambda M, c, r: reference(M, c, 2 * r)}, "does not span"),
    "Q alone": ({"inverse_iteration": lambda *a: reference(*a)[0]}, "(Q, Y)"),
    "not squared": ({"shrinking": lambda S, r, c: S[-r] / S[-c - 1]}, "squared"),
    "upside down": ({"shrinking": lambda S, r, c: (S[-c - 1] / S[-r]) ** 2}, "below 1"),
    "the major end": ({"shrinking": lambda S, r, c: (S[c] / S[r - 1]) ** 2}, "another factor"),
    "the fastest direction": ({"shrinking": lambda S, r, c: (S[-1] / S[-c - 1]) ** 2}, "another factor"),
    "one too few": ({"shrinking": lambda S, r, c: (S[-r] / S[-c]) ** 2}, "another factor"),
    "a constant": ({"shrinking": lambda S, r, c: 0.85 ** (2 * (c - r + 1))}, "another factor"),
}
