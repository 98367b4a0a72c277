"""Where the product meets the outside: what people bring, numbers that are not finite, JSON, companion files, devices."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

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
from gpt.weights import load_model, read_config
from lora import LoRALayer, find_adapters, merge_adapters, replace_linears
from questions import Question, read_questions
from study.analysis import forgetting_loss, landing
from tools.reading import read_documents
from tools.schema import parse_json, read_text

ROOT = Path(__file__).resolve().parents[1]


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

NORM = "model.norm.weight"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_finite_weights_are_refused_by_name(model, dtype, value):
    def damage(tensors):
        tensors[NORM] = tensors[NORM].to(dtype)
        tensors[NORM][5] = value

    edit_tensors(model, damage)
    for load_as in (torch.float32, None):
        assert NORM in refusal(lambda: load_model(model, dtype=load_as))


def test_not_finite_in_the_dtype_asked_for(model):
    edit_tensors(model, lambda t: t[NORM].fill_(70000))
    assert load_model(model, dtype=torch.bfloat16).norm.weight.max() > 65000
    said = refusal(load_model, model, "cpu", torch.float16)
    assert NORM in said and "float16" in said and "--dtype" in said


def test_not_finite_weights_are_not_written(model, tmp_path):
    wide = load_model(model)
    wide.norm.weight.data[0] = 70000
    assert "norm.weight" in refusal(save_pretrained, wide.half(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_not_finite_in_merging_to_a_narrower_dtype(model, tmp_path, monkeypatch, capsys):
    adapted = load_model(model)
    replace_linears(adapted, LoRALayer, rank=2, alpha=2, targets=("q_proj",))
    save_adapters(adapted, tmp_path / "adapter")
    edit_tensors(model, lambda t: t.update({NORM: torch.full_like(t[NORM], 70000, dtype=torch.bfloat16)}))
    line = ["--model", model, "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged", "--dtype", "float16"]
    assert run(adapter_io, monkeypatch, *line) == 2
    assert NORM in capsys.readouterr().err
    assert not (tmp_path / "merged" / "model.safetensors").exists()


def test_not_finite_factors_are_neither_written_nor_read(model, tmp_path):
    adapted = load_model(model)
    replace_linears(adapted, LoRALayer, rank=2, alpha=2, targets=("q_proj",))
    next(iter(find_adapters(adapted).values())).A.data[0, 0] = math.nan
    assert "lora_A.weight" in refusal(save_adapters, adapted, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_not_finite_logits_are_no_text(model):
    loaded, _ = load_pretrained(model)
    loaded.norm.weight.data.fill_(math.nan)
    for temperature in (0.0, 1.0):
        said = refusal(lambda: generate(loaded, torch.tensor([[1, 2]]), 3, temperature=temperature))
        assert "computes NaN or infinity" in said


@pytest.mark.parametrize("what", ["--qa", "--text", "--ask"])
def test_not_finite_logits_are_no_score(model, tmp_path, monkeypatch, capsys, what):
    """Every weight is finite, but what is computed with them is not."""
    edit_tensors(model, lambda t: t[NORM].fill_(3e38))
    (tmp_path / "qa.jsonl").write_text('{"question": "Who?", "choices": ["the fox", "the dog"], "answer": 1}\n')
    (tmp_path / "text.txt").write_text("The fox likes the dog.")
    value = {"--qa": tmp_path / "qa.jsonl", "--text": tmp_path / "text.txt", "--ask": "Who?"}[what]
    assert run(eval_qa, monkeypatch, "--model", model, what, value) == 2
    assert "the model computes NaN or infinity" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["mica", "full"])
def test_not_finite_a_run_that_diverges_is_marked_and_not_saved(model, tmp_path, monkeypatch, capsys, method):
    (tmp_path / "qa.jsonl").write_text('{"question": "Who?", "choices": ["the fox", "the dog"], "answer": 1}\n' * 3)
    (tmp_path / "text.txt").write_text("The fox likes the dog.")
    out = tmp_path / "out"
    line = ["--model", model, "--method", method, "--lr", "1e37", "--epochs", "3", "--rank", "2", "--out", out]
    files = ["--corpus", tmp_path / "text.txt", "--qa", tmp_path / "qa.jsonl", "--retention", "--text"]
    assert run(train, monkeypatch, *line, *files) == 3
    assert f"{method}, seed 0: diverged, not saved" in capsys.readouterr().out
    assert not [*out.rglob("adapter_config.json"), *out.rglob("model.safetensors")]
    results = (out / "results.json").read_text()
    assert "NaN" not in results and json.loads(results)["runs"][method][0]["diverged"] is True
    for path in out.rglob("*.json*"):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            parse_json(text, path)


# --- JSON and JSON lines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json",
     "adapter_config.json", "questions.jsonl", "corpus.jsonl"],
)  # fmt: skip
@pytest.mark.parametrize("text", ["[" * 100_000, "[3]", "\x00"], ids=["deep", "list", "NUL"])
def test_json_that_is_no_object_is_refused_in_every_file(model, name, text):
    if "index" in name:
        (model / "model.safetensors").unlink()
    (model / name).write_text(text)
    read = {
        "adapter_config.json": lambda: load_adapters(load_model(model), model),
        "questions.jsonl": lambda: read_questions(model / name),
        "corpus.jsonl": lambda: read_documents(model / name),
    }
    assert name in refusal(read.get(name, lambda: load_pretrained(model)))


SIZES = {
    "hidden_size": 10**30, "rms_norm_eps": 10**400, "num_hidden_layers": 1_000_000, "vocab_size": 2**62,
    "intermediate_size": 0, "head_dim": 4.0, "num_key_value_heads": True,
}  # fmt: skip


@pytest.mark.parametrize("key", SIZES)
def test_json_sizes_of_a_model_have_bounds(model, key):
    edit(model / "config.json", **{key: SIZES[key]})
    began = time.process_time()
    assert key in refusal(load_pretrained, model)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("odd", [lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: 1.0], ids=["sparse", "meta", "number"])
def test_json_aside_a_pickle_holds_plain_tensors_only(model, odd):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    tensors[NORM] = odd(tensors[NORM])
    torch.save(tensors, model / "pytorch_model.bin")
    refusal(load_model, model)


def test_json_lines_of_texts_are_documents(tmp_path):
    lines = [{"text": " The fox.\n\nThe dog. "}, {"text": "Two", "meta": {"source": "x"}}, {"text": " "}]
    path = tmp_path / "corpus.jsonl"
    for text in ("".join(json.dumps(line) + "\n" for line in lines), json.dumps(lines)):
        path.write_text(text)
        assert read_documents(path) == ["The fox.\n\nThe dog.", "Two"]
    text_file = tmp_path / "corpus.txt"  # under the name of a text
    text_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_documents(text_file) == ["The fox.\n\nThe dog.", "Two"]
    text_file.write_text("{curly} text, not JSON\n\n{'a': 1}")
    assert read_documents(text_file) == ["{curly} text, not JSON", "{'a': 1}"]
    path.write_text('{"text": "a"}\n{"title": "b"}\n')
    assert refusal(read_documents, path).startswith(f"{path}, line 2: not a document")
    path.write_text("plain text")
    assert refusal(read_documents, path).startswith(f"{path}, line 1: not JSON (")


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_from_a_pipe_or_device_are_refused_not_waited_for(model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        assert str(path) in refusal(read_text, path)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        content = (model / name).read_bytes()
        (model / name).unlink()
        os.mkfifo(model / name)
        assert name in refusal(load_pretrained, model)
        (model / name).unlink()
        (model / name).write_bytes(content)


def test_texts_of_the_programs_are_one_printable_line(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "\x1b[31mred\x07\r\u202e"
    folder.mkdir()
    assert run(eval_qa, monkeypatch, "--model", folder, "--ask", "x") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.isprintable() and "[31mred" in said


# --- kinds of faults that users of other tools reported ---------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
@pytest.mark.parametrize("text", ["The fox likes the dog.", "Лиса любит собаку"])
def test_a_text_of_another_encoding_is_refused_with_the_likely_one(tmp_path, encoding, text):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    said = refusal(read_documents, tmp_path / "a.txt")
    assert "a.txt" in said and "UTF-16" in said and "UTF-8" in said


def test_marks_and_no_break_spaces_in_a_text_are_no_letters(tmp_path):
    mark, space = "\ufeff", "\u00a0"
    (tmp_path / "joined.txt").write_text(
        f"{mark}one\n{space}\n{mark}two{space}words\n \t\n{space}{mark}\n", encoding="utf-8"
    )
    assert read_documents(tmp_path / "joined.txt") == ["one", "two words"]


@pytest.mark.parametrize(
    "text", ['{"text": "a"}\n{"text": "b"}', '\n{ "text": "a"}\n\n{"text":"b"}\n', '[\n {"text": "a"}, {"text": "b"}]']
)
def test_json_lines_under_the_name_of_a_text_are_read(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert read_documents(tmp_path / "a.txt") == ["a", "b"]


def test_links_in_a_corpus_are_followed_once_and_what_is_skipped_is_said(tmp_path, capsys):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for folder in (corpus / "notes.md", corpus / ".hidden", elsewhere):
        folder.mkdir(parents=True)
        (folder / "c.txt").write_text(folder.name)
    (corpus / "b.TXT").write_text("b")  # endings may be capitals
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "back").symlink_to(corpus)
    (corpus / "again.txt").symlink_to("b.TXT")
    (corpus / "broken.md").symlink_to("nowhere.md")
    os.mkfifo(corpus / "pipe.txt")
    assert sorted(read_documents(corpus)) == ["b", "elsewhere", "notes.md"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("is skipped" in line for line in said)
    assert all(any(name in line for line in said) for name in ("broken.md", "pipe.txt"))


def test_a_file_name_that_is_not_utf_8_is_written_with_replacement(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    questions = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    questions.write_text('{"question": "Who?", "choices": ["the fox", "the dog"], "answer": 1}\n' * 2)
    line = ["--model", tiny_llama_folder, "--qa", questions, "--scores", tmp_path / "scores.jsonl"]
    assert run(eval_qa, monkeypatch, *line) == 0
    assert "/caf?" in capsys.readouterr().out and "/caf?" in (tmp_path / "scores.jsonl").read_text(encoding="utf-8")


def test_programs_work_without_docstrings():
    environment = os.environ | {"PYTHONOPTIMIZE": "2"}
    command = [sys.executable, "train.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "") and "usage" in done.stdout
    for path in (
        *ROOT.glob("*.py"),
        *(p for room in ("gpt", "study", "exercises", "data", "bench") for p in (ROOT / room).rglob("*.py")),
    ):
        assert "__doc__." not in path.read_text(encoding="utf-8"), path  # Parser takes the first line


@pytest.mark.parametrize("flag", ["--qa", "--text", "--primer", "--adapter"])
def test_a_missing_path_is_said_to_be_missing(tiny_llama_folder, tmp_path, monkeypatch, capsys, flag):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = ["--ask", "Who?"] if flag != "--qa" else []
    assert run(eval_qa, monkeypatch, "--model", tiny_llama_folder, *asked, f"{flag}=~/nowhere.txt") == 2
    said = capsys.readouterr().err
    assert (
        str(tmp_path / "nowhere.txt") in said and ("no such file" in said or "not found" in said) and "room" not in said
    )


# --- companion files --------------------------------------------------------------------------------------------------


def merge(model, tmp_path, monkeypatch, *options):
    adapted = load_model(model)
    replace_linears(adapted, LoRALayer, rank=2, alpha=2, targets=("q_proj",))
    for layer in find_adapters(adapted).values():
        layer.B.data.normal_()
    save_adapters(adapted, tmp_path / "adapter")
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
    edit(model / "config.json", eos_token_id=[0, 1], bos_token_id=1, pad_token_id=0, auto_map={"AutoModel": "x.py"},
         torch_dtype="bfloat16", use_cache=False)  # fmt: skip
    assert merge(model, tmp_path, monkeypatch, "--dtype", "float16") == 0
    for name, text in texts.items():
        assert (tmp_path / "merged" / name).read_text() == text
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"], config["pad_token_id"]) == ([0, 1], 1, 0)
    assert config["use_cache"] is False and config["dtype"] == "float16"
    assert not {"auto_map", "torch_dtype"} & config.keys()
    assert reference(tmp_path / "merged").generation_config.eos_token_id == [0, 1]
    assert torch.equal(load_model(tmp_path / "merged").norm.weight, load_model(model).norm.weight.half().float())


def test_companion_files_are_copied_only_if_they_are_what_they_say(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "secret").write_text("root:x:0:0")
    for name in ("generation_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(tmp_path / "secret")
        assert merge(model, tmp_path, monkeypatch) == 2
        assert f"{name} is a link" in (said := capsys.readouterr().err) or f"{name}: not JSON" in said
        assert not (tmp_path / "merged").exists()
        (model / name).unlink()
    os.mkfifo(model / "chat_template.jinja")
    assert merge(model, tmp_path, monkeypatch) == 2
    assert "chat_template.jinja is a folder, pipe or device" in capsys.readouterr().err


# --- adapters from elsewhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
@pytest.mark.parametrize("pickled", [False, True])
def test_real_adapters_with_a_wrappers_prefix_or_pickled(model, tmp_path, monkeypatch, prefix, pickled):
    merge(model, tmp_path, monkeypatch)
    expected = load_model(model)
    load_adapters(expected, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    factors = {key.replace("base_model.model.", f"base_model.model.{prefix}"): t for key, t in load_file(path).items()}
    path.unlink()
    if pickled:
        torch.save(factors, path.with_name("adapter_model.bin"))
    else:
        save_file(factors, path)
    loaded = load_model(model)
    load_adapters(loaded, tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids), expected(ids)) and not torch.equal(loaded(ids), load_model(model)(ids))


def test_real_adapters_hold_nothing_but_tensors(model, tmp_path, monkeypatch):
    merge(model, tmp_path, monkeypatch)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"x": pytest.approx}, tmp_path / "adapter" / "adapter_model.bin")
    assert "code in it is never run" in refusal(load_adapters, load_model(model), tmp_path / "adapter")


def test_real_configurations_say_what_to_change(model):
    edit(model / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "no longer quantised" in refusal(read_config, model)
    edit(model / "config.json", quantization_config=None, model_type="mistral", sliding_window=48)
    assert "set max_position_embeddings to 48" in refusal(read_config, model)
    edit(model / "config.json", max_position_embeddings=48)
    read_config(model)


def test_real_configurations_of_before_model_type(tiny_gpt2_folder, tmp_path):
    folder = shutil.copytree(tiny_gpt2_folder, tmp_path / "distilgpt2")
    content = json.loads((folder / "config.json").read_text())
    del content["model_type"]
    (folder / "config.json").write_text(json.dumps(content))
    assert read_config(folder) == read_config(tiny_gpt2_folder)


# --- devices without float64 ------------------------------------------------------------------------------------------


class Device(torch.Tensor):
    """A tensor on a device that refuses float64, as Apple's, until .cpu() brings it over."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, Device) and one.dtype == torch.float64:
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
                )
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


def test_devices_without_float64_are_noticed_by_this_suite():
    x = torch.nn.Parameter(torch.ones(3).as_subclass(Device))
    assert (x.cpu().double() + 1).sum().item() == 6 and (x * 2).sum().item() == 6
    for mistake in (lambda: x.double(), lambda: (x + 1).to(torch.float64), lambda: x.sum(dtype=torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            mistake()


@pytest.mark.parametrize("method", ["mica", "milora", "pissa", "lora", "full"])
def test_devices_without_float64_train_score_and_save(model, tmp_path, method):
    base, tokenizer = load_pretrained(model)
    on_device(base)
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
