"""gpt/weights.py: files that transformers wrote open here and the reverse; what is damaged or unknown is refused."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LLAMA3_ROPE, reference, transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gpt import GPT, GPTConfig, load_pretrained, save_pretrained
from gpt.model import RopeScaling
from gpt.weights import checkpoint_name, load_model, read_config


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of a model's folder, to be changed or damaged: a Llama and a GPT-2 in turn."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


@pytest.fixture
def llama_copy(tiny_llama_folder, tmp_path):
    return shutil.copytree(tiny_llama_folder, tmp_path / "copy")


def edit_config(folder, **changes):
    """Change keys of config.json; ... as a value removes the key."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_weights(folder, change):
    """Rewrite model.safetensors after change(tensors), which edits the dict in place."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def pickle_weights(folder, change=lambda tensors: None):
    """Replace model.safetensors by pytorch_model.bin, after change(tensors)."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def refusal(folder):
    """The message with which loading the folder fails: one line that names the folder."""
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        load_pretrained(folder)
    said = str(raised.value)
    assert said.isprintable() and len(said) < 400 and str(folder) in said, said
    return said


def assert_same_weights(model, other):
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name in state:
        assert torch.equal(state[name], expected[name]), name


# What opens


def test_shards_equal_one_file(any_folder, tmp_path):
    reference(any_folder).save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_weights(load_model(tmp_path), load_model(any_folder))


def test_bfloat16_files_read_as_float32_equal_transformers(any_folder, tmp_path, input_ids):
    reference(any_folder).bfloat16().save_pretrained(tmp_path)
    with torch.inference_mode():
        ours, theirs = load_model(tmp_path)(input_ids), reference(tmp_path)(input_ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_files_of_another_dtype(copy):
    expected = load_model(copy)
    edit_weights(copy, lambda tensors: tensors.update({name: tensors[name].half() for name in tensors}))
    assert_same_weights(load_model(copy), expected.half().float())


@pytest.mark.parametrize("pickled", [False, True])
def test_training_does_not_write_to_the_file(copy, pickled):
    """The tensors are memory-mapped; what changes them must stay in memory."""
    if pickled:
        pickle_weights(copy)
    path = copy / ("pytorch_model.bin" if pickled else "model.safetensors")
    before = path.read_bytes()
    model = load_model(copy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert path.read_bytes() == before


MEASURE = """
import sys
import torch
from gpt.weights import load_model

def status(key):  # in bytes; VmRSS: resident now, VmHWM: resident at most
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

warm_up, folder = sys.argv[1:]
sum(parameter.sum() for parameter in load_model(warm_up, dtype=torch.bfloat16).float().parameters())
before = status("VmRSS")
model = load_model(folder)
sum(parameter.sum() for parameter in model.parameters())  # every page is touched
size = sum(parameter.numel() * 4 for parameter in model.parameters())
print((status("VmRSS") - before) / size, (status("VmHWM") - before) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize(("family", "stored"), [("gpt2", torch.float32), ("llama", torch.bfloat16)])
def test_loading_takes_little_more_memory_than_the_model(tiny_llama_folder, tmp_path, family, stored):
    """A file's pages are given back when its tensors have been split or converted. About 60 MB as float32."""
    config = GPTConfig(
        family=family, vocab_size=512, context_length=64, hidden_size=768, intermediate_size=3072, n_layers=2,
        n_heads=12, n_kv_heads=12, head_dim=64,
    )  # fmt: skip
    save_pretrained(GPT(config).to(stored), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tiny_llama_folder, tmp_path],
        capture_output=True, encoding="utf-8", cwd=Path(__file__).resolve().parents[2], timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    after, peak = map(float, done.stdout.split())
    assert 0.9 < after < 1.15
    assert peak < 1.2


def test_names_with_and_without_prefix(copy):
    expected = load_model(copy)
    prefix = checkpoint_name(expected.config, "norm").rsplit(".", 1)[0] + "."

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    edit_weights(copy, strip)
    assert_same_weights(load_model(copy), expected)


def test_constants_are_ignored(copy):
    expected = load_model(copy)
    gpt2 = expected.config.family == "gpt2"
    names = ["transformer.h.0.attn.bias", "h.1.attn.masked_bias"] if gpt2 else ["layers.0.rotary_emb.inv_freq"]
    edit_weights(copy, lambda tensors: tensors.update({name: torch.ones(6) for name in names}))
    assert_same_weights(load_model(copy), expected)


def test_stored_tied_head_must_equal_the_embedding(copy):
    expected = load_model(copy)
    edit_weights(copy, lambda tensors: tensors.update({"lm_head.weight": expected.embed_tokens.weight.detach()}))
    loaded = load_model(copy)
    assert_same_weights(loaded, expected)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    edit_weights(copy, lambda tensors: tensors["lm_head.weight"].add_(1))
    assert "lm_head.weight" in refusal(copy)


def test_rope_in_old_and_new_places(folder_of, tmp_path):
    copy = shutil.copytree(folder_of("llama3.1"), tmp_path / "copy")
    scaling, without_theta = RopeScaling(4.0, 0.5, 3.0, 48), LLAMA3_ROPE | {"type": "llama3"}
    for key in ("rope_theta", "rope_type"):
        without_theta.pop(key)

    def found(**changes):
        edit_config(copy, **({"rope_theta": ..., "rope_scaling": ..., "rope_parameters": ...} | changes))
        config, theirs = read_config(copy), transformers.AutoConfig.from_pretrained(copy).rope_parameters
        assert theirs["rope_theta"] == config.rope_theta
        assert (theirs["rope_type"] == "llama3") == (config.rope_scaling is not None)
        return config.rope_theta, config.rope_scaling

    assert found(rope_parameters=LLAMA3_ROPE) == (500, scaling)
    assert found(rope_theta=500, rope_scaling=without_theta) == (500, scaling)
    assert found(rope_theta=500.0, rope_scaling=without_theta, rope_parameters=LLAMA3_ROPE) == (500, scaling)
    assert found(rope_scaling=without_theta) == (10000, scaling)
    assert found(rope_theta=123.0, rope_scaling=None) == (123, None)
    assert found(rope_parameters={"rope_theta": 7}) == (7, None)
    assert found() == (10000, None)


def test_keys_that_older_files_leave_out(llama_copy):
    edit_config(llama_copy, num_key_value_heads=..., head_dim=None, tie_word_embeddings=..., hidden_act=...)
    config = read_config(llama_copy)
    assert (config.n_kv_heads, config.head_dim, config.tie_embeddings) == (4, 8, False)


# Pickled weights


def test_pickled_weights(copy):
    """As torch.save has them: a tied head shares the embedding's storage."""
    expected = load_model(copy)

    def tie(tensors):
        tensors.setdefault("lm_head.weight", tensors[checkpoint_name(expected.config, "embed_tokens.weight")])

    pickle_weights(copy, tie)
    assert_same_weights(load_model(copy), expected)


def test_pickled_shards(copy):
    expected, tensors = load_model(copy), load_file(copy / "model.safetensors")
    shards = {name: f"pytorch_model-{len(name) % 2}.bin" for name in tensors}
    for shard in {*shards.values()}:
        torch.save({name: tensors[name] for name in tensors if shards[name] == shard}, copy / shard)
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    (copy / "model.safetensors").unlink()
    assert_same_weights(load_model(copy), expected)
    (copy / "pytorch_model-1.bin").unlink()
    assert "pytorch_model-1.bin" in refusal(copy)


def test_safetensors_win_over_a_pickle(copy):
    expected = load_model(copy)
    (copy / "pytorch_model.bin").write_bytes(b"not to be read")
    assert_same_weights(load_model(copy), expected)
    (copy / "model.safetensors").rename(copy / "part.safetensors")
    assert "pytorch_model.bin" in refusal(copy)
    index = {"weight_map": dict.fromkeys(["a", "b"], "part.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same_weights(load_model(copy), expected)


class Attack:
    """Opens a file for writing when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_code_in_a_pickle_does_not_run(copy, tmp_path):
    marker = tmp_path / "marker"
    pickle_weights(copy, lambda tensors: tensors.update(attack=Attack(marker)))
    assert "io.open" in refusal(copy)
    assert not marker.exists()
    torch.load(copy / "pytorch_model.bin", weights_only=False)["attack"].close()
    assert marker.exists()  # else this test would show nothing


def test_a_pickle_holds_plain_tensors_only(copy):
    pickle_weights(copy, lambda tensors: tensors.update({min(tensors): tensors[min(tensors)].to_sparse()}))
    assert "plain tensors" in refusal(copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_truncated_weights(llama_copy, name):
    if name == "pytorch_model.bin":
        pickle_weights(llama_copy)
    path = llama_copy / name
    path.write_bytes(path.read_bytes()[:-1])
    said = refusal(llama_copy)
    assert name in said and "download it again" in said


# What is written


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(any_folder, tmp_path, dtype):
    model = load_model(any_folder, dtype=dtype)
    save_pretrained(model, tmp_path)
    again = load_model(tmp_path, dtype=dtype)
    assert again.config == model.config
    assert_same_weights(again, model)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}  # no temporary files


def test_transformers_opens_what_we_write(any_folder, tmp_path, input_ids):
    save_pretrained(load_model(any_folder), tmp_path)
    theirs, ours = reference(any_folder), reference(tmp_path)
    assert type(ours) is type(theirs)
    for key in ("rope_parameters", "sliding_window", "layer_types", "tie_word_embeddings", "max_position_embeddings"):
        if any_folder.name.startswith("mistral-window") and key == "sliding_window":
            continue  # as long as the context, and not written
        assert getattr(ours.config, key, None) == getattr(theirs.config, key, None), key
    with torch.inference_mode():
        assert torch.equal(ours(input_ids).logits, theirs(input_ids).logits)
    old, new = load_file(any_folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_readers_before_transformers_5_find_the_rotary_settings(any_folder, tmp_path):
    model = load_model(any_folder)
    save_pretrained(model, tmp_path)
    edit_config(tmp_path, rope_parameters=...)
    assert read_config(tmp_path) == model.config


def test_a_model_that_config_json_cannot_express_is_not_written(tiny_llama_folder, tiny_gpt2_folder, tmp_path):
    untied, adapted = load_model(tiny_llama_folder), load_model(tiny_llama_folder)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    adapted.layers[0].self_attn.q_proj = torch.nn.Sequential(adapted.layers[0].self_attn.q_proj)
    grouped = GPT(replace(read_config(tiny_gpt2_folder), n_kv_heads=2))
    for model, word in [(untied, "lm_head"), (adapted, "merge adapters"), (grouped, "GPT2LMHeadModel")]:
        with pytest.raises(ValueError, match=word):
            save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# config.json of real models


def llama(hidden, mlp, layers, heads, kv_heads, vocab, context, theta, eps=1e-5, model_type="llama", **more):
    return {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab, "rms_norm_eps": eps,
        "max_position_embeddings": context, "rope_theta": theta, "rope_scaling": None, "hidden_act": "silu",
        "attention_bias": False, "torch_dtype": "bfloat16", "tie_word_embeddings": True,
    } | more  # fmt: skip


LLAMA32_ROPE = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
MISTRAL = dict(model_type="mistral", sliding_window=None, tie_word_embeddings=False)
QWEN2 = dict(model_type="qwen2", sliding_window=32768, use_sliding_window=False, max_window_layers=24, use_mrope=False)
QWEN3 = QWEN2 | dict(model_type="qwen3", sliding_window=None, head_dim=128)
GPT2 = {
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
    "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
REAL = {  # name: (what counts of config.json as it is on the Hub, number of parameters)
    "Llama-3.2-1B": (
        llama(2048, 8192, 16, 32, 8, 128256, 131072, 5e5, head_dim=64, rope_scaling=LLAMA32_ROPE),
        1_235_814_400,
    ),
    "SmolLM2-135M": (llama(576, 1536, 30, 9, 3, 49152, 8192, 100000, rope_interleaved=False), 134_515_008),
    "Mistral-7B-v0.3": (llama(4096, 14336, 32, 32, 8, 32768, 32768, 1e6, **MISTRAL), 7_248_023_552),
    "Qwen2.5-0.5B": (llama(896, 4864, 24, 14, 2, 151936, 32768, 1e6, 1e-6, **QWEN2), 494_032_768),
    "Qwen3-0.6B": (llama(1024, 3072, 28, 16, 8, 151936, 40960, 1e6, 1e-6, **QWEN3), 596_049_920),
    "gpt2": (GPT2, 124_439_808),
}


@pytest.mark.parametrize("name", REAL)
def test_configurations_of_real_models(name, tmp_path):
    content, parameters = REAL[name]
    (tmp_path / "config.json").write_text(json.dumps(content))
    config, theirs = read_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.context_length, config.n_heads) == (theirs.max_position_embeddings, theirs.num_attention_heads)
    if name != "gpt2":
        assert (config.rope_theta, config.norm_eps) == (theirs.rope_parameters["rope_theta"], theirs.rms_norm_eps)
    with torch.device("meta"):
        model, theirs = GPT(config), transformers.AutoModelForCausalLM.from_config(theirs)
    assert sum(parameter.numel() for parameter in model.parameters()) == theirs.num_parameters() == parameters


# What is refused: what would be computed wrongly, and what does not fit.


def scaled(**options):
    return {"rope_parameters": ..., "rope_scaling": options}


CONFIGURATIONS = {  # a folder's name: [(changes of its config.json, what the sentence names)]
    "llama": [
        ({"model_type": "mixtral"}, ["model_type", "mixtral", "qwen3"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        (scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=48), ["rope_type", "yarn"]),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_parameters": LLAMA3_ROPE | {"factor": -8.0}}, ["factor", "-8.0"]),
        ({"rope_theta": 1000.0}, ["rope_theta", "rope_parameters"]),  # two that differ
        ({"vocab_size": ...}, ["vocab_size"]),
        ({"num_hidden_layers": 2**40}, ["num_hidden_layers", str(2**40)]),
        ({"vocab_size": 400}, ["vocab_size", "400", "511"]),  # the tokenizer has more ids
        ({"tie_word_embeddings": False}, ["Missing", "lm_head.weight"]),
        ({"num_hidden_layers": 2}, ["Unexpected", "layers.2."]),
        ({"head_dim": 14}, ["q_proj", "[48, 32]", "[56, 32]"]),
    ],
    "mistral": [({"sliding_window": ..., "max_position_embeddings": 32768}, ["sliding_window", "4096"])],
    "qwen2": [({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types", "sliding_attention"])],
    "gpt2": [({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx"])],
}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [(name, *refused) for name, refusals in CONFIGURATIONS.items() for refused in refusals],
)
def test_configurations_that_are_refused(folder_of, tmp_path, name, changes, words):
    folder = shutil.copytree(folder_of(name), tmp_path / "copy")
    edit_config(folder, **changes)
    said = refusal(folder)
    assert all(word in said for word in words), said


NORM = "layers.0.input_layernorm.weight"
TENSORS = {  # what is changed in a Llama's tensors, what the sentence names
    "twice": (lambda t: t.update({NORM: t[f"model.{NORM}"].clone()}), [NORM]),
    "a bias": (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(48)}), ["q_proj.bias"]),
    "int8": (lambda t: t.update({f"model.{NORM}": torch.ones(32, dtype=torch.int8)}), [NORM, "int8"]),
    "float8": (lambda t: t.update({f"model.{NORM}": torch.ones(32).to(torch.float8_e4m3fn)}), [NORM, "float8"]),
    "a number": (lambda t: t.update({f"model.{NORM}": torch.tensor(1.0)}), [NORM, "[32]"]),
    "NaN": (lambda t: t[f"model.{NORM}"].fill_(torch.nan), [NORM, "NaN"]),
}


@pytest.mark.parametrize(("change", "words"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_refused(llama_copy, change, words):
    edit_weights(llama_copy, change)
    said = refusal(llama_copy)
    assert all(word in said for word in words), said


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_absent_or_something_else(llama_copy, name):
    (llama_copy / name).write_bytes(b"[1, 2]")
    assert name in refusal(llama_copy)
    (llama_copy / name).unlink()
    assert name in refusal(llama_copy)


@pytest.mark.parametrize("shard", ["../x.safetensors", "sub/x.safetensors"])
def test_an_index_names_files_beside_it_only(llama_copy, tmp_path, shard):
    shutil.copy(llama_copy / "model.safetensors", tmp_path / "x.safetensors")
    (llama_copy / "model.safetensors").unlink()
    (llama_copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    said = refusal(llama_copy)
    assert "model.safetensors.index.json" in said and repr(shard) in said
