"""Draw rotary positions: pairs of components as points that turn with their position, and why only distances count.

python pictures/rotary.py          # writes pictures/rotary.png
"""

import math
from pathlib import Path

from idea import FROZEN, INK, MINOR, TRAINED, arrow, note, plt
from matplotlib.patches import Arc, Circle, Rectangle

STEP = 0.55  # radians a position, of the pair that is drawn


def cells(ax, left, bottom, names, colors):
    """A vector as a row of cells."""
    for i, (name, color) in enumerate(zip(names, colors)):
        ax.add_patch(Rectangle((left + 0.5 * i, bottom), 0.5, 0.5, facecolor=color, edgecolor=INK, linewidth=1.2))
        note(ax, left + 0.5 * i + 0.25, bottom + 0.24, name, fontsize=14)


def dial(ax, x, y, radius, angles, labels, colors):
    """A circle with a hand at each angle."""
    ax.add_patch(Circle((x, y), radius, facecolor="none", edgecolor=FROZEN, linewidth=1.4))
    for angle, label, color in zip(angles, labels, colors):
        tip = x + radius * math.cos(angle), y + radius * math.sin(angle)
        arrow(ax, (x, y), tip, color=color, width=2)
        away = radius + 0.2
        note(ax, x + away * math.cos(angle), y + away * math.sin(angle), label, color=color)


if __name__ == "__main__":
    ax = plt.figure(figsize=(12, 4.4)).add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 4.4))  # in inches, too
    ax.axis("off")
    title = {"fontsize": 15, "fontweight": "bold", "ha": "left", "va": "baseline"}

    note(ax, 0.2, 4.05, "Pairs of components", **title)
    pair_colors = ["#BFDDF0", "#FBE3B0", "#DDDDDD"]
    note(ax, 0.2, 3.5, "half-split (here, and Hugging Face)", ha="left")
    cells(ax, 0.2, 2.75, ["$a_0$", "$a_1$", "$a_2$", "$b_0$", "$b_1$", "$b_2$"], pair_colors * 2)
    note(ax, 0.2, 2.25, "interleaved (Meta's code, GGUF files)", ha="left")
    cells(ax, 0.2, 1.5, ["$a_0$", "$b_0$", "$a_1$", "$b_1$", "$a_2$", "$b_2$"], [c for c in pair_colors for _ in "ab"])
    same = "The same numbers in another order:\nno shape objects if they are mixed up."
    note(ax, 0.2, 0.8, same, ha="left")

    note(ax, 4.2, 4.05, "Each pair turns, the first one fastest", **title)
    for row, (speed, color) in enumerate(((1.0, MINOR), (0.35, "#B37700"), (0.1, "#666666"))):
        y = 3.3 - 1.15 * row
        note(ax, 4.2, y, f"pair {row}", ha="left", color=color)
        for position in range(4):
            angle = 0.3 + STEP * speed * position
            x = 5.3 + 0.85 * position
            dial(ax, x, y, 0.36, [angle], [""], [color])
            if row == 2:
                note(ax, x, y - 0.58, f"position {position}", fontsize=10.5)

    note(ax, 8.95, 4.05, "Only distances count", **title)
    for x, shift, words in ((9.65, 0, "positions 1 and 3"), (11.15, 4, "positions 5 and 7")):
        first, second = 0.3 + STEP * (1 + shift), 0.9 + STEP * (3 + shift)
        dial(ax, x, 2.75, 0.52, [first, second], ["$k$", "$q$"], [TRAINED, MINOR])
        degrees = [math.degrees(angle) for angle in (first, second)]
        ax.add_patch(Arc((x, 2.75), 0.5, 0.5, theta1=degrees[0], theta2=degrees[1], color=INK, linewidth=1.4))
        note(ax, x, 1.75, words, fontsize=11.5)
    said = (
        "Both have turned further, but the\nangle between them is the same,\n"
        "and so is their dot product: only\nhow far apart they are is seen."
    )
    note(ax, 8.95, 0.85, said, ha="left")
    plt.savefig(Path(__file__).with_suffix(".png"), dpi=140)
