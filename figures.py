"""The study's tables and pictures, from the records that study.py left.

    python figures.py                        # results/ -> results/README.md and results/*.png, and the README's tables
    python figures.py --quick                # the same of study.py --quick, in out/quick; README.md is left alone

Tables stand in README.md between <!-- study: NAME --> and <!-- end -->. Reading order: Results (records -> numbers), the
tables, the pictures.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from data.tune import CONTROL, NEW, RETENTION
from eval_qa import cell, mean_and_error
from gpt import load_pretrained
from gpt.cli import Parser, atomic, one_sentence_errors
from stats import Difference, height_between, holm, paired, ratio, verdict
from study import (
    ENDPOINTS,
    EXTENDED_DESIGN,
    MAIN,
    PAIRS,
    QUICK,
    Arm,
    Run,
    chosen_rates,
    curve_rates,
    read_record,
    tune,
)
from train import ALL, METHODS

MATCHED = "at matched acquisition"  # the endpoint that needs whole curves
PERCENT = ("new knowledge", "never asked", "exact match", "new cloze", "old cloze", MATCHED)
MARKERS = dict(zip(METHODS, "osD^vPX*<>"))  # colours are not the only sign of a method


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
            raise ValueError(f"{folder} does not yet hold two worlds on which {names} are judged: let study.py go on")

    def find(self, run):
        return self.records.get(run.name)

    @cached_property
    def records(self):
        """{name of a run: its record} of all files there are."""
        return {path.stem: read_record(path) for path in sorted((self.folder / "runs").glob("*.json"))}

    def record(self, name, world, lr=None):
        return self.find(Run(self.arms[name], lr or self.rates[name], world))

    def worlds(self, *names):
        """The judged worlds on which all these arms have a record."""
        return [world for world in self.design.judged if all(self.record(name, world) for name in names)]

    def values(self, name, endpoint, worlds, lr=None):
        """An endpoint of an arm on each of `worlds`."""
        part, key = ENDPOINTS.get(endpoint, endpoint)  # or (question set, what of it) itself
        records = [self.record(name, world, lr) for world in worlds]
        return [record["summary"][part][key] if key else record[part] for record in records]

    def gains(self, name, worlds):
        """New knowledge above the untouched model's, on each world."""
        both = (self.values(arm, "new knowledge", worlds) for arm in (name, "untouched"))
        return [after - before for after, before in zip(*both)]

    def curve(self, name, world):
        """[(new knowledge, never asked), ...] by rate, lowest first; None while a rate is missing."""
        rates = curve_rates(self.design, self.arms[name], self.rates[name])
        if len(rates) < 2 or not all(self.record(name, world, lr) for lr in rates):
            return None
        return [
            tuple(self.values(name, endpoint, [world], lr)[0] for endpoint in ("new knowledge", "never asked"))
            for lr in rates
        ]

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
            if {first, second} <= set(ALL):
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
    """Rows of cells -> a table; the first row is its head, the first column is text."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def mean_cell(values, scale=100, digits=1):
    return cell(*mean_and_error(values), scale=scale, digits=digits)


def interval(comparison, usual=None):
    """A difference as text: mean [low, high] verdict; with the number of worlds where it is not the usual one."""
    scale, digits = (100, 1) if comparison.endpoint in PERCENT else (1, 3)
    d = comparison.difference
    numbers = "{:+.{n}f} [{:+.{n}f}, {:+.{n}f}]".format(scale * d.mean, scale * d.low, scale * d.high, n=digits)
    return f"{numbers} {comparison.verdict}" + (f" ({d.n} worlds)" if usual not in (None, d.n) else "")


def rate_cell(lr):
    return "-" if lr is None else f"{lr:g}"


def arms_table(results, names=None):
    """A row an arm: mean +- standard error over worlds."""
    endpoints = {"new knowledge": "new knowledge", "unbound": (CONTROL, "acc")}
    endpoints |= {name: name for name in ENDPOINTS if name != "new knowledge"}
    units = [f"{name}, %" if name in (*PERCENT, "unbound") else f"{name}, nats" for name in endpoints]
    rows = [["arm", "trained", "rate", "worlds", *units]]
    for name in names or [arm.name for arm in results.design.arms]:
        worlds = results.worlds(name)
        if not worlds:
            continue
        row = [name, f"{results.record(name, worlds[0])['trained']:,}", rate_cell(results.rates[name]), len(worlds)]
        for title, endpoint in endpoints.items():
            scale, digits = (100, 1) if title in (*PERCENT, "unbound") else (1, 3)
            row.append(mean_cell(results.values(name, endpoint, worlds), scale, digits))
        rows.append(row)
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
    rows = [["first - second", "gain / gain", *(f"{name}, points" for name in shown)]]
    for first, second in PAIRS:
        found = [results.comparisons.get((first, second, endpoint)) for endpoint in shown]
        if found[0]:
            worlds = results.worlds(first, second, "untouched")
            share = ratio(results.gains(first, worlds), results.gains(second, worlds))
            rows.append(
                [
                    f"{first} - {second}",
                    "{:.2f} [{:.2f}, {:.2f}]".format(*share),
                    *(interval(comparison, len(worlds)) if comparison else "-" for comparison in found),
                ]
            )
    return markdown(rows)


def comparisons_table(results):
    """Every comparison."""
    rows = [["first - second", "endpoint", "worlds", "difference [95% interval] verdict", "p", "corrected p"]]
    for c in results.comparisons.values():
        scale = ", points" if c.endpoint in PERCENT else ", nats"
        names = f"{c.first} - {c.second}", c.endpoint + scale
        rows.append([*names, c.difference.n, interval(c), f"{c.difference.p:.1g}", f"{c.p:.1g}"])
    return markdown(rows)


def rates_table(results):
    """What was tried on the tuning worlds, for each arm that is tuned."""
    rows = [["arm", "rates tried: new knowledge / never asked, % (chosen in bold)"]]
    for arm in results.design.arms:
        if arm.rates:
            rates, best, _ = tune(arm, results.design.tuning, results.find)
            cells = []
            for lr in rates:
                records = [results.find(Run(arm, lr, world)) for world in results.design.tuning]
                means = [mean_and_error([r["summary"][part]["acc"] for r in records])[0] for part in (NEW, RETENTION)]
                text = "{:g}: {:.1f} / {:.1f}".format(lr, *(100 * mean for mean in means))
                cells.append(f"**{text}**" if lr == best else text)
            rows.append([arm.name, "; ".join(cells)])
    return markdown(rows)


def curves_table(results):
    """New knowledge and retention at each rate of the main arms' curves."""
    rows = [["arm", "rate", "worlds", "new knowledge, %", "never asked, %", "forgetting loss, nats"]]
    for arm in MAIN:
        for lr in curve_rates(results.design, arm, results.rates[arm.name]):
            worlds = [world for world in results.design.judged if results.record(arm.name, world, lr)]
            if worlds:
                cells = [mean_cell(results.values(arm.name, e, worlds, lr)) for e in ("new knowledge", "never asked")]
                cells.append(mean_cell(results.values(arm.name, "forgetting loss", worlds, lr), 1, 3))
                rows.append([arm.name, rate_cell(lr), len(worlds), *cells])
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
    """When, where and how long, as the records tell."""
    records = list(results.records.values())
    dates = sorted(record["finished"][:10] for record in records)
    machines = sorted({record["machine"] for record in records})
    computed = sorted({f"torch {r['key']['torch']}, {r['key']['device']}" for r in records})
    codes = len({record["key"]["code"] for record in records})
    hours = sum(record["seconds"] for record in records) / 3600
    wall = sum(record["seconds"] / record["workers"] for record in records) / 60
    dates = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"{dates}; {len(records)} runs, {hours:.1f} hours of one core, about {wall:.0f} minutes as it was run;"
        f" {'; '.join(machines)}; {'; '.join(computed)}; "
        + ("one version of the code." if codes == 1 else f"{codes} versions of the code: compare with care.")
    )


def readme_tables(results):
    """{name: what stands between the README's markers}."""
    return {
        "arms": arms_table(results),
        "pairs": f"{primary_line(results)}\n\n{pairs_table(results)}",
        "cost": cost_line(results),
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

Written by `python figures.py` from the records in runs/, which `python study.py` made. {cost}

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
        cost=cost_line(results),
        judged=", ".join(map(str, results.design.judged)),
        tuning=" and ".join(map(str, tuning)) if tuning else "of data/tune.py (train.py's defaults)",
        arms=arms_table(results),
        pairs=f"{primary_line(results)}\n\n{pairs_table(results)}",
        comparisons=comparisons_table(results),
        curves=curves_table(results),
        landing=landing_table(results),
    )
    if tuning:
        text += f"\n## Learning rates\n\nMeans of the tuning worlds.\n\n{rates_table(results)}\n"
    extended = [arm.name for arm in results.design.extended if results.worlds(arm.name)]
    if extended:
        text += f"\n## Extended\n\n![extended](extended.png)\n\n{arms_table(results, extended)}\n"
    return text


# --- pictures ----------------------------------------------------------------------------------------------------------


def color(results, name):
    return METHODS[results.arms[name].method].color


def untouched_line(ax, results):
    level = 100 * mean_and_error(results.values("untouched", "new knowledge", results.worlds("untouched")))[0]
    ax.axhline(level, color="black", linestyle="--", linewidth=1)
    ax.annotate("untouched", (0.99, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)


def draw_epochs(results):
    """New knowledge after each epoch of one schedule, as in Figure 2 of MiCA's paper, with bands of one standard error."""
    figure, ax = plt.subplots(figsize=(5.5, 4))
    for name in ("mica", "lora", "mica-random"):
        worlds = results.worlds(name, "untouched")
        if not worlds:
            continue
        epochs = results.arms[name].settings.epochs
        histories = [[entry[NEW] for entry in results.record(name, world)["history"][:-1]] for world in worlds]
        before, after = (results.values(arm, "new knowledge", worlds) for arm in ("untouched", name))
        columns = [before, *zip(*histories), after]  # by epoch, 0 first: a value a world
        means, errors = zip(*(mean_and_error([100 * value for value in column]) for column in columns))
        band = [[m - e for m, e in zip(means, errors)], [m + e for m, e in zip(means, errors)]]
        ax.fill_between(range(epochs + 1), *band, color=color(results, name), alpha=0.25, linewidth=0)
        ax.plot(range(epochs + 1), means, marker=MARKERS[name], color=color(results, name), label=name)
    untouched_line(ax, results)
    ax.set(xlabel="epoch", ylabel="new knowledge, %", ylim=(0, 100), xticks=range(epochs + 1))
    ax.legend(frameon=False)
    return figure


def draw_bars(results):
    """New knowledge and retention, a bar an arm, a dot a world; the unbound control beside."""
    names = [arm.name for arm in results.design.arms if arm.method and results.worlds(arm.name)]
    figure, axes = plt.subplots(2, 1, figsize=(max(6, 0.62 * len(names)), 6), sharex=True)
    for ax, endpoint in zip(axes, ("new knowledge", "never asked")):
        for x, name in enumerate(names):
            worlds = results.worlds(name)
            values = [100 * value for value in results.values(name, endpoint, worlds)]
            mean, error = mean_and_error(values)
            ax.bar(x, mean, yerr=error, capsize=3, width=0.65, color=color(results, name), alpha=0.75)
            ax.plot([x + 0.2] * len(values), values, ".", color="black", markersize=3)
            if endpoint == "new knowledge":
                control = mean_and_error(results.values(name, (CONTROL, "acc"), worlds))[0]
                ax.plot(
                    x, 100 * control, "_", color="black", markersize=14, label="unbound control" if x == 0 else None
                )
        ax.set(xlim=(-0.8, len(names) + 1), ylim=(0, 105), ylabel=f"{endpoint}, %")
    untouched_line(axes[0], results)
    axes[0].legend(frameon=False, loc="upper right", fontsize=8)
    axes[1].set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    return figure


def draw_frontier(results):
    """Retention against new knowledge, a curve a main method over learning rates; bars are standard errors over worlds."""
    figure, ax = plt.subplots(figsize=(5.5, 4.5))
    for arm in MAIN:
        rates = curve_rates(results.design, arm, results.rates[arm.name])
        points = []
        for lr in rates:
            worlds = [world for world in results.design.judged if results.record(arm.name, world, lr)]
            if worlds:
                values = (results.values(arm.name, e, worlds, lr) for e in ("new knowledge", "never asked"))
                points.append([mean_and_error([100 * value for value in some]) for some in values])
        if points:
            (x, dx), (y, dy) = (zip(*axis) for axis in zip(*points))
            options = {"color": METHODS[arm.method].color, "marker": MARKERS[arm.method], "label": arm.name}
            ax.errorbar(x, y, dy, dx, capsize=2, linewidth=1.5, markersize=6, **options)
    ax.set(xlabel="new knowledge, %", ylabel="never asked (retention), %", title="better: up and to the right")
    ax.legend(frameon=False)
    return figure


def draw_parameters(results):
    """What was learned against how many numbers were trained."""
    figure, ax = plt.subplots(figsize=(6, 4.5))
    points = []  # (gain, its error, trained parameters, arm)
    for arm in results.design.arms:
        if arm.method and (worlds := results.worlds(arm.name, "untouched")):
            gain, error = mean_and_error([100 * gain for gain in results.gains(arm.name, worlds)])
            points.append((gain, error, results.record(arm.name, worlds[0])["trained"], arm))
    labels = []  # where they stand: lowest first, moved up as far as those of like size ask for
    for gain, error, trained, arm in sorted(points, key=lambda point: point[0]):
        ax.errorbar(trained, gain, error, capsize=2, marker=MARKERS[arm.method], color=METHODS[arm.method].color)
        height = max([gain, *(y + 2.4 for x, y in labels if 0.4 < x / trained < 2.5)])
        labels.append((trained, height))
        ax.annotate(arm.name, (1.12 * trained, height), fontsize=7, va="center")
    ax.set(
        xscale="log", xlabel="trained parameters", ylabel="learned above the untouched model, points", ylim=(0, None)
    )
    ax.margins(x=0.2)
    return figure


def draw_landing(results, base):
    """Left: the base's singular values. Middle, right: how much of dW falls on W's left and right singular vectors."""
    figure, (spectra, *sides) = plt.subplots(1, 3, figsize=(12, 3.8))
    linears = [(n, m.weight.detach()) for n, m in base.layers.named_modules() if isinstance(m, torch.nn.Linear)]
    kinds = dict.fromkeys(name.rpartition(".")[2] for name, _ in linears)
    for kind, style in zip(kinds, ("-", "--", ":", "-.", (0, (1, 1)), (0, (5, 1)), (0, (3, 1, 1, 1)))):
        values = torch.stack([torch.linalg.svdvals(W.double()) for name, W in linears if name.endswith(kind)]).mean(0)
        spectra.plot(range(1, len(values) + 1), values, linestyle=style, color="black", linewidth=1, label=kind)
    spectra.set(yscale="log", xlabel="singular value, largest first", ylabel="mean over layers", title="base model")
    spectra.legend(frameon=False, fontsize=7)
    shown = [name for name in (*ALL, "mica-random") if name in results.arms and results.worlds(name)]
    for ax, side in zip(sides, ("left", "right")):
        for name in shown:
            shares = [results.record(name, world)["landing"][side] for world in results.worlds(name)]
            means = [100 * mean_and_error(column)[0] for column in zip(*shares)]
            position = [(i + 0.5) / len(means) for i in range(len(means))]
            options = {"marker": MARKERS[results.arms[name].method], "markersize": 4, "linewidth": 1}
            ax.plot(position, means, color=color(results, name), label=name, **options)
        # MiCA's B holds all of its left side in the last bin: a linear scale would flatten the others
        ax.set(yscale="log", ylim=(0.3, 130), xlabel="singular vectors of W, major (0) to minor (1)")
        ax.set(ylabel="share of dW, %", title=f"{side} singular vectors")
        ax.axhline(100 / len(means), color="black", linestyle="--", linewidth=0.8)
    sides[0].legend(frameon=False, fontsize=7)
    return figure


PANELS = {  # what --extended varies, one at a time
    "epochs, each with its own schedule": lambda arm: arm.settings.epochs,
    "rank": lambda arm: arm.settings.rank,
    "new subjects of a kind": lambda arm: arm.subjects,
}


def draw_extended(results):
    """New knowledge against epochs, rank and number of subjects, all else as in the study."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 3.8), sharey=True)
    standard = Arm("standard", None)
    for ax, (what, value) in zip(axes, PANELS.items()):
        others = [other for other in PANELS.values() if other is not value]
        series = {}  # label -> [(value, arm), ...]
        for arm in results.arms.values():
            alike = arm.settings.targets is None and all(other(arm) == other(standard) for other in others)
            if arm.method in ("mica", "lora", "mica-random") and alike and results.worlds(arm.name):
                label = "mica by rule" if arm.follows == ("lora", 2) else arm.method
                series.setdefault(label, []).append((value(arm), arm))
        worlds = results.worlds(*(arm.name for members in series.values() for _, arm in members))  # that all have
        for label, members in series.items():
            if len(members) > 1:
                members.sort(key=lambda member: member[0])
                names = [arm.name for _, arm in members]
                values = [results.values(name, "new knowledge", worlds) for name in names]
                y, error = zip(*(mean_and_error([100 * one for one in some]) for some in values))
                arm = members[0][1]
                style = {"linestyle": ":" if label == "mica by rule" else "-", "marker": MARKERS[arm.method]}
                ax.errorbar(
                    [x for x, _ in members], y, error, capsize=2, color=METHODS[arm.method].color, label=label, **style
                )
        ticks = sorted({x for members in series.values() for x, _ in members})
        title = f"worlds {', '.join(map(str, worlds))}"
        ax.set(xscale="log", xlabel=what, ylim=(0, 105), title=title)
        ax.minorticks_off()
        ax.set_xticks(ticks, ticks)
        ax.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("new knowledge, %")
    return figure


def save_figure(figure, path):
    figure.tight_layout()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def main():
    parser = Parser(prog="figures.py", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="draw the results of study.py --quick")
    parser.add_argument(
        "--results", default=None, help="folder of the records; None: results, or out/quick with --quick"
    )
    parser.add_argument(
        "--readme", default=None, help="file whose tables are renewed; None: README.md, or none with --quick"
    )
    parser.add_argument("--model", default="data/base", help="folder of the base model, for its spectra")
    args = parser.parse_args()
    folder = Path(args.results or ("out/quick" if args.quick else "results"))
    readme = args.readme or (None if args.quick else "README.md")
    with one_sentence_errors("figures.py"):
        results = Results(folder, QUICK if args.quick else EXTENDED_DESIGN)
        base, _ = load_pretrained(args.model)
        figures = {
            "epochs": draw_epochs(results),
            "bars": draw_bars(results),
            "frontier": draw_frontier(results),
            "parameters": draw_parameters(results),
            "landing": draw_landing(results, base),
        }
        if any(results.worlds(arm.name) for arm in results.design.extended):
            figures["extended"] = draw_extended(results)
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png")
        texts = {folder / "README.md": report(results)}
        if readme:
            texts[Path(readme)] = fill_in(Path(readme).read_text(encoding="utf-8"), readme_tables(results))
        for path, text in texts.items():
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        print("\n".join([primary_line(results), *map(str, texts), *(f"{folder / name}.png" for name in figures)]))


if __name__ == "__main__":
    main()
