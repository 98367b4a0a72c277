"""Teach a model the facts of a small corpus with one or several methods, and measure what it learned and what it forgot.

    python train.py --method mica                       # the shipped base model and world
    python train.py --method all --seeds 3              # the five main methods, with standard errors over seeds
    python train.py --method mica mica-major mica-orthonormal mica-trained   # does it matter which directions B has?
    python train.py --method mica --corpus my.txt --qa my.jsonl
    python train.py --method mica --model HuggingFaceTB/SmolLM2-135M --lr 5e-4 --retention hellaswag_val.jsonl --text

Reading order: METHODS, adapt (the training loop, which a study can call), measure, then the program around them.
"""

import copy
import json
import math
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from adapter_io import save_adapters
from eval_qa import (
    IGNORE,
    Question,
    cell,
    label,
    mean_and_error,
    pack,
    perplexity,
    read_all,
    read_documents,
    read_question_sets,
    score_questions,
    summarise,
)
from gpt import find_model, load_pretrained, save_pretrained
from gpt.cli import Parser, atomic, check_writable, one_sentence_errors, pick_device, progress
from gpt.hub import split_name
from gpt.tokenizer import copy_tokenizer
from lora import LoRALayer, count_trainable, replace_linears
from mica import (
    MajorMiCALayer,
    MiCALayer,
    OrthonormalMiCALayer,
    RandomMiCALayer,
    TrainedMiCALayer,
    TransposedMiCALayer,
)
from milora import MiLoRALayer, PiSSALayer


@dataclass(frozen=True)
class Method:
    layer: type | None  # replaces the linears; None: every weight of the model is trained
    lr: float  # default learning rate, chosen on worlds that are not shipped (data/README.md)
    color: str  # in figures; the five main ones are told apart by colour-blind readers too


METHODS = {
    "mica": Method(MiCALayer, lr=2e-2, color="#0072B2"),
    "lora": Method(LoRALayer, lr=7e-3, color="#E69F00"),
    "milora": Method(MiLoRALayer, lr=1e-2, color="#56B4E9"),
    "pissa": Method(PiSSALayer, lr=3e-3, color="#CC79A7"),
    "full": Method(None, lr=7e-4, color="#009E73"),
    # MiCA with one thing changed (mica.py)
    "mica-major": Method(MajorMiCALayer, lr=5e-3, color="#D55E00"),
    "mica-random": Method(RandomMiCALayer, lr=2e-2, color="#999999"),
    "mica-orthonormal": Method(OrthonormalMiCALayer, lr=1e-2, color="#444444"),
    "mica-trained": Method(TrainedMiCALayer, lr=7e-3, color="#332288"),
    "mica-transposed": Method(TransposedMiCALayer, lr=2e-2, color="#882255"),
}
ALL = ("mica", "lora", "milora", "pissa", "full")  # what --method all runs


@dataclass(frozen=True)
class Settings:
    """How long and how large: the same for every method that is compared."""

    rank: int = 8
    alpha: float | None = None  # None: alpha = rank, so that (alpha / rank) = 1
    targets: tuple[str, ...] | None = None  # None: all linears of the blocks
    dropout: float = 0.0
    epochs: int = 4
    batch_size: int = 8  # windows a step
    seq_len: int = 128  # tokens a window
    warmup: float = 0.1  # share of the steps
    clip: float = 1.0  # largest norm of the gradient


def block_linears(model):
    """Last parts of the names of all linears in the model's blocks: q_proj, k_proj, ..., but not lm_head."""
    names = [name for name, module in model.layers.named_modules() if isinstance(module, nn.Linear)]
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


def prepare(model, layer, settings):
    """Make `model` trainable in place: adapters of class `layer` on a frozen base, or, with None, all its weights."""
    if layer is not None:
        targets = settings.targets or block_linears(model)
        replace_linears(
            model,
            layer,
            settings.rank,
            settings.rank if settings.alpha is None else settings.alpha,
            targets,
            settings.dropout,
            progress=partial(progress, description=f"preparing {layer.__name__}s"),
        )
    elif next(model.parameters()).dtype != torch.float32:
        raise ValueError("full fine-tuning needs --dtype float32: small steps vanish in 16-bit weights")
    else:
        model.requires_grad_(True)


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up over the first share of the steps, then a cosine down to zero."""
    if step < warmup * steps:
        return peak * (step + 1) / (warmup * steps + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup * steps) / (steps - warmup * steps)))


def mixed_precision(model):
    """bfloat16 autocast on a GPU that holds float32 weights, and nowhere else: on a CPU, results are plain float32."""
    enabled = model.device.type == "cuda" and next(model.parameters()).dtype == torch.float32
    return torch.autocast(model.device.type, torch.bfloat16, enabled=enabled)


def adapt(model, tokenizer, documents, method, settings=Settings(), lr=None, seed=0, on_epoch=None):
    """Train `model` in place on `documents` (strings) with a method of METHODS; return [{"epoch", "loss"}, ...].

    lr: peak learning rate, by default the method's own. seed: of the factors' start, dropout and the data's order, which
    is the same for every method. on_epoch(epoch) is called after each epoch; the dict it returns joins the epoch's.
    The documents are shuffled every epoch and *then* packed, so that the texts on one subject rarely share a window.
    Raises ValueError for settings that do not fit the model.
    """
    torch.manual_seed(seed)
    prepare(model, METHODS[method].layer, settings)
    lr = METHODS[method].lr if lr is None else lr
    parameters = [p for p in model.parameters() if p.requires_grad]
    # No weight decay: on factors it would pull the change to zero, on weights the weights; no like for like.
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)

    order = random.Random(seed)
    documents = [tokenizer.encode(text) for text in documents]
    seq_len = min(settings.seq_len, model.config.context_length)
    step, history = 0, []
    model.train()
    for epoch in range(1, settings.epochs + 1):
        order.shuffle(documents)
        inputs, targets = pack(documents, tokenizer.eot_id, seq_len, tokenizer.bos_id)  # (windows, seq_len)
        batches = list(zip(inputs.split(settings.batch_size), targets.split(settings.batch_size)))
        steps = len(batches) * settings.epochs
        losses = []
        for x, y in progress(batches, f"{method}, seed {seed}, epoch {epoch}/{settings.epochs}"):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, lr, settings.warmup)
            with mixed_precision(model):
                logits = model(x.to(model.device))  # (batch, seq_len, vocab)
            loss = F.cross_entropy(logits.float().flatten(0, 1), y.to(model.device).flatten(), ignore_index=IGNORE)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            step += 1
        history.append({"epoch": epoch, "loss": torch.stack(losses).mean().item()})
        if on_epoch is not None:
            history[-1].update(on_epoch(epoch) or {})
    if not math.isfinite(history[-1]["loss"]):
        print(f"{method}, seed {seed}: the loss is {history[-1]['loss']}: use a smaller --lr", file=sys.stderr)
    model.eval()
    return history


@dataclass(frozen=True)
class Task:
    """What is learned and what is asked."""

    documents: list[str]  # the corpus
    question_sets: dict[str, list[Question]]  # new knowledge first, then its controls and what was known before
    texts: dict[str, list[str]]  # documents whose perplexity is reported
    notes: list[str] = field(default_factory=list)  # lines below the table


def measure(model, tokenizer, task, description):
    """What the model knows of a task: (summary, scores).

    summary: {question set: eval_qa.summarise(...), ..., "perplexity": {text: ...}}; scores: {question set: [Score, ...]}.
    """
    everything = [question for questions in task.question_sets.values() for question in questions]
    scores = iter(score_questions(model, tokenizer, everything, description=f"{description}, questions"))
    scores = {name: [next(scores) for _ in questions] for name, questions in task.question_sets.items()}
    summary = {name: summarise(some) for name, some in scores.items()}
    summary["perplexity"] = {name: perplexity(model, tokenizer, documents) for name, documents in task.texts.items()}
    return summary, scores


# --- the program -------------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = Parser(prog="train.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    defaults = Settings()
    rates = ", ".join(f"{name} {method.lr:g}" for name, method in METHODS.items())
    add(
        "--method",
        nargs="+",
        choices=[*METHODS, "all"],
        default=["mica"],
        metavar="METHOD",
        help=f"one or several of {', '.join(METHODS)}; all: {', '.join(ALL)}",
    )
    add("--model", default="data/base", help="a model's folder, or org/name[@revision] on the Hugging Face Hub")
    add(
        "--corpus",
        default="data/new/corpus.txt",
        help="what is learned: a .txt, or a folder of .txt and .md; blank lines separate documents",
    )
    new = [f"data/new/{name}.jsonl" for name in ("questions", "reworded", "unbound", "cloze")]
    add(
        "--qa",
        nargs="+",
        default=new,
        metavar="FILE",
        help="questions on what is new; the first file is the one that counts, the others are controls",
    )
    old = [f"data/old/{name}.jsonl" for name in ("never_asked", "asked", "reworded", "cloze")]
    add(
        "--retention",
        nargs="*",
        default=old,
        metavar="FILE",
        help="questions on what the model knew before; also TruthfulQA's mc_task.json, HellaSwag's validation file",
    )
    add("--primer", metavar="FILE", help="example questions to put before each of TruthfulQA's; None: none")
    add("--text", nargs="*", default=["data/old/text.txt"], metavar="FILE", help="texts whose perplexity is reported")
    add("--rank", type=int, default=defaults.rank, help="of the adapters")
    add("--alpha", type=float, default=None, help="the change is scaled by alpha / rank; None: alpha = rank")
    add(
        "--targets",
        nargs="+",
        default=None,
        metavar="NAME",
        help="linears to adapt, such as q_proj v_proj; None: all of the blocks",
    )
    add(
        "--dropout",
        type=float,
        default=defaults.dropout,
        help="share of an adapter's input set to zero in training, 0 to 1",
    )
    add(
        "--lr",
        type=float,
        default=None,
        help=f"peak learning rate; None: the method's own ({rates}), tuned for data/base",
    )
    add("--epochs", type=int, default=defaults.epochs, help="passes over the corpus")
    add("--batch-size", type=int, default=defaults.batch_size, help="windows a step")
    add("--seq-len", type=int, default=defaults.seq_len, help="window, in tokens")
    add("--seeds", type=int, default=1, metavar="N", help="runs of each method, with seeds 0 to N - 1")
    add(
        "--eval-every",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="measure accuracies every so many epochs; 0: only at the end",
    )
    add("--device", default="auto", help="cpu, cuda, mps or auto: the fastest there is")
    add(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="of the model's weights; adapters are float32",
    )
    add("--out", default="out", help="folder for results, adapters and the figure")
    args = parser.parse_args()
    for name in ("epochs", "batch_size", "seq_len", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    if args.eval_every < 0:
        parser.error(f"--eval-every must be 0 or more, not {args.eval_every}")
    if args.lr is not None and not 0 < args.lr < math.inf:
        parser.error(f"--lr must be a positive number, not {args.lr}")
    args.method = list(dict.fromkeys(name for given in args.method for name in (ALL if given == "all" else [given])))
    return args


def write_json(path, content):
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_lines(path, items):
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def write_scores(path, task, scores):
    """One line a question: its set, subject, attribute, right answer and Score."""
    write_lines(
        path,
        (
            {"set": name, "subject": q.subject, "attribute": q.attribute, "answer": q.answer, **asdict(s)}
            for name, questions in task.question_sets.items()
            for q, s in zip(questions, scores[name], strict=True)
        ),
    )


def copy_for(model, method):
    """A model to train: a full copy for full fine-tuning, else one that shares the base's weights, which stay as they are."""
    shared = {} if METHODS[method].layer is None else {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, shared)


def run(base, tokenizer, task, method, settings, lr, seed, eval_every, out):
    """Train one copy of the base and measure it; write metrics and scores to `out`.

    Returns the trained model and the run's record, of which all but "seconds" (of training) is the same every time.
    """
    model = copy_for(base, method)
    measuring = 0.0  # seconds spent on questions, not on training

    def on_epoch(epoch):
        nonlocal measuring
        if eval_every and epoch % eval_every == 0:
            began = time.monotonic()
            summary, _ = measure(model, tokenizer, task, f"{method}, seed {seed}, epoch {epoch}")
            measuring += time.monotonic() - began
            return {name: summary[name]["acc"] for name in task.question_sets}

    began = time.monotonic()
    history = adapt(model, tokenizer, task.documents, method, settings, lr, seed, on_epoch)
    seconds = time.monotonic() - began - measuring
    summary, scores = measure(model, tokenizer, task, f"{method}, seed {seed}")
    trained, total = count_trainable(model)
    write_lines(out / "metrics.jsonl", history)
    write_scores(out / "scores.jsonl", task, scores)
    record = {
        "seed": seed,
        "lr": METHODS[method].lr if lr is None else lr,
        "trained": trained,
        "all": total,
        "history": history,
        "summary": summary,
        "seconds": seconds,
    }
    return model, record


def save(model, tokenizer, method, out, name, folder):
    """Write what was trained: the adapter, or for full fine-tuning the whole model.

    name: of the base model, as --model gives it; folder: where its files are.
    """
    if METHODS[method].layer is None:
        save_pretrained(model, out / "model", tokenizer)
        copy_tokenizer(folder, out / "model")
    else:
        save_adapters(model, out / "adapter", *((name, None) if Path(name).is_dir() else split_name(name)))


def over_seeds(runs, value, error):
    """(mean, standard error) of a value over runs; of one run, the error over its questions, which `error` reads off."""
    return mean_and_error([value(run) for run in runs]) if len(runs) > 1 else (value(runs[0]), error(runs[0]))


def table(untouched, runs, task, primary, with_seconds=True):
    """The results as text: a row a measure, a column for the untouched model and for each method."""
    columns = {"untouched": [{"summary": untouched}], **runs}

    def row(title, value, error=lambda run: math.nan, **kwargs):
        return [title] + [cell(*over_seeds(some, value, error), **kwargs) for some in columns.values()]

    def score_row(title, name, key, **kwargs):
        return row(
            title, lambda run: run["summary"][name][key], lambda run: run["summary"][name][key + "_se"], **kwargs
        )

    rows = [
        ["", *columns],
        ["trained parameters", "-", *(f"{some[0]['trained']:,}" for some in runs.values())],
        ["share of all, %", "-", *(f"{100 * some[0]['trained'] / some[0]['all']:.2f}" for some in runs.values())],
        ["learning rate", "-", *(f"{some[0]['lr']:g}" for some in runs.values())],
    ]
    for name in task.question_sets:
        rows.append(score_row(f"{name}, %", name, "acc"))
        if name == primary:
            rows.append(score_row("  per character, %", name, "acc_norm"))
            rows.append(score_row("  exact match, %", name, "exact"))
            rows.append(score_row("  log p(right)", name, "logprob", scale=1, digits=3))
    for name in task.texts:
        rows.append(row(f"{name}, perplexity", lambda run: run["summary"]["perplexity"][name], scale=1, digits=3))
    if with_seconds:
        means = (mean_and_error([run["seconds"] for run in some])[0] for some in runs.values())
        rows.append(["training, seconds", "-", *(f"{mean:.0f}" for mean in means)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        first.ljust(widths[0]) + "".join("   " + text.rjust(w) for text, w in zip(rest, widths[1:]))
        for first, *rest in rows
    ]
    seeds = len(next(iter(runs.values())))
    if seeds > 1:
        lines.append(f"+- one standard error over {seeds} seeds, with the same questions (untouched: over questions)")
    else:
        lines.append("+- one standard error over questions")
    return "\n".join(lines + task.notes)


def draw(untouched, runs, primary, retention, path):
    """A figure: new knowledge and retention, a bar a method, the untouched model dashed; curves where epochs were measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [(primary, "new knowledge")] + ([(retention, "retention")] if retention else [])
    curves = all(any(primary in entry for entry in some[0]["history"]) for some in runs.values())
    width = len(panels) + curves
    figure, axes = plt.subplots(1, width, figsize=(4.2 * width, 3.6), squeeze=False, sharey=True)
    for ax, (name, title) in zip(axes[0], panels):
        for x, (method, some) in enumerate(runs.items()):
            mean, error = over_seeds(
                some, lambda run: run["summary"][name]["acc"], lambda run: run["summary"][name]["acc_se"]
            )
            ax.bar(x, 100 * mean, yerr=100 * error, capsize=4, width=0.6, color=METHODS[method].color)
        ax.set(xticks=range(len(runs)), xticklabels=runs, title=f"{title}\n({name})")
        if len("".join(runs)) > 24:  # side by side the names would overlap
            ax.tick_params(axis="x", rotation=40)
            plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    if curves:
        ax = axes[0][-1]
        for method, some in runs.items():
            epochs = [entry["epoch"] for entry in some[0]["history"] if primary in entry]
            values = [[100 * entry[primary] for entry in run["history"] if primary in entry] for run in some]
            ax.plot(
                epochs,
                [sum(column) / len(column) for column in zip(*values)],
                "o-",
                color=METHODS[method].color,
                label=method,
            )
        ax.set(xlabel="epoch", title=f"while training\n({primary})")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=False, fontsize=8)
    for ax, name in zip(axes[0], [name for name, _ in panels] + [primary] * curves):
        level = 100 * untouched[name]["acc"]
        ax.axhline(level, color="black", linestyle="--", linewidth=1)
        ax.annotate(" untouched", (1, level), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes[0][0].set(ylim=(0, 105), ylabel="accuracy, %")
    figure.tight_layout()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


REPORT_FILES = ("table.txt", "results.json", "seconds.json", "comparison.png")


def report(out, untouched, runs, task, primary, retention):
    """Print the table; write it, the numbers behind it and the figure to `out`.

    After an interruption some methods have a run more than others: the seeds that all have are reported.
    """
    seeds = min(map(len, runs.values()))
    runs = {method: some[:seeds] for method, some in runs.items()}
    print(table(untouched, runs, task, primary))
    # Times stand apart: all else is the same bytes every time.
    with atomic(out / "table.txt") as temporary:
        temporary.write_text(table(untouched, runs, task, primary, with_seconds=False) + "\n", encoding="utf-8")
    reproducible = {m: [{k: v for k, v in run.items() if k != "seconds"} for run in some] for m, some in runs.items()}
    write_json(out / "results.json", {"untouched": untouched, "runs": reproducible})
    write_json(out / "seconds.json", {method: [run["seconds"] for run in some] for method, some in runs.items()})
    draw(untouched, runs, primary, retention, out / "comparison.png")
    print(f"written to {out}: table.txt, comparison.png, results.json, and a folder for each method", file=sys.stderr)


def compare(args):
    """Load, run every method with every seed, report."""
    question_sets, notes = read_question_sets(args.qa + args.retention, args.primer)
    task = Task(read_documents(args.corpus), question_sets, read_all(args.text, read_documents), notes)
    settings = Settings(
        rank=args.rank,
        alpha=args.alpha,
        targets=args.targets and tuple(args.targets),
        dropout=args.dropout,
        epochs=args.epochs,
        batch_size=args.batch_size,
        seq_len=args.seq_len,
    )
    model_folder = find_model(args.model)
    base, tokenizer = load_pretrained(model_folder, device=pick_device(args.device), dtype=getattr(torch, args.dtype))
    for method in args.method:  # say at once what does not fit; LoRALayer stands for all adapters, it starts fastest
        prepare(copy_for(base, method), METHODS[method].layer and LoRALayer, settings)
    out = Path(args.out)
    check_writable(out)
    for name in REPORT_FILES:  # of an earlier run: they would not be this one's if it is interrupted
        (out / name).unlink(missing_ok=True)
    environment = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": str(base.device)}
    write_json(out / "config.json", vars(args) | environment)

    if args.lr is None and Path(args.model).resolve() != Path("data/base").resolve():
        print(
            "note: the default learning rates were tuned for data/base; the papers use 1e-4 to 5e-4 on large models (--lr)",
            file=sys.stderr,
        )
    untouched, scores = measure(base, tokenizer, task, "untouched")
    write_scores(out / "untouched.jsonl", task, scores)
    runs, finished = {}, False  # runs: method -> its runs' records
    try:
        for seed in range(args.seeds):
            for method in args.method:
                run_out = out / method / f"seed{seed}"
                model, record = run(base, tokenizer, task, method, settings, args.lr, seed, args.eval_every, run_out)
                save(model, tokenizer, method, run_out, args.model, model_folder)
                runs.setdefault(method, []).append(record)
        finished = True
    finally:  # Ctrl-C, a full disk, out of memory: what is done is reported all the same
        if runs:
            if not finished:
                print("\nnot finished: reporting the runs that are", file=sys.stderr)
            report(out, untouched, runs, task, label(args.qa[0]), label(args.retention[0]) if args.retention else None)


def main():
    args = parse_arguments()
    with one_sentence_errors("train.py"):
        compare(args)


if __name__ == "__main__":
    main()
