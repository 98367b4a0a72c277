"""What a comparison leaves to look at: means with standard errors, the table, the picture, and example answers.

A run's record is a dict: "summary" {question set: eval_qa.summarise(...), ..., "perplexity": {text: ...}}, and of a
trained one also "trained", "all" (parameters), "lr", "history" and "seconds". `runs` is {method: [record, ...]}, by seed.
"""

import math
import sys
from contextlib import contextmanager
from dataclasses import asdict

import torch

from tools.cli import atomic, beside, printable, write_json, write_lines


def mean_and_error(values):
    """(mean, standard error = sample deviation / sqrt(n)); the error of a single value is NaN."""
    values = torch.tensor([float(value) for value in values], dtype=torch.float64)
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error


def plus_minus(mean, error, scale=100, digits=1):
    """ "mean +- error", both times scale; without the error where there is none (NaN)."""
    return f"{scale * mean:.{digits}f}" + ("" if math.isnan(error) else f" +- {scale * error:.{digits}f}")


def over_seeds(records, questions, key):
    """(mean, standard error) of a summary's value over runs; of one run, its standard error over the questions."""
    summaries = [record["summary"][questions] for record in records]
    if len(summaries) == 1:
        return summaries[0][key], summaries[0][key + "_se"]
    return mean_and_error([summary[key] for summary in summaries])


def aligned(rows):
    """Rows of cells as lines of text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append("   ".join([first.ljust(widths[0]), *cells]))
    return lines


def results_table(untouched, runs, primary, notes=(), with_seconds=True):
    """The results as text: a row a measure, a column for the untouched model's record and for each method's.

    primary: the question set of which more than the accuracy is shown. notes: lines below the table.
    """
    columns = [[untouched], *runs.values()]

    def score_row(title, questions, key, scale=100, digits=1):
        return [title, *(plus_minus(*over_seeds(records, questions, key), scale, digits) for records in columns)]

    firsts = [records[0] for records in runs.values()]
    rows = [
        ["", "untouched", *runs],
        ["trained parameters", "-", *(f"{record['trained']:,}" for record in firsts)],
        ["share of all, %", "-", *(f"{100 * record['trained'] / record['all']:.2f}" for record in firsts)],
        ["learning rate", "-", *(f"{record['lr']:g}" for record in firsts)],
    ]
    for name in (name for name in untouched["summary"] if name != "perplexity"):
        rows.append(score_row(f"{name}, %", name, "acc"))
        if name == primary:
            rows.append(score_row("  per character, %", name, "acc_norm"))
            rows.append(score_row("  exact match, %", name, "exact"))
            rows.append(score_row("  log p(right)", name, "logprob", scale=1, digits=3))
    for name in untouched["summary"]["perplexity"]:
        values = [[record["summary"]["perplexity"][name] for record in records] for records in columns]
        rows.append([f"{name}, perplexity", *(plus_minus(*mean_and_error(some), 1, 3) for some in values)])
    if with_seconds:
        means = [mean_and_error([record["seconds"] for record in records])[0] for records in runs.values()]
        rows.append(["training, seconds", "-", *(f"{mean:.0f}" for mean in means)])
    seeds = len(next(iter(runs.values())))
    unit = f"{seeds} seeds, with the same questions (untouched: over questions)" if seeds > 1 else "questions"
    return "\n".join([*aligned(rows), f"+- one standard error over {unit}", *notes])


@contextmanager
def drawing(name):
    """What goes wrong while a picture is drawn is a line on stderr: a picture never fails a command."""
    try:
        yield
    except Exception as error:
        print(printable(f"note: {name} is not drawn ({type(error).__name__}: {error})", 400), file=sys.stderr)


def draw_comparison(untouched, runs, colors, panels, path):
    """A figure of accuracies: a panel for each of `panels` (title -> question set), a bar a method, the untouched dashed.

    The first panel's set is also drawn over epochs where every run measured it while training, and against the second's
    where every run was measured at several strengths. colors: {method: color}.
    """
    from tools.drawing import plt

    primary, *others = panels.values()
    records = [record for some in runs.values() for record in some]
    curves = all(any(primary in epoch for epoch in some[0]["history"]) for some in runs.values())
    trade = bool(others) and all("strengths" in record for record in records)
    width = len(panels) + curves + trade
    figure, axes = plt.subplots(1, width, figsize=(4.2 * width, 3.6), squeeze=False, sharey=True)
    axes = list(axes[0])
    for ax, (title, name) in zip(axes, panels.items()):
        for x, (method, records) in enumerate(runs.items()):
            mean, error = over_seeds(records, name, "acc")
            ax.bar(x, 100 * mean, yerr=100 * error, capsize=4, width=0.6, color=colors[method])
        ax.set(xticks=range(len(runs)), xticklabels=runs, title=f"{title}\n({name})")
        if len("".join(runs)) > 24:  # side by side the names would overlap
            ax.tick_params(axis="x", rotation=40)
            plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    if trade:
        draw_strengths(axes.pop(), untouched, runs, colors, primary, others[0])
    if curves:
        ax = axes[-1]
        for method, records in runs.items():
            measured = [[epoch for epoch in record["history"] if primary in epoch] for record in records]
            means = [mean_and_error([epoch[primary] for epoch in same])[0] for same in zip(*measured)]
            epochs = [epoch["epoch"] for epoch in measured[0]]
            ax.plot(epochs, [100 * mean for mean in means], "o-", color=colors[method], label=method)
        ax.set(xlabel="epoch", title=f"while training\n({primary})")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=False, fontsize=8)
    for ax, name in zip(axes, [*panels.values(), primary]):
        level = 100 * untouched["summary"][name]["acc"]
        ax.axhline(level, color="black", linestyle="--", linewidth=1)
        ax.annotate(" untouched", (1, level), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes[0].set(ylim=(0, 105), ylabel="accuracy, %")
    figure.tight_layout()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def draw_strengths(ax, untouched, runs, colors, learned, kept):
    """Accuracy on `learned` against that on `kept`: a line a method, from the untouched model through its strengths."""

    def accuracies(summaries):
        return [100 * mean_and_error([summary[name]["acc"] for summary in summaries])[0] for name in (kept, learned)]

    for method, records in runs.items():
        measured = [{0.0: untouched["summary"], 1.0: record["summary"]} for record in records]
        for some, record in zip(measured, records):
            some |= {float(strength): summary for strength, summary in record["strengths"].items()}
        points = [accuracies([some[strength] for some in measured]) for strength in sorted(measured[0])]
        ax.plot(*zip(*points), "o-", color=colors[method], label=method)
    start = accuracies([untouched["summary"]])
    ax.plot(*start, "k*", markersize=11, zorder=3)
    ax.annotate("untouched", start, (6, -10), textcoords="offset points", fontsize=8)
    ax.set(xlabel=f"{kept}, %", title=f"through the strengths\n({learned})")
    ax.legend(frameon=False, fontsize=8)


def examples_text(questions, answers):
    """What was asked and what was answered, as text. answers: {model: [its answer to each question]}; right ones marked."""
    width = max(map(len, answers))
    blocks = []
    for i, question in enumerate(questions):
        right = question.choices[question.answer]
        asked = question.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
        lines = [printable(f"{asked} ({right})")]
        for model, some in answers.items():
            lines.append(f"  {model.ljust(width)}  {printable(some[i])}" + ("  <- right" if some[i] == right else ""))
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def write_scores(path, question_sets, scores):
    """One line a question: its set, subject, attribute, right answer and eval_qa.Score. Both dicts have the same sets."""
    lines = []
    for name, questions in question_sets.items():
        for q, score in zip(questions, scores[name], strict=True):
            line = {"set": name, "subject": q.subject, "attribute": q.attribute, "answer": q.answer}
            lines.append(line | asdict(score))
    write_lines(path, lines)


REPORT_FILES = ("table.txt", "examples.txt", "results.json", "seconds.json", "comparison.png")


def remove_report(out):
    for name in REPORT_FILES:
        with beside(out / name, out):  # so that what a killed process was writing goes too
            (out / name).unlink(missing_ok=True)


def write_report(out, untouched, runs, panels, colors, examples, notes):
    """Write the table, the examples, the numbers behind them and the figure to the folder `out`, then print the texts.

    panels, colors: see draw_comparison; examples, notes: texts, the latter below the table. After an interruption some
    methods have a run more than others: the seeds that all have are reported.
    """
    seeds = min(map(len, runs.values()))
    runs = {method: records[:seeds] for method, records in runs.items()}
    primary = next(iter(panels.values()))
    # All but seconds.json is the same bytes every time.
    texts = {"table.txt": results_table(untouched, runs, primary, notes, with_seconds=False)}
    if examples:
        texts["examples.txt"] = examples
    try:
        for name, text in texts.items():
            with atomic(out / name) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        lasting = {m: [{k: v for k, v in run.items() if k != "seconds"} for run in some] for m, some in runs.items()}
        write_json(out / "results.json", {"untouched": untouched["summary"], "runs": lasting})
        write_json(out / "seconds.json", {method: [run["seconds"] for run in some] for method, some in runs.items()})
    finally:  # where they cannot be written they are at least seen
        print(results_table(untouched, runs, primary, notes) + (f"\n\n{examples}" if examples else ""), flush=True)
    files = "table.txt, results.json, a folder for each method; drawing comparison.png"
    print(f"written to {out}: {files}", file=sys.stderr)
    with drawing(out / "comparison.png"):
        draw_comparison(untouched, runs, colors, panels, out / "comparison.png")
