"""adapter_io.py: what is saved is what is loaded, PEFT reads and writes the same files, and bad files are refused."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import adapter_io
from adapter_io import load_adapters, save_adapters
from conftest import TINY
from gpt.model import GPT
from lora import LoRALayer, find_adapters, merge_adapters, replace_linears
from mica import MiCALayer

TARGETS = ["q_proj", "v_proj"]
SETTINGS, FACTORS = "adapter_config.json", "adapter_model.safetensors"
KEYS = {
    f"base_model.model.model.layers.{i}.self_attn.{leaf}.lora_{factor}.weight"
    for i in range(2)
    for leaf in TARGETS
    for factor in "AB"
}


def base_model(dtype=torch.float32, config=TINY):
    """Always the same weights."""
    torch.manual_seed(0)
    return GPT(config).to(dtype)


def token_ids():
    return torch.randint(64, (2, 10), generator=torch.Generator().manual_seed(1))


def trained_model(layer_class=MiCALayer, targets=TARGETS, dropout=0.0, **kwargs):
    model, ids = base_model(**kwargs), token_ids()
    replace_linears(model, layer_class, 4, 8, targets, dropout)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    save_adapters(trained_model(), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("layer_class", [LoRALayer, MiCALayer])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("targets", [TARGETS, ["layers.1.self_attn.q_proj"], ["down_proj", "lm_head"]])
def test_a_loaded_adapter_computes_what_the_saved_one_did(tmp_path, layer_class, dtype, targets):
    saved = trained_model(layer_class, targets, dtype=dtype, dropout=0.1)
    save_adapters(saved, tmp_path)
    loaded = base_model(dtype).eval()
    assert not torch.equal(loaded(token_ids()), saved(token_ids()))
    assert load_adapters(loaded, tmp_path) == list(find_adapters(saved))
    assert torch.equal(loaded(token_ids()), saved(token_ids()))
    for layer in find_adapters(loaded).values():
        assert type(layer) is LoRALayer and (layer.rank, layer.alpha, layer.dropout.p) == (4, 8, 0.1)
    names = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert names == {f"{name}.{factor}" for name in find_adapters(saved) for factor in "AB"}


def test_gpt2_comes_back_too(tmp_path):
    config = replace(TINY, family="gpt2", n_kv_heads=TINY.n_heads)
    saved, loaded = trained_model(config=config), base_model(config=config).eval()
    save_adapters(saved, tmp_path)
    load_adapters(loaded, tmp_path)
    assert torch.equal(loaded(token_ids()), saved(token_ids()))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_what_was_learned_on_a_base_model_is_added_to_its_instruct_model(tmp_path, family):
    """theta_instruct + dW, where dW = theta_adapted - theta_base; the folder may be the run's."""
    config = replace(TINY, family=family)
    trained = trained_model(config=config)
    save_adapters(trained, tmp_path / "adapter", "org/base", "v1")
    merge_adapters(trained)
    torch.manual_seed(7)
    instruct = GPT(config)  # other weights, of the same shape
    base, adapted = base_model(config=config).state_dict(), trained.state_dict()
    expected = {name: W + (adapted[name] - base[name]) for name, W in instruct.state_dict().items()}
    assert any(not torch.equal(expected[name], W) for name, W in instruct.state_dict().items())
    load_adapters(instruct, tmp_path)
    merge_adapters(instruct)
    for name, W in instruct.state_dict().items():
        torch.testing.assert_close(W, expected[name], atol=1e-6, rtol=0, msg=name)
    settings = json.loads((tmp_path / "adapter" / SETTINGS).read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/base", "v1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_size=32), "lora_A.weight of shape (4, 24), not (4, 32)"),
        (dict(n_kv_heads=4), "v_proj.lora_B.weight of shape (12, 4), not (24, 4)"),
        (dict(n_layers=1), "unexpected base_model.model.model.layers.1"),
        (dict(n_layers=3), "lacks base_model.model.model.layers.2"),
        (dict(family="gpt2", n_kv_heads=4), "adapts a LlamaForCausalLM, but this model is a GPT2LMHeadModel"),
        (
            dict(family="mistral"),
            "adapts a LlamaForCausalLM, but this model is a MistralForCausalLM",
        ),  # whose layers have the same shapes
    ],
)
def test_an_adapter_for_another_shape_is_refused_by_name(folder, change, message):
    model = GPT(replace(TINY, **change))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_adapters(model, folder)
    assert not find_adapters(model)


def test_the_files_are_pefts(folder):
    assert {path.name for path in folder.iterdir()} == {SETTINGS, FACTORS}
    assert json.loads((folder / SETTINGS).read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "revision": None,
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"},
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": TARGETS,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    factors = load_file(folder / FACTORS)
    assert set(factors) == KEYS
    assert {tuple(t.shape) for n, t in factors.items() if "v_proj.lora_B" in n} == {(12, 4)}  # (out, rank)
    assert {tuple(t.shape) for n, t in factors.items() if "v_proj.lora_A" in n} == {(4, 24)}  # (rank, in)


def test_short_targets_only_where_they_mean_the_same_layers(tmp_path):
    save_adapters(trained_model(targets=["layers.1.self_attn.q_proj"]), tmp_path, base_model="somewhere")
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings["target_modules"] == ["model.layers.1.self_attn.q_proj"]  # "q_proj" would mean layer 0's as well
    assert settings["base_model_name_or_path"] == "somewhere"


def transformers_model():
    """Hugging Face's Llama with base_model()'s weights."""
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            max_position_embeddings=32,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=6,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
    )
    weights = {n if n.startswith("lm_head") else f"model.{n}": t for n, t in base_model().state_dict().items()}
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize("targets", [TARGETS, ["layers.1.self_attn.q_proj", "down_proj"]])
def test_peft_opens_what_we_save(tmp_path, targets):
    peft = pytest.importorskip("peft")
    ours = trained_model(targets=targets)
    save_adapters(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(transformers_model(), tmp_path)
    ids = token_ids()
    torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=1e-5, atol=1e-5)
    assert (base_model()(ids) - ours(ids)).abs().max() > 1e-2  # the adapter matters


def test_we_load_what_peft_saves(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(transformers_model(), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    ours, ids = base_model().eval(), token_ids()
    load_adapters(ours, tmp_path)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    assert (base_model()(ids) - ours(ids)).abs().max() > 1e-2


def assert_refused(folder, message):
    model = base_model()
    modules = list(model.named_modules())
    with pytest.raises(ValueError, match=message) as error:
        load_adapters(model, folder)
    assert str(error.value).count("\n") == 0
    assert list(model.named_modules()) == modules and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), base_model().state_dict().values()))


@pytest.mark.parametrize(
    "setting, value",
    [
        ("peft_type", "IA3"),
        ("use_dora", True),
        ("use_rslora", True),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("layers_to_transform", [0]),
        ("exclude_modules", ["q_proj"]),
        ("a_setting_of_the_future", True),
        ("r", None),
        ("r", "4"),
        ("r", 0),
        ("r", 13),
        ("lora_alpha", -1),
        ("lora_alpha", None),
        ("lora_dropout", 1.5),
        ("target_modules", "all-linear"),
    ],
)
def test_settings_that_are_not_honoured(folder, setting, value):
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | {setting: value}))
    if (setting, value) in [("r", 0), ("r", 13)]:  # then no saved factor has the right shape
        assert_refused(folder, "lora_A.weight of shape")
    else:
        assert_refused(folder, {"lora_alpha": "alpha", "lora_dropout": "dropout"}.get(setting, setting))


def test_settings_that_are_off_or_mere_notes_are_fine(folder):
    settings = json.loads((folder / SETTINGS).read_text())
    settings |= {"use_dora": False, "rank_pattern": {}, "modules_to_save": None, "inference_mode": True}
    (folder / SETTINGS).write_text(json.dumps(settings))
    assert len(load_adapters(base_model(), folder)) == 4


def change_targets(folder, targets):
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | {"target_modules": targets}))


def change_factors(folder, change):
    factors = load_file(folder / FACTORS)
    change(factors)
    save_file(factors, folder / FACTORS)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


A_KEY = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
B_KEY = A_KEY.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: [path.unlink() for path in f.iterdir()], "adapter_config.json is missing"),
        (lambda f: (f / SETTINGS).unlink(), "adapter_config.json is missing"),
        (lambda f: (f / FACTORS).unlink(), "adapter_model.safetensors is missing"),
        (lambda f: cut(f / SETTINGS), "adapter_config.json is damaged"),
        (lambda f: (f / SETTINGS).write_bytes(b"\xff\xfe\x00"), "adapter_config.json is damaged"),
        (lambda f: (f / SETTINGS).write_text("[]"), "adapter_config.json is damaged"),
        (lambda f: (f / SETTINGS).write_text("{}"), "peft_type"),
        (lambda f: cut(f / FACTORS), "adapter_model.safetensors is damaged"),
        (lambda f: (f / FACTORS).write_bytes(b""), "adapter_model.safetensors is damaged"),
        (lambda f: change_targets(f, ["q_proj", "c_attn"]), "adapts c_attn, which this model does not have"),
        (lambda f: change_targets(f, TARGETS + ["k_proj"]), "lacks .*k_proj.lora_A"),
        (lambda f: change_targets(f, ["q_proj"]), "unexpected .*v_proj"),
        (lambda f: change_targets(f, []), "unexpected"),
        (lambda f: change_factors(f, lambda t: t.pop(A_KEY)), "lacks .*1.self_attn.v_proj.lora_A"),
        (
            lambda f: change_factors(f, lambda t: t.update({"lm_head.weight": torch.zeros(2)})),
            "unexpected lm_head.weight",
        ),
        (
            lambda f: change_factors(f, lambda t: t.update({B_KEY: torch.zeros(24, 4)})),
            r"lora_B.*\(24, 4\), not \(12, 4\)",
        ),
        (lambda f: change_factors(f, lambda t: t.update({A_KEY: torch.zeros(96)})), r"lora_A.*\(96,\), not \(4, 24\)"),
    ],
)
def test_bad_files(folder, spoil, message):
    spoil(folder)
    assert_refused(folder, message)


def test_missing_folder(tmp_path):
    assert_refused(tmp_path / "nowhere", "nowhere")


def test_a_run_of_full_fine_tuning_has_no_adapter(tmp_path):
    (tmp_path / "seed0" / "model").mkdir(parents=True)
    assert_refused(tmp_path / "seed0", "has no adapter but a whole model: load .*model instead of the base model")


def test_an_adapted_model_is_refused(folder):
    model = trained_model()
    before = model(token_ids())
    with pytest.raises(ValueError, match="already adapted"):
        load_adapters(model, folder)
    assert torch.equal(model(token_ids()), before) and len(find_adapters(model)) == 4


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="no adapters"):
        save_adapters(base_model(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_unequal_adapters_are_not_saved(tmp_path):
    model = trained_model()
    model.layers[0].self_attn.k_proj = LoRALayer(model.layers[0].self_attn.k_proj, 2, 8)
    with pytest.raises(ValueError, match="one rank, alpha and dropout"):
        save_adapters(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_interrupted_save_leaves_no_config_behind(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(adapter_io.json, "dumps", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_adapters(trained_model(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FACTORS]
