"""train.py: every method learns and leaves the base as it was, runs repeat, and what is written is what is measured."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from test_lora import trained_by

import eval_qa
import train
from adapter_io import save_trained
from corpus import perplexity
from gpt import load_pretrained
from lora import LoRALayer, find_adapters
from questions import Question, read_questions
from tools.cli import printable, write_json
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
    rng = random.Random(0)
    for kind, wording in {"new": "What does {} like?", "control": "What did {} sell?"}.items():
        items = []
        for name, colour in FACTS.items():
            choices = [colour, *rng.sample([c for c in FACTS.values() if c != colour], 2)]
            rng.shuffle(choices)
            right = choices.index(colour)
            items.append({"question": wording.format(name), "choices": choices, "answer": right, "subject": name})
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
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


@dataclass
class Taught:
    base: torch.nn.Module
    before: dict  # the base's state_dict before it was copied and the copy taught
    model: torch.nn.Module
    tokenizer: object
    record: dict
    orders: list  # the documents of each epoch


@pytest.fixture(scope="module")
def taught(folder_of, world):
    """A function: what train.run makes of a kind of model with a method. Each is trained once; not to be changed."""
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
        return Taught(base, before, model, tokenizer, record, orders)

    return teach


@pytest.mark.parametrize("kind, method", [("llama", method) for method in METHODS] + [("gpt2", m) for m in train.ALL])
def test_a_run_teaches_the_corpus_and_leaves_the_base_bit_for_bit_as_it_was(taught, kind, method):
    run = taught(kind, method)
    history, base, model = run.record["history"], run.base, run.model
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    learned = run.record["summary"]["perplexity"]["tiny/corpus"]
    assert learned == perplexity(model, run.tokenizer, corpus()) < 0.9 * perplexity(base, run.tokenizer, corpus())
    assert not model.training
    assert base.state_dict().keys() == run.before.keys() and not find_adapters(base)
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, run.before[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_names_is_trained_and_only_full_fine_tuning_copies_the_weights(taught, method):
    base, model = taught("llama", method).base, taught("llama", method).model
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    shared, own = ({p.data_ptr() for p in some.parameters()} for some in (base, model))
    if METHODS[method].layer is None:
        assert trained == {name for name, _ in model.named_parameters()}
        assert not shared & own
    else:
        adapters = find_adapters(model)
        factors = trained_by(METHODS[method].layer)
        assert trained == {f"{name}.{factor}" for name in adapters for factor in factors}
        assert len(adapters) == 3 * 7  # all linears of the three blocks, not lm_head
        assert shared < own


def test_every_method_sees_the_same_data_in_the_same_order(taught):
    first = taught("llama", "mica").orders
    assert all(taught("llama", method).orders == first for method in METHODS)
    assert len(first) == 8 and first[0] != first[1]  # another order in every epoch


def test_the_seed_decides_the_result_and_the_order(tiny_llama_folder, monkeypatch):
    given, orders, histories, pack = corpus(), [], [], train.pack
    monkeypatch.setattr(train, "pack", lambda some, *rest: orders.append([*some]) or pack(some, *rest))
    for seed in (0, 0, 1):
        model, tokenizer = load_pretrained(tiny_llama_folder)
        histories.append(adapt(model, tokenizer, given, "lora", SHORT, seed=seed))
    assert histories[0] == histories[1] != histories[2]
    assert orders[:4] == orders[4:8] != orders[8:]
    assert given == corpus()  # the caller's stay as they are


def test_documents_begin_as_the_models_texts_do(tiny_llama_folder, monkeypatch):
    seen, pack = [], train.pack
    monkeypatch.setattr(train, "pack", lambda *arguments: seen.append(arguments[1:]) or pack(*arguments))
    model, tokenizer = load_pretrained(tiny_llama_folder)
    tokenizer.bos_id = 7
    adapt(model, tokenizer, corpus(), "lora", SHORT)
    assert set(seen) == {(tokenizer.eot_id, SHORT.seq_len, 7)}


@pytest.mark.parametrize("steps, warmup", [(100, 0.1), (40, 0.5), (7, 0.0), (3, 0.1)])
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


def gradients_of_first_step(folder, monkeypatch, method, dropout, **changes):
    """What the optimizer is given in a first step, of windows that do not predict equally many tokens, and the loss."""
    seen, pack = [], train.pack

    def uneven(*arguments):
        x, y = pack(*arguments)
        assert len(x) == 5 and not (y == train.IGNORE).sum(dim=1).unique().numel() == 1
        return x, y

    class Spy(torch.optim.AdamW):
        def step(self):
            seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
            return super().step()

    model, tokenizer = load_pretrained(folder)
    settings = replace(SHORT, epochs=1, batch_size=5, clip=1e9, dropout=dropout, **changes)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Spy)
        patch.setattr(train, "pack", uneven)
        history = adapt(model, tokenizer, corpus()[:4], method, settings, seed=1)
    assert not model.training and not any(p.grad is not None for p in model.parameters())
    return seen[0], history[0]["loss"]


SAVING = {  # what saves memory, by the dropout it is compared under
    0.0: [{"accumulate": 2}, {"accumulate": 100}, {"checkpointing": True}, {"accumulate": 3, "checkpointing": True}],
    0.3: [{"checkpointing": True}],  # not parts: windows computed together share their random numbers
}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dropout", SAVING)
def test_what_saves_memory_changes_no_gradient(tiny_folder, monkeypatch, method, dropout):
    plain, loss = gradients_of_first_step(tiny_folder, monkeypatch, method, dropout)
    assert any(gradient.abs().max() > 1e-3 for gradient in plain)
    for change in SAVING[dropout]:
        saving, same = gradients_of_first_step(tiny_folder, monkeypatch, method, dropout, **change)
        assert same == pytest.approx(loss, rel=1e-6), change
        for one, other in zip(saving, plain, strict=True):
            assert (one - other).norm() <= 1e-5 * max(other.norm(), 1e-3), change


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


def test_adapters_train_in_float32_on_16_bit_weights(tiny_folder):
    model, tokenizer = load_pretrained(tiny_folder, dtype=torch.bfloat16)
    history = adapt(model, tokenizer, corpus(), "mica", Settings(rank=4, epochs=6, batch_size=2, seq_len=24))
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    for layer in find_adapters(model).values():
        assert layer.A.dtype == torch.float32 and layer.linear.weight.dtype == torch.bfloat16


def test_a_loss_that_is_not_a_number_is_said(tiny_llama_folder, capsys):
    model, tokenizer = load_pretrained(tiny_llama_folder)
    torch.nn.init.constant_(model.norm.weight, 1e38)
    history = adapt(model, tokenizer, corpus(), "mica", SHORT)
    assert not math.isfinite(history[-1]["loss"])
    assert "--lr" in capsys.readouterr().err


def test_the_loss_is_on_screen(tiny_llama_folder, capsys, monkeypatch):
    moments = iter(range(0, 10**6, 10))
    monkeypatch.setattr("tools.cli.time.monotonic", lambda: next(moments))  # ten seconds between any two looks
    model, tokenizer = load_pretrained(tiny_llama_folder)
    history = adapt(model, tokenizer, corpus(), "lora", replace(SHORT, epochs=1, batch_size=100))
    said = capsys.readouterr().err
    assert f"lora, seed 0, epoch 1/1: 1/1, 10 s, loss {history[0]['loss']:.3f}" in said


@pytest.mark.parametrize("method", ["mica", "milora", "full"])
def test_at_a_strength_from_the_untouched_model_to_the_taught_one(taught, input_ids, method):
    """To the bit at both ends, on the way between them, and as it was afterwards."""
    run = taught("llama", method)
    untouched, whole = run.base(input_ids), run.model(input_ids)
    weights = [tensor.clone() for tensor in run.model.state_dict().values()]
    found = {}
    for strength in (0, 0.5, 1):
        with at_strength(run.model, run.base, strength):
            found[strength] = run.model(input_ids)
    assert torch.equal(found[0], untouched) and torch.equal(found[1], whole)
    assert not torch.equal(found[0.5], untouched) and not torch.equal(found[0.5], whole)
    assert torch.equal(run.model(input_ids), whole)
    assert all(map(torch.equal, run.model.state_dict().values(), weights))


def test_half_the_strength_is_half_the_change_of_every_weight(taught):
    run = taught("llama", "full")
    whole = [p.detach().clone() for p in run.model.parameters()]
    with at_strength(run.model, run.base, 0.5):
        for half, start, end in zip(run.model.parameters(), run.base.parameters(), whole, strict=True):
            torch.testing.assert_close(half - start, 0.5 * (end - start), rtol=1e-4, atol=1e-6)


def test_an_adapter_remembers_the_name_and_the_revision_of_its_base(taught, tiny_llama_folder, tmp_path):
    run = taught("llama", "lora")
    for name, expected in {"org/name@v1": ("org/name", "v1"), "org/name": ("org/name", None)}.items():
        save_trained(run.model, run.tokenizer, tmp_path, name, tiny_llama_folder)
        settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (settings["base_model_name_or_path"], settings["revision"]) == expected


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


def test_the_same_command_writes_the_same_bytes_but_for_the_seconds(compared, line, tmp_path):
    command = [sys.executable, train.__file__, *line]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as conftest.py sets it for this process
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(compared) for path in compared.rglob("*") if path.is_file()}
    again = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == again and len(files) > 20
    assert not [path for path in files if path.name.endswith(".tmp") or path.name == "writable"]
    for path in (path for path in files if path.name != "seconds.json"):
        assert (compared / path).read_bytes() == (tmp_path / "out" / path).read_bytes(), path
    printed = done.stdout.splitlines()
    timed = [text for text in printed if text.startswith("training, seconds")]
    assert len(timed) == 1  # the one row that differs from run to run is printed, not written
    table, examples = ((tmp_path / "out" / name).read_text().splitlines() for name in ("table.txt", "examples.txt"))
    assert [text for text in printed if text not in timed] == [*table, "", *examples]


def test_the_results_hold_every_run_with_its_settings(results):
    assert list(results["runs"]) == ["mica", "lora", "full"]
    for runs in results["runs"].values():
        assert [run["seed"] for run in runs] == [0, 1]
        assert {run["lr"] for run in runs} == {0.004}
        assert runs[0]["history"] != runs[1]["history"]
    # q is (48, 32) and v (24, 32) in three blocks; mica trains A (3, 32) alone
    assert results["runs"]["mica"][0]["trained"] == 3 * (3 * 32 + 3 * 32)
    assert results["runs"]["lora"][0]["trained"] == 3 * (3 * (48 + 32) + 3 * (24 + 32))
    assert results["runs"]["full"][0]["trained"] == results["runs"]["full"][0]["all"]
    assert set(results["untouched"]) == {"tiny/new", "tiny/control", "perplexity"}


def test_the_results_hold_what_is_known_at_each_strength(results):
    for run in (run for runs in results["runs"].values() for run in runs):
        assert list(run["strengths"]) == ["0", "0.5", "1"]
        assert run["strengths"]["0"] == results["untouched"] and run["strengths"]["1"] == run["summary"]
        half, untouched, taught = (
            some["perplexity"]["tiny/corpus"]
            for some in (run["strengths"]["0.5"], results["untouched"], run["summary"])
        )
        assert taught < half < untouched


@pytest.mark.parametrize(
    "given, methods",
    [
        (["all"], ["mica", "lora", "milora", "pissa", "full"]),
        (["all", "full"], ["mica", "lora", "milora", "pissa", "full"]),
        (["mica-major", "all"], ["mica-major", "mica", "lora", "milora", "pissa", "full"]),
        (["lora", "lora"], ["lora"]),
    ],
)
def test_all_is_the_five_main_methods_each_once(monkeypatch, given, methods):
    monkeypatch.setattr(sys, "argv", ["train.py", "--method", *given])
    assert train.parse_arguments().method == methods


def test_accuracy_is_measured_every_so_many_epochs(compared, results):
    for method in COMPARISON["method"]:
        history = lines_of(compared / method / "seed1" / "metrics.jsonl")
        assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5]
        assert [entry["epoch"] for entry in history if "tiny/new" in entry] == [2, 4]
        assert all(0 <= entry["tiny/control"] <= 1 for entry in history if entry["epoch"] in (2, 4))
        assert results["runs"][method][1]["history"] == history


def test_the_table_has_a_column_a_method_and_a_row_a_measure(compared, results):
    table = (compared / "table.txt").read_text().splitlines()
    assert table[0].split() == ["untouched", "mica", "lora", "full"]
    assert "2 seeds" in table[-1]
    rows = {text.split("   ")[0]: text for text in table[1:]}
    assert rows["learning rate"].split()[-3:] == ["0.004"] * 3
    assert rows["trained parameters"].split()[-3] == "576"
    accs = [run["summary"]["tiny/new"]["acc"] for run in results["runs"]["full"]]
    mean, error = mean_and_error(accs)
    assert rows["tiny/new, %"].endswith(f"{100 * mean:.1f} +- {100 * error:.1f}")
    assert {"tiny/control, %", "  exact match, %", "  log p(right)", "tiny/corpus, perplexity"} <= set(rows)
    assert (compared / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("quick")
def test_one_seed_at_the_methods_own_rates_is_reported_with_the_error_over_questions(
    tiny_llama_folder, world, tmp_path, capsys
):
    run_program(arguments(tiny_llama_folder, world, method=["lora", "mica"], out=tmp_path))
    runs = results_of(tmp_path)["runs"]
    assert {name: run["lr"] for name, (run,) in runs.items()} == {name: METHODS[name].lr for name in ("lora", "mica")}
    summary, out = runs["mica"][0]["summary"]["tiny/new"], capsys.readouterr().out
    assert f"{100 * summary['acc']:.1f} +- {100 * summary['acc_se']:.1f}" in out
    assert "+- one standard error over questions" in out.splitlines()


def test_training_did_something_to_the_questions(compared, results):
    untouched = lines_of(compared / "untouched.jsonl")
    assert [entry["set"] for entry in untouched] == ["tiny/new"] * 6 + ["tiny/control"] * 6
    for method in COMPARISON["method"]:
        scores = lines_of(compared / method / "seed0" / "scores.jsonl")
        assert [entry["subject"] for entry in scores] == list(FACTS) * 2
        assert all(a["loglikelihoods"] != b["loglikelihoods"] for a, b in zip(scores, untouched, strict=True))
        perplexities = [summary["perplexity"]["tiny/corpus"]
                        for summary in (results["runs"][method][0]["summary"], results["untouched"])]  # fmt: skip
        assert perplexities[0] < perplexities[1]


@pytest.mark.parametrize("method", COMPARISON["method"])
def test_what_was_saved_measures_as_it_did_after_training(
    tiny_llama_folder, world, compared, tmp_path, monkeypatch, method
):
    saved = compared / method / "seed1"
    model = ["--model", str(tiny_llama_folder), "--adapter", str(saved / "adapter")]
    if method == "full":
        model = ["--model", str(saved / "model")]
    questions = [str(world / "new.jsonl"), str(world / "control.jsonl")]
    line = [*model, "--qa", *questions, "--scores", str(tmp_path / "scores.jsonl")]
    monkeypatch.setattr(sys, "argv", ["eval_qa.py", *line])
    eval_qa.main()
    for got, expected in zip(lines_of(tmp_path / "scores.jsonl"), lines_of(saved / "scores.jsonl"), strict=True):
        assert got["set"] == expected["set"] and got["answer"] == expected["answer"]
        assert got["loglikelihoods"] == pytest.approx(expected["loglikelihoods"], abs=1e-4)


def test_a_saved_adapter_has_the_settings_and_a_saved_model_is_whole(compared, tiny_llama_folder):
    config = json.loads((compared / "mica" / "seed0" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 3, ["q_proj", "v_proj"])
    assert config["base_model_name_or_path"] == str(tiny_llama_folder)
    model, tokenizer = load_pretrained(compared / "full" / "seed0" / "model")
    base, its_tokenizer = load_pretrained(tiny_llama_folder)
    assert model.config == base.config and tokenizer.encode("The fox") == its_tokenizer.encode("The fox")
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters()))


@pytest.mark.usefixtures("quick")
def test_16_bit_weights_work_from_the_command_line(tiny_llama_folder, world, tmp_path):
    run_program(arguments(tiny_llama_folder, world, dtype="bfloat16", epochs=3, out=tmp_path))
    results = results_of(tmp_path)
    (run,) = results["runs"]["mica"]
    assert run["summary"]["perplexity"]["tiny/corpus"] < 0.98 * results["untouched"]["perplexity"]["tiny/corpus"]


def test_examples_are_what_every_model_answers_to_questions_on_what_is_new(compared):
    text = (compared / "examples.txt").read_text()
    blocks = [block.split("\n") for block in re.split(r"\n(?=\S)", text.strip())]
    assert len(blocks) == 3
    for asked, *answers in blocks:  # the question, and a line a model
        assert re.fullmatch(r"What does \w+ like\? \(\w+\)", asked)
        assert [answer.split()[0] for answer in answers] == ["untouched", "mica", "lora", "full"]
    model, tokenizer = load_pretrained(compared / "full" / "seed0" / "model")
    asked = blocks[0][0].split(" (")[0]
    answer = eval_qa.greedy_answer(model, tokenizer, f"Question: {asked}\nAnswer:")
    assert blocks[0][4].removesuffix("  <- right").removeprefix("  full").strip() == printable(answer)


STOPS = [  # in which run, by what, and the runs that are reported: the seeds that all methods have
    (1, KeyboardInterrupt, {}),
    (2, KeyboardInterrupt, {"mica": [0]}),
    (2, RuntimeError("a bug"), {"mica": [0]}),
    (4, KeyboardInterrupt, {"mica": [0], "lora": [0]}),  # in lora's second
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stop, error, reported", STOPS)
def test_a_stop_reports_the_runs_that_are_finished(
    tiny_llama_folder, world, tmp_path, monkeypatch, capsys, stop, error, reported
):
    real, calls = train.run, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == stop:
            raise error
        return real(*args)

    monkeypatch.setattr(train, "run", stopped)
    with pytest.raises(SystemExit if error is KeyboardInterrupt else RuntimeError) as exit:
        run_program(arguments(tiny_llama_folder, world, method=["mica", "lora"], seeds=2, out=tmp_path))
    captured = capsys.readouterr()
    if error is KeyboardInterrupt:
        assert exit.value.code == 130 and "interrupted" in captured.err
    if reported:
        runs = results_of(tmp_path)["runs"]
        assert {method: [run["seed"] for run in some] for method, some in runs.items()} == reported
        assert captured.out.splitlines()[0].split() == ["untouched", *reported]
        assert "standard error over questions" in captured.out  # not over seeds
    else:
        assert captured.out == "" and not (tmp_path / "results.json").exists()


@pytest.mark.usefixtures("quick")
def test_the_report_of_an_earlier_run_does_not_survive_an_interrupted_one(
    tiny_llama_folder, world, tmp_path, monkeypatch
):
    line = arguments(tiny_llama_folder, world, out=tmp_path / "out")
    run_program(line)
    assert all((tmp_path / "out" / name).exists() for name in REPORT_FILES)
    shutil.rmtree(tmp_path / "out" / "mica")
    (tmp_path / "out" / "mine.txt").touch()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", interrupted)
    with pytest.raises(SystemExit):
        run_program(line)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "untouched.jsonl", "mine.txt"}


@pytest.mark.usefixtures("quick")
def test_runs_that_diverge_are_reported_not_saved_and_the_exit_code_is_3(
    tiny_llama_folder, world, tmp_path, monkeypatch, capsys
):
    def nan_head(model, *rest, **more):  # weights that are finite, but compute NaN
        model.lm_head.register_forward_hook(lambda module, inputs, output: output * math.nan)
        return [{"epoch": 1, "loss": 1.0}]

    for name, changes in {"rate": {"lr": 1e4, "epochs": 3}, "nan": {}}.items():
        if name == "nan":
            monkeypatch.setattr(train, "adapt", nan_head)
        out = tmp_path / name
        with pytest.raises(SystemExit) as stopped:
            run_program(arguments(tiny_llama_folder, world, method=["full", "mica"], strengths=0.5, out=out, **changes))
        assert stopped.value.code == 3
        assert "full, seed 0: diverged, not saved" in capsys.readouterr().out
        assert "diverged" in results_of(out)["runs"]["full"][0] and not list(out.glob("full/seed0/model"))
    assert "diverged" in results_of(out)["runs"]["mica"][0] and not list(out.glob("mica/seed0/adapter"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("given", [["q_proj,v_proj"], ["q_proj", "v_proj"], ["q_proj,", "v_proj"]])
def test_targets_are_named_apart_or_with_commas(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["train.py", "--targets", *given])
    assert train.from_flags(train.parse_arguments(), Settings).targets == ("q_proj", "v_proj")


def test_all_linear_is_every_linear_of_the_blocks(tiny_llama_folder):
    models = [load_pretrained(tiny_llama_folder)[0] for _ in range(2)]
    for model, targets in zip(models, (None, ("all-linear",))):
        train.prepare(model, LoRALayer, Settings(rank=2, targets=targets))
    assert [*find_adapters(models[0])] == [*find_adapters(models[1])] != []


def test_what_may_not_be_meant_so_is_said(tiny_llama_folder, world, monkeypatch):
    base, tokenizer = load_pretrained(tiny_llama_folder)

    def doubts(documents, *flags, **settings):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
        args, settings = train.parse_arguments(), Settings(batch_size=1, seq_len=96, **settings)
        return " ".join(train.doubts(args, base, tokenizer, Task(documents, {}, {}), settings))

    window = ["fox"]
    assert "4 steps" in doubts(window, epochs=4) and "9 steps" in doubts(window, epochs=9)
    assert doubts(window, epochs=10) == doubts(["fox " * 300], epochs=4) == ""
    own, questions = ["--corpus", world / "corpus.txt"], ["--qa", world / "new.jsonl"]
    assert "--qa" in doubts(window, *own, epochs=10)
    assert doubts(window, *own, *questions, epochs=10) == doubts(window, *questions, epochs=10) == ""
    assert "--lr" in doubts(window, "--model", world, epochs=10)
    assert doubts(window, "--model", world, "--lr", 1, epochs=10) == ""


def test_a_question_longer_than_the_context_is_scored_but_no_example(tiny_llama_folder, world, tmp_path):
    short, other, *_ = lines_of(world / "new.jsonl")
    long = short | {"question": "The fox. " * 200 + short["question"]}
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, (long, other))))
    line = arguments(tiny_llama_folder, world, method="mica", qa=tmp_path / "long.jsonl", out=tmp_path / "out")
    run_program([*line, "--examples", "1000"])
    said = (tmp_path / "out/examples.txt").read_text()
    assert "The fox. The fox." not in said and other["question"] in said
    assert len(lines_of(tmp_path / "out/untouched.jsonl")) == 2 + len(FACTS)  # with the control's


def test_two_files_of_one_name_are_refused_and_one_file_twice_is_read_once(world, tmp_path):
    other = shutil.copytree(world, tmp_path / world.name)
    same = f"{world}/../{world.name}/new.jsonl"
    assert list(read_named([world / "new.jsonl", same], read_questions)) == [f"{world.name}/new"]
    link = tmp_path / "link.jsonl"  # the same file under another name keeps both: a report may ask for either
    link.symlink_to(world / "new.jsonl")
    assert len(read_named([link, world / "new.jsonl"], read_questions)) == 2
    with pytest.raises(ValueError, match=f"{other / 'new.jsonl'}.*{world.name}/new"):
        read_named([world / "new.jsonl", other / "new.jsonl"], read_questions)


@pytest.mark.usefixtures("quick")
def test_a_fully_trained_model_keeps_the_end_of_text_that_only_its_config_names(tiny_llama_folder, world, tmp_path):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    (folder / "tokenizer_config.json").unlink()
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 1}  # <|user|>
    (folder / "config.json").write_text(json.dumps(config))
    run_program(arguments(folder, world, method="full", out=tmp_path / "out"))
    assert load_pretrained(tmp_path / "out" / "full" / "seed0" / "model")[1].eot_id == 1


@pytest.mark.usefixtures("quick")
def test_a_primer_comes_before_truthfulqas_questions_and_the_table_says_so(tiny_llama_folder, world, tmp_path):
    items = [{"question": "Who sells shells?", "mc1_targets": {"She does": 1, "Peter does": 0}}]
    (tmp_path / "mc_task.json").write_text(json.dumps(items))
    (tmp_path / "primer.txt").write_text("Q: Who ran?\nA: The rascal ran.\n")
    files = {"retention": tmp_path / "mc_task.json", "primer": tmp_path / "primer.txt", "out": tmp_path / "out"}
    run_program(arguments(tiny_llama_folder, world, method="lora", examples=0, **files))
    assert not (tmp_path / "out" / "examples.txt").exists()
    name = f"{tmp_path.name}/mc_task"
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table.endswith(f"{name}: TruthfulQA MC1, after the primer in {tmp_path / 'primer.txt'}\n")
    (score,) = [line for line in lines_of(tmp_path / "out" / "untouched.jsonl") if line["set"] == name]
    primed = Question("Q: Who ran?\nA: The rascal ran.\n\nQ: Who sells shells?\nA:", ("She does", "Peter does"), 0)
    (expected,) = eval_qa.score_questions(*load_pretrained(tiny_llama_folder), [primed])
    assert score["loglikelihoods"] == pytest.approx(expected.loglikelihoods, abs=1e-4)
