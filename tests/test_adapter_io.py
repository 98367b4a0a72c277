"""adapter_io.py: what is saved is what is loaded, PEFT reads and writes the same files, and bad files are refused."""

import copy
import functools
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from conftest import TINY, peft, reference
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import adapter_io
from adapter_io import find_adapter, load_adapters, load_trained, save_adapters, write_card
from gpt.model import GPT
from gpt.weights import load_model, save_pretrained
from lora import LoRALayer, find_adapters, merge_adapters, replace_linears, scale
from mica import MiCALayer
from milora import MiLoRALayer, PiSSALayer
from train import block_linears

TARGETS = ["q_proj", "v_proj"]
SETTINGS, FACTORS = "adapter_config.json", "adapter_model.safetensors"
GPT2 = replace(TINY, family="gpt2", n_kv_heads=TINY.n_heads)
either_family = pytest.mark.parametrize("config", [TINY, GPT2], ids=["llama", "gpt2"])


def base_model(dtype=torch.float32, config=TINY):
    """Always the same weights."""
    torch.manual_seed(0)
    return GPT(config).to(dtype)


def token_ids():
    return torch.randint(64, (2, 10), generator=torch.Generator().manual_seed(1))


def train_a_little(model, logits_of=lambda output: output):
    """Three AdamW steps on random tokens, enough for an adapter to matter."""
    ids = token_ids()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        logits = logits_of(model(ids[:, :-1]))
        F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def trained_model(layer_class=MiCALayer, targets=TARGETS, dropout=0.0, **kwargs):
    model = base_model(**kwargs)
    replace_linears(model, layer_class, 4, 8, targets, dropout)
    return train_a_little(model)


def assert_same(ours, theirs, rtol=1e-5):
    """Equal but for float32's rounding in another order, relative to the largest logit."""
    assert (ours - theirs).abs().max() <= rtol * theirs.abs().max()


@pytest.fixture
def folder(tmp_path):
    save_adapters(trained_model(), tmp_path / "adapter")
    return tmp_path / "adapter"


# --- saved and loaded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer_class, targets, dtype, config",
    [
        (LoRALayer, TARGETS, torch.float32, TINY),
        (MiCALayer, ["layers.1.self_attn.q_proj"], torch.bfloat16, TINY),
        (MiCALayer, ["down_proj", "lm_head"], torch.float64, TINY),
        (LoRALayer, ["v_proj", "k_proj", "q_proj"], torch.float32, GPT2),  # one fused layer in the files
        (MiCALayer, ["q_proj", "down_proj"], torch.float32, GPT2),
    ],
)
def test_a_loaded_adapter_computes_what_the_saved_one_did(tmp_path, layer_class, targets, dtype, config):
    saved = trained_model(layer_class, targets, dropout=0.1, dtype=dtype, config=config)
    save_adapters(saved, tmp_path)
    assert any("c_attn" in key for key in load_file(tmp_path / FACTORS)) == (config is GPT2)
    loaded = base_model(dtype, config).eval()
    assert not torch.equal(loaded(token_ids()), saved(token_ids()))
    assert load_adapters(loaded, tmp_path) == list(find_adapters(saved))
    assert torch.equal(loaded(token_ids()), saved(token_ids()))
    for name, layer in find_adapters(loaded).items():
        assert type(layer) is LoRALayer and (layer.rank, layer.alpha, layer.dropout.p) == (4, 8, 0.1)
        assert torch.equal(layer.A, saved.get_submodule(name).A) and torch.equal(layer.B, saved.get_submodule(name).B)
    names = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert names == {f"{name}.{factor}" for name in find_adapters(saved) for factor in "AB"}


def test_what_was_learned_on_a_base_model_is_added_to_its_instruct_model(tmp_path):
    """theta_instruct + dW, where dW = theta_adapted - theta_base; the folder may be the run's."""
    trained = trained_model()
    save_adapters(trained, tmp_path / "adapter", "org/base", "v1")
    merge_adapters(trained)
    torch.manual_seed(7)
    instruct = GPT(TINY)  # other weights, of the same shape
    base, adapted = base_model().state_dict(), trained.state_dict()
    expected = {name: W + (adapted[name] - base[name]) for name, W in instruct.state_dict().items()}
    assert any(not torch.equal(expected[name], W) for name, W in instruct.state_dict().items())
    load_adapters(instruct, tmp_path)
    merge_adapters(instruct)
    for name, W in instruct.state_dict().items():
        torch.testing.assert_close(W, expected[name], atol=1e-6, rtol=0, msg=name)


def test_the_files_are_pefts(folder):
    assert {path.name for path in folder.iterdir()} == {SETTINGS, FACTORS}
    assert json.loads((folder / SETTINGS).read_text()) == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "revision": None,
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"},
        "r": 4, "rank_pattern": {}, "lora_alpha": 8, "alpha_pattern": {}, "lora_dropout": 0.0,
        "target_modules": TARGETS, "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
    }  # fmt: skip
    shapes = {"q_proj.lora_A": (4, 24), "q_proj.lora_B": (24, 4), "v_proj.lora_A": (4, 24), "v_proj.lora_B": (12, 4)}
    assert {name: tuple(factor.shape) for name, factor in load_file(folder / FACTORS).items()} == {
        f"base_model.model.model.layers.{i}.self_attn.{leaf}.weight": shape
        for i in range(2)
        for leaf, shape in shapes.items()
    }


# --- beside PEFT ------------------------------------------------------------------------------------------------------

FAMILIES = ["gpt2", "llama", "qwen2"]


@pytest.fixture(scope="session")
def hf_model(folder_of):
    """hf_model("gpt2"): transformers' model of that name in CONFIGS, a fresh one each time."""
    load = functools.cache(lambda name: reference(folder_of(name)))
    return lambda name: copy.deepcopy(load(name))


@torch.no_grad()
def assert_all_the_same(folder, model, hf, base, ids):
    """Loaded by us, merged and in PEFT: the logits of `model`, which are not those of the untouched `base`."""
    expected, theirs = model(ids), peft.PeftModel.from_pretrained(hf, folder)
    assert (base(ids) - expected).abs().max() > 0.05 * expected.abs().max()  # the adapter matters
    load_adapters(base, folder)
    assert_same(base(ids), expected)
    assert_same(theirs(ids).logits, expected)
    wrapped = {name for name, module in theirs.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    assert wrapped == {key.rpartition(".lora_")[0] for key in load_file(folder / FACTORS)}
    for adapted in (model, base):
        merge_adapters(adapted)
        assert_same(adapted(ids), expected)


@pytest.mark.parametrize("layer_class", [LoRALayer, MiCALayer, MiLoRALayer, PiSSALayer])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_what_we_save(tmp_path, folder_of, hf_model, input_ids, family, layer_class):
    for targets in (TARGETS, None):
        model = load_model(folder_of(family))
        replace_linears(model, layer_class, 3, 8, targets or block_linears(model))
        save_adapters(train_a_little(model), tmp_path)
        assert_all_the_same(tmp_path, model, hf_model(family), load_model(folder_of(family)), input_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_adapters_that_differ(tmp_path, folder_of, hf_model, input_ids, family):
    """In rank and alpha, also of the parts of one c_attn, and with some layers not adapted."""
    model = load_model(folder_of(family))
    targets = ["q_proj", "layers.1.self_attn.v_proj", "o_proj", "layers.2.mlp.up_proj"]
    replace_linears(model, LoRALayer, 4, 8, targets)
    for name, rank, alpha in [("layers.1.self_attn.v_proj", 2, 9), ("layers.0.self_attn.o_proj", 3, 5)]:
        model.set_submodule(name, LoRALayer(model.get_submodule(name).linear, rank, alpha))
    train_a_little(model).layers[0].self_attn.o_proj.B.data[:, 1] = 0  # a direction that is not used yet stays
    save_adapters(model, tmp_path)
    base, ranks = load_model(folder_of(family)), {name: layer.rank for name, layer in find_adapters(model).items()}
    assert_all_the_same(tmp_path, model, hf_model(family), base, input_ids)
    load_adapters(again := load_model(folder_of(family)), tmp_path)
    assert {name: layer.rank for name, layer in find_adapters(again).items()} == ranks


def peft_model(hf, folder, dtype=torch.float32, **options):
    """What PEFT has trained with these options of LoraConfig, saved to the folder."""
    torch.manual_seed(0)
    model = peft.get_peft_model(hf, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
    train_a_little(model, lambda output: output.logits)
    factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for factor in factors:
        factor.data = factor.data.to(dtype)
    model.save_pretrained(folder)
    for factor in factors:
        factor.data = factor.data.float()  # as PEFT loads them
    return model


@torch.no_grad()
def assert_loads(folder, theirs, ours, ids):
    """Ours, unmerged and merged, gives the logits of theirs; returns the layers."""
    expected, untouched = theirs(ids).logits, ours(ids)
    assert (untouched - expected).abs().max() > 0.02 * expected.abs().max()
    load_adapters(ours, folder)
    assert_same(ours(ids), expected)
    layers = find_adapters(ours)
    merge_adapters(ours)
    assert_same(ours(ids), expected)
    return layers


OPTIONS = {
    "GPT-2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "init_lora_weights": "mica"}),
    "more than a part of 32 can have": ("gpt2", {"target_modules": ["c_attn"], "rank_pattern": {"c_attn": 40}}),
    "Qwen": ("qwen2", {"target_modules": "all-linear"}),
    "rank pattern": ("llama", {"rank_pattern": {"v_proj": 2, r"^model.layers.1.self_attn.q_proj": 5}}),
    "alpha pattern": ("llama", {"alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 60.5, "q_proj": 2, "_proj": 60}}),
    "rsLoRA": ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 2}}),
    "dropout": ("llama", {"lora_dropout": 0.5, "init_lora_weights": "orthogonal"}),
    "a regular expression": ("llama", {"target_modules": r".*\.(0|2)\.self_attn\.[qv]_proj"}),
    "some layers": ("llama", {"layers_to_transform": [0, 2], "fan_in_fan_out": True}),
    "all but some": ("llama", {"exclude_modules": ["layers.1.self_attn.q_proj"], "task_type": "CAUSAL_LM"}),
    "bfloat16": ("llama", {"dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("family, options", OPTIONS.values(), ids=OPTIONS)
def test_we_load_what_peft_trains(tmp_path, folder_of, hf_model, input_ids, family, options):
    theirs = peft_model(hf_model(family), tmp_path, **({"target_modules": TARGETS} | options))
    layers = assert_loads(tmp_path, theirs, load_model(folder_of(family)), input_ids)
    if family != "gpt2":
        wrapped = [module for module in theirs.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
        for layer, wrap in zip(layers.values(), wrapped, strict=True):
            assert layer.rank == wrap.r["default"]
            assert layer.alpha / layer.rank == pytest.approx(wrap.scaling["default"])
            assert layer.dropout.p == options.get("lora_dropout", 0)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_that_change_the_base_must_be_converted(tmp_path, folder_of, hf_model, input_ids, start):
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=start)
    theirs = peft.get_peft_model(hf_model("llama"), config)
    theirs.peft_config["default"].init_lora_weights = True  # as PEFT's documentation has it
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = start
    train_a_little(theirs, lambda output: output.logits)
    theirs.save_pretrained(tmp_path / "raw")
    ours = load_model(folder_of("llama"))
    with pytest.raises(ValueError, match=f"init_lora_weights.*{start}.*path_initial_model_for_weight_conversion"):
        load_adapters(ours, tmp_path / "raw")
    theirs.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    assert_loads(tmp_path / "converted", theirs, ours, input_ids)


# --- refusals ---------------------------------------------------------------------------------------------------------


def change_settings(folder, **changes):
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | changes))


def change_factors(folder, change):
    factors = load_file(folder / FACTORS)
    change(factors)
    save_file(factors, folder / FACTORS)


A_KEY = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
B_KEY = A_KEY.replace("lora_A", "lora_B")
SPOILED = {
    "another method": (lambda f: change_settings(f, peft_type="IA3"), f'{SETTINGS} .*"peft_type'),
    "more than LoRA": (lambda f: change_settings(f, use_dora=True), f'{SETTINGS} .*"use_dora'),
    "factors cut": (lambda f: (f / FACTORS).write_bytes((f / FACTORS).read_bytes()[:-9]), FACTORS),
    "rank of others": (lambda f: change_settings(f, r=13), r"lora_A.weight .*\(4, 24\), not \(13, 24\)"),
    "more targets": (lambda f: change_settings(f, target_modules=[*TARGETS, "k_proj"]), "k_proj"),
    "a factor missing": (lambda f: change_factors(f, lambda t: t.pop(A_KEY)), "v_proj.lora_B"),
    "NaN": (lambda f: change_factors(f, lambda t: t[A_KEY][1, 2:].fill_(float("nan"))), "v_proj.lora_A.weight"),
}


@pytest.mark.parametrize("spoil, named", SPOILED.values(), ids=SPOILED)
def test_bad_files_are_named_and_the_model_left_as_it_was(folder, spoil, named):
    spoil(folder)
    model = base_model()
    before = model(token_ids())
    with pytest.raises((ValueError, OSError), match=named):
        load_adapters(model, folder)
    assert not find_adapters(model) and all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(token_ids()), before)


def test_an_adapter_of_another_family_is_refused_by_name(folder):
    with pytest.raises(ValueError, match="MistralForCausalLM.*LlamaForCausalLM"):  # their layers have the same shapes
        load_adapters(GPT(replace(TINY, family="mistral")), folder)


# --- a method of one's own --------------------------------------------------------------------------------------------


class RsLoRALayer(LoRALayer):
    def __init__(self, *args):
        super().__init__(*args)
        self.scaling = self.alpha / self.rank**0.5


class DoRALayer(LoRALayer):
    """Only the forward is another: what is saved and merged would not be it."""

    def forward(self, x):
        return 1.1 * super().forward(x)


class MergedDoRALayer(DoRALayer):
    """This one forgets plain_factors() only."""

    def delta(self):
        W = self.linear.weight
        return 1.1 * (W + super().delta()) - W


@either_family
def test_a_method_with_another_scale_is_saved_and_merged_as_it_computes(tmp_path, config):
    saved = trained_model(RsLoRALayer, config=config)
    scale(saved, 0.5)
    save_adapters(saved, tmp_path)
    loaded, expected = base_model(config=config).eval(), saved(token_ids())
    load_adapters(loaded, tmp_path)
    assert_same(loaded(token_ids()), expected)
    merge_adapters(saved)
    assert_same(saved(token_ids()), expected)


@pytest.mark.parametrize(
    "layer, named, dtype",
    [(DoRALayer, "delta and forward", torch.bfloat16), (MergedDoRALayer, "plain_factors and delta", torch.float32)],
)
def test_a_method_that_would_be_saved_as_another_is_refused(tmp_path, layer, named, dtype):
    model = trained_model(layer, dtype=dtype)
    for save_or_merge in (lambda: save_adapters(model, tmp_path), lambda: merge_adapters(model)):
        with pytest.raises(ValueError, match=f"{named} of {layer.__name__}.*q_proj"):
            save_or_merge()
    assert not list(tmp_path.iterdir()) and len(find_adapters(model)) == 4


def test_a_card_says_what_an_adapter_is(folder):
    write_card(folder, "org/name@v1", {"method": "mica", "rank": 8, "new questions, %": "91.2 +- 1.0 | 3"})
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    assert json.loads(fields["base_model"]) == "org/name" and json.loads(fields["tags"]) == ["lora", "mica"]
    rows = ["| base model | org/name |", "| revision | v1 |", "| rank | 8 |", "| new questions, % | 91.2 +- 1.0 / 3 |"]
    assert all(row in text.splitlines() for row in rows)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
    def run(model, adapter, out, *options):
        line = ["--model", model, "--adapter", adapter, "--out", out, *options]
        monkeypatch.setattr(sys, "argv", ["adapter_io.py", *map(str, line)])
        adapter_io.main()

    return run


def save_trained(folder, adapter, targets=None, layer=MiLoRALayer):
    model = load_model(folder)
    replace_linears(model, layer, 3, 8, targets or block_linears(model))
    save_adapters(train_a_little(model), adapter)


@pytest.mark.parametrize("family, stored", [("gpt2", torch.float32), ("llama", torch.bfloat16)])
def test_a_merged_folder_opens_in_transformers(tmp_path, folder_of, command, input_ids, family, stored):
    folder = shutil.copytree(folder_of(family), tmp_path / "stored")
    reference(folder).to(stored).save_pretrained(folder)
    save_trained(folder, tmp_path / "run" / "adapter")
    command(folder, tmp_path / "run", tmp_path / "merged")  # a run's folder will do
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == names | {"MADE_BY"}
    merged, model = load_model(tmp_path / "merged", dtype=None), load_model(folder)
    assert {p.dtype for p in merged.parameters()} == {stored}
    theirs, untouched = reference(tmp_path / "merged")(input_ids).logits, model(input_ids)
    load_adapters(model, tmp_path / "run")
    expected = model(input_ids)  # in float32
    assert_same(theirs, merged.float()(input_ids))
    assert_same(theirs, expected, rtol=1e-5 if stored == torch.float32 else 0.05)
    assert (untouched - expected).abs().max() > 0.1 * expected.abs().max()


def test_the_sum_is_rounded_once(tmp_path, folder_of, command):
    save_trained(folder_of("llama"), tmp_path / "adapter", layer=LoRALayer)
    command(folder_of("llama"), tmp_path / "adapter", tmp_path / "merged", "--dtype", "bfloat16")
    model = load_model(folder_of("llama"))
    weights = {name: parameter.data for name, parameter in model.named_parameters()}
    load_adapters(model, tmp_path / "adapter")
    deltas = {f"{name}.weight": layer.delta() for name, layer in find_adapters(model).items()}
    for name, parameter in load_model(tmp_path / "merged", dtype=None).named_parameters():
        assert torch.equal(parameter, (weights[name] + deltas.get(name, 0)).bfloat16()), name
    # Two roundings would show.
    assert any(((weights[n] + d).bfloat16() != weights[n].bfloat16() + d.bfloat16()).any() for n, d in deltas.items())


def test_an_adapted_lm_head_is_no_longer_the_embedding(tmp_path, folder_of, hf_model, command, input_ids):
    save_trained(folder_of("llama"), tmp_path / "adapter", ["q_proj", "lm_head"], LoRALayer)  # tied
    command(folder_of("llama"), tmp_path / "adapter", tmp_path / "merged")
    theirs = peft.PeftModel.from_pretrained(hf_model("llama"), tmp_path / "adapter")
    assert_same(reference(tmp_path / "merged")(input_ids).logits, theirs(input_ids).logits)


def test_nothing_that_is_read_is_written_over(tmp_path, folder_of, command, capsys):
    model = shutil.copytree(folder_of("llama"), tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    save_trained(model, tmp_path / "run" / "adapter", TARGETS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in ("link", "run"):
        with pytest.raises(SystemExit):
            command(model, tmp_path / "run" / "adapter", tmp_path / out)
        assert f"{out} would be written" in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_model_that_was_trained_whole_is_turned_down_too(tiny_llama_folder, tmp_path):
    base, taught = load_model(tiny_llama_folder), load_model(tiny_llama_folder)
    with torch.no_grad():
        for p in taught.parameters():
            p.add_(torch.randn_like(p))
    save_pretrained(taught, tmp_path / "run" / "model")
    folder, config = find_adapter(tmp_path / "run")
    assert folder == tmp_path / "run" / "model" and config is None
    load_trained(model := load_model(tiny_llama_folder), folder, 0.25)
    for p, start, end in zip(model.parameters(), base.parameters(), taught.parameters(), strict=True):
        torch.testing.assert_close(p, start + 0.25 * (end - start))
    with pytest.raises(ValueError, match="another shape"):
        load_trained(base_model(), folder)
