"""The study's design, fixed before the first judged run, and what is to be run next, as far as results tell.

The arms stand here by name, each with a learning rate of its own: a method that is added to train.METHODS, or a default
rate that is changed there, changes nothing here.

Reading order: the arms and what is compared, learning rates (grid, tune, chosen_rates), then runs_of.
"""

import math
from dataclasses import dataclass, replace

from train import Settings

# What a run is asked about: the new world in two forms, names that no text tells of, and what the base knew before
NEW, NEW_CLOZE, CONTROL, RETENTION, OLD_CLOZE = "new", "new cloze", "unbound", "never-asked", "old cloze"

TUNING = (101, 102)  # worlds that choose learning rates; never judged
JUDGED = (1, 2, 3, 4, 5, 6, 7, 8)  # never tuned on; a run's seed is its world's number, the same for every arm
STEPS = (1, 1.5, 2, 3, 5, 7)  # learning rates tried are these times a power of ten


@dataclass(frozen=True)
class Arm:
    """What is compared: a method with its settings, and which learning rates are tried."""

    name: str
    method: str | None  # of train.METHODS; None: the untouched base
    lr: float | None = None  # the middle of the rates tried; without tuning, the rate itself
    settings: Settings = Settings()
    rates: int = 0  # how many are tried; 0: the rate is not tuned
    follows: tuple[str, float] | None = None  # the rate is that of this arm, times this
    subjects: int = 40  # of a kind, in the new world: 40 are 720 facts


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
ARMS = [Arm("untouched", None), *MAIN, *ABLATIONS, *OTHERS]
CURVE = (-4, -2, 0, 2)  # main arms are judged at these steps from the chosen rate too: new knowledge against retention

# What is compared, world by world: the difference first - second, with a paired t interval. The first pair's new knowledge
# is the primary comparison; Holm's correction is over all the others, of every pair and endpoint.
PAIRS = [
    ("mica", "lora"),
    *((name, "lora") for name in ("milora", "pissa", "full", "mica rank 16", "mica by rule")),
    ("mica q v", "lora q v"),
    *((arm.name, "mica") for arm in ABLATIONS),
]
ENDPOINTS = {  # title: (question set or text, what of it)
    "new knowledge": (NEW, "acc"),
    "never asked": (RETENTION, "acc"),
    "log p": (NEW, "logprob"),
    "exact match": (NEW, "exact"),
    "new cloze": (NEW_CLOZE, "acc"),
    "old cloze": (OLD_CLOZE, "acc"),
    "forgetting loss": ("forgetting loss", None),
}
# And retention at matched acquisition, for the main methods against LoRA. On each world a method's curve is the polygon
# through (new knowledge, never asked) at its rates, lowest first, up to the rate that learns most. The endpoint is the
# mean difference in height of two curves over the span of new knowledge that both reach; no span, no value.

# --extended, at the rates chosen above, on the first EXTENDED_WORLDS of the judged worlds
EXTENDED_WORLDS = 4
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


@dataclass(frozen=True)
class Design:
    arms: tuple[Arm, ...]
    tuning: tuple[int, ...]  # worlds; none: every arm has the middle one of its rates
    judged: tuple[int, ...]
    curve: tuple[int, ...] = ()
    extended: tuple[Arm, ...] = ()


FULL = Design(tuple(ARMS), TUNING, JUDGED, CURVE)
QUICK = Design((ARMS[0], *MAIN, *ABLATIONS), (), JUDGED[:3])
EXTENDED_DESIGN = replace(FULL, extended=tuple(EXTENDED))


@dataclass(frozen=True)
class Run:
    """One run: an arm at one rate on one world."""

    arm: Arm
    lr: float | None
    world: int

    @property
    def judged(self):
        return self.world not in TUNING

    @property
    def name(self):
        rate = "" if self.lr is None else f"_{self.lr:g}"
        return f"{self.arm.name.replace(' ', '-')}{rate}_world{self.world}"


def step_from(lr, steps):
    """The rate so many STEPS above (or below) lr, which is one itself."""
    power = math.floor(math.log10(lr) + 1e-9)
    index = [round(step, 3) for step in STEPS].index(round(lr / 10**power, 3)) + steps
    return float(f"{STEPS[index % len(STEPS)]}e{power + index // len(STEPS)}")


def grid(arm):
    """The rates tried first: one step apart, arm.lr in their middle (of an even number, the lower middle)."""
    below = (arm.rates - 1) // 2
    return [step_from(arm.lr, i - below) for i in range(arm.rates)]


def tuning_score(record):
    """What a rate is chosen by: as much learned and as much kept as can be, (new + never-asked) / 2."""
    return (record["summary"][NEW]["acc"] + record["summary"][RETENTION]["acc"]) / 2


def tune(arm, worlds, find):
    """(rates tried, the chosen one or None, runs still missing) of an arm. A best rate at an edge extends the grid.

    find(run) -> its record or None; so in all that follows.
    """
    rates = grid(arm)
    while True:
        runs = {lr: [Run(arm, lr, seed) for seed in worlds] for lr in rates}
        missing = [run for some in runs.values() for run in some if find(run) is None]
        if missing:
            return rates, None, missing
        best = max(rates, key=lambda lr: sum(tuning_score(find(run)) for run in runs[lr]))
        if best == rates[0]:
            rates = [step_from(best, -1), *rates]
        elif best == rates[-1]:
            rates = [*rates, step_from(best, 1)]
        else:
            return rates, best, []


def chosen_rates(design, find):
    """({arm's name: its rate}, tuning runs still missing). The rates are complete once nothing is missing."""
    rates, missing = {}, []
    for arm in (*design.arms, *design.extended):
        if arm.follows:
            name, factor = arm.follows
            rates[arm.name] = rates[name] and float(f"{rates[name] * factor:.6g}")
        elif arm.rates and design.tuning:
            _, rates[arm.name], some = tune(arm, design.tuning, find)
            missing += some
        else:
            rates[arm.name] = arm.lr
    return rates, missing


def curve_rates(design, arm, chosen):
    """The rates an arm is judged at, lowest first: the chosen one, and for a main arm those of its curve."""
    return [step_from(chosen, steps) for steps in design.curve] if design.curve and arm in MAIN else [chosen]


def runs_of(design, find):
    """The runs that can be named now and have no record: tuning, then the arms at their chosen rates, then the curves."""
    rates, missing = chosen_rates(design, find)
    if missing:
        return missing
    runs = [Run(arm, rates[arm.name], seed) for seed in design.judged for arm in design.arms]
    runs += [
        Run(arm, lr, seed)
        for seed in design.judged
        for arm in design.arms
        for lr in curve_rates(design, arm, rates[arm.name])
    ]
    runs += [Run(arm, rates[arm.name], seed) for seed in design.judged[:EXTENDED_WORLDS] for arm in design.extended]
    return [run for run in dict.fromkeys(runs) if find(run) is None]
