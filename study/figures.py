"""The study's pictures: each a function of Results that returns a figure."""

import math

import torch

from study.design import NEW, RETENTION, Arm, curve_rates
from study.tables import COSTS, PLAIN, scale_of, with_unit
from tools.cli import atomic
from tools.drawing import plt
from tools.report import mean_and_error
from train import METHODS, Method


def style(arm):
    """Colour and marker of an arm's method; one that is no longer in METHODS has what Method itself gives."""
    method = METHODS.get(arm.method, Method)
    return {"color": method.color, "marker": method.marker}


def percent(values):
    """(mean, standard error) over worlds, in %."""
    return mean_and_error([100 * value for value in values])


def scaled(column, values):
    """(mean, standard error) over worlds, as a column's numbers are shown."""
    scale, _ = scale_of(column)
    return mean_and_error([scale * value for value in values])


def untouched_line(ax, results, column="new knowledge"):
    if not (worlds := results.worlds("untouched")):
        return
    level, _ = scaled(column, results.values("untouched", column, worlds))
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
        means, errors = zip(*map(percent, columns))
        band = [[m - e for m, e in zip(means, errors)], [m + e for m, e in zip(means, errors)]]
        look = style(results.arms[name])
        ax.fill_between(range(epochs + 1), *band, color=look["color"], alpha=0.25, linewidth=0)
        ax.plot(range(epochs + 1), means, label=name, **look)
    untouched_line(ax, results)
    ax.set(xlabel="epoch", ylabel="new knowledge, %", ylim=(0, 100), xticks=range(epochs + 1))
    ax.legend(frameon=False)
    return figure


def draw_bars(results):
    """New knowledge and what is kept, a bar an arm (and rate, at several), a dot a world; the unbound control beside."""
    shown = results.rows(arm for arm in results.design.arms if arm.method)
    endpoints = ["new knowledge", *results.design.kept]
    size = (max(6, 0.62 * len(shown)), 3 * len(endpoints))
    figure, axes = plt.subplots(len(endpoints), 1, figsize=size, sharex=True)
    for ax, endpoint in zip(axes, endpoints):
        for x, (name, lr, worlds) in enumerate(shown):
            values = results.values(name, endpoint, worlds, lr)
            mean, error = scaled(endpoint, values)
            ax.bar(x, mean, yerr=error, capsize=3, width=0.65, color=style(results.arms[name])["color"], alpha=0.75)
            scale, _ = scale_of(endpoint)
            ax.plot([x + 0.2] * len(values), [scale * value for value in values], ".", color="black", markersize=3)
            if endpoint == "new knowledge":
                control, _ = percent(results.values(name, "unbound", worlds, lr))
                ax.plot(x, control, "_", color="black", markersize=14, label=None if x else "unbound control")
        top = {"ylim": (0, 105)} if scale_of(endpoint)[0] == 100 else {}
        ax.set(xlim=(-0.8, len(shown) + 1), ylabel=with_unit(endpoint), **top)
        untouched_line(ax, results, endpoint)
    axes[0].legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)  # above, where no bar can be
    names = [f"{name} {lr:g}" if results.arms[name].at else name for name, lr, _ in shown]
    axes[-1].set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    return figure


def curves_of(results, arm):
    """[[(rate, strength), ...], ...]: an arm's curves, over its rates or, of each rate (the second dashed), over strengths."""
    if strengths := results.design.strengths:
        return [[(lr, strength) for strength in (*strengths, 1)] for lr in sorted(arm.at)]
    return [[(lr, 1) for lr in curve_rates(results.design, arm, results.rates[arm.name])]]


def draw_frontier(results):
    """What is kept against new knowledge, curves of the main arms over learning rates or strengths; bars are standard errors over worlds.

    The untouched model is a cross. Beside curves at fixed rates stand, hollow and with their names, the arms that are judged at a chosen one.
    """
    kept = results.design.kept
    arms = [results.arms[name] for name in results.design.main]
    alone = [arm for arm in results.design.arms if arm.rates] if all(arm.at for arm in arms) else []
    figure, axes = plt.subplots(1, len(kept), figsize=(5.5 * len(kept), 4.5), squeeze=False)
    for ax, column in zip(axes[0], kept):
        ends = ("new knowledge", column)
        drawn = [(arm, i, places) for arm in (*arms, *alone) for i, places in enumerate(curves_of(results, arm))]
        for arm, i, places in drawn:
            points = []
            for lr, strength in places:
                if worlds := results.worlds(arm.name, lr=lr):
                    points.append([scaled(end, results.values(arm.name, end, worlds, lr, strength)) for end in ends])
            if points:
                (x, dx), (y, dy) = (zip(*axis) for axis in zip(*points))
                look = {"markerfacecolor": "white"} if arm in alone else {"label": None if i else arm.name}
                look["linestyle"] = "--" if i else "-"
                ax.errorbar(x, y, dy, dx, capsize=2, linewidth=1.5, markersize=6, **look, **style(arm))
                if arm in alone:  # names above and below in turn, so that neighbours' do not collide
                    below = alone.index(arm) % 2 == (column in COSTS)
                    place = {"xytext": (4, -12 if below else 5), "textcoords": "offset points"}
                    ax.annotate(arm.name, (x[0], y[0]), fontsize=8, **place)
                    ax.margins(x=0.15)  # room for the name
        if worlds := results.worlds("untouched"):
            point = (scaled(end, results.values("untouched", end, worlds))[0] for end in ends)
            ax.plot(*point, "x", color="black", markersize=8, label="untouched")
        retention = results.design.columns[column][0] == RETENTION
        label, where = f"{column} (retention)" if retention else column, "down" if column in COSTS else "up"
        ax.set(xlabel="new knowledge, %", ylabel=with_unit(label, column), title=f"better: {where} and to the right")
        if column in PLAIN:
            ax.set_yscale("log")
    axes[0][-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside, where no point can be
    return figure


def draw_parameters(results):
    """What was learned against how many numbers were trained; the names stand beside, as high as their points if they can."""
    figure, ax = plt.subplots(figsize=(7, 4.5))
    points = []  # (gain, its error, trained parameters, arm)
    for arm in results.design.arms:
        if arm.method and (worlds := results.worlds(arm.name, "untouched")):
            gain, error = percent(results.gains(arm.name, worlds))
            points.append((gain, error, results.record(arm.name, worlds[0])["trained"], arm))
    height = -math.inf
    for gain, error, trained, arm in sorted(points, key=lambda point: point[0]):
        ax.errorbar(trained, gain, error, capsize=2, **style(arm))
        height = max(gain, height + 3.2)
        line = {"arrowprops": {"arrowstyle": "-", "linewidth": 0.4, "color": "gray"}}
        place = {"xytext": (1.03, height), "textcoords": ("axes fraction", "data"), "va": "center"}
        ax.annotate(arm.name, (trained, gain), fontsize=7, **place, **line)
    ax.set(xscale="log", xlabel="trained parameters", ylabel="learned above the untouched model, points")
    ax.set_ylim(-2, None)
    ax.margins(x=0.2)
    return figure


def draw_landing(results, base):
    """Left: the base's singular values. Middle, right: how much of dW falls on W's left and right singular vectors."""
    figure, (spectra, *sides) = plt.subplots(1, 3, figsize=(12, 3.8))
    linears = [(n, m.weight.detach()) for n, m in base.layers.named_modules() if isinstance(m, torch.nn.Linear)]
    kinds = dict.fromkeys(name.rpartition(".")[2] for name, _ in linears)
    for i, (kind, marker) in enumerate(zip(kinds, "osD^vPX")):  # lines that lie on each other show by turns of markers
        values = torch.stack([torch.linalg.svdvals(W.double()) for name, W in linears if name.endswith(kind)]).mean(0)
        look = {"marker": marker, "markevery": (4 * i, 28), "markersize": 5, "color": plt.cm.viridis(i / len(kinds))}
        spectra.plot(range(1, len(values) + 1), values, linewidth=1, label=kind, **look)
    spectra.set(yscale="log", xlabel="singular value, largest first", ylabel="mean over layers", title="base model")
    spectra.legend(frameon=False, fontsize=7)
    shown = [name for name in (*results.design.main, "mica-random") if results.worlds(name)]
    for ax, side in zip(sides, ("left", "right")):
        for name in shown:
            landings = [results.record(name, world)["landing"] for world in results.worlds(name)]
            shares = [landing[side] for landing in landings if landing]  # none where training diverged
            means = [percent(column)[0] for column in zip(*shares)]
            position = [(i + 0.5) / len(means) for i in range(len(means))]
            ax.plot(position, means, markersize=4, linewidth=1, label=name, **style(results.arms[name]))
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
        series = {}  # name -> [(value, arm), ...]
        for arm in results.arms.values():
            alike = arm.settings.targets is None and all(other(arm) == other(standard) for other in others)
            if arm.method in ("mica", "lora", "mica-random") and alike and results.worlds(arm.name):
                name = "mica by rule" if arm.follows == ("lora", 2) else arm.method
                series.setdefault(name, []).append((value(arm), arm))
        worlds = results.worlds(*(arm.name for members in series.values() for _, arm in members))  # that all have
        for name, members in series.items():
            if len(members) > 1:
                xs, arms = zip(*sorted(members, key=lambda member: member[0]))
                y, error = zip(*(percent(results.values(arm.name, "new knowledge", worlds)) for arm in arms))
                line = ":" if name == "mica by rule" else "-"
                ax.errorbar(xs, y, error, capsize=2, linestyle=line, label=name, **style(arms[0]))
        ticks = sorted({x for members in series.values() for x, _ in members})
        ax.set(xscale="log", xlabel=what, ylim=(0, 105), title=f"worlds {', '.join(map(str, worlds))}")
        ax.minorticks_off()
        ax.set_xticks(ticks, ticks)
        ax.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("new knowledge, %")
    return figure


def draw_all(results, base):
    """{name: figure} of all that the records hold; base: the model, for its singular values, where `landing` is measured."""
    figures = {"bars": draw_bars(results), "frontier": draw_frontier(results)}
    if results.design.landing:
        figures |= {
            "epochs": draw_epochs(results),
            "parameters": draw_parameters(results),
            "landing": draw_landing(results, base),
        }
        figures |= {"extended": draw_extended(results)} if results.extended else {}
    return figures


def save_figure(figure, path):
    figure.tight_layout()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
