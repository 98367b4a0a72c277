"""Lay out the page that is handed out in a lesson of two hours, made from the other pictures.

python pictures/handout.py         # writes pictures/handout.png, A4
"""

from pathlib import Path

from idea import note, plt

HERE = Path(__file__).resolve().parent
# (picture, what it is about, what to see in it), from top to bottom
SHOWN = [
    ("idea", "1. Where MiCA's B comes from", "B is taken from the weight and frozen; A starts at zero and is trained."),
    ("packing", "2. How texts become training examples", "Shuffled, end to end, cut; each token is a target once."),
    ("scoring", "3. How a model is asked", "Each choice's tokens after the prompt; their log-probabilities add up."),
    ("frontier", "4. How methods are compared", "At equal learning, who keeps more? Never one point with one point."),
]  # fmt: skip
LINES = [
    ("y = W x + b + (alpha / rank) B A x", "LoRA, arXiv 2106.09685: W frozen; A (rank x in), B (out x rank)"),
    (
        "B = U[:, -rank:] of W = U S V$^T$,  A = 0",
        "MiCA, arXiv 2604.01694: B frozen, A trained; of the thin decomposition",
    ),
    ("B A = 0 at the start", "so the model computes what it did, to the bit: the first thing to check"),
    ("python train.py --method mica", "one minute: what it learned, what it forgot"),
    ("python -m exercises 1 2 3", "write the layer, the minor directions, MiCA; a sentence says what is wrong"),
    ("python -m exercises 3 --measure", "predict first: what if B is trained, too?"),
]

if __name__ == "__main__":
    figure = plt.figure(figsize=(8.27, 11.69))
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
    page.axis("off")
    note(page, 0.06, 0.968, "MiCA beside LoRA: two hours", fontsize=17, fontweight="bold", ha="left")
    for i, (left, right) in enumerate(LINES):
        y = 0.938 - 0.0175 * i
        note(page, 0.06, y, left, fontsize=8, ha="left", family="monospace")
        note(page, 0.42, y, right, fontsize=8, ha="left")
    pictures = {name: plt.imread(HERE / f"{name}.png") for name, *_ in SHOWN}
    shapes = [image.shape[0] / image.shape[1] for image in pictures.values()]
    width = min(0.88, (0.82 - 0.045 * len(SHOWN)) / sum(shapes) * 11.69 / 8.27)  # all of one width, as wide as fits
    top = 0.825
    for (name, title, words), shape in zip(SHOWN, shapes):
        note(page, 0.06, top, title, fontsize=10.5, fontweight="bold", ha="left")
        note(page, 0.94, top, words, fontsize=8, ha="right")
        height = width * shape * 8.27 / 11.69
        ax = figure.add_axes(((1 - width) / 2, top - 0.012 - height, width, height))
        ax.imshow(pictures[name])
        ax.axis("off")
        top -= height + 0.04
    figure.savefig(HERE / "handout.png", dpi=150)
