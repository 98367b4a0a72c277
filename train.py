"""Teach a model the facts of a small corpus with one or several methods, and measure what it learned and what it forgot.

    python train.py --method mica                       # the shipped base model and world
    python train.py --method all --seeds 3              # the five main methods, with standard errors over seeds
    python train.py --method mica lora --rehearse 20000 # while keeping what the model predicts on text of its own
    python train.py --method mica --corpus my.txt --qa my.jsonl
    python train.py --method mica --model HuggingFaceTB/SmolLM2-135M --lr 5e-4 --retention hellaswag_val.jsonl --text

The same command goes on where it was stopped; after a change of settings or code, the earlier results are kept beside.
Reading order: METHODS, adapt (the training loop), measure, then the program, which does both for every method and seed.
"""

import copy
import math
import random
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ablations
import comparison
from corpus import IGNORE, pack, perplexity
from eval_qa import BASE, greedy_answer, score_questions, summarise
from fast import ranks
from fast.loss import compiled, head_is_large_and_frozen, loss_in_chunks, mixed_precision
from gpt import find_model, load_pretrained
from lora import LoRALayer, count_trainable, find_adapters, replace_linears, scale
from mica import MiCALayer
from milora import MiLoRALayer, PiSSALayer
from questions import Question, read_question_sets
from rehearsal import Rehearsal, own_text
from tools.cli import Parser, add_flags, flag, from_flags, one_sentence_errors, pick_device, progress
from tools.reading import read_documents, read_named


@dataclass(frozen=True)
class Method:
    layer: type | None  # replaces the linears; None: every weight of the model is trained
    lr: float  # default peak learning rate, chosen on worlds that are not shipped (study/TUNING.md)
    color: str = "#666666"  # in figures; the five main ones are told apart by colour-blind readers too
    marker: str = "o"  # likewise


METHODS = {
    "mica": Method(MiCALayer, 2e-2, "#0072B2", "o"),
    "lora": Method(LoRALayer, 7e-3, "#E69F00", "s"),
    "milora": Method(MiLoRALayer, 1e-2, "#56B4E9", "D"),
    "pissa": Method(PiSSALayer, 3e-3, "#CC79A7", "^"),
    "full": Method(None, 7e-4, "#009E73", "v"),
    # With one thing changed
    "mica-major": Method(ablations.MajorMiCALayer, 5e-3, "#D55E00", "P"),
    "mica-random": Method(ablations.RandomMiCALayer, 2e-2, "#999999", "X"),
    "mica-orthonormal": Method(ablations.OrthonormalMiCALayer, 1e-2, "#444444", "*"),
    "mica-trained": Method(ablations.TrainedMiCALayer, 7e-3, "#332288", "<"),
    "mica-transposed": Method(ablations.TransposedMiCALayer, 2e-2, "#882255", ">"),
    "lora-fa": Method(ablations.LoRAFALayer, 2e-2, "#117733", "p"),
}
ALL = ("mica", "lora", "milora", "pissa", "full")  # what --method all runs


@dataclass(frozen=True)
class Settings:
    """How long and how large: the same for every method that is compared. Each field is a flag of the program."""

    rank: int = flag(8, "of the adapters")
    alpha: float | None = flag(None, "the change is scaled by alpha / rank; None: alpha = rank")
    targets: tuple[str, ...] | None = flag(None, "linears, such as q_proj v_proj; None, all-linear: all in the blocks")
    dropout: float = flag(0.0, "share of an adapter's input zeroed in training")
    epochs: int = flag(4, "passes over the corpus", least=1)
    batch_size: int = flag(8, "windows a step", least=1)
    seq_len: int = flag(128, "window, in tokens", least=1)
    warmup: float = flag(0.1, "share of the steps in which the learning rate rises")
    clip: float = flag(1.0, "largest norm of the gradient")
    rehearsal_weight: float = flag(1.0, "of KL(untouched || model) on what is rehearsed, in the loss")
    accumulate: int = flag(1, "parts to compute a step in, to save memory", least=1)
    checkpointing: bool = flag(False, "keep blocks' inputs only, compute the rest twice: saves memory")
    compile: bool = flag(False, "torch.compile the loss: a minute to begin with, then some %% faster")
    shard: bool = flag(False, "with torchrun: each process holds a part of the base")


def block_linears(model: nn.Module) -> tuple[str, ...]:
    """Last parts of the names of all linears in the model's blocks: q_proj, k_proj, ..., but not lm_head."""
    names = [name for name, module in model.layers.named_modules() if isinstance(module, nn.Linear)]
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


def prepare(model: nn.Module, layer: type | None, settings: Settings) -> None:
    """Make `model` trainable in place: adapters of class `layer` on a frozen base, or, with None, all its weights."""
    if layer is not None:
        targets = block_linears(model) if settings.targets in (None, ("all-linear",)) else settings.targets
        alpha = settings.rank if settings.alpha is None else settings.alpha
        show = partial(progress, description=f"preparing {layer.__name__}s")
        replace_linears(model, layer, settings.rank, alpha, targets, settings.dropout, show)
    elif next(model.parameters()).dtype != torch.float32:
        raise ValueError("full fine-tuning needs --dtype float32: small steps vanish in 16-bit weights")
    else:
        model.requires_grad_(True)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the first share of the steps, then a cosine down to zero."""
    if step < warmup * steps:
        return peak * (step + 1) / (warmup * steps + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup * steps) / (steps - warmup * steps)))


def next_token_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, in nats, of predicting y from x (batch, seq_len), the sum over y; IGNORE in y counts as nothing."""
    with mixed_precision(model):
        if head_is_large_and_frozen(model.lm_head):  # the same to rounding, without ever holding all logits
            return loss_in_chunks(model.hidden_states(x), model.lm_head.weight, y, IGNORE)
        logits = model(x)  # (batch, seq_len, vocab)
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction="sum")


def adapt(
    model: nn.Module, tokenizer, documents: list[str], method: str, settings=Settings(), lr: float | None = None, seed=0,
    on_epoch=None, on_step=None, rehearse=(),
) -> list[dict]:  # fmt: skip
    """Train `model` in place on `documents` (strings) with a method of METHODS; return [{"epoch", "loss"}, ...].

    lr: peak learning rate, by default the method's own. seed: of the factors' start, dropout and the data's order, which
    is the same for every method. on_epoch(epoch) is called after each epoch; the dict it returns joins the epoch's.
    on_step(step, loss, norm) is called after each step, counted from 1, with its loss in nats a token and the norm of its
    gradient before clipping. rehearse: texts on which the model is held to what it predicts now (rehearsal.py); the epochs
    then also have their "kl".
    The documents are shuffled every epoch and *then* packed, so that the texts on one subject rarely share a window.
    Raises ValueError for settings that do not fit the model.
    """
    seq_len = min(settings.seq_len, model.config.context_length)
    rehearsal = Rehearsal(model, tokenizer, rehearse, seq_len, settings.batch_size, seed) if rehearse else None
    torch.manual_seed(seed)
    prepare(model, METHODS[method].layer, settings)
    ranks.share(model, settings.shard)  # processes that torchrun started begin alike; alone, nothing happens
    lr = METHODS[method].lr if lr is None else lr
    parameters = [p for p in model.parameters() if p.requires_grad]
    # No weight decay: on factors it would pull the change to zero, on weights the weights; no like for like.
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=model.device.type == "cuda")
    peaks = [group["lr"] for group in optimizer.param_groups]  # each group's own, should a method have several
    model.checkpointing = settings.checkpointing
    terms = [(next_token_loss, 1.0)]  # of the loss: what is learned and, if so, what is kept
    if rehearsal:
        terms.append((rehearsal.loss, settings.rehearsal_weight))
    if settings.compile:
        terms = [(compiled(term, model.device), weight) for term, weight in terms]

    rng = random.Random(seed)
    documents = [tokenizer.encode(text) for text in documents]
    step, history = 0, []
    model.train()
    for epoch in range(1, settings.epochs + 1):
        rng.shuffle(documents)
        inputs, targets = (ids.to(model.device) for ids in pack(documents, tokenizer.eot_id, seq_len, tokenizer.bos_id))
        batches = list(zip(inputs.split(settings.batch_size), targets.split(settings.batch_size)))  # (batch, seq_len)
        steps = len(batches) * settings.epochs
        losses = []  # of each step, a tensor: each term's mean over the step's predictions
        description = f"{method}, seed {seed}, epoch {epoch}/{settings.epochs}"
        for batch in progress(batches, description, note=lambda: f"loss {losses[-1][0].item():.3f}"):
            for group, peak in zip(optimizer.param_groups, peaks):
                group["lr"] = learning_rate(step, steps, peak, settings.warmup)
            means = torch.zeros(len(terms), device=model.device)
            for i, (term, weight) in enumerate(terms):
                some = batch if i == 0 else rehearsal.next_batch(model.device)
                for part in ranks.parts(some, settings.accumulate, IGNORE):  # one, all of it, if nothing else is asked
                    loss = term(model, *part) / (some[1] != IGNORE).sum()
                    (weight * loss).backward()
                    means[i] += loss.detach()
            losses.append(ranks.add_up(parameters, means))  # over all processes
            norm = nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if on_step is not None:
                on_step(step, losses[-1][0].item(), norm.item())
        means = [torch.stack(some).mean().item() for some in zip(*losses)]
        history.append({"epoch": epoch} | dict(zip(("loss", "kl"), means)))
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


def measure(model, tokenizer, task: Task, description: str) -> tuple[dict, dict]:
    """What the model knows of a task: (summary, scores).

    summary: {question set: eval_qa.summarise(...), ..., "perplexity": {text: ...}}; scores: {question set: [Score, ...]}.
    """
    everything = [question for questions in task.question_sets.values() for question in questions]
    scores = iter(score_questions(model, tokenizer, everything, description=f"{description}, questions"))
    scores = {name: [next(scores) for _ in questions] for name, questions in task.question_sets.items()}
    summary = {name: summarise(some) for name, some in scores.items()}
    summary["perplexity"] = {name: perplexity(model, tokenizer, documents) for name, documents in task.texts.items()}
    return summary, scores


def copy_for(base: nn.Module, method: str) -> nn.Module:
    """A model to train, the base staying as it is: adapters share its weights, full fine-tuning gets its own."""
    if METHODS[method].layer is None:
        return copy.deepcopy(base)
    return copy.deepcopy(base, memo={id(p): p for p in base.parameters()})  # a memo names what is copied already


@contextmanager
def at_strength(model, base, strength: float):
    """While it lasts, `strength` times what the model learned is added to the base: W + strength * change."""
    whole = [] if find_adapters(model) else list(zip(model.parameters(), base.parameters()))  # full fine-tuning
    learned = [p.detach().clone() for p, _ in whole]
    scale(model, strength)
    with torch.no_grad():
        for p, start in whole:
            p.copy_(torch.lerp(start, p, strength))
        try:
            yield
        finally:
            for (p, _), taught in zip(whole, learned):
                p.copy_(taught)
            scale(model, 1.0)


def run(base, tokenizer, task, method, settings, lr, seed, eval_every=0, rehearse=(), strengths=()):
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
    history = adapt(model, tokenizer, task.documents, method, settings, lr, seed, on_epoch, rehearse=rehearse)
    seconds = time.monotonic() - began - measuring
    summary, scores = measure(model, tokenizer, task, f"{method}, seed {seed}")
    trained, total = count_trainable(model)
    lr = METHODS[method].lr if lr is None else lr
    record = {"seed": seed, "lr": lr, "trained": trained, "all": total, "history": history, "summary": summary}
    measured = [*summary["perplexity"].values(), *(summary[name]["logprob"] for name in task.question_sets)]
    finite = all(p.isfinite().all() for p in model.parameters() if p.requires_grad)
    if not finite or any(map(math.isnan, measured)):
        record["diverged"] = True
    elif strengths:
        record["strengths"] = {}
        for strength in strengths:
            with at_strength(model, base, strength):
                said = f"{method}, seed {seed}, at {strength:g} of its strength"
                record["strengths"][f"{strength:g}"] = measure(model, tokenizer, task, said)[0]
    return model, scores, record | {"seconds": seconds}


# --- the program -------------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = Parser((), __doc__, prog="train.py")
    add, data = parser.add_argument, BASE.parent
    new = [str(data / "new" / f"{name}.jsonl") for name in ("questions", "reworded", "unbound", "cloze")]
    old = [str(data / "old" / f"{name}.jsonl") for name in ("never_asked", "asked", "reworded", "cloze")]
    rates = ", ".join(f"{name} {method.lr:g}" for name, method in METHODS.items())
    add("--method", nargs="+", choices=[*METHODS, "all"], default=["mica"], help=f"all: {', '.join(ALL)}")
    add("--model", default=str(BASE), help="a folder, *.gguf, package:NAME, or org/name[@revision] on the Hub")
    corpus = 'a .txt, a folder of .txt and .md, or {"text": ...} lines'
    add("--corpus", nargs="+", default=[str(data / "new" / "corpus.txt")], metavar="FILE", help=corpus)
    add("--qa", nargs="+", default=new, metavar="FILE", help="questions on what is new; the first file's are drawn")
    add("--retention", nargs="*", default=old, metavar="FILE", help="questions on what the model knew before")
    add("--primer", metavar="FILE", help="example questions to put before each of TruthfulQA's; None: none")
    text = [str(data / "old" / "text.txt")]
    add("--text", nargs="*", default=text, metavar="FILE", help="texts whose perplexity is reported")
    rehearse = "tokens of text that the untouched model writes, or a file of text, to keep its predictions on; 0: none"
    add("--rehearse", default="0", metavar="N|FILE", help=rehearse)
    add("--lr", type=float, help=f"peak learning rate; None: the method's own, tuned for data/base ({rates})")
    add_flags(parser, Settings)
    add("--seed", type=int, default=0, help="of the first run of each method")
    add("--seeds", type=int, default=1, metavar="N", help="runs of each method, with seeds --seed, --seed + 1, ...")
    add("--eval-every", type=int, default=0, metavar="EPOCHS", help="measure while training; 0: only at the end")
    strengths = "also measure with so much of what was learned: 0.5 is half way from the untouched model"
    add("--strengths", nargs="+", type=float, default=[], metavar="T", help=strengths)
    add("--examples", type=int, default=3, metavar="N", help="questions whose greedy answers are shown; 0: none")
    add("--device", default="auto", help="cpu, cuda, mps or auto: the fastest there is")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights; adapters are float32")
    add("--out", default="out", help="folder for results, adapters and the figure")
    args = parser.parse_args()
    for name, least in {"seeds": 1, "seed": 0, "eval_every": 0, "examples": 0}.items():
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    if args.lr is not None and not 0 < args.lr < math.inf:
        parser.error(f"--lr must be a positive number, not {args.lr}")
    args.method = list(dict.fromkeys(name for given in args.method for name in (ALL if given == "all" else [given])))
    return args


def texts_to_rehearse(args, base, tokenizer, out):
    """What --rehearse asks for: no texts, a file's, or the model's own, which are kept in the folder `out`."""
    if not args.rehearse.isdecimal():
        return read_documents(args.rehearse)
    if args.rehearse == "0":
        return []
    return out.texts(f"own_text_{args.rehearse}.jsonl", lambda: own_text(base, tokenizer, int(args.rehearse)))


def doubts(args, base, tokenizer, task, settings):
    """What may not be meant so, a sentence each."""
    if args.lr is None and Path(args.model).resolve() != BASE.resolve():
        yield "the default learning rates were tuned for data/base; the papers use 1e-4 to 5e-4 on large models (--lr)"
    documents = [tokenizer.encode(text) for text in task.documents]
    seq_len = min(settings.seq_len, base.config.context_length)
    windows = len(pack(documents, tokenizer.eot_id, seq_len, tokenizer.bos_id)[0])
    if (steps := settings.epochs * math.ceil(windows / settings.batch_size)) < 10:
        yield f"{steps} steps: the model will hardly change; give more --epochs, or a smaller --batch-size"
    shipped = (BASE.parent / "new").resolve()
    asked, read = ([shipped in Path(path).resolve().parents for path in some] for some in (args.qa, args.corpus))
    if all(asked) and not any(read):
        yield "the questions (--qa) are on the shipped corpus, not on yours"


def compare(args):
    """Load, run every method with every seed, report."""
    question_sets, notes = read_question_sets(args.qa + args.retention, args.primer)
    documents = [document for path in args.corpus for document in read_documents(path)]
    task = Task(documents, question_sets, read_named(args.text, read_documents))
    settings, folder, device = from_flags(args, Settings), find_model(args.model), pick_device(args.device)
    ranks.check(device, args.shard, args.compile, any(METHODS[method].layer is None for method in args.method))
    base, tokenizer = load_pretrained(folder, device="cpu" if args.shard else device, dtype=getattr(torch, args.dtype))
    for method in args.method:  # say at once what does not fit; of all adapters, LoRALayer starts fastest
        prepare(copy_for(base, method), LoRALayer if METHODS[method].layer else None, settings)
    for note in doubts(args, base, tokenizer, task, settings):
        print(f"note: {note}", file=sys.stderr)
    with comparison.opened(args, task, settings, folder, device, METHODS) as out:
        rehearse = texts_to_rehearse(args, base, tokenizer, out)
        asked = out.examples(base, tokenizer)
        summary, scores = measure(base, tokenizer, task, "untouched")
        out.untouched(summary, scores, [greedy_answer(base, tokenizer, question.prompt) for question in asked])
        for seed in range(args.seed, args.seed + args.seeds):
            for method in args.method:
                if out.has(method, seed):
                    continue
                model, scores, record = run(
                    base, tokenizer, task, method, settings, args.lr, seed, args.eval_every, rehearse, args.strengths
                )
                shown = asked if seed == args.seed and "diverged" not in record else []
                said = [greedy_answer(model, tokenizer, question.prompt) for question in shown]
                out.keep(method, seed, model, tokenizer, scores, record, said)
                del model  # its memory is the next one's
        out.finished(notes)


def main():
    args = parse_arguments()
    with one_sentence_errors("train.py", "--batch-size, --seq-len or --model"), ranks.together(args.device):
        compare(args)


if __name__ == "__main__":
    main()
