"""Where the product meets the outside: numbers that are not finite, files of other kinds, companion files, devices."""

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
from questions import Question, read_questions
from study.analysis import forgetting_loss, landing
from tools.reading import read_documents

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


def run(program, monkeypatch, *line):
    """The exit code of a program."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, line)])
    try:
        program.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


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


def test_not_finite_logits_are_no_text_and_no_score(model, tmp_path, monkeypatch, capsys):
    """Every weight is finite, but what is computed with them is not."""
    edit_tensors(model, lambda t: t[NORM].fill_(3e38))
    said = refusal(lambda: generate(load_model(model), torch.tensor([[1, 2]]), 3, temperature=1.0))
    assert "computes NaN or infinity" in said
    (tmp_path / "qa.jsonl").write_text('{"question": "Who?", "choices": ["the fox", "the dog"], "answer": 1}\n')
    assert run(eval_qa, monkeypatch, "--model", model, "--qa", tmp_path / "qa.jsonl") == 2
    assert "the model computes NaN or infinity" in capsys.readouterr().err


# --- files of another kind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", "[" * 100_000), ("tokenizer.json", "[3]"), ("tokenizer_config.json", "\x00"),
        ("adapter_config.json", "[3]"), ("questions.jsonl", "[" * 100_000), ("corpus.jsonl", "[3]"),
    ],
)  # fmt: skip
def test_json_that_is_no_object_is_refused_in_every_file(model, name, text):
    (model / name).write_text(text)
    read = {
        "adapter_config.json": lambda: load_adapters(load_model(model), model),
        "questions.jsonl": lambda: read_questions(model / name),
        "corpus.jsonl": lambda: read_documents(model / name),
    }
    assert name in refusal(read.get(name, lambda: load_pretrained(model)))


def test_a_pickle_holds_plain_tensors_only(model):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    tensors[NORM] = tensors[NORM].to_sparse()
    torch.save(tensors, model / "pytorch_model.bin")
    refusal(load_model, model)


# --- companion files, and adapters from elsewhere ---------------------------------------------------------------------


def merge(model, tmp_path, monkeypatch, *options):
    save_adapters(adapted(model), tmp_path / "adapter")
    line = ["--model", model, "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged", *options]
    return run(adapter_io, monkeypatch, *line)


def test_companion_files_survive_merging(model, tmp_path, monkeypatch):
    texts = {
        "chat_template.jinja": "{% for message in messages %}{{ message.content }}{% endfor %}",
        "generation_config.json": json.dumps({"eos_token_id": [0, 1], "temperature": 0.6}),
        "added_tokens.json": "{}",
    }
    for name, text in texts.items():
        (model / name).write_text(text)
    edit(model / "config.json", eos_token_id=[0, 1], pad_token_id=0, auto_map={"AutoModel": "x.py"}, use_cache=False)
    assert merge(model, tmp_path, monkeypatch, "--dtype", "float16") == 0
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
    assert merge(model, tmp_path, monkeypatch) == 2
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("prefix, pickled", [("_orig_mod.", False), ("module.", True)])
def test_real_adapters_with_a_wrappers_prefix_or_pickled(model, tmp_path, prefix, pickled):
    expected = adapted(model)
    save_adapters(expected, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    factors = {key.replace("base_model.model.", f"base_model.model.{prefix}"): t for key, t in load_file(path).items()}
    path.unlink()
    torch.save(factors, path.with_name("adapter_model.bin")) if pickled else save_file(factors, path)
    loaded, ids = load_model(model), torch.tensor([[1, 2, 3]])
    load_adapters(loaded, tmp_path)
    assert torch.equal(loaded(ids), expected(ids)) and not torch.equal(loaded(ids), load_model(model)(ids))


def test_real_adapters_hold_nothing_but_tensors(model, tmp_path):
    save_adapters(adapted(model), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"x": pytest.approx}, tmp_path / "adapter_model.bin")
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
