"""Draw packing: texts of all lengths in windows of one length, shuffled before they are packed.

python pictures/packing.py         # writes pictures/packing.png
"""

from pathlib import Path

from idea import INK, arrow, note, plt
from matplotlib.patches import Rectangle

END = "#444444"
COLORS = ["#BFDDF0", "#FBE3B0", "#CDEBD8"]  # a subject each
TEXTS = [(0, 5), (0, 4), (1, 6), (1, 4), (2, 5), (2, 3)]  # (subject, tokens)
SHUFFLED = [3, 0, 5, 2, 1, 4]
WINDOW = 12
CELL = 0.235


def tokens(order):
    """The stream: a colour for each token, END for end-of-text."""
    stream = [END]
    for i in order:
        subject, length = TEXTS[i]
        stream += [COLORS[subject]] * length + [END]
    return stream


def cells(ax, left, bottom, colors):
    for i, color in enumerate(colors):
        style = {"facecolor": color, "edgecolor": INK, "linewidth": 0.9}
        ax.add_patch(Rectangle((left + CELL * i, bottom), CELL, 0.3, **style))


def windows(ax, left, top, stream):
    """Rows of WINDOW inputs; the last one is filled up (white)."""
    for row, start in enumerate(range(0, len(stream) - 1, WINDOW)):
        part = stream[:-1][start : start + WINDOW]
        cells(ax, left, top - 0.42 * row, part + ["white"] * (WINDOW - len(part)))


if __name__ == "__main__":
    ax = plt.figure(figsize=(12, 4.6)).add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 4.6))  # in inches, too
    ax.axis("off")
    title = {"fontsize": 15, "fontweight": "bold", "ha": "left", "va": "baseline"}

    note(ax, 0.2, 4.25, "End to end, then cut", **title)
    stream = tokens(SHUFFLED)
    cells(ax, 0.2, 3.4, stream)
    note(
        ax, 0.2, 3.88, "six texts on three subjects (colours), end-of-text (dark) before, between and after", ha="left"
    )
    for start in range(0, len(stream), WINDOW):
        x = 0.2 + CELL * start
        ax.plot([x, x], [3.28, 3.74], color="#D55E00", linewidth=2.4)
    note(ax, 0.2, 3.1, f"cut every {WINDOW} tokens", ha="left", color="#D55E00")

    note(ax, 9.1, 4.25, "What predicts what", **title)
    row = [END, *[COLORS[1]] * 3]
    cells(ax, 9.75, 3.55, row)
    cells(ax, 9.75, 2.9, [*row[1:], COLORS[1]])
    for i in range(4):
        arrow(ax, (9.75 + CELL * (i + 0.5), 3.55), (9.75 + CELL * (i + 0.5), 3.22), width=1.2)
    note(ax, 9.65, 3.7, "inputs", ha="right", fontsize=11.5)
    note(ax, 9.65, 3.05, "targets", ha="right", fontsize=11.5)
    note(ax, 10.85, 3.37, "one place\nfurther", ha="left", fontsize=11.5)

    note(ax, 0.2, 2.45, "Shuffled, then packed", **title)
    windows(ax, 0.2, 1.9, stream)
    said = "texts on one subject\nrarely share a window"
    note(ax, 3.2, 1.65, said, ha="left")

    note(ax, 6.1, 2.45, "Packed in order", **title)
    windows(ax, 6.1, 1.9, tokens(range(6)))
    said = "the fact stands a few tokens\nback, in another wording:\nit can be copied, and need\nnot be learned"
    note(ax, 9.1, 1.5, said, ha="left")

    said = "Every token but the first is a target once. Filling (white) and what follows it are none."
    note(ax, 0.2, 0.3, said, ha="left")
    plt.savefig(Path(__file__).with_suffix(".png"), dpi=140)
