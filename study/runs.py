"""The study's runs: train on one world, then ask. One record a run, and whatever stops the study, it goes on where it was.

A record is a small JSON file in results/runs with a key that holds everything its numbers depend on. Each run has one
thread, and as many run side by side as there are cores: the number of workers changes no number.

Reading order: task_for and perform (one run), key_of and NUMERICS (which records count), then the workers.
"""

import functools
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import random
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from data.make_data import OLD_SUBJECTS_REPORTED, ask, old_subjects, old_world, world
from eval_qa import make_question
from gpt import load_pretrained
from lora import count_trainable
from study.analysis import BINS, forgetting_loss, landing
from study.design import CONTROL, NEW, NEW_CLOZE, OLD_CLOZE, RETENTION, TUNING, runs_of
from tools.cli import progress, write_lines
from tools.inputs import fits, is_number, is_text, is_whole, or_null, read_json
from train import Settings, Task, adapt, copy_for, measure

# The version of what computes. Raise it by hand whenever code changes the numbers of a run, be it by a rounding that
# training magnifies: records of another version are then made again. tests/study/test_runs.py notices when it is due.
NUMERICS = 1

# --- one run -----------------------------------------------------------------------------------------------------------


def tuning_retention(subjects=120):
    """Questions on never-asked old subjects that data/old does not ask about, nor any judged run."""
    _, never_asked = old_subjects()
    chosen = never_asked[OLD_SUBJECTS_REPORTED : OLD_SUBJECTS_REPORTED + subjects]
    return ask(chosen, random.Random("retention for tuning"))["questions"]


@functools.cache
def task_for(seed, subjects, tuning):
    """What a run learns and is asked: where rates are chosen (`tuning`) three sets of questions, else everything."""
    new = world(seed, subjects)
    sets, texts = {NEW: new["questions"], CONTROL: new["unbound"]}, {}
    if tuning:
        sets |= {RETENTION: tuning_retention()}
    else:
        old = old_world()
        sets |= {NEW_CLOZE: new["cloze"], RETENTION: old["never_asked"], OLD_CLOZE: old["cloze"]}
        texts = {"old text": old["text"]}
    return Task(new["corpus"], {name: [make_question(item) for item in items] for name, items in sets.items()}, texts)


def task_of(run):
    """Which task_for is a run's."""
    return run.world, run.arm.subjects, run.world in TUNING


def perform(run, task, base, tokenizer):
    """Train and measure: a dict of everything that is reported of a run, without times."""
    judged = run.world not in TUNING
    model, history = base, []
    if run.arm.method is not None:
        model = copy_for(base, run.arm.method)
        newest = Task([], {NEW: task.question_sets[NEW]}, {})

        def on_epoch(epoch):
            if judged and epoch < run.arm.settings.epochs:
                return {NEW: measure(model, tokenizer, newest, run.name)[0][NEW]["acc"]}

        history = adapt(model, tokenizer, task.documents, run.arm.method, run.arm.settings, run.lr, run.world, on_epoch)
    summary, _ = measure(model, tokenizer, task, run.name)
    trained, total = count_trainable(model) if history else (0, sum(p.numel() for p in base.parameters()))
    record = {"trained": trained, "all": total, "history": history, "summary": summary}
    if judged:
        record["forgetting loss"] = forgetting_loss(base, model, tokenizer, task.texts["old text"])
        record["landing"] = landing(base, model, run.arm.settings.rank)
    return record


# --- keys and records --------------------------------------------------------------------------------------------------


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def surroundings(model_folder, device):
    """What all runs' numbers depend on beside the run itself: the base model, the numerics, and what computes."""
    files = sorted(path for path in Path(model_folder).iterdir() if path.suffix in (".json", ".safetensors"))
    return {
        "base": digest("".join(digest(path.read_bytes()) for path in files).encode()),
        "numerics": NUMERICS,
        "torch": torch.__version__,
        "device": f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, one thread",
    }


@functools.cache
def task_digest(*which):
    """Of what task_for(*which) says, whatever else a Question may hold one day."""
    task = task_for(*which)
    asked = {name: [[q.prompt, q.choices, q.answer] for q in some] for name, some in task.question_sets.items()}
    return digest(json.dumps([task.documents, asked, task.texts]).encode())


def describe(run):
    """What a run is, as JSON gives it back: the part of its key that does not depend on where it is made."""
    arm = {"method": run.arm.method, "settings": asdict(run.arm.settings), "subjects": run.arm.subjects}
    return json.loads(json.dumps(arm | {"lr": run.lr, "world": run.world}))


def key_of(run, around):
    """Everything that can change a run's numbers."""
    return describe(run) | {"task": task_digest(*task_of(run))} | around


def record_path(results, run):
    return Path(results) / "runs" / f"{run.name}.json"


share, amount, count = partial(is_number, low=0, high=1), partial(is_number, low=0), partial(is_whole, low=0, high=2**53)
number = or_null(is_number)  # null: training diverged
ASKED = {"acc": share, "exact": share, "logprob": number}
MEASURES = ("amplification", "left_major", "left_minor", "right_major", "right_minor")
KEY = {
    "method": or_null(is_text),
    "settings": lambda settings: fits(settings, {}) and settings.keys() <= asdict(Settings()).keys(),
    "subjects": count,
    "lr": or_null(amount),
    "world": count,
    **dict.fromkeys(("torch", "device"), is_text),
}
RECORD = {  # what every record has...
    "key": KEY,
    "trained": count,
    "history": [{"loss": number}],
    "summary": {name: ASKED for name in (NEW, CONTROL, RETENTION)},
    "seconds": amount,
    "workers": partial(is_whole, low=1, high=2**20),
    **dict.fromkeys(("machine", "finished"), is_text),
}
JUDGED_RECORD = {  # ...and what is reported of a judged world's beside
    "history": lambda history: fits(history[:-1], [{NEW: share}]),
    "summary": {name: ASKED for name in (NEW_CLOZE, OLD_CLOZE)},
    "forgetting loss": number,
    "landing": or_null(
        {
            **dict.fromkeys(("left", "right"), lambda shares: fits(shares, [number]) and len(shares) == BINS),
            "projections": {...: dict.fromkeys(MEASURES, number)},
        }
    ),
}


def read_record(path):
    """A record, or None where there is no file. Raises ValueError when it is not a whole one."""
    if not path.exists():
        return None
    remedy = "delete it, and it will be made again"
    record = read_json(path, remedy)
    if not fits(record, RECORD) or (record["key"]["world"] not in TUNING and not fits(record, JUDGED_RECORD)):
        raise ValueError(f"{path} is not a run's record: {remedy}")
    # a setting that is younger than the record had its default
    record["key"]["settings"] = asdict(Settings()) | record["key"]["settings"]
    if record["key"]["method"] and len(record["history"]) != record["key"]["settings"]["epochs"]:
        raise ValueError(f"{path} is not a run's record, it lacks epochs: {remedy}")
    return record


def check_name(path, record, run):
    """Raise ValueError unless the record, found under the run's name, is of that run: one renamed would be another's."""
    if not describe(run).items() <= record["key"].items():
        raise ValueError(f"{path} is the record of another run than its name says: delete it, and it will be made again")


def finder(results, around):
    """find(run) -> the record of a run that was made in the same surroundings, or None."""

    @functools.cache
    def find(run):
        record = read_record(record_path(results, run))
        return record if record and record["key"] == key_of(run, around) else None

    return find


# --- the workers -------------------------------------------------------------------------------------------------------


def start_worker(model_folder, device):
    """In each process: one thread, no chatter, and no life of its own after the study's."""
    global worker_base, worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    parent = multiprocessing.parent_process().sentinel
    # a study that is killed leaves no process behind
    threading.Thread(target=lambda: multiprocessing.connection.wait([parent]) and os._exit(1), daemon=True).start()
    sys.stderr = open(os.devnull, "w")
    torch.set_num_threads(1)
    worker_base, worker_tokenizer = load_pretrained(model_folder, device=device)


def work(run):
    """In a worker: perform a run and time it."""
    began = time.monotonic()
    record = perform(run, task_for(*task_of(run)), worker_base, worker_tokenizer)
    return record | {"seconds": round(time.monotonic() - began, 1)}


def perform_all(runs, results, workers, model_folder, device, around):
    """Perform runs side by side; write each one's record as soon as it is done."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (str(model_folder), device))
    try:
        futures = {pool.submit(work, run): run for run in runs}
        for future in progress(as_completed(futures), f"runs ({workers} at once)", total=len(runs)):
            run = futures[future]
            extra = {"machine": machine, "workers": workers, "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_lines(record_path(results, run), [{"key": key_of(run, around), **future.result(), **extra}])
    except BrokenProcessPool:
        raise ValueError("a worker died, perhaps for lack of memory: use fewer --workers; the study goes on") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():  # idle by now, but for Ctrl-C: what they are at is lost
            process.terminate()


def run_missing(design, results, workers, model_folder, device):
    """Perform what has no record yet, stage after stage: what the next stage asks for depends on what this one gave."""
    around = surroundings(model_folder, device)
    while runs := runs_of(design, finder(results, around)):
        stale = sum(record_path(results, run).exists() for run in runs)
        print(
            f"{len(runs)} runs to do, about {len(runs) * 32 / workers / 60:.0f} minutes on cores like ours"
            + (f"; {stale} of them were made otherwise or elsewhere and are made again" if stale else ""),
            file=sys.stderr,
        )
        perform_all(runs, results, workers, model_folder, device, around)
