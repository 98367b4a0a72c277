"""What the programs share: one-sentence errors with exit code 2, progress on stderr, files that are never half-written."""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm


class Parser(argparse.ArgumentParser):
    """argparse that says every flag's default in --help and a mistake in one line."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


@contextmanager
def one_sentence_errors(program):
    """Turn what a user can mend (ValueError, OSError, out of memory) into one line on stderr and exit code 2.

    The library raises these with a sentence that says what to do; anything else is a bug and keeps its traceback.
    A bug of your own that happens to be a ValueError shows where it is with TRACEBACK=1 in the environment.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        message = str(error)
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU, a plain RuntimeError from the CPU's allocator
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        message = "out of memory: use a smaller --batch-size, --seq-len or model"
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(130)  # what a shell expects after Ctrl-C
    else:
        return
    print(f"{program}: {sentence(message)}", file=sys.stderr)
    sys.exit(2)


def progress(items, description, total=None, note=None):
    """Iterate with a bar on stderr, or with a plain line every few seconds where stderr is no terminal.

    note: a function whose text ("loss 2.31") stands beside the count; it is called only when something is shown.
    """
    total = len(items) if total is None else total
    bar = tqdm(items, desc=description, total=total, leave=False, dynamic_ncols=True) if sys.stderr.isatty() else None
    started = said = time.monotonic()
    for done, item in enumerate(items if bar is None else bar, start=1):
        yield item
        now = time.monotonic()
        if bar is not None:
            if note is not None and now - said >= 0.2:
                said = now
                bar.set_postfix_str(note(), refresh=False)
        elif now - said >= 5 or (done == total and now - started >= 1):
            said = now
            beside = "" if note is None else f", {note()}"
            print(f"{description}: {done}/{total}, {now - started:.0f} s{beside}", file=sys.stderr, flush=True)


def printable(text):
    """A text as one line that any terminal shows as it stands: what does not print is a space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def sentence(message, longest=380):
    """A message as one printable line; of a longer one, the middle is left out."""
    message = printable(message)
    half = longest // 2 - 2
    return message if len(message) <= longest else f"{message[:half]} ... {message[-half:]}"


@contextmanager
def atomic(path):
    """Give a temporary path beside `path` to write to; rename it onto `path` when the block ends well, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # as any new file; safetensors would keep it to its owner
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(content, indent=None):
    """JSON of the content on a line, or indented; what is not finite is null: JSON has no NaN."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), indent=indent, allow_nan=False) + "\n"


def write_json(path, content):
    with atomic(path) as temporary:
        temporary.write_text(as_json(content, indent=1), encoding="utf-8")


def write_lines(path, items):
    """One JSON object a line."""
    with atomic(path) as temporary:
        temporary.write_text("".join(map(as_json, items)), encoding="utf-8")


def check_writable(folder):
    """Create the folder; raise ValueError, before any work is done, when no file can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): give another folder") from None


def pick_device(name):
    """ "auto" -> cuda, else mps, else cpu; any other name is checked. Raises ValueError when it cannot be used."""
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here: try cpu, cuda or mps ({str(error).splitlines()[0]})"
        ) from None
    return device
