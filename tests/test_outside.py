"""Where the product meets the outside: bad input in one sentence, companion files, adapters and devices of others."""

import json
import math
import shutil
import sys

import pytest
import torch
from conftest import reference
from safetensors.torch import load_file, save_file

import adapter_io
import eval_qa
import train
from adapter_io import load_adapters, save_adapters
from corpus import perplexity
from gpt import generate, load_pretrained, save_pretrained
from gpt.weights import load_model
from lora import LoRALayer, find_adapters, merge_adapters, replace_linears
from questions import Question
from study.analysis import forgetting_loss, landing

NORM = "model.norm.weight"


@pytest.fixture
def model(tiny_llama_folder, tmp_path):
    """A model folder to damage."""
    return shutil.copytree(tiny_llama_folder, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def adapted(folder):
    """The folder's model with adapters that change what it says."""
    model = load_model(folder)
    replace_linears(model, LoRALayer, rank=2, alpha=2, targets=("q_proj",))
    for layer in find_adapters(model).values():
        layer.B.data.normal_()
    return model


def refusal(function, *arguments):
    """The sentence of an error that a user can mend: one line, printable, not long."""
    with pytest.raises((ValueError, OSError)) as raised:
        function(*arguments)
    said = str(raised.value)
    assert said.isprintable() and len(said) < 400, said
    return said


def train_line(folder, **changes):
    """A command of train.py on the files in a folder."""
    questions, corpus = folder / "questions.jsonl", folder / "corpus.txt"
    options = {"model": folder / "model", "corpus": corpus, "qa": questions, "retention": questions, "text": corpus}
    options |= {"rank": 2, "device": "cpu", "out": folder / "out"} | changes
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def check_refused(program, line, words, monkeypatch, capsys):
    """The program ends with one line that has all the words, and exit code 2."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, line)])
    with pytest.raises(SystemExit) as exit:
        program.main()
    captured = capsys.readouterr()
    *notes, said = captured.err.splitlines()
    assert (exit.value.code, captured.out) == (2, "") and said.startswith(f"{program.__name__}.py: ")
    assert all(note.startswith("note: ") for note in notes)
    assert all(word in said for word in words), said


# --- what the programs are given --------------------------------------------------------------------------------------


@pytest.fixture
def files(model, tmp_path):
    """A folder with a model, a corpus and questions that are in order."""
    (tmp_path / "corpus.txt").write_text("The fox likes the dog.")
    item = {"question": "Who?", "choices": ["the fox", "the dog"], "answer": 1}
    (tmp_path / "questions.jsonl").write_text(f"{json.dumps(item)}\n" * 3)
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda files: shutil.rmtree(files / "model"), ["model", "org/name"]),
        (lambda files: truncate(files / "model" / "model.safetensors"), ["model.safetensors"]),
        (lambda files: (files / "corpus.txt").write_text("\n\n"), ["corpus.txt"]),
        (lambda files: (files / "questions.jsonl").unlink(), ["questions.jsonl", "no such file"]),
        (lambda files: truncate(files / "questions.jsonl"), ["questions.jsonl, line 2"]),
    ],
)
def test_what_cannot_be_read_is_named_by_both_programs(files, monkeypatch, capsys, damage, words):
    damage(files)
    check_refused(train, train_line(files), words, monkeypatch, capsys)
    line = ["--model", files / "model", "--qa", files / "questions.jsonl", "--text", files / "corpus.txt"]
    check_refused(eval_qa, line, words, monkeypatch, capsys)
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"method": "magic"}, ["magic", "mica"]), ({"targets": "c_attn"}, ["c_attn", "q_proj"]),
        ({"device": "abacus"}, ["abacus", "cpu"]), ({"rank": 25}, ["rank 25", "(24, 32)", "1 to 24"]),
        ({"lr": "nan"}, ["--lr", "nan"]), ({"epochs": 0}, ["--epochs"]),
        ({"method": "full", "dtype": "bfloat16"}, ["--dtype float32"]),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_before_any_work(files, monkeypatch, capsys, changes, words):
    check_refused(train, train_line(files, **changes), words, monkeypatch, capsys)
    assert not (files / "out").exists()


def test_what_another_program_wrote_is_not_written_over(files, monkeypatch, capsys):
    (files / "out").mkdir()
    (files / "out" / "config.json").write_text('{"model_type": "llama"}')
    check_refused(train, train_line(files), [str(files / "out")], monkeypatch, capsys)
    assert (files / "out" / "config.json").read_text() == '{"model_type": "llama"}'


# --- numbers that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, value", [(torch.float32, math.inf), (torch.bfloat16, math.nan)])
def test_not_finite_weights_are_refused_by_name(model, dtype, value):
    def damage(tensors):
        tensors[NORM] = tensors[NORM].to(dtype)
        tensors[NORM][5] = value

    edit_tensors(model, damage)
    assert NORM in refusal(load_model, model)


def test_not_finite_factors_are_not_written(model, tmp_path):
    changed = adapted(model)
    next(iter(find_adapters(changed).values())).A.data[0, 0] = math.nan
    assert "lora_A.weight" in refusal(save_adapters, changed, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_not_finite_logits_are_no_text_and_no_score(model, files, monkeypatch, capsys):
    """Every weight is finite, but what is computed with them is not."""
    edit_tensors(model, lambda t: t[NORM].fill_(3e38))
    said = refusal(lambda: generate(load_model(model), torch.tensor([[1, 2]]), 3, temperature=1.0))
    assert "computes NaN or infinity" in said
    monkeypatch.setattr(sys, "argv", ["eval_qa.py", "--model", str(model), "--qa", str(files / "questions.jsonl")])
    with pytest.raises(SystemExit):
        eval_qa.main()
    assert "the model computes NaN or infinity" in capsys.readouterr().err


# --- companion files, and adapters from elsewhere ---------------------------------------------------------------------


def merge(model, tmp_path, monkeypatch, *options):
    save_adapters(adapted(model), tmp_path / "adapter")
    line = ["--model", model, "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged", *options]
    monkeypatch.setattr(sys, "argv", ["adapter_io.py", *map(str, line)])
    adapter_io.main()


def test_companion_files_survive_merging(model, tmp_path, monkeypatch):
    texts = {
        "chat_template.jinja": "{% for message in messages %}{{ message.content }}{% endfor %}",
        "generation_config.json": json.dumps({"eos_token_id": [0, 1], "temperature": 0.6}),
    }
    for name, text in texts.items():
        (model / name).write_text(text)
    edit(model / "config.json", eos_token_id=[0, 1], pad_token_id=0, auto_map={"AutoModel": "x.py"}, use_cache=False)
    merge(model, tmp_path, monkeypatch, "--dtype", "float16")
    for name, text in texts.items():
        assert (tmp_path / "merged" / name).read_text() == text
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], config["use_cache"]) == ([0, 1], 0, False)
    assert config["dtype"] == "float16" and "auto_map" not in config
    assert reference(tmp_path / "merged").generation_config.eos_token_id == [0, 1]
    assert torch.equal(load_model(tmp_path / "merged").norm.weight, load_model(model).norm.weight.half().float())


def test_a_companion_file_that_is_a_link_elsewhere_is_not_copied(model, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("root:x:0:0")
    (model / "special_tokens_map.json").symlink_to(tmp_path / "secret")
    with pytest.raises(SystemExit):
        merge(model, tmp_path, monkeypatch)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("prefix, pickled", [("_orig_mod.", False), ("module.", True)])
def test_adapters_with_a_wrappers_prefix_or_pickled_are_read(model, tmp_path, prefix, pickled):
    expected = adapted(model)
    save_adapters(expected, tmp_path)
    path, binary = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_model.bin"
    factors = {key.replace("base_model.model.", f"base_model.model.{prefix}"): t for key, t in load_file(path).items()}
    path.unlink()
    torch.save(factors, binary) if pickled else save_file(factors, path)
    loaded, ids = load_model(model), torch.tensor([[1, 2, 3]])
    load_adapters(loaded, tmp_path)
    assert torch.equal(loaded(ids), expected(ids))
    path.unlink(missing_ok=True)
    torch.save({"x": pytest.approx}, binary)
    assert "code in it is never run" in refusal(load_adapters, load_model(model), tmp_path)


# --- devices without float64 ------------------------------------------------------------------------------------------


class Device(torch.Tensor):
    """A tensor on a device that refuses float64, as Apple's, until .cpu() brings it over."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, Device) and one.dtype == torch.float64:
                raise TypeError("the device doesn't support float64")
        return result.as_subclass(torch.Tensor) if function in (torch.Tensor.cpu, torch.Tensor.numpy) else result

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        copied = self.detach().clone().as_subclass(Device)
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied


def on_device(model):
    moved = {}  # a tied weight stays one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                data = parameter.detach().clone().as_subclass(Device)
                module._parameters[name] = moved.setdefault(id(parameter), torch.nn.Parameter(data))
    return model


@pytest.mark.parametrize("method", ["mica", "pissa", "full"])
def test_devices_without_float64_train_score_and_save(model, tmp_path, method):
    base, tokenizer = load_pretrained(model)
    on_device(base)
    with pytest.raises(TypeError, match="float64"):
        base.norm.weight.double()
    trained = train.copy_for(base, method)
    settings = train.Settings(rank=2, epochs=2, batch_size=2, seq_len=16, targets=("q_proj", "down_proj"))
    documents = ["The fox likes the dog.", "The dog likes the fox and the wood."]
    train.adapt(trained, tokenizer, documents, method, settings, lr=1e-3)
    assert isinstance(trained.embed_tokens.weight, Device)
    question = Question("Who?", ("the fox", "the dog"), 1)
    (fast,) = eval_qa.score_questions(trained, tokenizer, [question])
    plain = eval_qa.score_question(trained, tokenizer, question)
    assert fast.loglikelihoods == pytest.approx(plain.loglikelihoods, abs=1e-3)
    assert perplexity(trained, tokenizer, documents) > 1
    assert forgetting_loss(base, trained, tokenizer, documents) > 0
    assert landing(base, trained, 2) is not None
    eval_qa.greedy_answer(trained, tokenizer, "The fox")
    adapter_io.save_trained(trained, tokenizer, tmp_path, str(model), model)
    if method != "full":
        merge_adapters(trained)
        save_pretrained(trained, tmp_path / "merged", tokenizer)
