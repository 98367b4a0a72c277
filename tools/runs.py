"""The folder of a comparison: runs in out/METHOD/seedN that say what made them, so that the same command goes on with them.

A run is written as a whole folder when it is finished, with a run.json:
{"made from": what its numbers depend on, beside method and seed, "record": ..., "answers": ...}. One folder holds runs
that were made from the same, and one process at a time writes there.
"""

import hashlib
import json
import math
from contextlib import contextmanager
from pathlib import Path

from tools.cli import alone, check_writable, remove, whole_folder, write_json
from tools.schema import parse_json, read_text

RUN, SECONDS = "run.json", "seconds.json"  # all but the seconds are the same bytes every time
ROOT = Path(__file__).resolve().parents[1]


def digest(*contents):
    """A short name for bytes, texts, and whatever is told apart by its repr."""
    total = hashlib.sha256()
    for content in contents:
        content = content if isinstance(content, bytes) else repr(content).encode("utf-8", "backslashreplace")
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()[:16]


def digest_of_files(path):
    """Of a file, or of the files in a folder: of names and contents, hidden ones aside."""
    path, total = Path(path), hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            with file.open("rb") as opened:
                total.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()[:16]


def digest_of_code(*others):
    """Of what computes and writes: edit a line of it, and earlier runs are no longer what this code gives."""
    files = [file for room in ("", "gpt", "fast", "tools", *others) for file in sorted((ROOT / room).glob("*.py"))]
    return digest([file.read_text(encoding="utf-8") for file in files])


def read_run(folder):
    """(made from, record with its seconds, answers) of a finished run. Raises ValueError when its files are damaged."""

    def with_nan(value):  # JSON has null for what is not finite
        if isinstance(value, dict):
            return {key: with_nan(item) for key, item in value.items()}
        if isinstance(value, list):
            return [with_nan(item) for item in value]
        return math.nan if value is None else value

    try:
        run, seconds = (parse_json(read_text(folder / name), name) for name in (RUN, SECONDS))
        return run["made from"], with_nan(run["record"]) | {"seconds": float(seconds)}, run["answers"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} is not a finished run: remove it, and it will be made again") from None


@contextmanager
def run_folder(folder, made_from, record, answers):
    """A new folder for all there is of a run; it gets its name when the block ends."""
    with whole_folder(folder, is_ours=lambda earlier: (earlier / RUN).exists()) as new:
        write_json(new / SECONDS, record["seconds"])
        record = {name: value for name, value in record.items() if name != "seconds"}
        write_json(new / RUN, {"made from": made_from, "record": record, "answers": answers})
        yield new


@contextmanager
def comparison(out, made_from, restart=False, files=()):
    """Keep other processes out of `out`, and runs that were made from something else: ValueError says from what.

    restart: earlier runs are removed. So is what killed processes left. files: names of what is written there beside the
    runs; with these in it, a folder must have a config.json of ours, which is written first.
    """
    check_writable(out)
    with alone(out / ".lock", out):
        config = out / "config.json"
        if any((out / name).exists() for name in (config.name, *files)):
            if not config.exists() or '"method"' not in read_text(config):
                raise ValueError(f"{out} holds files that this program did not make: give another --out")
        earlier = sorted(out.glob("*/seed*"))
        for folder in earlier:
            if not (folder / RUN).exists():
                raise ValueError(f"{folder} is not a run of this program: move it away, or give another --out")
            if not restart:
                check_same(folder, read_run(folder)[0], made_from)
        for left in [*out.glob("*/.seed*.tmp"), *out.glob("*/.seed*.lock"), *(earlier if restart else [])]:
            remove(left)
        yield


def check_same(path, old, new):
    """Raise ValueError unless two dicts of what something was made from are the same, as JSON gives them back."""
    new = json.loads(json.dumps(new))
    for name in [*new, *old]:
        if old.get(name) != new.get(name):
            said = f"{path} was made with another {name} ({old.get(name)}, not {new.get(name)})"
            raise ValueError(f"{said}: give another --out, or --restart to remove what is there and begin anew")
