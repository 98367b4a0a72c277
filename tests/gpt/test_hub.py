"""Models from a folder, a Hugging Face cache, and a Hub: the real client against a small server on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
REVISIONS = ["main", "v1", "refs/pr/1"]  # a branch, a tag, a pull request
URL_TEMPLATE = "{}/{{repo_id}}/resolve/{{revision}}/{{filename}}"


class Hub(ThreadingHTTPServer):
    """What the client asks of the Hub, for one repository, org/name, of one commit.

    files: {path: bytes} of the repository. refuse: (pattern of a path, status, X-Error-Code, X-Error-Message) or None.
    asked: (method, path, headers) of all requests so far.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.refuse, self.asked = {}, None, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def asked_for(self, method):
        """The repository's files that were asked for, sorted."""
        return sorted(path.split(COMMIT + "/")[1] for m, path, _ in self.asked if m == method and "/resolve/" in path)


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers))
        if hub.refuse and re.search(hub.refuse[0], path):
            self.answer(hub.refuse[1], b"", {"X-Error-Code": hub.refuse[2], "X-Error-Message": hub.refuse[3]})
        elif path in [f"/api/models/org/name/revision/{name}" for name in REVISIONS]:
            self.answer(200, json.dumps({"id": "org/name", "sha": COMMIT}).encode())
        elif path == f"/api/models/org/name/tree/{COMMIT}":
            tree = [{"type": "file", "path": p, "size": len(b), "oid": digest(b)} for p, b in hub.files.items()]
            self.answer(200, json.dumps(tree).encode())
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            name = path.split(COMMIT + "/")[1]
            content = hub.files[name]
            self.answer(200, content, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound" if "/org/name/" in path else "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": len(body)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def digest(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty Hugging Face cache, offline, without a token; the working directory is empty too."""
    # The client reads the environment once, on import, but looks these constants up whenever it needs them.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch, cache, tiny_llama_folder):
    """A Hub to reach, with the tiny Llama, on top of an empty cache."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()  # the next request makes a new one, which knows of NO_PROXY
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        hub.files = contents(tiny_llama_folder)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        set_endpoint(monkeypatch, hub.url)
        yield hub
        hub.shutdown()


def set_endpoint(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", URL_TEMPLATE.format(url))


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("sharded"), llama_config(), max_shard_size="60KB")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fill(cache, files):
    """Lay files out as the client does: links of a snapshot to blobs named by their contents."""
    repository = cache / "models--org--name"
    for folder in ("blobs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    for name, content in files.items():
        (repository / "blobs" / digest(content)).write_bytes(content)
        (repository / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{digest(content)}")
    for revision in REVISIONS:
        (repository / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(COMMIT)
    return repository


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


@pytest.mark.parametrize("revision", ["", "refs/pr/1", COMMIT])
def test_a_cached_model_is_found_offline(cache, tiny_llama_folder, capsys, revision):
    fill(cache, contents(tiny_llama_folder))
    folder = find_model(f"org/name@{revision}" if revision else "org/name")
    assert capsys.readouterr().err == f"model: org/name of the Hugging Face Hub, revision {COMMIT}\n"
    assert_same_model(folder, tiny_llama_folder)


def test_what_is_not_cached_is_refused_offline(cache, tiny_llama_folder):
    fill(cache, contents(tiny_llama_folder))
    said = refusal("org/name@v9")
    assert "org/name@v9" in said and "HF_HUB_OFFLINE" in said


def test_a_cache_without_one_of_its_files_is_refused(cache, sharded_folder):
    files = contents(sharded_folder)
    shard = max(name for name in files if name.endswith(".safetensors"))
    repository = fill(cache, files)
    (repository / "blobs" / digest(files[shard])).unlink()  # the link to it stays
    assert shard in refusal("org/name")


# --- a Hub ------------------------------------------------------------------------------------------------------------

CLUTTER = ["README.md", "consolidated.safetensors", "tf_model.h5", "model.fp16.safetensors", "training_args.bin"]
CLUTTER += ["onnx/config.json", "onnx/model.onnx", "original/model.safetensors", "original/tokenizer.model"]


def pickled(folder):
    """A folder's files, with the weights as pytorch_model.bin in place of model.safetensors."""
    files = {}
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            torch.save(load_file(path), folder.parent / "pickled.bin")
            files[bin_name(path.name)] = (folder.parent / "pickled.bin").read_bytes()
        elif path.name.endswith(".index.json"):
            index = json.loads(path.read_text())
            index["weight_map"] = {name: bin_name(shard) for name, shard in index["weight_map"].items()}
            files[bin_name(path.name)] = json.dumps(index).encode()
        else:
            files[path.name] = path.read_bytes()
    return files


def bin_name(name):
    return name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")


@pytest.mark.parametrize(("kind", "as_files"), [("tiny_llama_folder", contents), ("sharded_folder", pickled)])
def test_only_the_files_that_a_model_needs_are_fetched(hub, request, capsys, kind, as_files):
    expected = request.getfixturevalue(kind)
    needed = {name: content for name, content in as_files(expected).items() if name != "generation_config.json"}
    hub.files = needed | dict.fromkeys(CLUTTER, b"not needed")
    if as_files is contents:
        hub.files |= {"pytorch_model.bin": b"not needed", "pytorch_model-00001-of-00002.bin": b"not needed"}
    folder = find_model("org/name")
    assert hub.asked_for("GET") == sorted(needed)
    assert sorted(path.name for path in folder.iterdir()) == sorted(needed)
    assert capsys.readouterr().err == f"model: org/name of the Hugging Face Hub, revision {COMMIT}\n"  # and no bars
    assert_same_model(folder, expected)


def test_a_second_call_fetches_nothing(hub):
    folder = find_model("org/name")
    hub.asked.clear()
    for name in ("org/name", *(f"org/name@{revision}" for revision in [*REVISIONS, COMMIT])):
        assert find_model(name) == folder
    assert hub.asked_for("GET") == hub.asked_for("HEAD") == []


def test_the_command_itself_reads_the_environment(hub, cache):
    """In a process of its own: the variables are read on import."""
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret"}
    done = run_program(env)
    assert done.returncode == 0 and done.stdout
    assert done.stderr == f"model: org/name of the Hugging Face Hub, revision {COMMIT}\n"
    assert hub.asked[-1][2]["Authorization"] == "Bearer hf_secret"


def run_program(env):
    command = [sys.executable, "-m", "gpt", "org/name", "Once upon a time", "--max-new-tokens", "2"]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, cwd=Path(__file__).parents[2])


# --- what a Hub refuses -----------------------------------------------------------------------------------------------

FILES, ANY = "/resolve/", ""
REFUSALS = {  # what is asked for, what the Hub answers (Hub.refuse), what the sentence names
    "no such repository": ("org/other", None, "404"),
    "gated": ("org/name", (ANY, 401, "GatedRepo", "Access to org/name is restricted"), "restricted"),
    "gated files": (f"org/name@{COMMIT}", (FILES, 403, "GatedRepo", ""), "gated"),
    "server error": ("org/name", (ANY, 500, "", ""), "500"),
}


@pytest.mark.parametrize("name, refuse, words", REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses(hub, name, refuse, words):
    hub.refuse = refuse
    said = refusal(name)
    assert name in said and words in said and "HF_TOKEN" in said


def test_whatever_goes_wrong_in_a_fetch_is_one_sentence(cache, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CAS Client\n(details)")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "CAS Client (details)" in refusal("org/name")


def test_an_environment_that_the_client_cannot_use(cache):
    """It is read on import, which fails: a proxy that needs a package that is not there, or a timeout that is no number."""
    done = run_program({"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "HF_HUB_DOWNLOAD_TIMEOUT": "soon"})
    (said,) = done.stderr.splitlines()
    assert done.returncode == 2 and "org/name" in said and "soon" in said


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_hub", [False, True])
def test_an_adapter_is_no_model(cache, tmp_path, on_hub):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    name = "org/name" if on_hub else str(folder)
    if on_hub:
        fill(cache, contents(folder))
    assert f"--adapter {name}" in refusal(name)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_folder_wins_over_a_repository_of_its_name(cache, tiny_llama_folder, tiny_gpt2_folder, tmp_path, capsys):
    fill(cache, contents(tiny_llama_folder))
    (tmp_path / "work" / "org").mkdir()
    (tmp_path / "work" / "org" / "name").symlink_to(tiny_gpt2_folder)
    assert_same_model(find_model("org/name"), tiny_gpt2_folder)
    assert capsys.readouterr().err == "model: the folder org/name\n"
    assert_same_model(find_model("org/name@main"), tiny_llama_folder)  # a revision: the repository is meant
    assert capsys.readouterr().err == f"model: org/name of the Hugging Face Hub, revision {COMMIT}\n"
    assert find_model(str(tiny_llama_folder)) == tiny_llama_folder
    assert capsys.readouterr().err == ""  # no name on the Hub: taken without a word


NO_NAMES = ["gpt2", "/no/such/folder", "../x", "a/b/c", "org/name@", "", "org/a--b"]  # the last: the client refuses it


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_can_be_no_name_is_not_asked_for(hub, name):
    said = refusal(name)
    assert "no folder" in said and repr(name)[1:-1] in said
    assert hub.asked == []


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
    assert hub.asked_for("GET") == sorted(["adapter_config.json", name])
    assert load_adapters(load_pretrained(tiny_llama_folder)[0], folder) == [*find_adapters(model)]
