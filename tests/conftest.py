"""Small random models in Hugging Face layout, written by transformers and tokenizers: the oracles of these tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import importlib
import json
from functools import cache, partial

import pytest
import tokenizers
import torch

from gpt.model import GPT, GPTConfig
from gpt.weights import parse_config, save_pretrained

torch.set_num_threads(1)  # the models are tiny: threads cost more than they bring


class Absent:
    """In place of a library that is not installed: a test that uses it is skipped, and says so."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, attribute):
        if attribute.startswith(("_", "pytest")):  # pytest looks so at all that a test file holds
            raise AttributeError(attribute)
        pytest.skip(f"compares with {self.name}, which is not installed", allow_module_level=True)


def oracle(name):
    """The module that results are compared with, or Absent."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return Absent(name)


transformers, peft = oracle("transformers"), oracle("peft")


def pytest_report_header():
    absent = [library.name for library in (transformers, peft) if isinstance(library, Absent)]
    return [f"{name} is not installed: what compares with it is skipped" for name in absent]


SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "She sells sea shells by the sea shore; the shells she sells are sea shells, I'm sure.",
    "How much wood would a woodchuck chuck if a woodchuck could chuck wood?",
    "It's 12 o'clock in 2024:   we've   got\n\n\n    four    spaces,\t\ttabs and  \n  lines.",
    "Naïve café, Ελληνικά, русский язык, 日本語の文章, हिन्दी, 👩‍👩‍👧 and 🎉🎉🎉!",
    "Peter Piper picked a peck of pickled peppers; where's the peck of pickled peppers Peter Piper picked?",
    "Round the rugged rocks the ragged rascal ran.",
    "def f(x):\n    if x > 10:\n        return x ** 2\n    return -x  # ...",
]
END_OF_TEXT = "<|endoftext|>"
TINY = GPTConfig(  # for tests that need no files: a grouped-query Llama
    family="llama",
    vocab_size=64,
    context_length=32,
    hidden_size=24,
    intermediate_size=40,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=6,
)


def train_tokenizer():
    """A byte-level BPE tokenizer of 512 tokens, with GPT-2's pattern; the end-of-text token is the first id."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[END_OF_TEXT, "<|user|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def write_folder(folder, config, **save_options):
    """Write a random model of a transformers configuration, and the tokenizer; returns the folder."""
    torch.manual_seed(0)
    ours = isinstance(config, dict) and not save_options  # see make_config
    model = GPT(parse_config(config)) if ours else transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases start at 1 and 0, where mixing them up would not show
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif ours:
                parameter.normal_(std=config["initializer_range"])
    save_pretrained(model, folder) if ours else model.save_pretrained(folder, **save_options)
    train_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
    return folder


def make_config(model_type, options):
    """transformers' configuration. Where it is not installed: the dict of config.json, and models are written by us."""
    if isinstance(transformers, Absent):
        return {"model_type": model_type, **options}
    return transformers.AutoConfig.for_model(model_type, **options)


def llama_config(model_type="llama", **changes):
    """Grouped-query, tied, with a head_dim that is not hidden_size / heads; model_type: or one of Llama's kin."""
    options = dict(
        vocab_size=512, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=96, rms_norm_eps=1e-5, initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return make_config(model_type, options | changes)


def gpt2_config(**changes):
    options = dict(
        vocab_size=512, n_embd=32, n_layer=3, n_head=4, n_positions=96, layer_norm_epsilon=1e-5, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return make_config("gpt2", options | changes)


# Of the six frequencies of llama_config the first is fast (over 3 turns in 48 tokens), two are blends, three are slow.
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 3.0,
    "original_max_position_embeddings": 48,
}  # fmt: skip
MISTRAL, QWEN2, QWEN3 = "mistral", "qwen2", "qwen3"
# Every kind of model that GPTConfig can express: CONFIGS[name]() is its configuration. Some have an epsilon so large that
# a wrong one would show.
CONFIGS = {
    "llama": llama_config,
    "llama2": partial(llama_config, num_key_value_heads=4, head_dim=8, tie_word_embeddings=False, rms_norm_eps=1e-6),
    "llama3.1": partial(llama_config, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False),
    "smollm2": partial(
        llama_config, hidden_size=36, num_attention_heads=9, num_key_value_heads=3, head_dim=4, rms_norm_eps=0.1
    ),
    "mistral": partial(llama_config, MISTRAL, sliding_window=None, tie_word_embeddings=False, num_key_value_heads=1),
    "mistral-window": partial(llama_config, MISTRAL, sliding_window=96),
    "qwen2": partial(llama_config, QWEN2, head_dim=8, tie_word_embeddings=False),
    "qwen2-tied": partial(llama_config, QWEN2, head_dim=8, sliding_window=4, use_sliding_window=False),
    "qwen3": partial(llama_config, QWEN3, tie_word_embeddings=False),
    "qwen3-tied": partial(llama_config, QWEN3, rms_norm_eps=0.1),
    "gpt2": gpt2_config,
    "gpt2-untied": partial(gpt2_config, tie_word_embeddings=False, n_inner=40, layer_norm_epsilon=0.1),
}


def reference(folder):
    """The folder's model in transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The folder of a name in CONFIGS, written when it is first asked for; not to be changed."""
    return cache(lambda name: write_folder(tmp_path_factory.mktemp(name), CONFIGS[name]()))


@pytest.fixture(scope="session")
def tiny_llama_folder(folder_of):
    return folder_of("llama")


@pytest.fixture(scope="session")
def tiny_gpt2_folder(folder_of):
    return folder_of("gpt2")


@pytest.fixture(params=["llama", "gpt2"])
def tiny_folder(request, folder_of):
    """The two kinds that differ most, in turn."""
    return folder_of(request.param)


@pytest.fixture(params=CONFIGS)
def any_folder(request, folder_of):
    """Every kind of model in turn."""
    return folder_of(request.param)


@pytest.fixture
def input_ids():
    """Random ids (2, 20)."""
    return torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(1))
