"""Models by their names: from a folder, from a Hugging Face cache as the real client reads it, and from a Hub."""

import hashlib
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import llama_config, write_folder
from huggingface_hub import constants
from safetensors.torch import load_file

from adapter_io import find_adapter, load_adapters, save_adapters
from gpt import find_model, load_pretrained
from lora import LoRALayer, find_adapters, replace_linears

COMMIT = "0123456789" * 4
SAID = f"model: org/name of the Hugging Face Hub, revision {COMMIT}\n"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty Hugging Face cache, offline; the working directory is empty too."""
    # The client reads the environment once, on import, but looks these constants up whenever it needs them.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch, cache, tiny_llama_folder):
    """A Hub in place of the client's: hub.files of org/name, at first the tiny Llama's; hub.fetched: names, in order."""
    hub, folder = SimpleNamespace(files=contents(tiny_llama_folder), fetched=[]), cache / COMMIT
    folder.mkdir(parents=True)

    def snapshot_download(repository, revision, allow_patterns, tqdm_class):
        assert (repository, revision) == ("org/name", "v1")
        for name, content in hub.files.items():
            if any(fnmatch(name, pattern) for pattern in allow_patterns) and not (folder / name).exists():
                (folder / name).write_bytes(content)
                hub.fetched.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("sharded"), llama_config(), max_shard_size="60KB")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fill(cache, files):
    """Lay files out as the client does: links of a snapshot to blobs named by their contents."""
    repository = cache / "models--org--name"
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    for name, content in files.items():
        digest = hashlib.sha1(content).hexdigest()
        (repository / "blobs" / digest).write_bytes(content)
        (repository / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{digest}")
    for revision in ("main", "v1"):
        (repository / "refs" / revision).write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def assert_same_model(folder, expected):
    model, tokenizer = load_pretrained(folder)
    expected_model, expected_tokenizer = load_pretrained(expected)
    state, expected_state = model.state_dict(), expected_model.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], expected_state[name]) for name in state)
    assert tokenizer.encode("She sells sea shells") == expected_tokenizer.encode("She sells sea shells")


def refusal(name):
    """The one line with which find_model, or loading what it found, fails."""
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        load_pretrained(find_model(name))
    said = str(raised.value)
    assert said.isprintable() and len(said) < 400, said
    return said


# --- the cache, without a network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["org/name", "org/name@v1", f"org/name@{COMMIT}"])
def test_a_cached_model_is_found_offline(cache, tiny_llama_folder, capsys, name):
    fill(cache, contents(tiny_llama_folder))
    folder = find_model(name)
    assert capsys.readouterr().err == SAID
    assert_same_model(folder, tiny_llama_folder)


def test_what_is_not_cached_is_refused_offline(cache, sharded_folder):
    folder = fill(cache, contents(sharded_folder))
    said = refusal("org/name@v9")
    assert "org/name@v9" in said and "HF_HUB_OFFLINE" in said
    shard = max(folder.glob("*.safetensors"))
    shard.resolve().unlink()  # the link to it stays
    assert shard.name in refusal("org/name")


def test_an_environment_that_the_client_cannot_use(cache):
    """It is read on import, which fails: of a timeout that is no number, say."""
    env = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "HF_HUB_DOWNLOAD_TIMEOUT": "soon"}
    command = [sys.executable, "-m", "gpt", "org/name", "Once upon a time"]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    (said,) = done.stderr.splitlines()
    assert done.returncode == 2 and "org/name" in said and "soon" in said


# --- a Hub ------------------------------------------------------------------------------------------------------------

CLUTTER = ["README.md", "consolidated.safetensors", "tf_model.h5", "model.fp16.safetensors", "onnx/config.json"]


@pytest.mark.parametrize("kind", ["tiny_llama_folder", "sharded_folder", "pickled"])
def test_only_the_files_that_a_model_needs_are_fetched(hub, request, capsys, tmp_path, kind):
    expected = request.getfixturevalue("tiny_llama_folder" if kind == "pickled" else kind)
    needed = {name: content for name, content in contents(expected).items() if name != "generation_config.json"}
    pickle = {"pytorch_model.bin": b"not needed"}
    if kind == "pickled":
        torch.save(load_file(expected / "model.safetensors"), tmp_path / "pytorch_model.bin")
        del needed["model.safetensors"]
        needed["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    hub.files = dict.fromkeys(CLUTTER, b"not needed") | pickle | needed
    capsys.readouterr()  # what the libraries said while they made the folder
    folder = find_model("org/name@v1")
    assert sorted(hub.fetched) == sorted(needed)
    assert capsys.readouterr().err == SAID
    assert_same_model(folder, expected)


def test_what_goes_wrong_in_a_fetch_is_one_sentence(cache, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CAS Client\n(details)")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "CAS Client (details)" in refusal("org/name")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_comes_from_the_hub_too(hub, tiny_llama_folder, tmp_path, name):
    model, _ = load_pretrained(tiny_llama_folder)
    replace_linears(model, LoRALayer, 2, 4, ["q_proj"])
    save_adapters(model, tmp_path / "adapter", "org/base")
    hub.files = contents(tmp_path / "adapter") | {"model.safetensors": b"not fetched"}
    if name.endswith(".bin"):
        hub.files.pop("adapter_model.safetensors")
        torch.save(load_file(tmp_path / "adapter" / "adapter_model.safetensors"), tmp_path / name)
        hub.files[name] = (tmp_path / name).read_bytes()
    folder, config = find_adapter("org/name@v1")
    assert config.base_model_name_or_path == "org/base"
    assert sorted(hub.fetched) == sorted(["adapter_config.json", name])
    assert load_adapters(load_pretrained(tiny_llama_folder)[0], folder) == [*find_adapters(model)]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_hub", [False, True])
def test_an_adapter_is_no_model(cache, tmp_path, on_hub):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    name = "org/name" if on_hub else str(folder)
    if on_hub:
        fill(cache, contents(folder))
    assert f"--adapter {name}" in refusal(name)


def test_a_folder_wins_over_a_repository_of_its_name(cache, tiny_llama_folder, tiny_gpt2_folder, tmp_path, capsys):
    fill(cache, contents(tiny_llama_folder))
    (tmp_path / "work" / "org").mkdir()
    (tmp_path / "work" / "org" / "name").symlink_to(tiny_gpt2_folder)
    assert_same_model(find_model("org/name"), tiny_gpt2_folder)
    assert capsys.readouterr().err == "model: the folder org/name\n"
    assert_same_model(find_model("org/name@main"), tiny_llama_folder)  # a revision: the repository is meant
    assert capsys.readouterr().err == SAID
    assert find_model(str(tiny_llama_folder)) == tiny_llama_folder
    assert capsys.readouterr().err == ""  # no name on the Hub: taken without a word


@pytest.mark.parametrize("name", ["gpt2", "/no/such/folder", "../x", "a/b/c", "org/name@", ""])
def test_what_can_be_no_name_is_not_asked_for(hub, name):
    said = refusal(name)
    assert "no folder" in said and repr(name) in said and hub.fetched == []
