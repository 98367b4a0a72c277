"""gpt/weights.py: files that transformers wrote open here and the reverse; what is damaged or unknown is refused."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import gpt2_config, llama_config, reference, write_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gpt import GPT, load_pretrained, save_pretrained
from gpt.weights import checkpoint_name, load_model, read_config


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of a model's folder, to be damaged: both families in turn."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


@pytest.fixture
def llama_copy(tiny_llama_folder, tmp_path):
    return shutil.copytree(tiny_llama_folder, tmp_path / "copy")


@pytest.fixture
def gpt2_copy(tiny_gpt2_folder, tmp_path):
    return shutil.copytree(tiny_gpt2_folder, tmp_path / "copy")


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


def refusal(folder, error=ValueError):
    """The message with which loading the folder fails: one line."""
    with pytest.raises(error) as raised:
        load_pretrained(folder)
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)
    return str(raised.value)


def assert_same_weights(model, other):
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name in state:
        assert torch.equal(state[name], expected[name]), name


# What opens


@pytest.mark.parametrize("config", [llama_config(), llama_config(tie_word_embeddings=False), gpt2_config()])
def test_shards_equal_one_file(config, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "shards").mkdir()
    one = write_folder(tmp_path / "one", config)
    shards = write_folder(tmp_path / "shards", config, max_shard_size="30KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert not (shards / "model.safetensors").exists()
    assert_same_weights(load_model(shards), load_model(one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_mode(tiny_folder, dtype):
    model = load_model(tiny_folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in model.parameters())
    assert not model.training
    assert model.lm_head.weight is model.embed_tokens.weight


def test_training_does_not_write_to_the_file(copy):
    """The tensors are memory-mapped; what changes them must stay in memory."""
    before = (copy / "model.safetensors").read_bytes()
    model = load_model(copy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (copy / "model.safetensors").read_bytes() == before


def test_names_with_and_without_prefix(copy):
    expected = load_model(copy)
    prefix = checkpoint_name(expected.config, "norm").rsplit(".", 1)[0] + "."

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    edit_weights(copy, strip)
    with safe_open(copy / "model.safetensors", framework="pt") as file:
        assert not any(name.startswith(prefix) for name in file.keys())
    assert_same_weights(load_model(copy), expected)


def test_constants_are_ignored(copy):
    expected = load_model(copy)
    if expected.config.family == "gpt2":
        extra = {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
            "transformer.h.1.attn.masked_bias": torch.ones(()),
        }
    else:
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    edit_weights(copy, lambda tensors: tensors.update(extra))
    assert_same_weights(load_model(copy), expected)


def test_stored_tied_head_must_equal_the_embedding(copy):
    expected = load_model(copy)
    edit_weights(copy, lambda tensors: tensors.update({"lm_head.weight": expected.embed_tokens.weight.detach()}))
    loaded = load_model(copy)
    assert_same_weights(loaded, expected)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    edit_weights(copy, lambda tensors: tensors["lm_head.weight"].add_(1))
    assert "lm_head.weight differs from the embedding" in refusal(copy)
    embedding = checkpoint_name(expected.config, "embed_tokens.weight")
    edit_weights(copy, lambda tensors: tensors.pop(embedding))
    assert f"missing {embedding}" in refusal(copy)


def test_rope_theta_in_old_and_new_places(llama_copy):
    assert read_config(llama_copy).rope_theta == 500
    edit_config(llama_copy, rope_parameters=..., rope_theta=123.0)
    assert read_config(llama_copy).rope_theta == 123
    edit_config(llama_copy, rope_theta=...)
    assert read_config(llama_copy).rope_theta == 10000


def test_keys_that_older_files_leave_out(llama_copy):
    edit_config(llama_copy, num_key_value_heads=..., head_dim=None, tie_word_embeddings=..., hidden_act=...)
    config = read_config(llama_copy)
    assert (config.n_kv_heads, config.head_dim, config.tie_embeddings) == (4, 8, False)


# What is written


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(tiny_folder, tmp_path, dtype):
    model = load_model(tiny_folder, dtype=dtype)
    save_pretrained(model, tmp_path)
    again = load_model(tmp_path, dtype=dtype)
    assert again.config == model.config
    assert_same_weights(again, model)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]  # no temporary files


@pytest.mark.parametrize("config", [llama_config(), llama_config(tie_word_embeddings=False), gpt2_config(n_inner=40)])
def test_transformers_opens_what_we_write(config, tmp_path, input_ids):
    (tmp_path / "theirs").mkdir()
    theirs = write_folder(tmp_path / "theirs", config)
    model = load_model(theirs)
    save_pretrained(model, tmp_path / "ours")
    with torch.inference_mode():
        expected = reference(theirs)(input_ids).logits
        assert torch.equal(reference(tmp_path / "ours")(input_ids).logits, expected)
    old, new = load_file(theirs / "model.safetensors"), load_file(tmp_path / "ours" / "model.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_failed_save_leaves_the_old_files(copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("gpt.weights.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(load_model(copy), copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_model_that_gpt2_cannot_express_is_not_written(tiny_gpt2_folder, tmp_path):
    model = GPT(replace(read_config(tiny_gpt2_folder), n_kv_heads=2))
    with pytest.raises(ValueError, match="GPT2LMHeadModel cannot express"):
        save_pretrained(model, tmp_path / "out")
    assert not list(tmp_path.rglob("*.*"))


def test_checkpoint_names(tiny_llama_folder, tiny_gpt2_folder):
    llama, gpt2 = read_config(tiny_llama_folder), read_config(tiny_gpt2_folder)
    assert checkpoint_name(llama, "layers.0.self_attn.q_proj") == "model.layers.0.self_attn.q_proj"
    assert checkpoint_name(llama, "layers.10.mlp.up_proj.weight") == "model.layers.10.mlp.up_proj.weight"
    assert checkpoint_name(llama, "norm.weight") == "model.norm.weight"
    assert checkpoint_name(llama, "lm_head") == "lm_head"
    assert checkpoint_name(gpt2, "layers.2.self_attn.v_proj.bias") == "transformer.h.2.attn.c_attn.bias"
    assert checkpoint_name(gpt2, "layers.2.post_attention_layernorm") == "transformer.h.2.ln_2"
    assert checkpoint_name(gpt2, "norm.bias") == "transformer.ln_f.bias"


# What is refused: configurations


LLAMA_REFUSALS = [
    ({"model_type": "mamba"}, "the model_type 'mamba' is not supported: known are llama, gpt2"),
    ({"model_type": ...}, "the model_type None is not supported"),
    ({"model_type": ["llama"]}, "the model_type ['llama'] is not supported"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false' is neither true nor false"),
    ({"attention_bias": True}, "attention_bias=True is not supported"),
    ({"mlp_bias": True}, "mlp_bias=True is not supported"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported: known is 'silu'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config="),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500.0}}, '"llama3"'),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling={"type": "linear"'),
    ({"rope_parameters": "yarn"}, "rope_parameters='yarn' is not an object"),
    ({"hidden_size": ...}, "the key 'hidden_size' is missing"),
    ({"intermediate_size": ...}, "the key 'intermediate_size' is missing"),
    ({"num_hidden_layers": ...}, "the key 'num_hidden_layers' is missing"),
    ({"num_attention_heads": ...}, "the key 'num_attention_heads' is missing"),
    ({"max_position_embeddings": ...}, "the key 'max_position_embeddings' is missing"),
    ({"rms_norm_eps": ...}, "the key 'rms_norm_eps' is missing"),
    ({"vocab_size": ...}, "the key 'vocab_size' is missing"),
    ({"vocab_size": "512"}, "vocab_size='512' is not a positive whole number"),
    ({"vocab_size": True}, "vocab_size=True is not a positive whole number"),
    ({"num_hidden_layers": -1}, "num_hidden_layers=-1 is not a positive whole number"),
    ({"rms_norm_eps": 0}, "rms_norm_eps=0 is not a positive number"),
    ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads"),
    ({"head_dim": 11}, "head_dim=11 is odd"),
    ({"head_dim": ..., "hidden_size": 30}, "the hidden size 30 does not divide into 4 heads"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), LLAMA_REFUSALS)
def test_llama_configurations_that_are_refused(llama_copy, changes, message):
    edit_config(llama_copy, **changes)
    assert f"{llama_copy / 'config.json'}: " in refusal(llama_copy)
    assert message in refusal(llama_copy)


GPT2_REFUSALS = [
    ({"activation_function": "relu"}, "activation_function='relu' is not supported: known is 'gelu_new'"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
    ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True is not supported"),
    ({"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
    ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
    ({"n_head": 5}, "the hidden size 32 does not divide into 5 heads"),
    ({"n_positions": ...}, "the key 'n_positions' is missing"),
    ({"layer_norm_epsilon": ...}, "the key 'layer_norm_epsilon' is missing"),
]


@pytest.mark.parametrize(("changes", "message"), GPT2_REFUSALS)
def test_gpt2_configurations_that_are_refused(gpt2_copy, changes, message):
    edit_config(gpt2_copy, **changes)
    assert message in refusal(gpt2_copy)


def test_a_tokenizer_with_more_ids_than_the_model(llama_copy):
    edit_config(llama_copy, vocab_size=400)
    assert "tokenizer.json has ids up to 511, but config.json a vocab_size of 400" in refusal(llama_copy)


# What is refused: tensors


def test_all_wrong_tensors_are_listed_at_once(llama_copy):
    def damage(tensors):
        del tensors["model.layers.0.self_attn.q_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(31)
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.ones(48)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(56, 32, dtype=torch.int8)

    edit_weights(llama_copy, damage)
    message = refusal(llama_copy)
    assert "missing model.layers.0.self_attn.q_proj.weight" in message
    assert "model.norm.weight is (31,) instead of (32,)" in message
    assert "unexpected model.layers.1.self_attn.q_proj.bias" in message
    assert "model.layers.2.mlp.up_proj.weight is torch.int8, not floating point" in message
    assert message.count(";") == 3


def test_gpt2_shapes_are_named_as_stored(gpt2_copy):
    def transpose(tensors):
        tensors["transformer.h.0.attn.c_attn.weight"] = tensors["transformer.h.0.attn.c_attn.weight"].T

    edit_weights(gpt2_copy, transpose)
    assert "transformer.h.0.attn.c_attn.weight is (96, 32) instead of (32, 96)" in refusal(gpt2_copy)


def test_one_tensor_under_two_names(copy):
    def double(tensors):
        name = next(name for name in tensors if name.endswith("0.mlp.down_proj.weight") or name.endswith("c_fc.weight"))
        tensors[name.split(".", 1)[1]] = tensors[name].clone()

    edit_weights(copy, double)
    assert "was there already" in refusal(copy)


def test_an_untied_model_needs_its_head(llama_copy):
    edit_config(llama_copy, tie_word_embeddings=False)
    assert "missing lm_head.weight" in refusal(llama_copy)


def test_layers_that_the_configuration_does_not_count(copy):
    key = "n_layer" if "gpt2" in (copy / "config.json").read_text() else "num_hidden_layers"
    edit_config(copy, **{key: 2})
    assert "unexpected" in refusal(copy)
    edit_config(copy, **{key: 4})
    assert "missing" in refusal(copy)


# What is refused: files


def test_missing_folder_and_files(copy, tmp_path):
    assert "no folder" in refusal(tmp_path / "nowhere", FileNotFoundError)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (copy / name).rename(tmp_path / name)
        message = refusal(copy, FileNotFoundError)
        assert name in message and str(copy) in message
        (tmp_path / name).rename(copy / name)
    load_pretrained(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b'{"model_type": "llama"'])
def test_malformed_config(copy, content):
    (copy / "config.json").write_bytes(content)
    assert str(copy / "config.json") in refusal(copy)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -1000])
def test_truncated_weights(copy, keep):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is truncated or damaged" in refusal(copy)


def test_garbage_as_weights(copy):
    path = copy / "model.safetensors"
    path.write_bytes(b"\x80\x04\x95" * 1000)  # a pickle's first bytes
    assert f"{path} is truncated or damaged" in refusal(copy)


def test_pickled_weights_are_not_read(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pickled *.bin files are not read" in refusal(copy, FileNotFoundError)


@pytest.mark.parametrize("shard", ["../stolen.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "weights.bin", 3])
def test_shards_outside_the_folder(copy, shard, tmp_path):
    shutil.copy(copy / "model.safetensors", tmp_path / "stolen.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    assert f"lists {shard!r}, which is not the name of a safetensors file in the same folder" in refusal(copy)


def test_damaged_index(copy):
    (copy / "model.safetensors").rename(copy / "part.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))
    load_pretrained(copy)
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": "absent.safetensors"}}))
    assert "absent.safetensors not found" in refusal(copy, FileNotFoundError)
    index.write_text("{}")
    assert "has no weight_map" in refusal(copy)


def test_a_model_with_adapters_or_an_untied_head_is_not_written(tiny_llama_folder, tmp_path):
    model = load_model(tiny_llama_folder)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(ValueError, match="lm_head has a weight of its own"):
        save_pretrained(model, tmp_path / "out")
    model = load_model(tiny_llama_folder)
    model.layers[0].self_attn.q_proj = torch.nn.Sequential(model.layers[0].self_attn.q_proj)
    with pytest.raises(ValueError, match="merge adapters first"):
        save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
