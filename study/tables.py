"""What the records say: Results (records -> numbers), and tables of them in markdown."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from study.design import Run, chosen_rates, curve_rates, runs_of, tune
from study.runs import check_record, read_record, record_path
from study.stats import Difference, best_elsewhere, holm, matched, paired, ratio, read_at, verdict
from tools.report import mean_and_error, plus_minus

IN_NATS = ("log p", "forgetting loss")
PLAIN = ("perplexity",)  # all else is in %
COSTS = ("forgetting loss", "perplexity")  # the lower, the better


@dataclass(frozen=True)
class Comparison:
    first: str
    second: str
    endpoint: str  # title of a column, or of what is compared where something else is equal
    column: str  # what the numbers are
    difference: Difference
    p: float  # corrected for the number of comparisons in the design, but for the primary one and for looks
    verdict: str


class Results:
    """The records of a design in a folder, and what follows from them."""

    def __init__(self, folder, design):
        self.folder, self.design, self.checked = Path(folder), design, {}
        self.arms = {arm.name: arm for arm in (*design.arms, *design.extended)}
        self.rates, missing = chosen_rates(design, self.find)
        if any(arm.at for arm in design.arms):  # there is something to show from the first world on
            if design.judged and not self.rows(arm for arm in design.arms if arm.method):
                raise ValueError(f"{folder} does not yet hold a judged run: let the study go on")
        elif missing or len(self.worlds("untouched", *design.pairs[0])) < 2:
            names = " and ".join(design.pairs[0])
            raise ValueError(f"{folder} does not yet hold two worlds on which {names} are judged: let the study go on")

    def find(self, run):
        record = self.records.get(run.name)
        if record and self.checked.get(run.name) is not record:  # once: a report asks for each some thirty times
            check_record(record_path(self.folder, run), record, self.design, run)
            self.checked[run.name] = record
        return record

    @cached_property
    def records(self):
        """{name of a run: its record} of all files there are."""
        return {path.stem: read_record(path) for path in sorted((self.folder / "runs").glob("*.json"))}

    def record(self, name, world, lr=None):
        return self.find(Run(self.arms[name], lr or self.rates[name], world))

    def worlds(self, *names, lr=None):
        """The judged worlds on which all these arms have a record; lr: at this rate instead of their own."""
        return [world for world in self.design.judged if all(self.record(name, world, lr) for name in names)]

    def rows(self, arms):
        """[(name, rate, worlds), ...] of those of `arms` that have records: at their own rate, or at each of `arm.at`."""
        rates = [(arm.name, lr) for arm in arms for lr in sorted(arm.at) or [self.rates[arm.name]]]
        return [(name, lr, worlds) for name, lr in rates if (worlds := self.worlds(name, lr=lr))]

    def has(self, column, name, lr, worlds):
        """Was it measured? Not everything is asked of every arm."""
        part, key = self.design.columns[column]
        return not key or all(key in self.record(name, world, lr)["summary"].get(part, {}) for world in worlds)

    def values(self, name, column, worlds, lr=None, strength=1):
        """What stands in a column of the design, for an arm on each of `worlds`, at one of the design's strengths or at 1."""
        part, key = (self.design.columns | self.design.beside)[column]
        records = [self.record(name, world, lr) for world in worlds]
        records = [record if strength == 1 else record["strengths"][f"{strength:g}"] for record in records]
        found = [record["summary"][part][key] if key else record[part] for record in records]
        return [math.nan if value is None else value for value in found]  # null: training diverged

    @cached_property
    def extended(self):
        """The arms of the design's extension that have records."""
        return [arm for arm in self.design.extended if self.worlds(arm.name)]

    def gains(self, name, worlds, lr=None):
        """New knowledge above the untouched model's, on each world."""
        before = self.values("untouched", "new knowledge", worlds)
        return [value - start for value, start in zip(self.values(name, "new knowledge", worlds, lr), before)]

    def curve(self, name, world, ends):
        """{rate: values of the two columns `ends`} of an arm, lowest rate first, as far as there are records."""
        rates = curve_rates(self.design, self.arms[name], self.rates[name])
        done = [lr for lr in rates if self.record(name, world, lr)]
        return {lr: tuple(self.values(name, end, [world], lr)[0] for end in ends) for lr in done}

    def matched(self, first, second, ends):
        """Difference of two arms in the second column of `ends` where they are alike in the first, or None.

        Of the worlds on which both arms are judged at all of their rates.
        """
        worlds = self.judged_at_all_rates(first, second)
        curves = [[list(self.curve(name, world, ends).values()) for world in worlds] for name in (first, second)]
        return matched(*curves) if worlds and min(len(curve[0]) for curve in curves) > 1 else None

    def points(self, name, lr, world, column):
        """[(column, new knowledge), ...] of an arm on a world: the untouched model, then rising strengths."""
        strengths = [(name, lr, strength) for strength in (*self.design.strengths, 1)]
        return [
            tuple(self.values(arm, end, [world], rate, strength)[0] for end in (column, "new knowledge"))
            for arm, rate, strength in [("untouched", None, 1), *strengths]
        ]

    def read_at(self, name, title, worlds):
        """New knowledge where a column is at the design's level, on each world, at the rate that is best on the others."""
        column, level = self.design.levels[title]

        def read(world, lr):
            points, at = self.points(name, lr, world, column), level
            if isinstance(level, tuple):  # halfway from the untouched model's to this arm's
                at = (points[0][0] + self.values(level[0], column, [world], level[1])[0]) / 2
            sign = -1 if column in COSTS else 1
            return read_at([(sign * x, y) for x, y in points], sign * at)

        return best_elsewhere([[read(world, lr) for world in worlds] for lr in self.arms[name].at])

    def judged_at_all_rates(self, *names):
        """The worlds on which all these arms, at all of their rates, have records."""
        rates = [(name, lr) for name in names for lr in curve_rates(self.design, self.arms[name], self.rates[name])]
        return [w for w in self.design.judged if all(self.record(name, w, lr) for name, lr in rates)]

    @cached_property
    def comparisons(self):
        """{(first, second, endpoint): Comparison} of those that can be made, the primary one first."""
        found = {}  # (first, second, endpoint) -> (column, Difference)
        for first, second, endpoint in self.design.comparisons:
            if endpoint in self.design.matched:
                ends = self.design.matched[endpoint]
                found[first, second, endpoint] = ends[1], self.matched(first, second, ends)
            elif endpoint in self.design.levels:
                known = [level[0] for _, level in self.design.levels.values() if isinstance(level, tuple)]
                if len(worlds := self.judged_at_all_rates("untouched", first, second, *known)) > 1:
                    values = (self.read_at(name, endpoint, worlds) for name in (first, second))
                    found[first, second, endpoint] = endpoint, paired(*values)
            elif len(worlds := self.worlds(first, second)) > 1:
                values = (self.values(name, endpoint, worlds) for name in (first, second))
                found[first, second, endpoint] = endpoint, paired(*values)
        found = {name: both for name, both in found.items() if both[1]}
        primary, *planned = self.design.comparisons
        others = [name for name in found if name != primary]
        p = dict(zip(others, holm([found[name][1].p for name in others], len(planned))))
        comparisons = {}
        for name, (column, difference) in found.items():
            corrected = p.get(name, difference.p)
            decided = verdict(difference, corrected, column not in COSTS)
            comparisons[name] = Comparison(*name, column, difference, corrected, decided)
        return comparisons

    @cached_property
    def looks(self):
        """The same of what was thought of when the records were known: of whole curves, not corrected, without a verdict."""
        found = {}
        for pair in self.design.curves:
            for title, ends in self.design.looks.items():
                if difference := self.matched(*pair, ends):
                    found[*pair, title] = Comparison(*pair, title, ends[1], difference, difference.p, "(a look)")
        return found


# --- tables ------------------------------------------------------------------------------------------------------------


def markdown(rows):
    """Rows of anything -> a table; the first row is its head, the first column is text."""
    head, *body = [[str(content) for content in row] for row in rows]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def scale_of(column):
    """(factor, digits) that a column's numbers are shown with."""
    return (1, 3) if column in IN_NATS else (1, 1) if column in PLAIN else (100, 1)


def unit_of(column, unit="%"):
    return "nats" if column in IN_NATS else "" if column in PLAIN else unit


def with_unit(title, column=None, unit="%"):
    unit = unit_of(column or title, unit)
    return f"{title}, {unit}" if unit else title


def over_worlds(results, name, column, worlds, lr=None, strength=1):
    """Mean +- standard error of an arm over worlds, as text."""
    scale, digits = scale_of(column)
    return plus_minus(*mean_and_error(results.values(name, column, worlds, lr, strength)), scale=scale, digits=digits)


def with_interval(difference, column):
    """A difference as text: mean [low, high]."""
    scale, digits = scale_of(column)
    numbers = (scale * value for value in (difference.mean, difference.low, difference.high))
    return "{:+.{n}f} [{:+.{n}f}, {:+.{n}f}]".format(*numbers, n=digits)


def interval(comparison):
    """The same with the verdict."""
    return f"{with_interval(comparison.difference, comparison.column)} {comparison.verdict}"


def arms_table(results, arms):
    """A row an arm that has records, and a rate where it is judged at several: mean +- standard error over worlds."""
    shown = results.rows(arms)
    columns = [c for c in results.design.columns if all(results.has(c, *row) for row in shown)]
    rows = [["arm", "trained", "rate", "worlds", *map(with_unit, columns)]]
    for name, lr, worlds in shown:
        trained = results.record(name, worlds[0], lr)["trained"]
        means = (over_worlds(results, name, column, worlds, lr) for column in columns)
        rows.append([name, f"{trained:,}", "-" if lr is None else f"{lr:g}", len(worlds), *means])
    return markdown(rows)


def sentence(comparison, corrected=False):
    """A comparison in full."""
    c, d = comparison, comparison.difference
    scale, n = scale_of(c.column)
    mean, se, low, high = (scale * value for value in (d.mean, d.se, d.low, d.high))
    unit = unit_of(c.column, "points")
    return (
        f"**{mean:+.{n}f}{unit and ' ' + unit}**, standard error {se:.{n + 1}f}, 95% interval {low:+.{n}f} to"
        f" {high:+.{n}f}, {d.n} worlds, {f'corrected p = {c.p:.2g}' if corrected else f'p = {d.p:.2g}'}: **{c.verdict}**."
    )


def primary_line(results):
    """The primary comparison, and what is reported beside it, a line each."""
    first, second = results.design.pairs[0]
    lines = []
    for i, endpoint in enumerate(results.design.primary):
        found = results.comparisons.get((first, second, endpoint))
        said = (
            sentence(found, corrected=i > 0)
            if found
            else "none yet: it needs two worlds or more, curves that overlap, and no run that diverged."
        )
        lines.append(f"{'Beside it' if i else 'Primary comparison'}, {first} - {second}, {endpoint}: {said}")
    return "\n\n".join(lines)


def pairs_table(results, endpoints, gains=True):
    """A row a pair: these endpoints, and the ratio of what was learned. "" where there is no row yet."""
    known, curves = results.comparisons | results.looks, results.design.matched | results.design.looks
    heads = [with_unit(title, curves.get(title, [title])[-1], "points") for title in endpoints]
    rows = [["first - second", *["gain / gain"][: int(gains)], *heads]]
    for first, second in results.design.pairs:
        found = [known.get((first, second, endpoint)) for endpoint in endpoints]
        if any(found):
            row = [f"{first} - {second}"]
            if gains:
                worlds = results.worlds(first, second, "untouched")
                both = [results.gains(name, worlds) for name in (first, second)]
                row.append("{:.2f} [{:.2f}, {:.2f}]".format(*ratio(*both)) if len(worlds) > 1 else "-")
            rows.append(row + [interval(c) if c else "-" for c in found])
    return markdown(rows) if len(rows) > 1 else ""


def comparisons_table(results):
    """Every comparison."""
    rows = [["first - second", "endpoint", "worlds", "difference [95% interval] verdict", "p", "corrected p"]]
    for c in (*results.comparisons.values(), *results.looks.values()):
        names = f"{c.first} - {c.second}", with_unit(c.endpoint, c.column, "points")
        rows.append(
            [
                *names,
                c.difference.n,
                interval(c),
                f"{c.difference.p:.2g}",
                "-" if c.verdict == "(a look)" else f"{c.p:.2g}",
            ]
        )
    return markdown(rows)


def named_arm(results, text):
    """(name, rate) of an arm that is judged: `text` is its name, or NAME@RATE where it is judged at several rates."""
    name, at, rate = text.partition("@")
    if name not in results.arms:
        raise ValueError(f"there is no arm {name!r}: take one of {', '.join(results.arms)}")
    return name, float(rate) if at else results.rates[name]


def look(results, first, second):
    """How two arms (see named_arm) differ in each column, world by world and not corrected: a table, and the ratio of gains."""
    arms = [named_arm(results, text) for text in (first, second)]
    worlds = [world for world in results.design.judged if all(results.record(name, world, lr) for name, lr in arms)]
    if len(worlds) < 2:
        raise ValueError(f"{first!r} and {second!r} share fewer than two worlds: let the study go on")
    columns = [c for c in results.design.columns if all(results.has(c, name, lr, worlds) for name, lr in arms)]
    rows = [["", first, second, "difference [95% interval]", "p", "higher on"]]
    for column in columns:
        both = [results.values(name, column, worlds, lr) for name, lr in arms]
        difference = paired(*both)
        higher = f"{sum(one > other for one, other in zip(*both))} of {len(worlds)} worlds"
        means = (over_worlds(results, name, column, worlds, lr) for name, lr in arms)
        rows.append([with_unit(column), *means, with_interval(difference, column), f"{difference.p:.2g}", higher])
    said = [markdown(rows)]
    if "new knowledge" in columns and not any(name == "untouched" for name, _ in arms):
        gains = [results.gains(name, worlds, lr) for name, lr in arms]
        said.append("gain / gain {:.2f} [{:.2f}, {:.2f}]".format(*ratio(*gains)))
    return "\n\n".join(said)


def rates_table(results):
    """What was tried on the tuning worlds, for each arm that is tuned and has such records."""
    shown = results.design.rated
    rows = [["arm", f"rates tried: {' / '.join(map(with_unit, shown))} (chosen in bold)"]]
    for arm in results.design.arms:
        if arm.rates or arm.at:
            rates, best, _ = tune(results.design, arm, results.find)
            tried = []
            for lr in rates:
                records = [results.find(Run(arm, lr, world)) for world in results.design.tuning]
                if not all(records):
                    continue
                means = []
                for column in shown:
                    (part, key), (scale, digits) = results.design.columns[column], scale_of(column)
                    values = [record["summary"][part][key] for record in records]
                    mean, _ = mean_and_error([math.nan if value is None else value for value in values])
                    means.append(f"{scale * mean:.{digits}f}")
                text = f"{lr:g}: {' / '.join(means)}"
                tried.append(f"**{text}**" if lr == best else text)
            if tried:
                rows.append([arm.name, "; ".join(tried)])
    return markdown(rows) if len(rows) > 1 else ""


def curves_table(results):
    """New knowledge and what is kept at each rate of the main arms' curves and, where there are some, at each strength."""
    design = results.design
    shown, strengths = ("new knowledge", *design.kept), (*design.strengths, 1)
    rows = [["arm", "rate", "strength", "worlds", *map(with_unit, shown)]]
    for name in design.main:
        for lr in curve_rates(design, results.arms[name], results.rates[name]):
            for strength in strengths if (worlds := results.worlds(name, lr=lr)) else ():
                means = (over_worlds(results, name, column, worlds, lr, strength) for column in shown)
                rows.append([name, f"{lr:g}", f"{strength:g}", len(worlds), *means])
    return markdown(rows)


def landing_table(results):
    """Amplification and similarity of the change, means over worlds and all linears."""
    keys = ("amplification", "left_major", "left_minor", "right_major", "right_minor")
    rows = [["arm", "amplification, q_proj", "all linears", "left: major", "minor", "right: major", "minor"]]
    for arm in results.design.arms:
        records = [results.record(arm.name, world) for world in results.worlds(arm.name)]
        projections = [record["landing"]["projections"] for record in records if record["landing"]]
        if projections:
            queries = [one["q_proj"]["amplification"] for one in projections]
            everywhere = [[mean_and_error([p[key] for p in one.values()])[0] for one in projections] for key in keys]
            means = [mean_and_error(values)[0] for values in (queries, *everywhere)]
            rows.append([arm.name, *(f"{mean:.3g}" for mean in means[:2]), *(f"{mean:.3f}" for mean in means[2:])])
    return markdown(rows)


def cost_line(results):
    """When, where, how long and with what, as the records tell: they are drawn whatever made them."""
    records = list(results.records.values())
    dates = sorted(record["finished"][:10] for record in records)
    machines = sorted({record["machine"] for record in records})
    keys = [record["key"] for record in records]
    made_by = sorted({f"numerics version {k.get('numerics', '?')}, torch {k['torch']}, {k['device']}" for k in keys})
    hours = sum(record["seconds"] for record in records) / 3600
    wall = sum(record["seconds"] / record["workers"] for record in records) / 60
    dates = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"{dates}; {len(records)} runs, {hours:.1f} hours of one core, about {wall:.0f} minutes as it was run;"
        f" {'; '.join(machines)}; {'; '.join(made_by)}."
        + (f" Made in {len(made_by)} different ways: compare with care." if len(made_by) > 1 else "")
    )


def missing_line(results):
    """Which runs are missing, as far as they can be named: what is asked for next depends on what these give."""
    if not (runs := runs_of(results.design, results.find)):
        return "Every run of the design has its record."
    arms = ", ".join(f"{name} {count}" for name, count in Counter(run.arm.name for run in runs).items())
    worlds = ", ".join(map(str, sorted({run.world for run in runs})))
    return f"**Not finished**: of the runs that can be named so far {len(runs)} are missing ({arms}; worlds {worlds})."
