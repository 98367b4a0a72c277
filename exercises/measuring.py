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
from train import METHODS, Method, Settings, Task, measure, run

ROOT = Path(__file__).resolve().parents[1]
SETS = ("new/questions", "old/never_asked")


def base_model():
    """(model, tokenizer) as they are shipped, fresh from the files."""
    return load_pretrained(ROOT / "data/base")


def shipped_task(documents=None):
    """What is told and asked; documents: told instead of the shipped texts."""
    sets = {name: read_questions(ROOT / f"data/{name}.jsonl") for name in SETS}
    return Task(documents or read_documents(ROOT / "data/new/corpus.txt"), sets, {})


def documents_by_subject():
    """The shipped texts, all those on a subject in one document."""
    subjects = sorted({question.subject for question in read_questions(ROOT / "data/new/questions.jsonl")})
    told = {subject: [] for subject in subjects}
    for text in read_documents(ROOT / "data/new/corpus.txt"):
        told[next(subject for subject in subjects if subject.lower() in text.lower())].append(text)
    return [" ".join(texts) for texts in told.values()]


def taught(base, tokenizer, task, methods, seeds=1, settings=Settings(), rehearse=()):
    """{name: [(model, record) of each seed]}: a copy of the base taught by each of `methods`, {name: train.Method}."""
    runs = {name: [] for name in methods}
    with mock.patch.dict(METHODS, methods):  # for these runs only: train.py finds a method by its name
        for seed in range(seeds):
            for name in methods:
                model, _, record = run(base, tokenizer, task, name, settings, None, seed, rehearse=rehearse)
                runs[name].append((model, record))
    return runs


def teach(methods, documents=None):
    """Teach the shipped model with `methods` and print the table that train.py prints."""
    base, tokenizer = base_model()
    task = shipped_task(documents)
    records = {name: [r for _, r in some] for name, some in taught(base, tokenizer, task, methods).items()}
    untouched = {"summary": measure(base, tokenizer, task, "untouched")[0]}
    print(results_table(untouched, records, "new/questions"))


def row(name, summary, more=""):
    shares = [f"{key} {100 * summary[key]['acc']:5.1f}%" for key in SETS]
    print(f"{name:22}{'   '.join(shares)}{more}", flush=True)


def five_seeds(layer, interval, prediction):
    """Exercise 10: `layer` beside mica-transposed, the differences seed by seed, and their interval."""
    if prediction is ...:
        raise NotWritten
    interval([1.0, 2.0, 3.0])  # what is not written yet should be said now, not in four minutes
    methods = {"mine": Method(layer, METHODS["mica-transposed"].lr), "mica-transposed": METHODS["mica-transposed"]}
    runs = taught(*base_model(), shipped_task(), methods, seeds=5)
    for name in SETS:
        acc = {method: [100 * r["summary"][name]["acc"] for _, r in some] for method, some in runs.items()}
        acc["difference"] = [mine - theirs for mine, theirs in zip(acc["mine"], acc["mica-transposed"])]
        for method, values in acc.items():
            print(f"{name:16} {method:16}" + "".join(f"{value:+7.1f}" for value in values))
        mean, low, high = interval(acc["difference"])
        print(f"{name:16} mean {mean:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}")
    print(f"predicted: {prediction:+.1f} points of new/questions")


def landings(amplification, similarity, outside):
    """Exercise 12: MiCA's and LoRA's change of the shipped model, by the measures given; means over the layers."""
    two = torch.eye(3)[:, :2]
    amplification(torch.eye(3), torch.eye(3), 2), similarity(two, two), outside(torch.eye(3), two)  # written yet?
    runs = taught(*base_model(), shipped_task(), {name: METHODS[name] for name in ("mica", "lora")})
    titles = ("amplification", "left major", "left minor", "right major", "right minor", "outside")
    print(f"{'':14}" + "".join(f"{title:>14}" for title in titles))
    for method, [(model, _)] in runs.items():
        measured = {}
        for name, layer in find_adapters(model).items():
            W, dW = layer.linear.weight.detach().double(), layer.delta().double()
            U, _, Vh = torch.linalg.svd(W, full_matrices=False)
            dU, _, dVh = torch.linalg.svd(dW, full_matrices=False)
            dU, dV = dU[:, :8], dVh[:8].T
            bases = (dU, U[:, :8]), (dU, U[:, -8:]), (dV, Vh[:8].T), (dV, Vh[-8:].T)
            numbers = amplification(W, dW, 8), *(similarity(*two) for two in bases), outside(dW, minor_directions(W, 8))
            measured.setdefault(name.rpartition(".")[2], []).append([float(number) for number in numbers])
        for name in ("q_proj", "v_proj", "down_proj"):
            means = torch.tensor(measured[name]).mean(0).tolist()
            print(f"{method:5}{name:9}{means[0]:14.1f}" + "".join(f"{mean:14.2f}" for mean in means[1:]))
    print("left, right: dW's 8 first singular vectors beside W's 8 largest and smallest;", end=" ")
    print("outside: of the minor directions")


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
            settings, rehearse = Settings(rehearsal_weight=weight), own if weight else ()
            runs = taught(base, tokenizer, task, {"lora": METHODS["lora"]}, settings=settings, rehearse=rehearse)
            row(f"lora, weight {weight:g}", runs["lora"][0][1]["summary"], f"   predicted {predicted:g}%")


def inputs_of(model, tokenizer, documents):
    """{name of a block's linear: its inputs (tokens, in) on these documents}."""
    inputs = {}

    def keeper(name):
        return lambda _, given, output: inputs.setdefault(name, []).append(given[0].flatten(0, -2))

    linears = {n: m for n, m in model.layers.named_modules(prefix="layers") if isinstance(m, torch.nn.Linear)}
    hooks = [linear.register_forward_hook(keeper(name)) for name, linear in linears.items()]
    ids = [tokenizer.encode(text) for text in documents]
    with torch.no_grad():
        for x in pack(ids, tokenizer.eot_id, 128, tokenizer.bos_id)[0].split(16):
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

    methods = {name: METHODS[name] for name in ("lora-fa", "lora")}
    methods["quiet"] = Method(QuietLayer, METHODS["lora-fa"].lr)
    for name, [(model, record)] in taught(base, tokenizer, shipped_task(), methods).items():
        row(name, record["summary"], f"   perplexity of old text {perplexity(model, tokenizer, old):.3f}")
    print(f"predicted: {prediction:+g} points of old/never_asked")
