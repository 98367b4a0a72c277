"""Draw how a frontier is read: new knowledge against retention, explained on three invented points.

python pictures/frontier.py        # writes pictures/frontier.png
"""

from pathlib import Path

from idea import INK, note, plt
from matplotlib.patches import Rectangle

# A made-up curve over learning rates, and two points beside it, in colours that no method has elsewhere.
ONE, OTHER = "#6A3D9A", "#8C6D1F"
CURVE = [(25, 98), (34, 95), (46, 90), (58, 83), (70, 74), (79, 63)]
POINTS = {"P": ((58, 83), ONE), "Q": ((70, 74), ONE), "R": ((46, 78), OTHER)}

if __name__ == "__main__":
    figure = plt.figure(figsize=(12, 4.8))
    ax = figure.add_axes((0.065, 0.13, 0.46, 0.76), xlim=(20, 88), ylim=(55, 103))
    ax.set_xlabel("new knowledge, % (what it learned)", fontsize=12.5)
    ax.set_ylabel("retention, % (what it kept)", fontsize=12.5)
    ax.set_title("One curve a method, one point a learning rate", fontsize=15, fontweight="bold", loc="left")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.add_patch(Rectangle((46, 78), 42, 25, facecolor="#FFF6E0", edgecolor="none", zorder=0))
    ax.plot(*zip(*CURVE), "o-", color=ONE, linewidth=2, markersize=5)
    for name, (place, color) in POINTS.items():
        ax.plot(*place, "o", markersize=11, color=color, markeredgecolor=INK)
        shift = (2.2, 1.8) if name != "R" else (-1.4, -3.4)
        note(ax, place[0] + shift[0], place[1] + shift[1], name, fontsize=16, fontweight="bold")
    ax.plot(25, 98, "D", color=INK, markersize=8)
    note(ax, 26.5, 100.3, "untouched: guessing is 25%", fontsize=11, ha="left")
    note(ax, 22, 85, "small\nlearning\nrates", fontsize=11, color=ONE, ha="left")
    note(ax, 79, 59.5, "large ones", fontsize=11, color=ONE, ha="left")
    note(ax, 87.5, 99.5, "better than R\nin both", fontsize=11, ha="right")
    ax.annotate("", (46, 89.2), (46, 79.6), arrowprops={"arrowstyle": "<->", "color": INK, "linewidth": 1.6})
    note(ax, 22, 57.5, "invented numbers: no method's results", fontsize=12, fontweight="bold", ha="left")
    note(ax, 45.2, 84.3, "12 points", fontsize=11, ha="right")

    text = figure.add_axes((0.56, 0, 0.44, 1), xlim=(0, 5.28), ylim=(0, 4.8))
    text.axis("off")
    for y, name, color, words in (
        (4.0, "P, Q", ONE, "The same method. Q learned more, kept\nless: neither is better. A larger rate\nbuys the one with the other."),
        (2.75, "R", OTHER, "Another method. P is above it and to the\nright: it learned more and kept more, so\nR loses to it whatever one prefers."),
    ):  # fmt: skip
        note(text, 0.1, y, name, fontsize=16, fontweight="bold", color=color, ha="left")
        note(text, 0.95, y - 0.02, words, ha="left", va="center")
    words = (
        "Two points of different methods say little if one\n"
        "learned more: compare the curves where both have\n"
        "learned equally much. R has learned 46%; there the\n"
        "violet curve keeps 12 points more. With seeds, such\n"
        "a difference has an error, too."
    )
    note(text, 0.1, 1.35, words, ha="left")
    plt.savefig(Path(__file__).with_suffix(".png"), dpi=140)
