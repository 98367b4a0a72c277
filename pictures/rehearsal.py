"""Draw what rehearsal does in a training step: what is new is learned, what the untouched model predicts is kept.

python pictures/rehearsal.py       # writes pictures/rehearsal.png
"""

from pathlib import Path

from idea import FROZEN, INK, MINOR, TRAINED, arrow, note, plt
from matplotlib.patches import Rectangle

WIDE, HIGH = 2.1, 0.72  # of a box, in inches


def box(ax, x, y, text, color="white", width=WIDE):
    """A box whose left edge is at x and whose middle is at height y. Returns the middle of its right edge."""
    ax.add_patch(Rectangle((x, y - HIGH / 2), width, HIGH, facecolor=color, edgecolor=INK, linewidth=1.2))
    note(ax, x + width / 2, y, text, fontsize=12)
    return x + width, y


if __name__ == "__main__":
    ax = plt.figure(figsize=(12, 3.6)).add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 3.6))  # in inches, too
    ax.axis("off")
    new, kept, before = 2.85, 1.65, 0.6  # heights of the three ways
    text = box(ax, 0.25, new, "texts on what is new")
    own = box(ax, 0.25, kept, "text that the model\nwrote before training")
    model = box(ax, 3.35, new, "model with adapters", TRAINED)
    same = box(ax, 3.35, kept, "model with adapters", TRAINED)
    untouched = box(ax, 3.35, before, "untouched model", FROZEN)
    arrow(ax, text, (3.35, new))
    arrow(ax, own, (3.35, kept))
    arrow(ax, (2.8, kept), (2.8, before), (3.35, before))
    learn = box(ax, 6.6, new, "cross-entropy:\npredict the next token", width=2.6)
    keep = box(ax, 6.6, (kept + before) / 2, "KL divergence: predict\nwhat was predicted", width=2.6)
    arrow(ax, model, (6.6, new))
    arrow(ax, same, (6.05, kept), (6.05, keep[1] + 0.15), (6.6, keep[1] + 0.15))
    arrow(ax, untouched, (6.05, before), (6.05, keep[1] - 0.15), (6.6, keep[1] - 0.15))
    note(ax, 10.35, (new + keep[1]) / 2, "loss", fontsize=16, fontweight="bold")
    arrow(ax, learn, (10.35, new), (10.35, (new + keep[1]) / 2 + 0.22))
    arrow(ax, keep, (10.35, keep[1]), (10.35, (new + keep[1]) / 2 - 0.22))
    note(ax, 10.45, new + 0.2, "learns", ha="left", color=TRAINED)
    note(ax, 10.45, keep[1] - 0.2, "keeps,  × weight", ha="left", color=MINOR)
    plt.savefig(Path(__file__).with_suffix(".png"), dpi=140)
