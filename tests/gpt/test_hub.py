"""Models from a folder, a Hugging Face cache, and a Hub: the real client against a small server on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from conftest import llama_config, write_folder
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file

import eval_qa
import gpt.hub
from gpt import find_model, load_pretrained

COMMIT = "0123456789" * 4
REVISIONS = ["main", "v1", "refs/pr/1"]  # a branch, a tag, a pull request
QUESTION = '{"question": "Who?", "choices": ["the fox", "the dog"], "answer": 1}\n'
URL_TEMPLATE = "{}/{{repo_id}}/resolve/{{revision}}/{{filename}}"


class Hub(ThreadingHTTPServer):
    """What the client asks of the Hub, for one repository, org/name, of one commit.

    files: {path: bytes} of the repository. refuse: (pattern of a path, status, X-Error-Code, X-Error-Message) or None. cut:
    a file whose first transfer breaks off half-way. asked: (method, path, headers) of all requests so far.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.refuse, self.cut, self.asked = {}, None, None, []
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
            start = int(re.search(r"\d+|$", self.headers.get("Range", ""))[0] or 0)
            headers = {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT}
            cut = name == hub.cut and self.command == "GET"
            self.answer(206 if start else 200, content[start:], headers, len(content) // 2 if cut else None)
            hub.cut = None if cut else hub.cut
        else:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound" if "/org/name/" in path else "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status, body, headers=None, end=None):
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": len(body)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:end])

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


@pytest.fixture
def waits(monkeypatch):
    """Seconds that would have been waited between attempts."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


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


def refusal(name, tmp_path, monkeypatch, capsys):
    """What eval_qa.py says and ends with exit code 2: one line."""
    (tmp_path / "questions.jsonl").write_text(QUESTION)
    monkeypatch.setattr(sys, "argv", ["eval_qa.py", "--model", name, "--qa", str(tmp_path / "questions.jsonl")])
    with pytest.raises(SystemExit) as exit:
        eval_qa.main()
    captured = capsys.readouterr()
    assert exit.value.code == 2 and captured.out == ""
    (said,) = captured.err.splitlines()
    return said


# --- the cache, without a network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["", *REVISIONS, COMMIT])
def test_a_cached_model_is_found_offline(cache, tiny_llama_folder, capsys, revision):
    fill(cache, contents(tiny_llama_folder))
    folder = find_model(f"org/name@{revision}" if revision else "org/name")
    assert capsys.readouterr().err == f"model: org/name of the Hugging Face Hub, revision {COMMIT}\n"
    assert_same_model(folder, tiny_llama_folder)


@pytest.mark.parametrize("name", ["org/other", "org/name@v9", f"org/name@{'f' * 40}"])
def test_what_is_not_cached_is_refused_offline(cache, tiny_llama_folder, tmp_path, monkeypatch, capsys, name):
    fill(cache, contents(tiny_llama_folder))
    said = refusal(name, tmp_path, monkeypatch, capsys)
    assert f"no folder {name} here, and the repository {name.split('@')[0]} cannot be fetched" in said
    assert "not all in the cache" in said and "HF_HUB_OFFLINE" in said


def test_a_cache_without_weights_is_refused(cache, tiny_llama_folder):
    files = contents(tiny_llama_folder)
    repository = fill(cache, files)
    (repository / "blobs" / digest(files["model.safetensors"])).unlink()  # the link to it stays
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        load_pretrained(find_model("org/name"))


def test_a_cache_without_one_of_the_shards_is_refused(cache, sharded_folder):
    files = contents(sharded_folder)
    shard = max(name for name in files if name.endswith(".safetensors"))
    del files[shard]
    fill(cache, files)
    with pytest.raises(FileNotFoundError, match=f"{shard} not found, though model.safetensors.index.json lists it"):
        load_pretrained(find_model("org/name"))


def test_a_fetch_that_was_not_finished_is_refused_offline(hub, cache, monkeypatch, tmp_path, capsys):
    find_model("org/name")
    (cache / "models--org--name" / "snapshots" / COMMIT / "config.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    capsys.readouterr()
    said = refusal("org/name", tmp_path, monkeypatch, capsys)
    assert "not all in the cache" in said and "1 file(s) are missing (config.json)" in said


# --- a Hub ------------------------------------------------------------------------------------------------------------

CLUTTER = ["README.md", "consolidated.safetensors", "tf_model.h5", "model.fp16.safetensors", "training_args.bin"]
CLUTTER += [f"{folder}/{name}" for folder in ("onnx", "original") for name in ("config.json", "model.safetensors")]
CLUTTER += ["onnx/model.onnx", "original/tokenizer.model"]


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


@pytest.mark.parametrize("as_files", [contents, pickled])
@pytest.mark.parametrize("kind", ["tiny_llama_folder", "sharded_folder"])
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


def test_a_fetched_model_is_found_when_the_hub_is_down(hub):
    folder = find_model("org/name")
    hub.refuse = ("", 500, "", "")
    assert find_model("org/name") == folder


def test_a_transfer_that_broke_off_goes_on_where_it_stopped(hub, waits, monkeypatch, tiny_llama_folder):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what has arrived is kept in such pieces
    hub.cut = "model.safetensors"
    assert_same_model(find_model("org/name"), tiny_llama_folder)
    transfers = [
        headers for method, path, headers in hub.asked if method == "GET" and path.endswith("model.safetensors")
    ]
    half = len(hub.files["model.safetensors"]) // 2
    assert [headers["Range"] for headers in transfers] == [None, f"bytes={half // 1000 * 1000}-"]


@pytest.mark.parametrize("token", [None, "hf_secret"])
def test_the_token_goes_with_every_request(hub, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    find_model("org/name")
    asked = [(path, headers["Authorization"]) for _, path, headers in hub.asked if "org/name" in path]
    assert len(asked) > 2 and {value for _, value in asked} == {token and f"Bearer {token}"}


def test_the_command_itself_reads_the_environment(hub, cache, tmp_path):
    """In a process of its own: the variables are read on import."""
    (tmp_path / "questions.jsonl").write_text(QUESTION)
    env = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_secret",
    }
    command = [sys.executable, eval_qa.__file__, "--model", "org/name", "--qa", tmp_path / "questions.jsonl"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "questions" in done.stdout
    assert done.stderr == f"model: org/name of the Hugging Face Hub, revision {COMMIT}\n"
    assert hub.asked[-1][2]["Authorization"] == "Bearer hf_secret"


# --- what a Hub refuses -----------------------------------------------------------------------------------------------

GATED = ["asks for an agreement", "https://huggingface.co/org/name", "HF_TOKEN"]
TREE, FILES, ANY = "/tree/", "/resolve/", ""
REFUSALS = {
    "no such repository": ("org/other", None, ["repository org/other does not exist", "private", "HF_TOKEN"]),
    "no such repository, 401": ("org/name", (ANY, 401, "RepoNotFound", ""), ["does not exist", "private"]),
    "no such tag": ("org/name@v9", None, ["the repository org/name has no revision v9"]),
    "no such commit": (f"org/name@{'f' * 40}", None, [f"has no revision {'f' * 40}"]),
    "gated, 401": ("org/name", (ANY, 401, "GatedRepo", ""), GATED),
    "gated, 403": ("org/name", (ANY, 403, "GatedRepo", ""), GATED),
    "gated files, 401": ("org/name", (FILES, 401, "GatedRepo", ""), GATED),
    "gated files, 403": ("org/name", (FILES, 403, "GatedRepo", ""), GATED),
    "gated files, by commit": (f"org/name@{COMMIT}", (FILES, 403, "GatedRepo", ""), GATED),
    "bad token": ("org/name", (ANY, 401, "", "Invalid credentials in Authorization header"), ["401, Invalid cred"]),
    "weak token": ("org/name", (ANY, 403, "", "Your token may not read this"), ["403, Your token may not read this"]),
    "weak token for files": ("org/name", (FILES, 403, "", "Not yours"), ["cannot be fetched", "403, Not yours"]),
    "too many requests": ("org/name", ("/revision/", 429, "", "Come back later"), ["429, Come back later"]),
    "server error": ("org/name", (ANY, 500, "", ""), ["cannot be fetched", "500 Internal Server Error"]),
}


@pytest.mark.parametrize("name, refuse, words", REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses_is_one_sentence(hub, tmp_path, monkeypatch, capsys, name, refuse, words):
    hub.refuse = refuse
    said = refusal(name, tmp_path, monkeypatch, capsys)
    assert said.startswith(f"eval_qa.py: no folder {name} here, and the repository {name.split('@')[0]} ")
    assert all(word in said for word in words), said
    assert "cannot be reached" not in said


@pytest.mark.parametrize("where", [TREE, FILES])
def test_a_server_that_stays_broken_is_given_half_a_minute(hub, waits, where):
    hub.files = {"config.json": b"{}"}  # one file: one chain of attempts
    hub.refuse = (where, 500, "", "")
    with pytest.raises(ValueError, match="cannot be fetched.*500 Internal Server Error"):
        find_model("org/name")
    assert 0 < sum(waits) < 30


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_a_server_that_is_not_there_is_one_sentence(hub, waits, tmp_path, monkeypatch, capsys, revision):
    set_endpoint(monkeypatch, "http://127.0.0.1:1")
    said = refusal(f"org/name{revision}", tmp_path, monkeypatch, capsys)
    assert "cannot be fetched, and is not all in the cache" in said and "refused" in said
    assert sum(waits) < (30 if revision else 1)


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("Task error: CAS Client Error\n(details)"), "Task error: CAS Client Error"),  # of hf_xet
        (HTTPError("the proxy wants a password"), "the proxy wants a password"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_what_goes_wrong_in_a_fetch_is_one_sentence(cache, monkeypatch, tmp_path, capsys, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(gpt.hub, "snapshot_download", fail)
    said = refusal("org/name", tmp_path, monkeypatch, capsys)
    assert "cannot be fetched" in said and said.endswith(words)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_folder_wins_over_a_repository_of_its_name(cache, tiny_llama_folder, tiny_gpt2_folder, tmp_path, capsys):
    fill(cache, contents(tiny_llama_folder))
    (tmp_path / "work" / "org").mkdir()
    (tmp_path / "work" / "org" / "name").symlink_to(tiny_gpt2_folder)
    assert_same_model(find_model("org/name"), tiny_gpt2_folder)
    assert capsys.readouterr().err == "model: the folder org/name\n"
    assert_same_model(find_model("org/name@main"), tiny_llama_folder)  # a revision: the repository is meant
    assert capsys.readouterr().err == f"model: org/name of the Hugging Face Hub, revision {COMMIT}\n"


def test_a_path_that_is_no_hub_name_is_taken_without_a_word(cache, tiny_llama_folder, capsys):
    assert find_model(tiny_llama_folder) == find_model(str(tiny_llama_folder)) == tiny_llama_folder
    assert capsys.readouterr().err == ""


BAD_NAMES = ["gpt2", "/no/such/folder", "../x", "./org/name", "a/b/c", "org/name@", "org/", "/name", "@main", "", " "]
BAD_NAMES += ["org/name\n", "org name/x", "https://huggingface.co/org/name", "org\\name"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_told_what_names_there_are(hub, tmp_path, monkeypatch, capsys, name):
    said = refusal(name, tmp_path, monkeypatch, capsys)
    if name.strip():
        assert f"no folder {name!r}" in said and "org/name[@revision] on the Hub" in said
    else:
        assert "--model is given an empty text" in said
    assert hub.asked == []


@pytest.mark.parametrize("name", ["org/a--b", "org/a..b", "org/name.git", "org/name-", "org/" + 97 * "n", "org/café"])
def test_what_the_hub_allows_in_no_name_is_refused_without_asking(hub, tmp_path, monkeypatch, capsys, name):
    said = refusal(name, tmp_path, monkeypatch, capsys)
    assert f"the repository {name} is no name of a repository on the Hub" in said
    assert hub.asked == []
