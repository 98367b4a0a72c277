"""Draw MiCA's idea, the picture of the README: where B comes from, and the two paths from x to y.

python pictures/idea.py            # writes pictures/idea.png
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

FROZEN, MINOR, TRAINED, INK = "#D9D9D9", "#0072B2", "#E69F00", "#222222"  # colour-blind readers tell them apart too
OUT, IN, RANK = 1.2, 1.55, 0.28  # sides of the blocks, in inches: W is (out, in), and k = out: the smaller one


def note(ax, x, y, text, **style):
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 12.5, "color": INK, "linespacing": 1.3, **style})


def block(ax, x, y, width, height, color, name="", above="", ink=INK):
    """A matrix: a rectangle whose lower left corner is at (x, y), with its shape above it."""
    ax.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=INK, linewidth=1.2))
    note(ax, x + width / 2, y + height / 2 + 0.02, name, color=ink, fontsize=15 if height < 1 else 18)
    note(ax, x + width / 2, y + height + 0.19, above)


def arrow(ax, *points, color=INK, width=1.6):
    """An arrow along the points, with corners where there are more than two."""
    for start, end in zip(points, points[1:-1]):
        ax.plot(*zip(start, end), color=color, linewidth=width, solid_capstyle="projecting")
    head = {"arrowstyle": "-|>", "mutation_scale": 15, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(points[-2], points[-1], color=color, linewidth=width, **head))


def decomposition(ax, left, bottom):
    """W = U S V^T as blocks, the last columns of U shaded. Returns the middle of their lower edge."""
    block(ax, left, bottom, IN, OUT, FROZEN, "$W$", "out × in")
    note(ax, left + IN + 0.23, bottom + OUT / 2, "=", fontsize=18)

    u = left + IN + 0.46
    block(ax, u, bottom, OUT, OUT, "white", "$U\\quad$", "out × $k$")
    block(ax, u + OUT - RANK, bottom, RANK, OUT, MINOR)
    note(ax, u + OUT - RANK / 2 - 0.15, bottom - 0.23, "last $r$ columns", color=MINOR, ha="right")

    s = u + OUT + 0.17
    block(ax, s, bottom, OUT, OUT, "white", above="$k$ × $k$")
    for i in range(7):  # the singular values, largest first
        at = (i + 0.6) / 7.2 * OUT
        ax.add_patch(Circle((s + at, bottom + OUT - at), 0.085 * 0.82**i, color=MINOR if i > 4 else INK))
    note(ax, s + 0.72 * OUT, bottom + 0.74 * OUT, "$S$", fontsize=18)

    block(ax, s + OUT + 0.17, bottom, IN, OUT, "white", "$V^T$", "$k$ × in")
    return u + OUT - RANK / 2, bottom


def paths(ax, left, high, low):
    """The two ways from x to y, at these heights. Returns the middle of B's lower edge."""
    middle = (high + low) / 2
    a = left + 0.75
    b = a + IN + 0.4
    plus = b + RANK + 0.75
    note(ax, left, middle, "$x$", fontsize=19)
    fork = left + 0.38
    ax.plot([left + 0.15, fork], [middle, middle], color=INK, linewidth=1.6)
    block(ax, a, high - OUT / 2, IN, OUT, FROZEN, "$W$", "frozen, out × in")
    arrow(ax, (fork, middle), (fork, high), (a, high))
    arrow(ax, (a + IN, high), (plus, high), (plus, middle + 0.17))

    block(ax, a, low - RANK / 2, IN, RANK, TRAINED, "$A = 0$")
    note(ax, a + IN / 2, low - RANK / 2 - 0.2, "trained, $r$ × in")
    block(ax, b, low - OUT / 2, RANK, OUT, MINOR, "$B$", ink="white")
    note(ax, b + RANK + 0.09, low - OUT / 2 + 0.24, "frozen,\nout × $r$", ha="left")
    arrow(ax, (fork, middle), (fork, low), (a, low))
    arrow(ax, (a + IN, low), (b, low))
    arrow(ax, (b + RANK, low), (plus, low), (plus, middle - 0.17))
    note(ax, plus + 0.08, (middle + low) / 2, "× $\\alpha / r$", ha="left")

    ax.add_patch(Circle((plus, middle), 0.17, facecolor="white", edgecolor=INK, linewidth=1.6))
    note(ax, plus, middle - 0.01, "+", fontsize=17)
    arrow(ax, (plus + 0.17, middle), (plus + 0.55, middle))
    note(ax, plus + 0.7, middle, "$y$", fontsize=19)
    return b + RANK / 2, low - OUT / 2


if __name__ == "__main__":
    ax = plt.figure(figsize=(12, 4.4)).add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 4.4))  # in inches, too
    ax.axis("off")
    title = {"fontsize": 15, "fontweight": "bold", "ha": "left", "va": "baseline"}
    note(ax, 0.2, 4.05, "Where B comes from", **title)
    note(ax, 7.25, 4.05, "What the layer computes", **title)
    x, y = decomposition(ax, left=0.2, bottom=2.15)
    to_x, to_y = paths(ax, left=7.4, high=2.95, low=1.2)
    arrow(ax, (x, y), (x, 0.3), (to_x, 0.3), (to_x, to_y), color=MINOR, width=2.4)
    note(ax, x + 0.2, 1.7, "the directions of the output\nthat $W$ writes to most weakly", color=MINOR, ha="left")
    note(ax, x + 0.2, 0.56, "copied once, then frozen:  $B = U[:, -r\\!:]$", color=MINOR, ha="left", fontsize=13.5)
    start = "At the start $A = 0$, so the\nnew path adds exactly 0:\n$y$ is what it was, to the bit."
    note(ax, 0.2, 1.0, start, ha="left")
    plt.savefig(Path(__file__).with_suffix(".png"), dpi=140)
