"""Draw how a question is scored: each choice's tokens after the prompt, and what a prompt that is read once may see.

python pictures/scoring.py         # writes pictures/scoring.png
"""

from pathlib import Path

from idea import FROZEN, INK, MINOR, TRAINED, note, plt
from matplotlib.patches import Rectangle

CHOICES = [  # words, log p of each token; made-up numbers
    (["Wind", "le", "straw"], [-2.1, -0.3, -0.1]),
    (["Elms", "gate"], [-0.9, -0.1]),
    (["King", "s", "marrow"], [-3.0, -0.4, -0.2]),
]


def cell(ax, x, y, width, text, color, ink=INK, height=0.36, size=11):
    ax.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=INK, linewidth=1.1))
    note(ax, x + width / 2, y + height / 2 - 0.01, text, color=ink, fontsize=size)


def mask(ax, left, bottom, size=0.235):
    """Who sees whom: a prompt of three tokens, then two branches of two."""
    segment = [0, 0, 0, 1, 1, 2, 2]
    colors = {0: FROZEN, 1: MINOR, 2: TRAINED}
    for i, row in enumerate(segment):
        for j, column in enumerate(segment):
            sees = j <= i and column in (0, row)
            place = (left + size * j, bottom + size * (len(segment) - 1 - i))
            color = colors[row] if sees else "white"
            ax.add_patch(Rectangle(place, size, size, facecolor=color, edgecolor="#999999", linewidth=0.7))
    names = [("prompt", 0, 3), ("choice 1", 3, 5), ("choice 2", 5, 7)]
    for name, start, end in names:
        middle = bottom + size * (len(segment) - (start + end) / 2)
        note(ax, left - 0.1, middle, name, ha="right", fontsize=11)
    note(ax, left + size * 3.5, bottom - 0.2, "may look at", fontsize=11)


if __name__ == "__main__":
    ax = plt.figure(figsize=(12, 4.4)).add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 4.4))  # in inches, too
    ax.axis("off")
    title = {"fontsize": 15, "fontweight": "bold", "ha": "left", "va": "baseline"}

    note(ax, 0.2, 4.05, "A choice is as likely as its tokens, one after the other", **title)
    note(ax, 0.2, 3.55, "the model reads the prompt and one choice", ha="left")
    note(ax, 7.85, 3.55, "log p", fontsize=12.5)
    sums = [sum(logs) for _, logs in CHOICES]
    for row, ((words, logs), total) in enumerate(zip(CHOICES, sums)):
        y = 2.85 - 0.8 * row
        cell(ax, 0.2, y, 3.3, "Question: Where ... born?   Answer:", FROZEN)
        for i, (word, log) in enumerate(zip(words, logs)):
            x = 3.5 + 0.95 * i
            cell(ax, x, y, 0.95, f"·{word}" if i == 0 else word, "#BFDDF0")
            note(ax, x + 0.47, y - 0.17, f"{log:.1f}", fontsize=10.5, color=MINOR)
        best = total == max(sums)
        note(ax, 7.85, y + 0.17, f"{total:.1f}", fontsize=14, fontweight="bold" if best else "normal")
        if best:
            note(ax, 7.85, y - 0.17, "the answer", fontsize=10.5)
    said = (
        "The number under a token was read off one place before it: the prompt's last token predicts\n"
        "the choice's first. The space (·) belongs to the choice, so both are encoded together."
    )
    note(ax, 0.2, 0.5, said, ha="left")

    note(ax, 8.75, 4.05, "Sooner: one pass", **title)
    mask(ax, 9.75, 1.85)
    said = "The prompt is computed once.\nA choice sees the prompt and\nitself, never another choice."
    note(ax, 8.75, 0.65, said, ha="left")
    plt.savefig(Path(__file__).with_suffix(".png"), dpi=140)
