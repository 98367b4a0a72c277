"""The reports: results/README.md of each study, and the table of answers in study/README.md."""

from study.design import TUNING
from study.tables import (
    arms_table,
    comparisons_table,
    cost_line,
    curves_table,
    interval,
    landing_table,
    markdown,
    missing_line,
    pairs_table,
    primary_line,
    rates_table,
)

HEAD = """# Results of `python -m study{flag}`

Written by this command from the records in runs/. {cost} {missing}

Worlds {judged} are judged{tuned}; a run's seed is its world's number. Means +- one standard error over worlds;
differences with 95% intervals (t over worlds); verdicts at 5% after Holm's correction over all {number} comparisons of the
design but the primary one, those to come included (so an interval may leave out zero and the verdict still be "not
resolved"). Of forgetting loss and perplexity less is better. Gain / gain: ratio of what was learned above the untouched model,
with Fieller's 95% interval. *At matched new knowledge* (or whatever stands in its place): the difference in height of two
arms' mean curves over learning rates, over the span of it that both reach; points that do not go beyond those of all
lower rates do not count, and the interval is the bootstrap's over worlds. *A look* was thought of when the records were
known: it is not corrected, and has no verdict.
"""

LANDING = """Amplification: how many times larger the change is than what W does between the change's first singular vectors.
Similarity of those vectors (as many as the rank) with W's major and minor ones: 1 is the same subspace, rank / width by
chance.
"""

STRENGTHS = """A taught model is turned down, W + strength * change, so that each run is a curve of what is learned against what is
kept. New knowledge is read off each world's curve where it first falls to the level, between two strengths by a straight
line, and at strength 1 where it never does; *halfway* is between the untouched model's forgetting loss and, on the same
world, LoRA's at its lower rate. Of an arm's two rates a world has the one that does best on the other worlds.
"""

CHRONICLE = "A world is a seed here: text and questions are the same for all, and errors are over seeds alone."


def pairs_of(results):
    """The pairs' tables: of whole curves, and at each arm's own rate."""
    design = results.design
    found = [primary_line(results)]
    if curves := pairs_table(results, [*design.matched, *design.looks, *design.levels], gains=False):
        found += ["Of whole curves:", curves]
    if not design.levels and (chosen := pairs_table(results, ["new knowledge", *design.kept])):
        paired = dict.fromkeys(name for pair in design.pairs for name in pair)
        rates = ", ".join(f"{name} {results.rates[name]:g}" for name in paired if results.rates.get(name))
        found += [f"At one rate each ({rates}; {design.how}):", chosen]
    return "\n\n".join(found)


def report(results):
    """The text of results/README.md."""
    design = results.design
    worlds = " and ".join(map(str, design.tuning or TUNING))
    text = HEAD.format(
        flag=f" --{design.name}" if design.name else "",
        cost=cost_line(results),
        missing=missing_line(results),
        judged=", ".join(map(str, design.judged)),
        tuned=f"; rates were chosen on worlds {worlds}" if design.tuning else "",
        number=len(design.comparisons) - 1,
    )
    landing = f"{LANDING}\n{landing_table(results)}\n\n![landing](landing.png)" if design.landing else ""
    extended = results.extended and arms_table(results, results.extended)
    sections = {
        "Arms": f"{arms_table(results, design.arms)}\n\n![bars](bars.png)",
        "Pairs": pairs_of(results),
        "What learning costs": (
            f"{STRENGTHS if design.strengths else ''}\n{curves_table(results)}\n\n![frontier](frontier.png)"
        ).strip(),
        "While training": design.landing and "![epochs](epochs.png)",
        "What was learned against what was trained": design.landing and "![parameters](parameters.png)",
        "Where the change lies": landing,
        "Learning rates": design.tuning and rates_table(results),
        "Extended": extended and design.landing and f"![extended](extended.png)\n\n{extended}",
        "Chronicle": extended and not design.landing and f"{CHRONICLE}\n\n{extended}",
        "Every comparison": comparisons_table(results),
    }
    return "\n".join([text, *(f"## {title}\n\n{section}\n" for title, section in sections.items() if section)])


# --- the table of answers ----------------------------------------------------------------------------------------------

QUESTIONS = {  # the pair of arms that answers it
    "MiCA or LoRA?": ("mica", "lora"),
    "Minor directions, or random ones?": ("mica-random", "mica"),
    "Random directions, or LoRA?": ("mica-random", "lora"),
    "Major directions?": ("mica-major", "mica"),
    "B trained too?": ("mica-trained", "mica"),
    "A frozen in its place?": ("lora-fa", "mica"),
    "All weights trained?": ("full", "lora"),
    "MiLoRA?": ("milora", "lora"),
    "PiSSA?": ("pissa", "lora"),
}
TO_ASK = (
    "MiCA or LoRA?",
    "Minor directions, or random ones?",
    "All weights trained?",
)  # again, on real weights left whole


def answer(results, suffix, pair, column):
    """A cell: the comparison at equal learning or keeping, where there is one, else (*) at the rates chosen for each arm."""
    names = [name + suffix if name + suffix in results.arms else name for name in pair]
    known, equal = results.comparisons | results.looks, f"{column} at matched new knowledge"
    if column == "new knowledge" and results.design.levels:
        equal = next(iter(results.design.levels))
    for title, mark in ((equal, ""), (column, " *")):
        if comparison := known.get((*names, title)):
            return interval(comparison) + mark
    return ""


def answers(toy, strengths, qv, real):
    """The table of answers of the studies' Results: a row a question and measure, a column a setting."""
    settings = {
        "toy, all linears": (toy, ""),
        "the same, all turned down until they keep 95%": (strengths, ""),
        "toy, q and v": (qv, ""),
        "real, q and v, *ruined*": (real, ""),
        "real, all linears, *ruined*": (real, " all linears"),
    }
    rows = [["question", "first - second", "measure", *settings, "real, whole"]]
    for question, pair in QUESTIONS.items():
        for measure in ("new knowledge, points", "kept, points", "forgetting loss, nats"):
            what = measure.partition(",")[0]
            columns = [results.design.retention if what == "kept" else what for results, _ in settings.values()]
            cells = [answer(*where, pair, column) for where, column in zip(settings.values(), columns)]
            head = [f"**{question}**", " - ".join(pair)] if what == "new knowledge" else ["", ""]
            rows.append([*head, measure, *cells, "to be asked" if question in TO_ASK else ""])
    return markdown(rows)


def fill_in(text, table):
    """A README with the table of answers between its markers. Raises ValueError where it has none."""
    before, mark, rest = text.partition("<!-- answers -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError("the README needs a line <!-- answers --> and after it one <!-- end -->")
    return f"{before}{mark}{table}\n{end}{after}"
