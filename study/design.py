"""What a study is: arms, worlds, comparisons, and what is to be run next, as far as results tell.

Three studies have such a design, each fixed before its first judged run: two in toy.py (the small model of data/base), one
in real.py (SmolLM2). An arm stands there by name, with learning rates of its own: a method that is added to
train.METHODS, or a default rate that is changed there, changes nothing.

Reading order: Arm and Design, learning rates (grid, tune, chosen_rates), then runs_of.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from train import Settings

# What a run is asked about: the new world in two forms, names that no text tells of, and what the base knew before
NEW, NEW_CLOZE, CONTROL, RETENTION, OLD_CLOZE = "new", "new cloze", "unbound", "never-asked", "old cloze"

TUNING = (101, 102)  # worlds that choose learning rates; never judged
STEPS = (1, 1.5, 2, 3, 5, 7)  # learning rates tried are these times a power of ten


@dataclass(frozen=True)
class Arm:
    """What is compared: a method with its settings, and which learning rates are tried."""

    name: str
    method: str | None  # of train.METHODS; None: the untouched base
    lr: float | None = None  # the middle of the rates tried; without tuning, the rate itself
    settings: Settings = Settings()
    rates: int = 0  # how many are tried; 0: the rate is not tuned
    at: tuple[float, ...] = ()  # or just these are, in this order, each judged: a curve that no choice of rates touches
    follows: tuple[str, float] | None = None  # the rate is that of this arm, times this
    subjects: int = 40  # of a kind, in the new world: 40 are 720 facts; 0: it learns the chronicle instead
    texts: int = 4  # on each of them


@dataclass(frozen=True)
class Design:
    """A study. Titles of columns are those of its tables."""

    model: str  # of the base, as find_model takes it
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str], ...]  # arms compared; the first pair's `primary` is the primary comparison
    columns: dict[str, tuple[str, str | None]]  # title: (question set or text, what of it); the control among them
    task: Callable  # (world, subjects, texts, judged) -> train.Task
    get_ready: Callable | None = None  # (base, tokenizer): called in each process before it trains
    score: Callable | None = None  # of a tuning record: what a rate is chosen by
    tuning: tuple[int, ...] = TUNING  # worlds; none: every arm has the middle one of its rates
    judged: tuple[int, ...] = ()  # never tuned on; a run's seed is its world's number, the same for every arm
    main: tuple[str, ...] = ()  # arms with a curve over learning rates
    curve: tuple[int, ...] = ()  # steps from its chosen rate at which a main arm without `at` is judged too
    matched: dict[str, tuple[str, str]] = field(default_factory=dict)  # {title: (x, y)}: y compared where x is equal
    looks: dict[str, tuple[str, str]] = field(
        default_factory=dict
    )  # the same, thought of later: not corrected, no verdict
    beside: dict[str, tuple[str, str]] = field(default_factory=dict)  # columns that only `looks` need
    primary: tuple[str, ...] = ("new knowledge",)  # its column or title, and any that are reported beside it
    rated: tuple[str, ...] = ()  # columns shown of the rates tried
    strengths: tuple[float, ...] = ()  # below 1, at which a taught model is measured too: W + strength * change
    levels: dict[str, tuple[str, object]] = field(
        default_factory=dict
    )  # {title: (column, where new knowledge is read)}
    extended: tuple[Arm, ...] = ()  # at rates chosen before, on the first few of the judged worlds
    extended_worlds: int = 4
    name: str = ""  # of its folder in results/
    text: str = ""  # of the task: its perplexity and forgetting loss are measured
    seconds: int = 32  # a run takes about so long
    landing: bool = True  # measure where the change lies, and new knowledge after each epoch
    how: str = ""  # the rate of each arm was chosen: said wherever arms are compared at one rate each

    @property
    def kept(self):
        """What learning costs: the columns compared at matched new knowledge, or at whose levels it is read."""
        if self.levels:
            return [column for column, _ in self.levels.values()]
        return list(dict.fromkeys(y for x, y in (self.matched | self.looks).values() if x == "new knowledge"))

    @property
    def retention(self):
        """The column of what the model knew before."""
        return next(title for title, (part, _) in self.columns.items() if part == RETENTION)

    @property
    def endpoints(self):
        """The columns compared at the arms' own rates or, of a design with strengths, what is read off its curves."""
        return list(self.levels) or [title for title, (part, _) in self.columns.items() if part != CONTROL]

    @property
    def curves(self):
        """The pairs of arms that both have a curve over learning rates."""
        names = {arm.name for arm in self.arms if arm.at or self.curve} & {*self.main}
        return [pair for pair in self.pairs if names >= {*pair}]

    @property
    def comparisons(self):
        """[(first, second, endpoint or what is compared at matched x), ...]: all there are to be, the primary one first."""
        names = {arm.name for arm in self.arms}
        found = [
            (*pair, title)
            for pair in self.pairs
            if names >= {*pair}
            for title in (*self.endpoints, *(self.matched if pair in self.curves else ()))
        ]
        primary = (*self.pairs[0], self.primary[0])
        return [primary, *(one for one in found if one != primary)]


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
    if arm.at:
        return sorted(arm.at)
    below = (arm.rates - 1) // 2
    return [step_from(arm.lr, i - below) for i in range(arm.rates)]


def tune(design, arm, find):
    """(rates tried, the chosen one or None, runs still missing) of an arm. A best rate at an edge extends the grid.

    find(run) -> its record or None; so in all that follows.
    """
    rates = grid(arm)
    while True:
        runs = {lr: [Run(arm, lr, seed) for seed in design.tuning] for lr in rates}
        missing = [run for some in runs.values() for run in some if find(run) is None]
        if missing:
            return rates, None, missing
        best = max(rates, key=lambda lr: sum(design.score(find(run)) for run in runs[lr]))
        if arm.at:
            return rates, best, []
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
        elif (arm.rates or arm.at) and design.tuning:
            _, rates[arm.name], some = tune(design, arm, find)
            missing += some
        else:
            rates[arm.name] = arm.lr
    return rates, missing


def curve_rates(design, arm, chosen):
    """The rates an arm is judged at, lowest first: the chosen one (or None), and for a main arm those of its curve."""
    if arm.at:
        return sorted(arm.at)
    curve = design.curve if chosen and arm.name in design.main else ()
    return [step_from(chosen, steps) for steps in curve] or [chosen]


def runs_of(design, find):
    """The runs that can be named now and have no record, in the order in which they are to be made: worlds before arms.

    First what no choice of a rate touches, then tuning, then what tuning is for, as far as it is done.
    """
    rates, tuning = chosen_rates(design, find)

    def judged(arms, worlds=design.judged):
        named = [(arm, lr) for arm in arms for lr in curve_rates(design, arm, rates[arm.name])]
        return [Run(arm, lr, world) for world in worlds for arm, lr in named if lr or arm.method is None]

    free = [arm for arm in design.arms if arm.at or arm.method is None]
    runs = (
        judged(free) + tuning + judged(design.arms) + judged(design.extended, design.judged[: design.extended_worlds])
    )
    return [run for run in dict.fromkeys(runs) if find(run) is None]
