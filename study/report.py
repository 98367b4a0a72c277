"""The reports: results/README.md of each study, and its tables in study/README.md.

These stand between <!-- study: NAME --> and <!-- end -->; fill_in renews them. The text around them is written by hand.
"""

import re

from study.design import TUNING
from study.stats import matched_by_world, matched_on_means
from study.tables import (
    arms_table,
    comparisons_table,
    cost_line,
    curves_table,
    landing_table,
    missing_line,
    pairs_table,
    primary_line,
    rates_table,
)


def tables_of(results):
    """{name: table or line} that both the README and the report show."""
    design = results.design
    cost, primary = cost_line(results), primary_line(results)
    own = ["new knowledge", *design.kept]
    if design.name:  # two tables: at the arms' own rates, and of whole curves
        pairs = f"{primary}\n\nOf whole curves:\n\n{pairs_table(results, list(design.matched), gains=False)}"
        if chosen := pairs_table(results, own):
            rates = {name: results.rates[name] for pair in design.pairs for name in pair}
            rates = ", ".join(f"{name} {lr:g}" for name, lr in rates.items() if lr)
            pairs += f"\n\nAt one rate each ({rates}):\n\n{chosen}"
        return {"cost": f"{cost} {missing_line(results)}", "arms": arms_table(results, design.arms), "pairs": pairs}
    pairs = f"{primary}\n\n{pairs_table(results, [*own, *design.matched])}"
    return {"cost": cost, "arms": arms_table(results, design.arms), "pairs": pairs}


def marker(design, name):
    """Under which name a design's table stands in the README."""
    return f"{design.name}-{name}" if design.name else name


def readme_tables(results):
    """{name: what stands between the README's markers}."""
    return {marker(results.design, name): table for name, table in tables_of(results).items()}


def check_markers(text, design):
    """Raise ValueError unless a README has the markers of a design's tables: to be asked before hours of runs."""
    fill_in(text, {marker(design, name): "" for name in ("cost", "arms", "pairs")})


def fill_in(text, tables):
    """A README with the tables between its markers. Raises ValueError for a marker that is missing."""
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- study: {name} -->\n)(?:.*?\n)?(<!-- end -->)", re.DOTALL)
        text, found = pattern.subn(lambda match: f"{match[1]}{table}\n{match[2]}", text)
        if found != 1:
            raise ValueError(f"the README needs one <!-- study: {name} --> and after it one <!-- end -->, not {found}")
    return text


REPORT = """# Results of the study

Written by `python -m study` from the records in runs/. {cost}

Worlds {judged} were judged; rates were chosen on worlds {tuning}. A run's seed is its world's number. Means +- one
standard error over worlds; differences with 95% intervals of paired t tests over worlds, verdicts at 5% after Holm's
correction over all {number} comparisons but the first, the primary one (so an interval may leave out zero and the verdict
still be "not resolved"). Gain / gain: ratio of what was learned above the untouched model, with Fieller's 95% interval.

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


CURVES_REPORT = """# Results of `python -m study --{name}`

Written by this command from the records in runs/. {cost}

Worlds {judged} are judged{tuned}. A run's seed is its world's number. Means +- one
standard error over worlds; differences with 95% intervals of paired t tests over worlds, verdicts at 5% after Holm's
correction over all {number} comparisons of the design but the primary one, those to come included (so an interval may leave
out zero and the verdict still be "not resolved"). Of forgetting loss and perplexity less is better. Gain / gain: ratio of
what was learned above the untouched model, with Fieller's 95% interval. *At matched new knowledge*: the mean difference in
height of two arms' curves over learning rates, over the span of new knowledge that both reach; *at matched forgetting
loss*: new knowledge, over the span of forgetting loss. Points of a curve that do not go beyond those of all lower rates
are left out. {how}

## Arms

Arms that are judged at fixed rates have a row for each.

{arms}

![bars](bars.png)

## Pairs

{pairs}

## What learning costs, over learning rates

![frontier](frontier.png)

## Every comparison

{comparisons}
"""


HOW = {
    matched_by_world: "Each world's own curves are compared, where they overlap.",
    matched_on_means: "The curves are means over worlds, and a world's part in the difference is the jackknife's.",
}


def report(results):
    """The text of results/README.md."""
    tuning = results.design.tuning
    numbers = tables_of(results) | {
        "judged": ", ".join(map(str, results.design.judged)),
        "tuning": " and ".join(map(str, tuning or TUNING)) + ("" if tuning else ", before this study"),
        "comparisons": comparisons_table(results),
        "number": len(results.design.comparisons) - 1,
        "how": HOW[results.design.height],
    }
    if results.design.name:
        tuned = f"; rates are chosen on worlds {numbers['tuning']}" if tuning else ""
        text = CURVES_REPORT.format(**numbers, name=results.design.name, tuned=tuned)
    else:
        text = REPORT.format(**numbers, curves=curves_table(results), landing=landing_table(results))
    if tuning and (tried := rates_table(results)):
        text += f"\n## Learning rates\n\nMeans of the tuning worlds.\n\n{tried}\n"
    if results.extended:
        same = "A world is a seed here: text and questions are the same for all, and errors are over seeds alone."
        head = f"Chronicle\n\n{same}" if results.design.name else "Extended\n\n![extended](extended.png)"
        text += f"\n## {head}\n\n{arms_table(results, results.extended)}\n"
    return text
