"""The folder of a comparison: what made it, what is finished, the report.

    config.json         the command's arguments, and all that its numbers depend on ("made from")
    METHOD/seedN/       a finished run: its record, its scores, and the adapter or model; it comes as a whole
    untouched.jsonl     the base's scores
    own_text_N.jsonl    what the base wrote to rehearse (rehearsal.py)
    table.txt, ...      the report (tools/report.py); all but the seconds are the same bytes every time

The same command goes on with the runs that are missing. After a change of settings, data or code the folder is that of
another comparison: it is renamed to out.1, or the next number that is free, and a new one begins.
"""

import itertools
import json
import math
import random
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from adapter_io import save_trained, write_card
from fast import ranks
from tools.cli import (
    alone,
    check_apart,
    check_writable,
    digest,
    digest_of_files,
    remove,
    whole_folder,
    write_json,
    write_lines,
)  # fmt: skip
from tools.reading import read_documents, table_name
from tools.report import REPORT_FILES, examples_text, plus_minus, remove_report, write_report, write_scores
from tools.schema import build, parse_json, read_text, reading

CONFIG, RUN, SECONDS = "config.json", "run.json", "seconds.json"
ROOT = Path(__file__).resolve().parent


def digest_of_code(*rooms):
    """Of what computes and writes: after an edit, earlier runs are no longer what this code gives."""
    files = [file for room in ("", "gpt", "fast", "tools", *rooms) for file in sorted((ROOT / room).glob("*.py"))]
    return digest([file.read_text(encoding="utf-8") for file in files])


@dataclass(frozen=True)
class Record:
    """What the report needs of a run's record; null: not finite."""

    lr: float
    trained: int
    all: int
    history: list[dict[str, float | None]]
    summary: dict[str, dict[str, float | None]]
    strengths: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """run.json."""

    record: Record
    answers: list[str]


def read_run(folder, summary, asked):
    """(record with its seconds, answers) of a finished run. Raises ValueError when its files are damaged.

    summary: of another model on the same task, which has the same keys; asked: the number of answers, or none of them.
    """

    def with_nan(value):  # JSON has null for what is not finite
        if isinstance(value, dict):
            return {key: with_nan(item) for key, item in value.items()}
        if isinstance(value, list):
            return [with_nan(item) for item in value]
        return math.nan if value is None else value

    def keys(summary):
        return {name: some.keys() for name, some in summary.items()}

    with reading(folder, "finished run (remove it, and it will be made again)"):
        run, seconds = (parse_json(read_text(folder / name), name) for name in (RUN, SECONDS))
        checked = build(Run, run)
        for measured in (checked.record.summary, *checked.record.strengths.values()):
            if keys(measured) != keys(summary):
                raise ValueError("it does not have the results of these questions and texts")
        if len(checked.answers) not in (0, asked):
            raise ValueError(f"it has {len(checked.answers)} answers to {asked} questions")
        return with_nan(run["record"]) | {"seconds": float(seconds)}, checked.answers


def earlier_config(out):
    """What config.json says of what is in a folder: {} where there is nothing of ours. ValueError where it is another's."""
    if not any((out / name).exists() for name in (CONFIG, *REPORT_FILES)):
        return {}
    try:
        config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or "method" not in config:
        raise ValueError(f"{out} holds files that this program did not make: give another --out")
    return config


def set_aside(out, made_from):
    """Rename an earlier comparison, and say so; text that the same model wrote comes along to the new one."""
    earlier = earlier_config(out).get("made from", {})
    aside = next(path for n in itertools.count(1) if not (path := out.with_name(f"{out.name}.{n}")).exists())
    out.rename(aside)
    changed = [name for name in made_from if earlier.get(name) != made_from[name]]
    print(f"{out} was made with another {', '.join(changed)}: it is kept as {aside}", file=sys.stderr)
    out.mkdir()
    if earlier.get("model (digest)") == made_from["model (digest)"]:
        for path in aside.glob("own_text_*.jsonl"):
            shutil.copy(path, out)


@contextmanager
def opened(args, task, settings, folder, device, methods):
    """The Comparison of a command's arguments; when it is left, for whatever reason, what is finished is reported.

    folder: the model's; methods: train.METHODS. Of several processes only the first reads and writes the folder.
    """
    here = Comparison(args, task, methods, folder)
    if not ranks.first():
        yield here
        return
    out, read = here.out, [folder, *args.corpus, *args.qa, *args.retention, args.primer, *args.text]
    written = [out / name for name in (CONFIG, "untouched.jsonl", *REPORT_FILES, *methods)]
    check_apart(written, [*read, None if args.rehearse.isdecimal() else args.rehearse])
    host = dict(torch=torch.__version__, device=str(device), threads=torch.get_num_threads(), processes=ranks.count())
    made_from = asdict(settings) | host
    made_from |= {name: getattr(args, name) for name in ("lr", "dtype", "eval_every", "examples", "strengths")}
    rehearse = args.rehearse if args.rehearse.isdecimal() else digest(read_documents(args.rehearse))
    made_from |= {"rehearse": rehearse, "model (digest)": digest_of_files(folder), "code (digest)": digest_of_code()}
    made_from["corpus, questions or text (digest)"] = digest(task)
    made_from = json.loads(json.dumps(made_from))  # as it will be read
    check_writable(out)
    with alone(out.with_name(f".{out.name}.lock"), out):
        earlier = earlier_config(out)
        if earlier and earlier.get("made from") != made_from:
            set_aside(out, made_from)
        for left in [*out.glob("*/.seed*.tmp"), *out.glob("*/.seed*.lock")]:  # by processes that were killed
            remove(left)
        remove_report(out)  # an earlier one would not be this command's if it is interrupted
        write_json(out / CONFIG, vars(args) | host | {"made from": made_from})
        try:
            yield here
        except BaseException:
            if here.runs:
                print("not finished: reporting the runs that are; the same command goes on from here", file=sys.stderr)
                here.report()
            raise


class Comparison:
    def __init__(self, args, task, methods, folder):
        self.args, self.task, self.methods, self.folder = args, task, methods, folder
        self.out = Path(args.out).resolve()
        self.asked, self.answers = [], {}  # example questions; {model: [its answer to each]}
        self.base, self.runs, self.diverged = {}, {}, []  # runs: {method: [record of each seed]}

    def texts(self, name, make):
        """Texts (strings) that are made once, by make(), and kept in a file of that name."""

        path = self.out / name
        if not ranks.from_first(path.exists):
            texts = make()
            if ranks.first():
                write_lines(path, [{"text": text} for text in texts])
        return ranks.from_first(lambda: read_documents(path))

    def examples(self, model, tokenizer):
        """The questions whose answers are shown: drawn from the first set, as far as they fit the model's context."""
        candidates = next(iter(self.task.question_sets.values()))
        asked = random.Random(0).sample(candidates, min(self.args.examples, len(candidates)))
        room = model.config.context_length - 1
        self.asked = [question for question in asked if len(tokenizer.encode(question.prompt)) < room]
        return self.asked

    def untouched(self, summary, scores, answers):
        self.base, self.answers["untouched"] = {"summary": summary}, answers
        if ranks.first():
            write_scores(self.out / "untouched.jsonl", self.task.question_sets, scores)

    def has(self, method, seed):
        """Whether a run is finished; if so it is part of the report."""
        folder = self.out / method / f"seed{seed}"
        found = ranks.from_first(lambda: (folder / RUN).exists())
        if not found and ranks.from_first(folder.exists):
            raise ValueError(f"{folder} is not a run of this program: move it away, or give another --out")
        if found and ranks.first():
            print(f"{method}, seed {seed}: finished before, read from {folder}", file=sys.stderr)
            self.add(method, seed)
        return found

    def keep(self, method, seed, model, tokenizer, scores, record, answers):
        """Write a run's folder, which gets its name when it is whole."""
        if not ranks.first():
            return
        folder = self.out / method / f"seed{seed}"
        with whole_folder(folder, is_ours=lambda earlier: (earlier / RUN).exists()) as new:
            write_json(new / SECONDS, record.pop("seconds"))
            write_json(new / RUN, {"record": record, "answers": answers})
            write_lines(new / "metrics.jsonl", record["history"])
            write_scores(new / "scores.jsonl", self.task.question_sets, scores)
            if "diverged" not in record:
                save_trained(model, tokenizer, new, self.args.model, self.folder)
                if (new / "adapter").exists():
                    write_card(new / "adapter", self.args.model, self.facts(method, record))
        self.add(method, seed)

    def facts(self, method, record):
        """What a model card says of a run."""
        made = {"method": method, "rank": self.args.rank, "learning rate": record["lr"], "seed": record["seed"]}
        made["corpus (digest)"] = digest(self.task.documents)
        shares = {name: record["summary"][name] for name in self.task.question_sets}
        return made | {f"{name}, %": plus_minus(some["acc"], some["acc_se"]) for name, some in shares.items()}

    def add(self, method, seed):
        folder = self.out / method / f"seed{seed}"
        record, answers = read_run(folder, self.base["summary"], len(self.asked))
        if "diverged" in record:
            self.diverged.append(f"{method}, seed {seed}: diverged, not saved; use a smaller --lr")
        self.runs.setdefault(method, []).append(record)
        if seed == self.args.seed:
            why = "(diverged)" if "diverged" in record else "(not asked)"
            self.answers[method] = answers or [why] * len(self.asked)

    def report(self, notes=()):
        panels = {"new knowledge": table_name(self.args.qa[0])}
        if self.args.retention:
            panels["retention"] = table_name(self.args.retention[0])
        colors = {method: self.methods[method].color for method in self.runs}
        examples = examples_text(self.asked, self.answers)
        write_report(self.out, self.base, self.runs, panels, colors, examples, [*notes, *self.diverged])

    def finished(self, notes):
        """Report all runs; exit code 3, neither well nor refused, where one diverged."""
        if ranks.first():
            self.report(notes)
            if self.diverged:
                sys.exit(3)
