"""The study's runs: train on one world, then ask. One record a run, and whatever stops the study, it goes on where it was.

A record is a small JSON file in results/runs with a key that holds everything its numbers depend on. Each run has one
thread, and as many run side by side as there are cores: that changes no number.

Reading order: perform (one run), key_of and NUMERICS (which records count), then the workers.
"""

import functools
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from gpt import find_model, load_pretrained
from lora import count_trainable
from study.analysis import forgetting_loss, landing
from study.design import CONTROL, NEW, RETENTION, runs_of
from tools.cli import progress, write_lines
from tools.schema import build, fit, read_json, reading
from train import Settings, Task, adapt, at_strength, copy_for, measure

# The version of what computes. Raise it by hand whenever code changes the numbers of a run, be it by a rounding that
# training magnifies: records of another version are then made again. tests/study/test_runs.py notices when it is due.
NUMERICS = 1
REMEDY = "delete it, and it will be made again"  # of a record that cannot be used

# --- one run -----------------------------------------------------------------------------------------------------------


def perform(design, run, task, base, tokenizer):
    """Train and measure: a dict of everything that is reported of a run, without times."""
    model, history = base, []
    if design.get_ready:
        design.get_ready(base, tokenizer)
    if run.arm.method is not None:
        model = copy_for(base, run.arm.method)
        newest = Task([], {NEW: task.question_sets[NEW]}, {})

        def on_epoch(epoch):
            if run.judged and design.landing and epoch < run.arm.settings.epochs:
                return {NEW: measure(model, tokenizer, newest, run.name)[0][NEW]["acc"]}

        settings, lr = run.arm.settings, run.lr
        history = adapt(model, tokenizer, task.documents, run.arm.method, settings, lr, run.world, on_epoch=on_epoch)
    summary, _ = measure(model, tokenizer, task, run.name)
    trained, total = count_trainable(model) if history else (0, sum(p.numel() for p in base.parameters()))
    record = {"trained": trained, "all": total, "history": history, "summary": summary}
    if run.judged:
        record["forgetting loss"] = forgetting_loss(base, model, tokenizer, task.texts[design.text])
        record["landing"] = landing(base, model, run.arm.settings.rank) if design.landing else None
    if history and design.strengths:
        record["strengths"], asked = {}, {k: v for k, v in task.question_sets.items() if k != CONTROL}
        for strength in design.strengths:
            with at_strength(model, base, strength):
                turned = {"summary": measure(model, tokenizer, Task([], asked, task.texts), run.name)[0]}
                turned["forgetting loss"] = forgetting_loss(base, model, tokenizer, task.texts[design.text])
            record["strengths"][f"{strength:g}"] = turned
    return record


# --- keys and records --------------------------------------------------------------------------------------------------


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def surroundings(model, device):
    """What all runs' numbers depend on beside the run itself: the base model, the numerics, and what computes."""
    path = Path(model)
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in (".json", ".safetensors"))
    return {
        "base": digest("".join(digest(path.read_bytes()) for path in files).encode()),
        "numerics": NUMERICS,
        "torch": torch.__version__,
        "device": f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, one thread",
    }


def task_of(run):
    """What a design's `task` is asked for: (world, subjects, texts, whether it is judged)."""
    return run.world, run.arm.subjects, run.arm.texts, run.judged


@functools.cache
def task_digest(task_for, *which):
    """Of the texts and questions of a task, whatever else a Question may hold one day."""
    task = task_for(*which)
    asked = {name: [[q.prompt, q.choices, q.answer] for q in some] for name, some in task.question_sets.items()}
    return digest(json.dumps([task.documents, asked, task.texts]).encode())


def describe(run):
    """What a run is, as JSON gives it back: the part of its key that does not depend on where it is made."""
    arm = {"method": run.arm.method, "settings": asdict(run.arm.settings), "subjects": run.arm.subjects}
    return json.loads(json.dumps(arm | {"lr": run.lr, "world": run.world}))


def key_of(design, run, around):
    """Everything that can change a run's numbers."""
    return describe(run) | {"task": task_digest(design.task, *task_of(run))} | around


def record_path(results, run):
    return Path(results) / "runs" / f"{run.name}.json"


@dataclass(frozen=True)
class Key:
    """What of a record's key is read; None where the model is untouched."""

    method: str | None
    settings: dict
    subjects: int
    lr: float | None
    world: int
    torch: str
    device: str


@dataclass(frozen=True)
class Asked:
    """Of a question set; the log-probability is None where training diverged."""

    acc: float
    exact: float
    logprob: float | None


@dataclass(frozen=True)
class Record:
    """The shape of a record, for tools.schema. Its "forgetting loss" and "strengths" are read in check_record."""

    key: Key
    trained: int
    history: list[dict[str, float | None]]
    summary: dict[str, dict[str, float | None]]
    seconds: float
    workers: int
    machine: str
    finished: str
    landing: dict | None = None


def read_record(path):
    """A record, a dict, or None where there is no file. Raises ValueError when it is not a whole one."""
    if not path.exists():
        return None
    with reading(path, "run's record", REMEDY):
        record = read_json(path, REMEDY)
        build(Record, record), build(Asked, record["summary"][NEW])
        # a setting that is younger than the record had its default
        record["key"]["settings"] = asdict(Settings()) | record["key"]["settings"]
        if record["key"]["method"] and len(record["history"]) != record["key"]["settings"]["epochs"]:
            raise ValueError("it lacks epochs")
        if record["workers"] < 1:
            raise ValueError('"workers" must be at least 1')
    return record


def check_record(path, record, design, run):
    """Raise ValueError unless the record, found under the run's name, is of that run and has what the design reports.

    One that was renamed, or copied under another name, would be published as another's.
    """
    with reading(path, "record of a judged run" if run.judged else "run's record", REMEDY):
        if not describe(run).items() <= record["key"].items():
            raise ValueError("it is the record of another run than its name says")
        if not run.judged:
            return
        parts = {part for part, key in design.columns.values() if key in ("acc", "exact", "logprob")}
        parts = parts if run.arm.subjects else {NEW, RETENTION}  # of the chronicle less is asked
        turned = [record["strengths"][f"{strength:g}"] for strength in design.strengths if run.arm.method]
        for measured, asked in [(record, parts), *((one, parts - {CONTROL}) for one in turned)]:
            fit(measured["forgetting loss"], float | None, "forgetting loss")
            for part in asked:
                found = build(Asked, measured["summary"][part])
                if not 0 <= found.acc <= 1 or not 0 <= found.exact <= 1:
                    raise ValueError(f'"{part}" has a share that is not between 0 and 1')


def finder(design, results, around):
    """find(run) -> the record of a run that was made in the same surroundings, or None."""

    @functools.cache
    def find(run):
        record = read_record(record_path(results, run))
        return record if record and record["key"] == key_of(design, run, around) else None

    return find


# --- the workers -------------------------------------------------------------------------------------------------------


def start_worker():
    """In each process of ours: no chatter, and no life of its own after the study's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    parent = multiprocessing.parent_process().sentinel
    # a study that is killed leaves no process behind
    threading.Thread(target=lambda: multiprocessing.connection.wait([parent]) and os._exit(1), daemon=True).start()
    sys.stderr = open(os.devnull, "w")


@functools.cache
def load_once(model, device):
    return load_pretrained(find_model(model), device=device)


def work(design, run, model, device):
    """In a worker: perform a run and time it."""
    torch.set_num_threads(1)
    base, tokenizer = load_once(model, device)
    began = time.monotonic()
    record = perform(design, run, design.task(*task_of(run)), base, tokenizer)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return record | {"seconds": round(time.monotonic() - began, 1), "machine": machine}


@contextmanager
def processes(workers):
    """An executor of so many processes on this machine."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    try:
        yield pool
    except BrokenProcessPool:
        raise ValueError("a worker died, perhaps for lack of memory: use fewer --workers; the study goes on") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():  # idle by now, but for Ctrl-C: what they are at is lost
            process.terminate()


def perform_all(design, runs, results, pool, workers, model, device, around):
    """Perform runs side by side in an executor; write each one's record as soon as it is done."""
    futures = {pool.submit(work, design, run, model, device): run for run in runs}
    for future in progress(as_completed(futures), f"runs ({workers} at once)", total=len(runs)):
        run = futures[future]
        extra = {"workers": workers, "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_lines(record_path(results, run), [{"key": key_of(design, run, around), **future.result(), **extra}])


def run_missing(design, results, workers, model, device):
    """Perform what has no record yet, until nothing more can be named: rates are chosen by what tuning gave.

    model: as find_model takes it.
    """
    around = surroundings(find_model(model), device)
    while runs := runs_of(design, finder(design, results, around)):
        stale = sum(record_path(results, run).exists() for run in runs)
        print(
            f"{len(runs)} runs to do, about {len(runs) * design.seconds / workers / 60:.0f} minutes on cores like ours"
            + (f"; {stale} of them were made otherwise or elsewhere and are made again" if stale else ""),
            file=sys.stderr,
        )
        with processes(workers) as pool:
            perform_all(design, runs, results, pool, workers, model, device, around)
