"""Teach a model the facts of a small corpus with one or several methods, and measure what it learned and what it forgot.

    python train.py --method mica                       # the shipped base model and world
    python train.py --method all --seeds 3              # the five main methods, with standard errors over seeds
    python train.py --method mica mica-major mica-orthonormal mica-trained   # does it matter which directions B has?
    python train.py --method mica --corpus my.txt --qa my.jsonl
    python train.py --method mica --model HuggingFaceTB/SmolLM2-135M --lr 5e-4 --retention hellaswag_val.jsonl --text

The same command goes on where it was stopped, with the runs that are missing; --restart begins anew.
Reading order: METHODS, adapt (the training loop), measure, then the program, which does both for every method and seed.
"""

if __name__ == "__main__":
    import tools.started  # noqa: F401

import copy
import math
import random
import sys
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import mica
from adapter_io import save_trained
from eval_qa import IGNORE, Question, greedy_answer, pack, perplexity, read_question_sets, score_questions, summarise
from fast import ranks
from fast.loss import compiled, head_is_large_and_frozen, loss_in_chunks, mixed_precision
from gpt import find_model, load_pretrained
from lora import LoRALayer, count_trainable, replace_linears
from milora import MiLoRALayer, PiSSALayer
from rehearsal import Rehearsal
from tools.cli import Parser, check_apart, one_sentence_errors, pick_device, progress, write_json, write_lines
from tools.reading import read_documents, read_named, table_name
from tools.report import REPORT_FILES, examples_text, remove_report, write_report, write_scores
from tools.runs import RUN, comparison, digest, digest_of_code, digest_of_files, read_run, run_folder


@dataclass(frozen=True)
class Method:
    layer: type | None  # replaces the linears; None: every weight of the model is trained
    lr: float  # default peak learning rate, chosen on worlds that are not shipped (study/TUNING.md)
    color: str = "#666666"  # in figures; the five main ones are told apart by colour-blind readers too
    marker: str = "o"  # likewise


METHODS = {
    "mica": Method(mica.MiCALayer, 2e-2, "#0072B2", "o"),
    "lora": Method(LoRALayer, 7e-3, "#E69F00", "s"),
    "milora": Method(MiLoRALayer, 1e-2, "#56B4E9", "D"),
    "pissa": Method(PiSSALayer, 3e-3, "#CC79A7", "^"),
    "full": Method(None, 7e-4, "#009E73", "v"),
    # MiCA with one thing changed (mica.py)
    "mica-major": Method(mica.MajorMiCALayer, 5e-3, "#D55E00", "P"),
    "mica-random": Method(mica.RandomMiCALayer, 2e-2, "#999999", "X"),
    "mica-orthonormal": Method(mica.OrthonormalMiCALayer, 1e-2, "#444444", "*"),
    "mica-trained": Method(mica.TrainedMiCALayer, 7e-3, "#332288", "<"),
    "mica-transposed": Method(mica.TransposedMiCALayer, 2e-2, "#882255", ">"),
    "lora-fa": Method(mica.LoRAFALayer, 2e-2, "#117733", "p"),
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
    rehearsal_weight: float = 1.0  # of the KL divergence from the untouched model, where text is rehearsed (rehearsal.py)
    accumulate: int = 1  # parts that a step is computed in, one after the other: less memory, the same gradient
    checkpointing: bool = False  # what blocks compute inside is not kept for the gradient but computed again
    compile: bool = False  # by torch.compile
    shard: bool = False  # of the frozen weights a process has only a part; it takes several (fast/ranks.py)


def block_linears(model):
    """Last parts of the names of all linears in the model's blocks: q_proj, k_proj, ..., but not lm_head."""
    names = [name for name, module in model.layers.named_modules() if isinstance(module, nn.Linear)]
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


def prepare(model, layer, settings):
    """Make `model` trainable in place: adapters of class `layer` on a frozen base, or, with None, all its weights."""
    if layer is not None:
        targets = settings.targets or block_linears(model)
        alpha = settings.rank if settings.alpha is None else settings.alpha
        show = partial(progress, description=f"preparing {layer.__name__}s")
        replace_linears(model, layer, settings.rank, alpha, targets, settings.dropout, show)
    elif next(model.parameters()).dtype != torch.float32:
        raise ValueError("full fine-tuning needs --dtype float32: small steps vanish in 16-bit weights")
    else:
        model.requires_grad_(True)


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up over the first share of the steps, then a cosine down to zero."""
    if step < warmup * steps:
        return peak * (step + 1) / (warmup * steps + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup * steps) / (steps - warmup * steps)))


def next_token_loss(model, x, y):
    """Cross-entropy, in nats, of predicting y from x (batch, seq_len), the sum over y; IGNORE in y counts as nothing."""
    with mixed_precision(model):
        if head_is_large_and_frozen(model.lm_head):  # the same to rounding, without ever holding all logits
            return loss_in_chunks(model.hidden_states(x), model.lm_head.weight, y, IGNORE)
        logits = model(x)  # (batch, seq_len, vocab)
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction="sum")


def adapt(
    model, tokenizer, documents, method, settings=Settings(), lr=None, seed=0, rehearse=(), on_epoch=None, on_step=None
):
    """Train `model` in place on `documents` (strings) with a method of METHODS; return [{"epoch", "loss"}, ...].

    lr: peak learning rate, by default the method's own. seed: of the factors' start, dropout and the data's order, which
    is the same for every method. rehearse: texts on which the model is held to what it predicts now (rehearsal.py).
    on_epoch(epoch) is called after each epoch; the dict it returns joins the epoch's. on_step(step, loss, norm) is called
    after each step, counted from 1, with its loss in nats a token and the norm of its gradient before clipping.
    The documents are shuffled every epoch and *then* packed, so that the texts on one subject rarely share a window.
    Raises ValueError for settings that do not fit the model.
    """
    seq_len = min(settings.seq_len, model.config.context_length)
    rehearsal = Rehearsal(model, tokenizer, rehearse, seq_len, settings.batch_size, seed) if rehearse else None
    torch.manual_seed(seed)
    prepare(model, METHODS[method].layer, settings)
    ranks.share(model, settings.shard)
    lr = METHODS[method].lr if lr is None else lr
    parameters = [p for p in model.parameters() if p.requires_grad]
    # No weight decay: on factors it would pull the change to zero, on weights the weights; no like for like.
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=model.device.type == "cuda")
    terms = [next_token_loss, *([rehearsal.loss] if rehearsal else [])]  # of the loss
    terms = [compiled(term, model.device) for term in terms] if settings.compile else terms
    weights = (1.0, settings.rehearsal_weight)
    model.checkpointing = settings.checkpointing

    rng = random.Random(seed)
    documents = [tokenizer.encode(text) for text in documents]
    step, history = 0, []
    model.train()
    for epoch in range(1, settings.epochs + 1):
        rng.shuffle(documents)
        inputs, targets = (ids.to(model.device) for ids in pack(documents, tokenizer.eot_id, seq_len, tokenizer.bos_id))
        batches = list(zip(inputs.split(settings.batch_size), targets.split(settings.batch_size)))  # (batch, seq_len)
        steps = len(batches) * settings.epochs
        losses = []
        description = f"{method}, seed {seed}, epoch {epoch}/{settings.epochs}"
        for batch in progress(batches, description, note=lambda: f"loss {losses[-1][0].item():.3f}"):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, lr, settings.warmup)
            batches_now = [batch, *([rehearsal.next_batch(model.device)] if rehearsal else [])]
            sums = torch.zeros(len(terms), device=model.device)  # of each term, its mean over the step
            for i, (term, weight, some) in enumerate(zip(terms, weights, batches_now)):
                for part in ranks.parts(some, settings.accumulate, IGNORE):
                    loss = term(model, *part) / (some[1] != IGNORE).sum()
                    (weight * loss).backward()
                    sums[i] += loss.detach()
            losses.append(ranks.add_up(parameters, sums))
            norm = nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if on_step is not None:
                on_step(step, losses[-1][0].item(), norm.item())
        means = [torch.stack(some).mean().item() for some in zip(*losses)]  # of each term
        history.append({"epoch": epoch} | dict(zip(("loss", "kl"), means)))
        if on_epoch is not None:
            history[-1].update(on_epoch(epoch) or {})
        ranks.meet()
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
    add, defaults = parser.add_argument, Settings()
    new = [f"data/new/{name}.jsonl" for name in ("questions", "reworded", "unbound", "cloze")]
    old = [f"data/old/{name}.jsonl" for name in ("never_asked", "asked", "reworded", "cloze")]
    rates = ", ".join(f"{name} {method.lr:g}" for name, method in METHODS.items())
    add("--method", nargs="+", choices=[*METHODS, "all"], default=["mica"], help=f"all: {', '.join(ALL)}")
    add("--model", default="data/base", help="a folder, *.gguf, package:NAME, or org/name[@revision] on the Hub")
    add("--corpus", default="data/new/corpus.txt", help='a .txt, a folder of .txt and .md, or {"text": ...} lines')
    add("--qa", nargs="+", default=new, metavar="FILE", help="questions on what is new; the first file's are drawn")
    add("--retention", nargs="*", default=old, metavar="FILE", help="questions on what the model knew before")
    add("--primer", metavar="FILE", help="example questions to put before each of TruthfulQA's; None: none")
    add("--text", nargs="*", default=["data/old/text.txt"], metavar="FILE", help="texts whose perplexity is reported")
    add("--rank", type=int, default=defaults.rank, help="of the adapters")
    add("--alpha", type=float, help="the change is scaled by alpha / rank; None: alpha = rank")
    add("--targets", nargs="+", metavar="NAME", help="linears to adapt, such as q_proj v_proj; None: all of the blocks")
    add("--dropout", type=float, default=defaults.dropout, help="share of an adapter's input zeroed in training")
    add("--lr", type=float, help=f"peak learning rate; None: the method's own, tuned for data/base ({rates})")
    add("--epochs", type=int, default=defaults.epochs, help="passes over the corpus")
    add("--batch-size", type=int, default=defaults.batch_size, help="windows a step")
    add("--seq-len", type=int, default=defaults.seq_len, help="window, in tokens")
    add("--accumulate", type=int, default=defaults.accumulate, help="parts to compute a step in, to save memory")
    add("--checkpointing", action="store_true", help="keep blocks' inputs only, compute the rest twice: saves memory")
    add("--compile", action="store_true", help="torch.compile the loss: a minute to begin with, then some %% faster")
    add("--shard", action="store_true", help="with torchrun: each process holds a part of the base")
    add("--seeds", type=int, default=1, metavar="N", help="runs of each method, with seeds 0 to N - 1")
    add("--eval-every", type=int, default=0, metavar="EPOCHS", help="measure while training; 0: only at the end")
    add("--examples", type=int, default=3, metavar="N", help="questions whose greedy answers are shown; 0: none")
    add("--device", default="auto", help="cpu, cuda, mps or auto: the fastest there is")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights; adapters are float32")
    add("--out", default="out", help="folder for results, adapters and the figure")
    add("--restart", action="store_true", help="remove the runs that are in --out, instead of going on with them")
    args = parser.parse_args()
    least = dict.fromkeys(("epochs", "batch_size", "seq_len", "accumulate", "seeds"), 1) | {"eval_every": 0}
    for name, low in (least | {"examples": 0}).items():
        if getattr(args, name) < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, not {getattr(args, name)}")
    if args.lr is not None and not 0 < args.lr < math.inf:
        parser.error(f"--lr must be a positive number, not {args.lr}")
    args.method = list(dict.fromkeys(name for given in args.method for name in (ALL if given == "all" else [given])))
    args.targets = args.targets and tuple(args.targets)
    return args


def copy_for(base, method):
    """A model to train, the base staying as it is: adapters share its weights, full fine-tuning gets its own."""
    if METHODS[method].layer is None:
        return copy.deepcopy(base)
    return copy.deepcopy(base, memo={id(p): p for p in base.parameters()})  # a memo names what is copied already


def run(base, tokenizer, task, method, settings, lr, seed, eval_every):
    """Train a copy of the base and measure it: (the trained model, its scores, the run's record).

    The record is the same every time, but for its "seconds" of training.
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
    with ranks.called(method, seed):
        history = adapt(model, tokenizer, task.documents, method, settings, lr, seed, on_epoch)
    seconds = time.monotonic() - began - measuring
    summary, scores = measure(model, tokenizer, task, f"{method}, seed {seed}")
    trained, total = count_trainable(model)
    lr = METHODS[method].lr if lr is None else lr
    record = {"seed": seed, "lr": lr, "trained": trained, "all": total, "history": history, "summary": summary}
    measured = [*summary["perplexity"].values(), *(summary[name]["logprob"] for name in task.question_sets)]
    finite = all(p.isfinite().all() for p in model.parameters() if p.requires_grad)
    if not finite or any(map(math.isnan, measured)):
        record["diverged"] = True
    return model, scores, record | {"seconds": seconds}


def compare(args):
    """Load, run every method with every seed, report."""
    question_sets, notes = read_question_sets(args.qa + args.retention, args.primer)
    task = Task(read_documents(args.corpus), question_sets, read_named(args.text, read_documents))
    settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)})
    folder, device = find_model(args.model), pick_device(args.device)
    ranks.check(device, args.shard, args.compile, any(METHODS[method].layer is None for method in args.method))
    base, tokenizer = load_pretrained(folder, device="cpu" if args.shard else device, dtype=getattr(torch, args.dtype))
    for method in args.method:  # say at once what does not fit; of all adapters, LoRALayer starts fastest
        prepare(copy_for(base, method), LoRALayer if METHODS[method].layer else None, settings)
    if ranks.follows(lambda m, seed: adapt(copy_for(base, m), tokenizer, task.documents, m, settings, args.lr, seed)):
        return
    out = Path(args.out)
    written = [out / name for name in ("config.json", "untouched.jsonl", *REPORT_FILES, *METHODS)]
    check_apart(written, [folder, args.corpus, *args.qa, *args.retention, args.primer, *args.text])
    host = dict(torch=torch.__version__, device=str(device), threads=torch.get_num_threads(), processes=ranks.count())
    made_from = asdict(settings) | host | {name: getattr(args, name) for name in ("lr", "dtype", "eval_every")}
    made_from |= {"number of examples": args.examples, "model (digest)": digest_of_files(folder)}
    made_from |= {"corpus, questions or text (digest)": digest(task), "code (digest)": digest_of_code()}
    with comparison(out, made_from, args.restart, REPORT_FILES):
        remove_report(out)  # of an earlier run: it would not be this one's if it is interrupted
        write_json(out / "config.json", {k: v for k, v in vars(args).items() if k != "restart"} | host)
        teach_and_report(args, base, tokenizer, task, settings, folder, made_from, notes)


def teach_and_report(args, base, tokenizer, task, settings, folder, made_from, notes):
    """Train and measure what has no run yet; then, or when stopped, report all there is."""
    if args.lr is None and Path(args.model).resolve() != Path("data/base").resolve():
        said = "the default learning rates were tuned for data/base; the papers use 1e-4 to 5e-4 on large models (--lr)"
        print(f"note: {said}", file=sys.stderr)
    out, panels = Path(args.out), {"new knowledge": table_name(args.qa[0])}
    if args.retention:
        panels["retention"] = table_name(args.retention[0])
    candidates = task.question_sets[panels["new knowledge"]]
    asked = random.Random(0).sample(candidates, min(args.examples, len(candidates)))
    asked = [question for question in asked if len(tokenizer.encode(question.prompt)) < base.config.context_length - 1]
    summary, scores = measure(base, tokenizer, task, "untouched")
    untouched = {"summary": summary}
    write_scores(out / "untouched.jsonl", task.question_sets, scores)
    answers = {"untouched": [greedy_answer(base, tokenizer, question.prompt) for question in asked]}
    runs, finished, diverged = {}, False, []  # runs: {method: [record of each seed]}
    try:
        for seed in range(args.seeds):
            for method in args.method:
                run_out = out / method / f"seed{seed}"
                if (run_out / RUN).exists():
                    print(f"{method}, seed {seed}: finished before, read from {run_out}", file=sys.stderr)
                else:
                    model, scores, record = run(base, tokenizer, task, method, settings, args.lr, seed, args.eval_every)
                    lost = "diverged" in record
                    asked_now = [] if seed else asked
                    said = ["(diverged)" if lost else greedy_answer(model, tokenizer, q.prompt) for q in asked_now]
                    with run_folder(run_out, made_from, record, said) as new:
                        write_lines(new / "metrics.jsonl", record["history"])
                        write_scores(new / "scores.jsonl", task.question_sets, scores)
                        if not lost:
                            save_trained(model, tokenizer, new, args.model, folder)
                    del model  # its memory is the next one's
                _, record, said = read_run(run_out)
                if "diverged" in record:
                    diverged.append(f"{method}, seed {seed}: diverged, not saved; use a smaller --lr")
                runs.setdefault(method, []).append(record)
                if seed == 0:
                    answers[method] = said
        finished = True
    finally:  # Ctrl-C, a full disk, out of memory: what is done is reported all the same
        if runs:
            if not finished:
                print("not finished: reporting the runs that are; the same command goes on from here", file=sys.stderr)
            colors = {method: METHODS[method].color for method in runs}
            write_report(out, untouched, runs, panels, colors, examples_text(asked, answers), notes + diverged)
    if diverged:
        sys.exit(3)  # neither well nor refused


def main():
    args = parse_arguments()
    with one_sentence_errors("train.py", "--batch-size, --seq-len or --model"), ranks.together(args.device):
        compare(args)


if __name__ == "__main__":
    main()
