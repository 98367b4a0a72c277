"""The toy study's design: methods and variations on the small model of data/base. Fixed before its first judged run.

LONG_QV, a design of its own (`--qv`), asks again about q_proj and v_proj alone, with enough exposures that LoRA learns most of
what it is told: in FULL neither method learns anything there, so it cannot say which is the better.
"""

import functools
import random
from dataclasses import replace

from data.make_data import OLD_SUBJECTS_REPORTED, ask, old_subjects, old_world, world
from questions import make_question
from study.design import CONTROL, NEW, NEW_CLOZE, OLD_CLOZE, RETENTION, Arm, Design
from train import METHODS, Settings, Task

JUDGED = (1, 2, 3, 4, 5, 6, 7, 8)

MAIN = [
    Arm("mica", "mica", 2e-2, rates=5),
    Arm("lora", "lora", 7e-3, rates=5),
    Arm("milora", "milora", 1e-2, rates=5),
    Arm("pissa", "pissa", 3e-3, rates=5),
    Arm("full", "full", 7e-4, rates=5),
]
ABLATIONS = [
    Arm("mica-major", "mica-major", 5e-3, rates=4),
    Arm("mica-random", "mica-random", 2e-2, rates=4),
    Arm("mica-orthonormal", "mica-orthonormal", 1e-2, rates=4),
    Arm("mica-trained", "mica-trained", 7e-3, rates=4),
    Arm("mica-transposed", "mica-transposed", 2e-2, rates=4),
]
QV = Settings(targets=("q_proj", "v_proj"))  # the papers' linears
OTHERS = [
    Arm("mica rank 16", "mica", 2e-2, Settings(rank=16), rates=4),  # nearly LoRA's number of trained parameters
    Arm("mica q v", "mica", 3e-2, QV, rates=4),
    Arm("lora q v", "lora", 1e-2, QV, rates=4),
    Arm("mica by rule", "mica", settings=Settings(rank=4), follows=("lora", 2)),  # half of LoRA's rank, twice its rate
]
# Fixed on 2026-11-25, when all else had been judged: A random and frozen, B trained, the mirror of a random B
LATER = Arm("lora-fa", "lora-fa", 3e-2, rates=4)
ARMS = [Arm("untouched", None), *MAIN, *ABLATIONS, *OTHERS, LATER]
CURVE = (-4, -2, 0, 2)  # main arms are judged at these steps from the chosen rate too: new knowledge against retention

# What is compared, world by world: the difference first - second, with a paired t interval. The first pair's new knowledge
# is the primary comparison; Holm's correction is over all the others, of every pair and column but the control.
PAIRS = [
    ("mica", "lora"),
    *((name, "lora") for name in ("milora", "pissa", "full", "mica rank 16", "mica by rule")),
    ("mica q v", "lora q v"),
    *((arm.name, "mica") for arm in ABLATIONS),
    *(("lora-fa", name) for name in ("mica", "mica-transposed", "lora")),
]
COLUMNS = {
    "new knowledge": (NEW, "acc"),
    "unbound": (CONTROL, "acc"),
    "never asked": (RETENTION, "acc"),
    "log p": (NEW, "logprob"),
    "exact match": (NEW, "exact"),
    "new cloze": (NEW_CLOZE, "acc"),
    "old cloze": (OLD_CLOZE, "acc"),
    "forgetting loss": ("forgetting loss", None),
}
# And retention at matched new knowledge, for the main methods against LoRA (stats.matched). Forgetting loss there was not
# in the design: it is a look, and not corrected.

# --extended, at the rates chosen above, on the first four of the judged worlds
LINEARS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
EXTENDED = [
    *(
        Arm(f"{method} {epochs} epochs", method, settings=Settings(epochs=epochs), follows=(method, 1))
        for epochs in (1, 2, 8, 16)  # each with a schedule of its own
        for method in ("mica", "lora", "mica-random")
    ),
    *(Arm(f"lora rank {r}", "lora", settings=Settings(rank=r), follows=("lora", 1)) for r in (2, 4, 16, 32)),
    *(Arm(f"mica rank {r}", "mica", settings=Settings(rank=r), follows=("mica", 1)) for r in (2, 4, 32)),
    *(Arm(f"mica by rule {r}", "mica", settings=Settings(rank=r), follows=("lora", 2)) for r in (2, 8, 16)),
    *(
        Arm(f"{method} {subjects} subjects", method, follows=(method, 1), subjects=subjects)
        for subjects in (10, 20, 80)
        for method in ("mica", "lora")
    ),
    *(
        Arm(f"{method} {where}", method, settings=Settings(targets=targets), follows=(method, 1))
        for where, targets in LINEARS.items()
        for method in ("mica", "lora")
    ),
]


def tuning_retention(subjects=120):
    """Questions on never-asked old subjects that data/old does not ask about, nor any judged run."""
    _, never_asked = old_subjects()
    chosen = never_asked[OLD_SUBJECTS_REPORTED : OLD_SUBJECTS_REPORTED + subjects]
    return ask(chosen, random.Random("retention for tuning"))["questions"]


@functools.cache
def task_for(seed, subjects, texts, judged):
    """What a run learns and is asked: where it is judged, everything; where a rate is chosen, three sets of questions."""
    new = world(seed, subjects, texts)
    sets, texts = {NEW: new["questions"], CONTROL: new["unbound"]}, {}
    if judged:
        old = old_world()
        sets |= {NEW_CLOZE: new["cloze"], RETENTION: old["never_asked"], OLD_CLOZE: old["cloze"]}
        texts = {"old text": old["text"]}
    else:
        sets |= {RETENTION: tuning_retention()}
    return Task(new["corpus"], {name: [make_question(item) for item in items] for name, items in sets.items()}, texts)


def tuning_score(record):
    """What a rate is chosen by: as much learned and as much kept as can be, (new + never-asked) / 2."""
    return (record["summary"][NEW]["acc"] + record["summary"][RETENTION]["acc"]) / 2


FULL = Design(
    model="data/base",
    arms=tuple(ARMS),
    pairs=tuple(PAIRS),
    columns=COLUMNS,
    task=task_for,
    score=tuning_score,
    judged=JUDGED,
    main=tuple(arm.name for arm in MAIN),
    curve=CURVE,
    matched={"never asked at matched new knowledge": ("new knowledge", "never asked")},
    looks={"forgetting loss at matched new knowledge": ("new knowledge", "forgetting loss")},
    rated=("new knowledge", "never asked"),
    text="old text",
    how="as much learned as kept, on the tuning worlds",
)
QUICK = replace(FULL, arms=(ARMS[0], *MAIN, *ABLATIONS), tuning=(), judged=JUDGED[:3], curve=())
EXTENDED_DESIGN = replace(FULL, extended=tuple(EXTENDED))


def tuning(method, rates):
    """The design that tries learning rates (texts or numbers) of a method, at its default settings, on the tuning worlds."""
    if method not in METHODS or not rates:
        raise ValueError(
            f"--tune takes one of {', '.join(METHODS)} and learning rates, not {method} and {len(rates)} rates"
        )
    arm = Arm(method, method, at=tuple(map(float, rates)))
    rated = ("new knowledge", "never asked", "unbound")
    return replace(FULL, arms=(arm,), pairs=(), judged=(), main=(), rated=rated, landing=False)


# Half the subjects, told of in twice as many texts (all their wordings); rank 16, four times the epochs, smaller batches. No
# rate is chosen: every arm is judged at four, and curves are compared where they have learned equally much. The rates and
# the difficulty were found on world 101 (README.md).
LONG = Settings(rank=16, targets=QV.targets, epochs=16, batch_size=4)
CURVES = [
    Arm("untouched", None, subjects=20, texts=8),
    Arm("mica", "mica", 3e-2, LONG, at=(7e-3, 1.5e-2, 3e-2, 5e-2), subjects=20, texts=8),
    Arm("lora", "lora", 1e-2, LONG, at=(1e-3, 3e-3, 1e-2, 1.5e-2), subjects=20, texts=8),
    Arm("mica-random", "mica-random", 3e-2, LONG, at=(7e-3, 1.5e-2, 3e-2, 5e-2), subjects=20, texts=8),
]
MATCHED = {f"{kept} at matched new knowledge": ("new knowledge", kept) for kept in ("never asked", "forgetting loss")}
LONG_QV = replace(
    FULL,
    arms=tuple(CURVES),
    pairs=(("mica", "lora"), ("mica-random", "mica"), ("mica-random", "lora")),
    tuning=(),
    judged=JUDGED[:6],
    main=tuple(arm.name for arm in CURVES[1:]),
    curve=(),
    matched=MATCHED,
    looks={},
    primary=tuple(MATCHED),
    name="qv",
    how="found on world 101 before the first judged run",
    seconds=70,
    landing=False,
)

# --- strengths: one run is a curve of learned against kept ---------------------------------------------------------------

# Fixed on 2026-11-30, before the first judged run (DESIGNS.md). Two rates an arm: the one that FULL or LONG_QV had found
# and one well above it, since in trials a high rate that was turned down lay outside a low one.


def strengths_task(seed, subjects, texts, judged):
    """Of FULL's questions the three that are compared: they are asked at five strengths, the control at 1."""
    task = task_for(seed, subjects, texts, judged)
    return replace(task, question_sets={name: task.question_sets[name] for name in (NEW, CONTROL, RETENTION)})


def both_rates(method, low, high, **kwargs):
    return Arm(method, method, low, at=(low, high), **kwargs)


STRENGTHS = Design(
    model="data/base",
    arms=(
        Arm("untouched", None),
        both_rates("mica", 2e-2, 5e-2),
        both_rates("lora", 7e-3, 1.5e-2),
        both_rates("mica-random", 2e-2, 5e-2),
        both_rates("lora-fa", 2e-2, 5e-2),
        both_rates("full", 7e-4, 1.5e-3),
        both_rates("milora", 1e-2, 2e-2),
    ),
    pairs=(
        ("mica", "lora"),
        ("mica-random", "mica"),
        ("lora-fa", "mica"),
        ("lora-fa", "lora"),
        ("full", "lora"),
        ("milora", "lora"),
    ),
    columns={name: COLUMNS[name] for name in ("new knowledge", "unbound", "never asked", "log p", "forgetting loss")},
    task=strengths_task,
    tuning=(),
    judged=JUDGED,
    main=("mica", "lora", "mica-random", "lora-fa", "full", "milora"),
    strengths=(0.25, 0.35, 0.5, 0.7),
    levels={
        "new knowledge at never asked 95%": ("never asked", 0.95),
        "new knowledge at forgetting loss halfway": (
            "forgetting loss",
            ("lora", 7e-3),
        ),  # of this arm's, from untouched
    },
    primary=("new knowledge at never asked 95%", "new knowledge at forgetting loss halfway"),
    name="strengths",
    text="old text",
    seconds=50,
    landing=False,
)
LONGER = {"settings": LONG, "subjects": 20, "texts": 8}
STRENGTHS_QV = replace(
    STRENGTHS,
    arms=(
        Arm("untouched", None, subjects=20, texts=8),
        both_rates("mica", 7e-3, 3e-2, **LONGER),
        both_rates("lora", 3e-3, 1e-2, **LONGER),
        both_rates("mica-random", 7e-3, 3e-2, **LONGER),
        both_rates("lora-fa", 7e-3, 3e-2, **LONGER),
        both_rates("milora", 3e-3, 1e-2, **LONGER),
    ),
    pairs=tuple(pair for pair in STRENGTHS.pairs if "full" not in pair),  # which trains all weights, not these alone
    main=("mica", "lora", "mica-random", "lora-fa", "milora"),
    levels=STRENGTHS.levels | {"new knowledge at forgetting loss halfway": ("forgetting loss", ("lora", 3e-3))},
    name="strengths-qv",
    seconds=95,
)
