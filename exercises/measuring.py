"""What the exercises' measuring parts share: the shipped model and world, and teaching them with layers of one's own."""

from pathlib import Path
from unittest import mock

import torch

import train
from corpus import IGNORE, pack, perplexity
from exercises import NotWritten
from gpt import load_pretrained
from lora import LoRALayer, find_adapters
from mica import minor_directions
from questions import read_questions
from rehearsal import Rehearsal, own_text
from tools.reading import read_documents
from tools.report import results_table
from train import METHODS, Method, Settings, Task, adapt, copy_for, measure, run

ROOT = Path(__file__).resolve().parents[1]


def base_model():
    """(model, tokenizer) as they are shipped, fresh from the files."""
    return load_pretrained(ROOT / "data/base")


def shipped_task(documents=None):
    """What is told and asked; documents: told instead of the shipped texts."""
    sets = {name: read_questions(ROOT / f"data/{name}.jsonl") for name in ("new/questions", "old/never_asked")}
    return Task(documents or read_documents(ROOT / "data/new/corpus.txt"), sets, {})


def documents_by_subject():
    """The shipped texts, all those on a subject in one document."""
    subjects = sorted({question.subject for question in read_questions(ROOT / "data/new/questions.jsonl")})
    told = {subject: [] for subject in subjects}
    for text in read_documents(ROOT / "data/new/corpus.txt"):
        told[next(subject for subject in subjects if subject.lower() in text.lower())].append(text)
    return [" ".join(texts) for texts in told.values()]


def records_of(methods, seeds=1, documents=None):
    """(base, tokenizer, task, {name: [(model, record) of each seed]}): `methods` {name: train.Method} taught one by one."""
    base, tokenizer = base_model()
    task = shipped_task(documents)
    runs = {name: [] for name in methods}
    with mock.patch.dict(METHODS, methods):  # for these runs only: train.py finds a method by its name
        for seed in range(seeds):
            for name in methods:
                model, _, record = run(base, tokenizer, task, name, Settings(), None, seed)
                runs[name].append((model, record))
    return base, tokenizer, task, runs


def teach(methods, seeds=1, documents=None):
    """Teach the shipped model with `methods` and print the table that train.py prints."""
    base, tokenizer, task, runs = records_of(methods, seeds, documents)
    untouched = {"summary": measure(base, tokenizer, task, "untouched")[0]}
    print(results_table(untouched, {name: [r for _, r in some] for name, some in runs.items()}, "new/questions"))


def five_seeds(layer, interval, prediction):
    """Exercise 10: `layer` beside mica-transposed, the differences seed by seed, and their interval."""
    if prediction is ...:
        raise NotWritten
    interval([1.0, 2.0, 3.0])  # what is not written yet should be said now, not in four minutes
    methods = {"mine": Method(layer, METHODS["mica-transposed"].lr), "mica-transposed": METHODS["mica-transposed"]}
    *_, runs = records_of(methods, seeds=5)
    for name in ("new/questions", "old/never_asked"):
        acc = {method: [100 * r["summary"][name]["acc"] for _, r in some] for method, some in runs.items()}
        differences = [mine - theirs for mine, theirs in zip(acc["mine"], acc["mica-transposed"])]
        for method, values in acc.items():
            print(f"{name:16} {method:16}" + "".join(f"{value:7.1f}" for value in values))
        mean, low, high = interval(differences)
        print(f"{name:16} {'difference':16}" + "".join(f"{value:+7.1f}" for value in differences))
        print(f"{name:16} mean {mean:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}")
    print(f"predicted: {prediction:+.1f} points of new/questions")


def landings(amplification, similarity, outside):
    """Exercise 12: MiCA's and LoRA's change of the shipped model, by the measures given; means over the layers."""
    two = torch.eye(3)[:, :2]
    amplification(torch.eye(3), torch.eye(3), 2), similarity(two, two), outside(torch.eye(3), two)  # written yet?
    base, _, _, runs = records_of({name: METHODS[name] for name in ("mica", "lora")})
    print(
        f"{'':14}{'amplification':>14}{'left major':>12}{'left minor':>12}{'right major':>12}{'right minor':>12}{'outside':>9}"
    )
    for method, [(model, _)] in runs.items():
        measured = {}
        for name, layer in find_adapters(model).items():
            W, dW = layer.linear.weight.detach().double(), layer.delta().double()
            U, _, Vh = torch.linalg.svd(W, full_matrices=False)
            dU, _, dVh = torch.linalg.svd(dW, full_matrices=False)
            dU, dV = dU[:, :8], dVh[:8].T
            numbers = (
                amplification(W, dW, 8),
                similarity(dU, U[:, :8]),
                similarity(dU, U[:, -8:]),
                similarity(dV, Vh[:8].T),
                similarity(dV, Vh[-8:].T),
                outside(dW, minor_directions(W, 8)),
            )
            measured.setdefault(name.rpartition(".")[2], []).append([float(number) for number in numbers])
        for name in ("q_proj", "v_proj", "down_proj"):
            a, *others, away = torch.tensor(measured[name]).mean(0).tolist()
            print(f"{method:5}{name:9}{a:14.1f}" + "".join(f"{other:12.2f}" for other in others) + f"{away:9.2f}")
    print(
        "left, right: dW's 8 first singular vectors beside W's 8 largest and smallest; outside: of the minor directions"
    )


def taught(base, tokenizer, task, method, settings=Settings(), rehearse=()):
    """(a copy of the base, taught; its summary)."""
    model = copy_for(base, method)
    adapt(model, tokenizer, task.documents, method, settings, rehearse=rehearse)
    return model, measure(model, tokenizer, task, method)[0]


def row(name, summary, more=""):
    shares = [f"{key} {100 * summary[key]['acc']:5.1f}%" for key in ("new/questions", "old/never_asked")]
    print(f"{name:22}{'   '.join(shares)}{more}", flush=True)


def rehearsals(kl, kept):
    """Exercise 13: LoRA with rehearsal at each weight, by the student's divergence."""
    if ... in kept.values():
        raise NotWritten

    class Mine(Rehearsal):
        def loss(self, model, x, y, untouched):
            return kl(self.head(untouched), model(x), y) * (y != IGNORE).sum()

    kl(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long))  # written yet?
    base, tokenizer = base_model()
    task, own = shipped_task(), own_text(base, tokenizer, 20_000)
    row("untouched", measure(base, tokenizer, task, "untouched")[0])
    with mock.patch.object(train, "Rehearsal", Mine):
        for weight, predicted in kept.items():
            settings = Settings(rehearsal_weight=weight)
            _, summary = taught(base, tokenizer, task, "lora", settings, own if weight else ())
            row(f"lora, weight {weight:g}", summary, f"   predicted {predicted:g}%")


def inputs_of(model, tokenizer, documents):
    """{name of a block's linear: its inputs (tokens, in) on these documents}."""
    inputs, hooks = {}, []
    for name, linear in model.layers.named_modules(prefix="layers"):
        if isinstance(linear, torch.nn.Linear):
            keep = lambda _, given, __, name=name: inputs.setdefault(name, []).append(given[0].flatten(0, -2))  # noqa: E731
            hooks.append(linear.register_forward_hook(keep))
    with torch.no_grad():
        for x in pack([tokenizer.encode(text) for text in documents], tokenizer.eot_id, 128, tokenizer.bos_id)[0].split(
            16
        ):
            model(x)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in inputs.items()}


def quiet_readers(quiet_directions, heard, prediction):
    """Exercise 14: LoRA-FA, and the same with A in the directions that old text hardly has."""
    if prediction is ...:
        raise NotWritten
    heard(torch.eye(3)[:1], torch.eye(3)), quiet_directions(torch.eye(3), 1)  # written yet?
    base, tokenizer = base_model()
    old = read_documents(ROOT / "data/old/text.txt")
    seen, unseen = (inputs_of(base, tokenizer, half) for half in (old[::2], old[1::2]))
    directions = {name: quiet_directions(X, 8) for name, X in seen.items()}
    print("share of its inputs that a layer's A hears, mean over the layers")
    random = {name: torch.linalg.qr(torch.randn(X.shape[1], 8)).Q.T for name, X in seen.items()}
    for name, chosen in (("quiet", directions), ("random", random)):
        shares = [torch.tensor([float(heard(A, X[n])) for n, A in chosen.items()]).mean() for X in (seen, unseen)]
        print(f"  {name:8} on the text it was taken from {shares[0]:.6f}, on other old text {shares[1]:.6f}")
    by_weight = {base.get_submodule(name).weight.data_ptr(): A for name, A in directions.items()}

    class QuietLayer(LoRALayer):
        trained = "B"

        def start(self, W):
            return by_weight[W.data_ptr()].to(W), W.new_zeros(W.shape[0], self.rank)

    task = shipped_task()
    methods = {
        "lora-fa": METHODS["lora-fa"],
        "quiet": Method(QuietLayer, METHODS["lora-fa"].lr),
        "lora": METHODS["lora"],
    }
    with mock.patch.dict(METHODS, methods):
        for name in methods:
            model, summary = taught(base, tokenizer, task, name)
            row(name, summary, f"   perplexity of old text {perplexity(model, tokenizer, old):.3f}")
    print(f"predicted: {prediction:+g} points of old/never_asked")
