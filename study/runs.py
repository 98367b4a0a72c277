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
from pathlib import Path

import torch

from data.make_data import OLD_SUBJECTS_REPORTED, ask, old_subjects, old_world, world
from eval_qa import make_question
from gpt import load_pretrained
from gpt.gguf import find_gguf
from lora import count_trainable
from study.analysis import forgetting_loss, landing
from study.design import CONTROL, NEW, NEW_CLOZE, OLD_CLOZE, RETENTION, runs_of
from tools.cli import progress, write_lines
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
def task_for(seed, subjects, judged):
    """What a run learns and is asked: where it is judged, everything; where a rate is chosen, three sets of questions."""
    new = world(seed, subjects)
    sets, texts = {NEW: new["questions"], CONTROL: new["unbound"]}, {}
    if judged:
        old = old_world()
        sets |= {NEW_CLOZE: new["cloze"], RETENTION: old["never_asked"], OLD_CLOZE: old["cloze"]}
        texts = {"old text": old["text"]}
    else:
        sets |= {RETENTION: tuning_retention()}
    return Task(new["corpus"], {name: [make_question(item) for item in items] for name, items in sets.items()}, texts)


def perform(run, task, base, tokenizer):
    """Train and measure: a dict of everything that is reported of a run, without times."""
    model, history = base, []
    if run.arm.method is not None:
        model = copy_for(base, run.arm.method)
        newest = Task([], {NEW: task.question_sets[NEW]}, {})

        def on_epoch(epoch):
            if run.judged and epoch < run.arm.settings.epochs:
                return {NEW: measure(model, tokenizer, newest, run.name)[0][NEW]["acc"]}

        history = adapt(model, tokenizer, task.documents, run.arm.method, run.arm.settings, run.lr, run.world, on_epoch)
    summary, _ = measure(model, tokenizer, task, run.name)
    trained, total = count_trainable(model) if history else (0, sum(p.numel() for p in base.parameters()))
    record = {"trained": trained, "all": total, "history": history, "summary": summary}
    if run.judged:
        record["forgetting loss"] = forgetting_loss(base, model, tokenizer, task.texts["old text"])
        record["landing"] = landing(base, model, run.arm.settings.rank)
    return record


# --- keys and records --------------------------------------------------------------------------------------------------


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def surroundings(model, device):
    """What all runs' numbers depend on beside the run itself: the base model, the numerics, and what computes."""
    path = find_gguf(model) or Path(model)
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in (".json", ".safetensors"))
    return {
        "base": digest("".join(digest(path.read_bytes()) for path in files).encode()),
        "numerics": NUMERICS,
        "torch": torch.__version__,
        "device": f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, one thread",
    }


@functools.cache
def task_digest(seed, subjects, judged):
    """Of the texts and questions of a task, whatever else a Question may hold one day."""
    task = task_for(seed, subjects, judged)
    asked = {name: [[q.prompt, q.choices, q.answer] for q in some] for name, some in task.question_sets.items()}
    return digest(json.dumps([task.documents, asked, task.texts]).encode())


def key_of(run, around):
    """Everything that can change a run's numbers, as JSON gives it back."""
    arm = {"method": run.arm.method, "settings": asdict(run.arm.settings), "subjects": run.arm.subjects}
    what = {"lr": run.lr, "world": run.world, "task": task_digest(run.world, run.arm.subjects, run.judged)}
    return json.loads(json.dumps(arm | what | around))


def record_path(results, run):
    return Path(results) / "runs" / f"{run.name}.json"


def read_record(path):
    """A record, or None where there is no file. Raises ValueError when it is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["key"]["settings"], record["summary"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a run's record: delete it, and it will be made again") from None
    return record


def finder(results, around):
    """find(run) -> the record of a run that was made in the same surroundings, or None."""

    @functools.cache
    def find(run):
        record = read_record(record_path(results, run))
        if record:  # a setting that is younger than the record had its default
            settings = asdict(Settings()) | record["key"]["settings"]
            return record if record["key"] | {"settings": settings} == key_of(run, around) else None

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
    record = perform(run, task_for(run.world, run.arm.subjects, run.judged), worker_base, worker_tokenizer)
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
