"""The study: every method at rates chosen on two worlds, judged on eight others, with one record a run.

    python study.py && python figures.py     # the whole; then its tables and pictures
    python study.py --quick                  # ten minutes: three worlds, at train.py's default rates, nothing tuned
    python study.py --extended               # ranks, numbers of facts, which linears, epochs (after the whole)

The design below was fixed before the first judged run. A run is train.adapt on one world, then questions; its record is
a small JSON file in results/runs with a key that holds everything its numbers depend on, so whatever stops the study,
the same command goes on where it was. Each run has one thread, and as many run side by side as there are cores: the
number of workers changes no number.

Reading order: the design, runs_of (what is to be run, as far as results tell), perform (one run), then the program.
"""

import ast
import functools
import hashlib
import inspect
import json
import math
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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import analysis
import eval_qa
import gpt.model
import gpt.tokenizer
import gpt.weights
import lora
import mica
import milora
import train
from data.make_data import old_world, world
from data.tune import CONTROL, NEW, RETENTION, task_of, tuning_retention
from eval_qa import make_question
from gpt import load_pretrained
from gpt.cli import Parser, check_writable, one_sentence_errors, pick_device, progress
from lora import count_trainable
from train import ALL, METHODS, Settings, Task, adapt, copy_for, measure, write_lines

NEW_CLOZE, OLD_CLOZE = "new cloze", "old cloze"  # with NEW, CONTROL and RETENTION, what judged runs are asked

# --- the design --------------------------------------------------------------------------------------------------------

TUNING = (101, 102)  # worlds that choose learning rates; never judged
JUDGED = (1, 2, 3, 4, 5, 6, 7, 8)  # never tuned on; a run's seed is its world's number, the same for every arm
STEPS = (1, 1.5, 2, 3, 5, 7)  # learning rates tried are these times a power of ten


@dataclass(frozen=True)
class Arm:
    """What is compared: a method with its settings, and which learning rates are tried."""

    name: str
    method: str | None  # of train.METHODS; None: the untouched base
    settings: Settings = Settings()
    rates: int = 0  # how many are tried, around `lr`; 0: the rate is not tuned
    lr: float | None = None  # None: the method's default in train.py
    follows: tuple[str, float] | None = None  # the rate is that of this arm, times this
    subjects: int = 40  # of a kind, in the new world: 40 are 720 facts


QV = ("q_proj", "v_proj")
MAIN = [Arm(name, name, rates=5) for name in ALL]
ABLATIONS = [Arm(name, name, rates=4) for name in METHODS if name not in ALL]
OTHERS = [
    Arm("mica rank 16", "mica", Settings(rank=16), rates=4),  # nearly LoRA's number of trained parameters
    Arm("mica q v", "mica", Settings(targets=QV), rates=4, lr=3e-2),  # the paper's linears
    Arm("lora q v", "lora", Settings(targets=QV), rates=4, lr=1e-2),
    Arm("mica by rule", "mica", Settings(rank=4), follows=("lora", 2)),  # half of LoRA's rank, twice its rate
]
ARMS = [Arm("untouched", None), *MAIN, *ABLATIONS, *OTHERS]
CURVE = (-4, -2, 0, 2)  # main arms are judged at these steps from the chosen rate too: new knowledge against retention

# What is compared, world by world: the difference first - second, with a paired t interval. The first pair's new knowledge
# is the primary comparison; Holm's correction is over all the others, of every pair and endpoint.
PAIRS = [
    ("mica", "lora"),
    *((name, "lora") for name in ("milora", "pissa", "full", "mica rank 16", "mica by rule")),
    ("mica q v", "lora q v"),
    *((arm.name, "mica") for arm in ABLATIONS),
]
ENDPOINTS = {  # title: (question set or text, what of it)
    "new knowledge": (NEW, "acc"),
    "never asked": (RETENTION, "acc"),
    "log p": (NEW, "logprob"),
    "exact match": (NEW, "exact"),
    "new cloze": (NEW_CLOZE, "acc"),
    "old cloze": (OLD_CLOZE, "acc"),
    "forgetting loss": ("forgetting loss", None),
}
# And retention at matched acquisition, for the main methods against LoRA. On each world a method's curve is the polygon
# through (new knowledge, never asked) at its rates, lowest first, up to the rate that learns most. The endpoint is the
# mean difference in height of two curves over the span of new knowledge that both reach; no span, no value.

# --extended, at the rates chosen above, on the first EXTENDED_WORLDS of the judged worlds
EXTENDED_WORLDS = 4
EXTENDED = [
    *(
        Arm(f"{method} {epochs} epochs", method, Settings(epochs=epochs), follows=(method, 1))
        for epochs in (1, 2, 8, 16)  # each with a schedule of its own
        for method in ("mica", "lora", "mica-random")
    ),
    *(Arm(f"lora rank {rank}", "lora", Settings(rank=rank), follows=("lora", 1)) for rank in (2, 4, 16, 32)),
    *(Arm(f"mica rank {rank}", "mica", Settings(rank=rank), follows=("mica", 1)) for rank in (2, 4, 32)),
    *(Arm(f"mica by rule {rank}", "mica", Settings(rank=rank), follows=("lora", 2)) for rank in (2, 8, 16)),
    *(
        Arm(f"{method} {subjects} subjects", method, follows=(method, 1), subjects=subjects)
        for subjects in (10, 20, 80)
        for method in ("mica", "lora")
    ),
    *(
        Arm(f"{method} {part}", method, Settings(targets=targets), follows=(method, 1))
        for part, targets in {
            "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
            "mlp": ("gate_proj", "up_proj", "down_proj"),
        }.items()
        for method in ("mica", "lora")
    ),
]


@dataclass(frozen=True)
class Design:
    arms: tuple[Arm, ...]
    tuning: tuple[int, ...]  # worlds; none: every arm has its default rate
    judged: tuple[int, ...]
    curve: tuple[int, ...] = ()
    extended: tuple[Arm, ...] = ()


FULL = Design(tuple(ARMS), TUNING, JUDGED, CURVE)
QUICK = Design((ARMS[0], *MAIN, *ABLATIONS), (), JUDGED[:3])
EXTENDED_DESIGN = Design(tuple(ARMS), TUNING, JUDGED, CURVE, tuple(EXTENDED))


def step_from(lr, steps):
    """The rate so many STEPS above (or below) lr, which is one itself."""
    power = math.floor(math.log10(lr) + 1e-9)
    index = [round(step, 3) for step in STEPS].index(round(lr / 10**power, 3)) + steps
    return float(f"{STEPS[index % len(STEPS)]}e{power + index // len(STEPS)}")


def grid(arm):
    """The rates tried first: one step apart, the default in their middle (of an even number, the lower middle)."""
    below = (arm.rates - 1) // 2
    lr = arm.lr or METHODS[arm.method].lr
    return [step_from(lr, i - below) for i in range(arm.rates)]


@dataclass(frozen=True)
class Run:
    """One run: an arm at one rate on one world."""

    arm: Arm
    lr: float | None
    world: int

    @property
    def name(self):
        rate = "" if self.lr is None else f"_{self.lr:g}"
        return f"{self.arm.name.replace(' ', '-')}{rate}_world{self.world}"


def tuning_score(record):
    """What a rate is chosen by: as much learned and as much kept as can be, (new + never-asked) / 2."""
    return (record["summary"][NEW]["acc"] + record["summary"][RETENTION]["acc"]) / 2


def tune(arm, worlds, find):
    """(rates tried, the chosen one or None, runs still missing) of an arm. A best rate at an edge extends the grid."""
    rates = grid(arm)
    while True:
        runs = {lr: [Run(arm, lr, seed) for seed in worlds] for lr in rates}
        missing = [run for some in runs.values() for run in some if find(run) is None]
        if missing:
            return rates, None, missing
        best = max(rates, key=lambda lr: sum(tuning_score(find(run)) for run in runs[lr]))
        if best == rates[0]:
            rates = [step_from(best, -1), *rates]
        elif best == rates[-1]:
            rates = [*rates, step_from(best, 1)]
        else:
            return rates, best, []


def chosen_rates(design, find):
    """({arm's name: its rate}, tuning runs still missing). The rates are complete once nothing is missing."""
    rates, missing = {}, []
    for arm in (*design.arms, *design.extended):
        if arm.method is None:
            rates[arm.name] = None
        elif arm.follows:
            name, factor = arm.follows
            rates[arm.name] = rates[name] and float(f"{rates[name] * factor:.6g}")
        elif design.tuning:
            _, rates[arm.name], some = tune(arm, design.tuning, find)
            missing += some
        else:
            rates[arm.name] = arm.lr or METHODS[arm.method].lr
    return rates, missing


def curve_rates(design, arm, chosen):
    """The rates an arm is judged at, lowest first: the chosen one, and for a main arm those of its curve."""
    return [step_from(chosen, steps) for steps in design.curve] if design.curve and arm in MAIN else [chosen]


def runs_of(design, find):
    """The runs that can be named now and have no record: tuning, then the arms at their chosen rates, then the curves.

    find(run) -> its record or None.
    """
    rates, missing = chosen_rates(design, find)
    if missing:
        return missing
    runs = [Run(arm, rates[arm.name], seed) for seed in design.judged for arm in design.arms]
    runs += [
        Run(arm, lr, seed)
        for seed in design.judged
        for arm in design.arms
        for lr in curve_rates(design, arm, rates[arm.name])
    ]
    runs += [Run(arm, rates[arm.name], seed) for seed in design.judged[:EXTENDED_WORLDS] for arm in design.extended]
    return [run for run in dict.fromkeys(runs) if find(run) is None]


# --- one run -----------------------------------------------------------------------------------------------------------


@functools.cache
def task_for(seed, subjects):
    """What a run learns and is asked: of a tuning world, as data/tune.py does; of a judged one, everything."""
    if seed in TUNING:
        return task_of(seed, tuning_retention())
    new, old = world(seed, subjects), old_world()
    sets = {
        NEW: new["questions"],
        CONTROL: new["unbound"],
        NEW_CLOZE: new["cloze"],
        RETENTION: old["never_asked"],
        OLD_CLOZE: old["cloze"],
    }
    questions = {name: [make_question(item) for item in items] for name, items in sets.items()}
    return Task(new["corpus"], questions, {"old text": old["text"]})


def perform(run, base, tokenizer):
    """Train and measure: a dict of everything that is reported of a run, without times."""
    task, judged = task_for(run.world, run.arm.subjects), run.world not in TUNING
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
        record["forgetting loss"] = analysis.forgetting_loss(base, model, tokenizer, task.texts["old text"])
        record["landing"] = analysis.landing(base, model, run.arm.settings.rank)
    return record


def digest(text):
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()[:16]


def without_docstrings(source):
    """Python source -> its syntax tree as text: the same whatever is said in comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def surroundings(model_folder, device):
    """What all runs' numbers depend on beside the run itself: the base model, the code, and what computes."""
    code = [train, lora, mica, milora, eval_qa, analysis, gpt.model, gpt.tokenizer, gpt.weights, task_for, perform]
    files = sorted(path for path in Path(model_folder).iterdir() if path.suffix in (".json", ".safetensors"))
    return {
        "base": digest("".join(digest(path.read_bytes()) for path in files)),
        "code": digest("".join(without_docstrings(inspect.getsource(part)) for part in code)),
        "torch": torch.__version__,
        "device": f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, one thread",
    }


@functools.cache
def task_digest(seed, subjects):
    task = task_for(seed, subjects)
    questions = {name: [asdict(q) for q in some] for name, some in task.question_sets.items()}
    return digest(json.dumps([task.documents, questions, task.texts]))


def key_of(run, around):
    """Everything that can change a run's numbers, as JSON gives it back."""
    arm = {"method": run.arm.method, "settings": asdict(run.arm.settings), "subjects": run.arm.subjects}
    what = {"lr": run.lr, "world": run.world, "task": task_digest(run.world, run.arm.subjects)}
    return json.loads(json.dumps(arm | what | around))


# --- records -----------------------------------------------------------------------------------------------------------


def record_path(results, run):
    return Path(results) / "runs" / f"{run.name}.json"


def read_record(path):
    """A record, or None where there is no file. Raises ValueError when it is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["key"], record["summary"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a run's record: delete it, and it will be made again") from None
    return record


# --- the program -------------------------------------------------------------------------------------------------------


def start_worker(model_folder, device):
    """In each process: one thread, no chatter, and no life of its own after the study's."""
    global worker_base, worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(
        target=lambda: multiprocessing.connection.wait([parent]) and os._exit(1), daemon=True
    ).start()  # a study that is killed leaves no process behind
    sys.stderr = open(os.devnull, "w")
    torch.set_num_threads(1)
    worker_base, worker_tokenizer = load_pretrained(model_folder, device=device)


def work(run):
    """In a worker: perform a run and time it."""
    began = time.monotonic()
    record = perform(run, worker_base, worker_tokenizer)
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


def finder(results, around):
    """find(run) -> the record of a run that was made in the same surroundings, or None."""

    @functools.cache
    def find(run):
        record = read_record(record_path(results, run))
        return record if record and record["key"] == key_of(run, around) else None

    return find


def main():
    parser = Parser(prog="study.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="three worlds, default rates; about 10 minutes on two cores")
    size.add_argument("--extended", action="store_true", help="also ranks, numbers of facts, linears, epochs")
    add("--model", default="data/base", help="folder of the base model")
    add("--results", default=None, help="folder of the records; None: results, or out/quick with --quick")
    add("--workers", type=int, default=os.cpu_count(), help="runs side by side, each with one thread")
    add("--device", default="cpu", help="cpu, cuda or mps")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, not {args.workers}")
    design = QUICK if args.quick else EXTENDED_DESIGN if args.extended else FULL
    results = Path(args.results or ("out/quick" if args.quick else "results"))
    with one_sentence_errors("study.py"):
        device = pick_device(args.device)
        load_pretrained(args.model)  # what is wrong with it is said here, not by a worker
        check_writable(results / "runs")
        around = surroundings(args.model, device)
        while runs := runs_of(design, finder(results, around)):
            stale = sum(record_path(results, run).exists() for run in runs)
            print(
                f"{len(runs)} runs to do, about {len(runs) * 32 / args.workers / 60:.0f} minutes on cores like ours"
                + (f"; {stale} of them were made with other code or elsewhere and are made again" if stale else ""),
                file=sys.stderr,
            )
            perform_all(runs, results, args.workers, args.model, device, around)
        print(f"every run is in {results / 'runs'}: python figures.py draws them", file=sys.stderr)


if __name__ == "__main__":
    main()
