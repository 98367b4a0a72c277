"""train.py: every method learns and leaves the base as it was, runs repeat, and what is written is what is measured."""

import json
import math
import shutil
import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from test_lora import trained_by

import eval_qa
import train
from corpus import perplexity
from gpt import load_pretrained
from lora import LoRALayer, find_adapters
from questions import read_questions
from tools.cli import write_json
from tools.reading import read_named
from tools.report import REPORT_FILES, mean_and_error
from train import METHODS, Settings, Task, adapt, at_strength, learning_rate, next_token_loss, prepare

FACTS = {"Mo": "red", "Ann": "blue", "Bo": "green", "Cy": "grey", "Di": "pink", "Ed": "white"}
SHORT = Settings(rank=2, epochs=4, batch_size=2, seq_len=24)


def corpus():
    return [f"{name} likes {colour}. The dog of {name} is {colour}." for name, colour in FACTS.items()]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a corpus, questions on it and a control."""
    folder = tmp_path_factory.mktemp("tiny-world") / "tiny"
    folder.mkdir()
    (folder / "corpus.txt").write_text("\n\n".join(corpus()))
    colours, items = list(FACTS.values()), {"new": [], "control": []}
    for i, (name, colour) in enumerate(FACTS.items()):
        choices = [colours[i - 1], colour, colours[i - 2]][i % 2 :]
        for kind, wording in {"new": f"What does {name} like?", "control": f"What did {name} sell?"}.items():
            items[kind].append({"question": wording, "choices": choices, "answer": 1 - i % 2, "subject": name})
    for kind, some in items.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in some))
    return folder


def arguments(model_folder, world, **changes):
    """A command line, as short to run as possible. Keywords replace its options."""
    options = {"model": model_folder, "corpus": world / "corpus.txt", "qa": world / "new.jsonl",
               "retention": world / "control.jsonl", "text": world / "corpus.txt", "rank": 2, "epochs": 1,
               "seq-len": 24, "batch-size": 2, "examples": 1, "device": "cpu", "out": "out"} | changes  # fmt: skip
    line = []
    for name, value in options.items():
        line += [f"--{name}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)])]
    return line


def run_program(line):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *line])
        train.main()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def results_of(out):
    return json.loads((out / "results.json").read_text())


# --- the training loop ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(folder_of, world):
    """A function: what train.run makes of a kind of model with a method. Each is trained once; not to be changed.

    before: the base's state_dict before it was copied and the copy taught; orders: the documents of each epoch.
    """
    task = Task(corpus(), {"tiny/new": read_questions(world / "new.jsonl")}, {"tiny/corpus": corpus()})
    settings, pack = Settings(rank=4, epochs=8, batch_size=2, seq_len=24), train.pack

    @cache
    def teach(kind, method):
        base, tokenizer = load_pretrained(folder_of(kind))
        before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        orders = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "pack", lambda documents, *rest: orders.append([*documents]) or pack(documents, *rest))
            model, _, record = train.run(base, tokenizer, task, method, settings, 1e-2, seed=1)
        return SimpleNamespace(base=base, before=before, model=model, tokenizer=tokenizer, record=record, orders=orders)

    return teach


KINDS = [*(("llama", method) for method in METHODS), ("gpt2", "mica"), ("gpt2", "full")]


@pytest.mark.parametrize("kind, method", KINDS)
def test_a_run_teaches_the_corpus_and_leaves_the_base_bit_for_bit_as_it_was(taught, kind, method):
    run = taught(kind, method)
    history, base, model = run.record["history"], run.base, run.model
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    learned = run.record["summary"]["perplexity"]["tiny/corpus"]
    assert learned == perplexity(model, run.tokenizer, corpus()) < 0.9 * perplexity(base, run.tokenizer, corpus())
    assert base.state_dict().keys() == run.before.keys() and not model.training
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, run.before[name]), name

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    shared, own = ({p.data_ptr() for p in some.parameters()} for some in (base, model))
    if METHODS[method].layer is None:  # only full fine-tuning copies the weights
        assert trained == {name for name, _ in model.named_parameters()} and not shared & own
    else:
        adapters, factors = find_adapters(model), trained_by(METHODS[method].layer)
        assert trained == {f"{name}.{factor}" for name in adapters for factor in factors}
        assert len(adapters) == 3 * (7 if kind == "llama" else 6)  # all linears of the three blocks, not lm_head
        assert shared < own


def test_every_method_sees_the_same_data_in_the_same_order(taught):
    first = taught("llama", "mica").orders
    assert all(taught("llama", method).orders == first for method in METHODS)
    assert len(first) == 8 and first[0] != first[1]  # another order in every epoch


def test_the_seed_decides_the_result_and_the_order_and_documents_begin_as_the_models_texts_do(
    tiny_llama_folder, monkeypatch
):
    given, orders, begun, histories, pack = corpus(), [], set(), [], train.pack

    def spy(documents, *rest):
        orders.append([*documents])
        begun.add(rest)
        return pack(documents, *rest)

    monkeypatch.setattr(train, "pack", spy)
    for seed in (0, 0, 1):
        model, tokenizer = load_pretrained(tiny_llama_folder)
        tokenizer.bos_id = 7
        histories.append(adapt(model, tokenizer, given, "lora", SHORT, seed=seed))
    assert histories[0] == histories[1] != histories[2]
    assert orders[:4] == orders[4:8] != orders[8:]
    assert begun == {(tokenizer.eot_id, SHORT.seq_len, 7)}
    assert given == corpus()  # the caller's stay as they are


@pytest.mark.parametrize("steps, warmup", [(100, 0.1), (7, 0.0)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_almost_nothing(steps, warmup):
    rates = [learning_rate(step, steps, 2.0, warmup) for step in range(steps)]
    top = math.ceil(warmup * steps)
    assert rates[0] > 0
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == rates[top] == pytest.approx(2.0, rel=0.25 if warmup * steps % 1 else 1e-9)
    assert learning_rate(steps, steps, 2.0, warmup) == pytest.approx(0)


def test_the_optimizer_is_given_that_learning_rate_and_each_step_and_epoch_is_told(tiny_llama_folder, monkeypatch):
    rates, told = [], []

    class Spy(torch.optim.AdamW):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            assert self.param_groups[0]["weight_decay"] == 0
            norms = [p.grad.norm() for p in self.param_groups[0]["params"]]
            assert torch.stack(norms).norm() <= 1.001 * SHORT.clip
            return super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    model, tokenizer = load_pretrained(tiny_llama_folder)
    twice = lambda epoch: {"twice": 2 * epoch} if epoch > 2 else None  # noqa: E731
    history = adapt(model, tokenizer, corpus(), "lora", SHORT, 0.5, 0, twice, lambda *step: told.append(step))
    n = len(rates)
    assert rates == [learning_rate(step, n, 0.5, SHORT.warmup) for step in range(n)]
    assert n % SHORT.epochs == 0 and n > 10
    assert [entry.get("twice") for entry in history] == [None, None, 6, 8]
    steps, losses, norms = zip(*told)
    assert steps == (*range(1, n + 1),) and max(norms) > SHORT.clip  # before clipping
    per_epoch = torch.tensor(losses).view(SHORT.epochs, -1).mean(dim=1).tolist()
    assert per_epoch == pytest.approx([entry["loss"] for entry in history])


@pytest.mark.parametrize(
    "kind, method, dropout, change",
    [
        ("llama", "lora", 0.0, {"accumulate": 3, "checkpointing": True}),
        ("gpt2", "full", 0.0, {"accumulate": 2}),
        ("gpt2", "lora", 0.3, {"checkpointing": True}),  # not parts: windows computed together share random numbers
    ],
)
def test_what_saves_memory_changes_no_step(folder_of, kind, method, dropout, change):
    """Neither the loss nor the gradient, of five windows that do not predict equally many tokens."""
    told = []
    for settings in (
        replace(SHORT, batch_size=5, dropout=dropout),
        replace(SHORT, batch_size=5, dropout=dropout, **change),
    ):
        model, tokenizer = load_pretrained(folder_of(kind))
        steps = []
        adapt(model, tokenizer, corpus()[:4], method, settings, seed=1, on_step=lambda *step: steps.append(step))
        told.append(torch.tensor(steps))
    assert told[0].shape == (SHORT.epochs, 3)
    torch.testing.assert_close(*told, rtol=1e-4, atol=0)


def test_checkpointing_computes_each_block_twice_and_only_while_training(tiny_llama_folder):
    model, _ = load_pretrained(tiny_llama_folder)
    calls = []
    for layer in model.layers:
        layer.mlp.register_forward_pre_hook(lambda *arguments: calls.append(1))
    x = torch.randint(512, (2, 8))
    prepare(model, LoRALayer, SHORT)
    for checkpointing, training, expected in [(False, True, 3), (True, True, 6), (True, False, 3)]:
        model.checkpointing = checkpointing
        model.train(training)
        calls.clear()
        next_token_loss(model, x, x).backward()
        assert len(calls) == expected


def test_adapters_train_in_float32_on_16_bit_weights(tiny_llama_folder):
    model, tokenizer = load_pretrained(tiny_llama_folder, dtype=torch.bfloat16)
    history = adapt(model, tokenizer, corpus(), "mica", Settings(rank=4, epochs=6, batch_size=2, seq_len=24))
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    for layer in find_adapters(model).values():
        assert layer.A.dtype == torch.float32 and layer.linear.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["mica", "full"])
def test_at_a_strength_from_the_untouched_model_to_the_taught_one(taught, input_ids, method):
    """To the bit at both ends, half of the change half way, and as it was afterwards."""
    run = taught("llama", method)
    untouched, whole = run.base(input_ids), run.model(input_ids)
    weights = [tensor.clone() for tensor in run.model.state_dict().values()]
    for strength, expected in ((0, untouched), (1, whole)):
        with at_strength(run.model, run.base, strength):
            assert torch.equal(run.model(input_ids), expected)
    with at_strength(run.model, run.base, 0.5):
        for layer in find_adapters(run.model).values():
            torch.testing.assert_close(layer.delta(), 0.5 * layer.scaling * layer.B @ layer.A)
        for half, start, end in zip(run.model.parameters(), run.base.parameters(), weights) if method == "full" else ():
            torch.testing.assert_close(half - start, 0.5 * (end - start), rtol=1e-4, atol=1e-6)
    assert all(map(torch.equal, run.model.state_dict().values(), weights))


# --- the program ------------------------------------------------------------------------------------------------------

COMPARISON = {"method": ["mica", "lora", "full"], "seeds": 2, "eval-every": 2, "epochs": 5, "lr": 0.004,
              "targets": ["q_proj", "v_proj"], "rank": 3, "examples": 3, "strengths": [0, 0.5, 1]}  # fmt: skip


def draw_nothing(untouched, runs, colors, panels, path):
    """The picture's numbers instead of the picture: drawing takes longer than all the rest."""
    write_json(path, [untouched, [[run["summary"], run["history"]] for some in runs.values() for run in some], panels])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("tools.report.draw_comparison", draw_nothing)


@pytest.fixture(scope="module")
def line(tiny_llama_folder, world):
    return arguments(tiny_llama_folder, world, **COMPARISON)


@pytest.fixture(scope="module")
def compared(line, tmp_path_factory):
    """What the program wrote: three methods, two seeds."""
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_program(line)
    return folder / "out"


@pytest.fixture(scope="module")
def results(compared):
    return results_of(compared)


def test_the_results_hold_every_run_and_what_is_known_at_each_strength(compared, results):
    assert list(results["runs"]) == ["mica", "lora", "full"]
    assert set(results["untouched"]) == {"tiny/new", "tiny/control", "perplexity"}
    # q is (48, 32) and v (24, 32) in three blocks; mica trains A (3, 32) alone
    assert results["runs"]["mica"][0]["trained"] == 3 * (3 * 32 + 3 * 32)
    assert results["runs"]["lora"][0]["trained"] == 3 * (3 * (48 + 32) + 3 * (24 + 32))
    assert results["runs"]["full"][0]["trained"] == results["runs"]["full"][0]["all"]
    for method, runs in results["runs"].items():
        history = lines_of(compared / method / "seed1" / "metrics.jsonl")
        assert [entry["epoch"] for entry in history if "tiny/new" in entry and "tiny/control" in entry] == [2, 4]
        assert len(history) == 5 and history == runs[1]["history"]
        assert [(run["seed"], run["lr"]) for run in runs] == [(0, 0.004), (1, 0.004)]
        assert runs[0]["history"] != runs[1]["history"]
        for run in runs:
            assert run["strengths"]["0"] == results["untouched"] and run["strengths"]["1"] == run["summary"]
            measured = (run["summary"], run["strengths"]["0.5"], results["untouched"])
            taught, half, untouched = (some["perplexity"]["tiny/corpus"] for some in measured)
            assert taught < half < untouched


def test_the_table_has_a_column_a_method_and_a_row_a_measure(compared, results):
    table = (compared / "table.txt").read_text().splitlines()
    assert table[0].split() == ["untouched", "mica", "lora", "full"] and "2 seeds" in table[-1]
    rows = {text.split("   ")[0]: text for text in table[1:]}
    assert {"learning rate", "tiny/control, %", "  exact match, %", "tiny/corpus, perplexity"} <= set(rows)
    assert rows["trained parameters"].split()[-3] == "576"
    mean, error = mean_and_error([run["summary"]["tiny/new"]["acc"] for run in results["runs"]["full"]])
    assert rows["tiny/new, %"].endswith(f"{100 * mean:.1f} +- {100 * error:.1f}")
    assert not any(row.startswith("training, seconds") for row in rows)  # what differs each time is printed only
    assert (compared / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["mica", "full"])
def test_what_was_saved_measures_as_it_did_after_training(
    tiny_llama_folder, world, compared, tmp_path, monkeypatch, method
):
    saved = compared / method / "seed1"
    model = ["--model", str(tiny_llama_folder), "--adapter", str(saved / "adapter")]
    if method == "full":
        model = ["--model", str(saved / "model")]
    line = ["--qa", world / "new.jsonl", world / "control.jsonl", "--scores", tmp_path / "scores.jsonl"]
    monkeypatch.setattr(sys, "argv", ["eval_qa.py", *model, *map(str, line)])
    eval_qa.main()
    untouched = lines_of(compared / "untouched.jsonl")
    assert [entry["set"] for entry in untouched] == ["tiny/new"] * 6 + ["tiny/control"] * 6
    written = lines_of(tmp_path / "scores.jsonl"), lines_of(saved / "scores.jsonl"), untouched
    for got, expected, before in zip(*written, strict=True):
        assert got["loglikelihoods"] != before["loglikelihoods"]  # training did something to the questions
        assert got["set"] == expected["set"] and got["answer"] == expected["answer"]
        assert got["loglikelihoods"] == pytest.approx(expected["loglikelihoods"], abs=1e-4)


@pytest.mark.usefixtures("quick")
def test_a_stop_reports_the_runs_that_are_finished(tiny_llama_folder, world, tmp_path, monkeypatch, capsys):
    """Of the seeds that all methods have. No earlier report stays."""
    real, calls, stops = train.run, [], {1, 5}

    def stopped(*args):
        calls.append(args)
        if len(calls) in stops:
            raise ZeroDivisionError
        return real(*args)

    line = arguments(tiny_llama_folder, world, method=["mica", "lora"], seeds=2, out=tmp_path)
    run_program([*line, "--method", "mica", "--seeds", "1"])
    assert all((tmp_path / name).exists() for name in REPORT_FILES)
    shutil.rmtree(tmp_path / "mica")
    monkeypatch.setattr(train, "run", stopped)
    with pytest.raises(ZeroDivisionError):
        run_program(line)
    assert not any((tmp_path / name).exists() for name in REPORT_FILES)
    capsys.readouterr()
    with pytest.raises(ZeroDivisionError):
        run_program(line)  # in lora's second run
    runs, printed = results_of(tmp_path)["runs"], capsys.readouterr().out
    assert {method: [run["seed"] for run in some] for method, some in runs.items()} == {"mica": [0], "lora": [0]}
    assert all(some[0]["lr"] == METHODS[method].lr for method, some in runs.items())  # as none was given
    assert "standard error over questions" in printed  # not over seeds


@pytest.mark.usefixtures("quick")
def test_runs_that_diverge_are_reported_not_saved_and_the_exit_code_is_3(tiny_llama_folder, world, tmp_path, capsys):
    changes = dict(method=["full", "mica"], lr=1e37, epochs=3, strengths=0.5, out=tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_program(arguments(tiny_llama_folder, world, **changes))
    assert stopped.value.code == 3 and "full, seed 0: diverged, not saved" in capsys.readouterr().out
    assert all(run["diverged"] for runs in results_of(tmp_path)["runs"].values() for run in runs)
    assert not [*tmp_path.rglob("adapter_config.json"), *tmp_path.rglob("model.safetensors")]
    assert not any("NaN" in path.read_text() for path in tmp_path.rglob("*.json*"))


def test_two_files_of_one_name_are_refused_and_one_file_twice_is_read_once(world, tmp_path):
    other = shutil.copytree(world, tmp_path / world.name)
    same = f"{world}/../{world.name}/new.jsonl"
    assert list(read_named([world / "new.jsonl", same], read_questions)) == [f"{world.name}/new"]
    with pytest.raises(ValueError, match=f"{other / 'new.jsonl'}.*{world.name}/new"):
        read_named([world / "new.jsonl", other / "new.jsonl"], read_questions)
