"""What the records say: Results (records -> numbers), tables of them in markdown, and the report made of these.

Tables stand in study/README.md between <!-- study: NAME --> and <!-- end -->; fill_in renews them.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from study.design import CONTROL, ENDPOINTS, MAIN, NEW, PAIRS, RETENTION, TUNING, Run, chosen_rates, curve_rates, tune
from study.runs import check_name, read_record, record_path
from study.stats import Difference, height_between, holm, paired, ratio, verdict
from tools.report import mean_and_error, plus_minus

MATCHED = "at matched acquisition"  # the endpoint that needs whole curves
COLUMNS = {"new knowledge": ENDPOINTS["new knowledge"], "unbound": (CONTROL, "acc")} | ENDPOINTS  # of the table of arms
IN_NATS = ("log p", "forgetting loss")  # all else is in %


@dataclass(frozen=True)
class Comparison:
    first: str
    second: str
    endpoint: str
    difference: Difference
    p: float  # corrected for the number of comparisons, but for the primary one
    verdict: str


class Results:
    """The records of a design in a folder, and what follows from them."""

    def __init__(self, folder, design):
        self.folder, self.design = Path(folder), design
        self.arms = {arm.name: arm for arm in (*design.arms, *design.extended)}
        self.rates, missing = chosen_rates(design, self.find)
        if missing or len(self.worlds("untouched", *PAIRS[0])) < 2:
            names = " and ".join(PAIRS[0])
            raise ValueError(f"{folder} does not yet hold two worlds on which {names} are judged: let the study go on")

    def find(self, run):
        record = self.records.get(run.name)
        if record:
            check_name(record_path(self.folder, run), record, run)
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

    def values(self, name, column, worlds, lr=None):
        """What stands in a column of COLUMNS, for an arm on each of `worlds`."""
        part, key = COLUMNS[column]
        records = [self.record(name, world, lr) for world in worlds]
        found = [record["summary"][part][key] if key else record[part] for record in records]
        return [math.nan if value is None else value for value in found]  # null: training diverged

    @cached_property
    def extended(self):
        """The arms of --extended that have records."""
        return [arm for arm in self.design.extended if self.worlds(arm.name)]

    def gains(self, name, worlds):
        """New knowledge above the untouched model's, on each world."""
        both = (self.values(arm, "new knowledge", worlds) for arm in (name, "untouched"))
        return [after - before for after, before in zip(*both)]

    def curve(self, name, world):
        """[(new knowledge, never asked), ...] by rate, lowest first; None while a rate is missing."""
        rates = curve_rates(self.design, self.arms[name], self.rates[name])
        if len(rates) < 2 or not all(self.record(name, world, lr) for lr in rates):
            return None
        ends = ("new knowledge", "never asked")
        return [tuple(self.values(name, end, [world], lr)[0] for end in ends) for lr in rates]

    def matched(self, first, second):
        """The difference in retention between two arms' curves, on each world that has both and where they overlap."""
        worlds = [world for world in self.design.judged if self.curve(first, world) and self.curve(second, world)]
        heights = [height_between(self.curve(first, world), self.curve(second, world)) for world in worlds]
        return [height for height in heights if not math.isnan(height)]

    @cached_property
    def comparisons(self):
        """{(first, second, endpoint): Comparison}, the primary one first."""
        differences = {}
        for first, second in PAIRS:
            if first not in self.arms or second not in self.arms:
                continue
            worlds = self.worlds(first, second)
            for endpoint in ENDPOINTS if len(worlds) > 1 else ():
                values = (self.values(name, endpoint, worlds) for name in (first, second))
                differences[first, second, endpoint] = paired(*values)
            if {first, second} <= {arm.name for arm in MAIN}:
                heights = self.matched(first, second)
                if len(heights) > 1:
                    differences[first, second, MATCHED] = paired(heights, [0.0] * len(heights))
        (primary, *others) = differences
        corrected = [differences[primary].p, *holm([differences[name].p for name in others])]
        return {
            name: Comparison(*name, difference, p, verdict(difference, p, name[2] != "forgetting loss"))
            for (name, difference), p in zip(differences.items(), corrected)
        }


# --- tables ------------------------------------------------------------------------------------------------------------


def markdown(rows):
    """Rows of anything -> a table; the first row is its head, the first column is text."""
    head, *body = [[str(content) for content in row] for row in rows]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def scale_of(column):
    """(factor, digits) that a column's numbers are shown with."""
    return (1, 3) if column in IN_NATS else (100, 1)


def with_unit(column, unit="%"):
    return f"{column}, nats" if column in IN_NATS else f"{column}, {unit}"


def over_worlds(results, name, column, worlds, lr=None):
    """Mean +- standard error of an arm over worlds, as text."""
    scale, digits = scale_of(column)
    return plus_minus(*mean_and_error(results.values(name, column, worlds, lr)), scale=scale, digits=digits)


def interval(comparison, usual=None):
    """A difference as text: mean [low, high] verdict; with the number of worlds where it is not the usual one."""
    scale, digits = scale_of(comparison.endpoint)
    d = comparison.difference
    numbers = "{:+.{n}f} [{:+.{n}f}, {:+.{n}f}]".format(scale * d.mean, scale * d.low, scale * d.high, n=digits)
    return f"{numbers} {comparison.verdict}" + (f" ({d.n} worlds)" if usual not in (None, d.n) else "")


def arms_table(results, arms):
    """A row an arm that has records: mean +- standard error over worlds."""
    rows = [["arm", "trained", "rate", "worlds", *map(with_unit, COLUMNS)]]
    for name in (arm.name for arm in arms):
        if worlds := results.worlds(name):
            trained, lr = results.record(name, worlds[0])["trained"], results.rates[name]
            means = (over_worlds(results, name, column, worlds) for column in COLUMNS)
            rows.append([name, f"{trained:,}", "-" if lr is None else f"{lr:g}", len(worlds), *means])
    return markdown(rows)


def primary_line(results):
    first = next(iter(results.comparisons.values()))
    d = first.difference
    return (
        f"Primary comparison, {first.first} - {first.second}, new knowledge: **{100 * d.mean:+.1f} points**, paired standard"
        f" error {100 * d.se:.2f}, 95% interval {100 * d.low:+.1f} to {100 * d.high:+.1f}, {d.n} worlds, p = {d.p:.1g}:"
        f" **{first.verdict}**."
    )


def pairs_table(results):
    """A row a pair: the endpoints people ask for first, and the ratio of what was learned."""
    shown = ["new knowledge", "never asked", MATCHED]
    rows = [["first - second", "gain / gain", *(with_unit(name, "points") for name in shown)]]
    for first, second in PAIRS:
        found = [results.comparisons.get((first, second, endpoint)) for endpoint in shown]
        if found[0]:
            worlds = results.worlds(first, second, "untouched")
            share = ratio(results.gains(first, worlds), results.gains(second, worlds))
            differences = (interval(comparison, len(worlds)) if comparison else "-" for comparison in found)
            rows.append([f"{first} - {second}", "{:.2f} [{:.2f}, {:.2f}]".format(*share), *differences])
    return markdown(rows)


def comparisons_table(results):
    """Every comparison."""
    rows = [["first - second", "endpoint", "worlds", "difference [95% interval] verdict", "p", "corrected p"]]
    for c in results.comparisons.values():
        names = f"{c.first} - {c.second}", with_unit(c.endpoint, "points")
        rows.append([*names, c.difference.n, interval(c), f"{c.difference.p:.1g}", f"{c.p:.1g}"])
    return markdown(rows)


def rates_table(results):
    """What was tried on the tuning worlds, for each arm that is tuned."""
    rows = [["arm", "rates tried: new knowledge / never asked, % (chosen in bold)"]]
    for arm in results.design.arms:
        if arm.rates:
            rates, best, _ = tune(arm, results.design.tuning, results.find)
            tried = []
            for lr in rates:
                records = [results.find(Run(arm, lr, world)) for world in results.design.tuning]
                means = [mean_and_error([r["summary"][part]["acc"] for r in records])[0] for part in (NEW, RETENTION)]
                text = "{:g}: {:.1f} / {:.1f}".format(lr, *(100 * mean for mean in means))
                tried.append(f"**{text}**" if lr == best else text)
            rows.append([arm.name, "; ".join(tried)])
    return markdown(rows)


def curves_table(results):
    """New knowledge and retention at each rate of the main arms' curves."""
    shown = ("new knowledge", "never asked", "forgetting loss")
    rows = [["arm", "rate", "worlds", *map(with_unit, shown)]]
    for arm in MAIN:
        for lr in curve_rates(results.design, arm, results.rates[arm.name]):
            if worlds := results.worlds(arm.name, lr=lr):
                means = (over_worlds(results, arm.name, column, worlds, lr) for column in shown)
                rows.append([arm.name, f"{lr:g}", len(worlds), *means])
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


def readme_tables(results):
    """{name: what stands between the README's markers}."""
    return {
        "cost": cost_line(results),
        "arms": arms_table(results, results.design.arms),
        "pairs": f"{primary_line(results)}\n\n{pairs_table(results)}",
    }


def fill_in(text, tables):
    """A README with the tables between its markers. Raises ValueError for a marker that is missing."""
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- study: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, found = pattern.subn(lambda match: match[1] + table + match[2], text)
        if found != 1:
            raise ValueError(f"the README needs one <!-- study: {name} --> and after it one <!-- end -->, not {found}")
    return text


REPORT = """# Results of the study

Written by `python -m study` from the records in runs/. {cost}

Worlds {judged} were judged; rates were chosen on worlds {tuning}. A run's seed is its world's number. Means +- one
standard error over worlds; differences with 95% intervals of paired t tests over worlds, verdicts at 5% after Holm's
correction over all comparisons but the first, the primary one (so an interval may leave out zero and the verdict still
be "not resolved"). Gain / gain: ratio of what was learned above the untouched model, with Fieller's 95% interval.

## Arms

{arms}

![bars](bars.png)

## Pairs

{pairs}

## Every comparison

{comparisons}

## New knowledge against retention, over learning rates

{curves}

![frontier](frontier.png)

## While training

![epochs](epochs.png)

## What was learned against what was trained

![parameters](parameters.png)

## Where the change lies

Amplification: how many times larger the change is than what W does between the change's first singular vectors.
Similarity of those vectors (as many as the rank) with W's major and minor ones: 1 is the same subspace, rank / width by chance.

{landing}

![landing](landing.png)
"""


def report(results):
    """The text of results/README.md."""
    tuning = results.design.tuning
    text = REPORT.format(
        **readme_tables(results),
        judged=", ".join(map(str, results.design.judged)),
        tuning=" and ".join(map(str, tuning or TUNING)) + ("" if tuning else ", before this study"),
        comparisons=comparisons_table(results),
        curves=curves_table(results),
        landing=landing_table(results),
    )
    if tuning:
        text += f"\n## Learning rates\n\nMeans of the tuning worlds.\n\n{rates_table(results)}\n"
    if results.extended:
        text += f"\n## Extended\n\n![extended](extended.png)\n\n{arms_table(results, results.extended)}\n"
    return text
