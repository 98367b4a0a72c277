"""What the programs share: flags, one-sentence errors with exit code 2, progress on stderr, files and folders written whole.

Three rules have their one place here. What is written never lands on what is read (check_apart). A file or a folder is
written under another name beside its own and renamed (atomic, whole_folder), by one process at a time (alone). And what
goes wrong is one printable line that names the file and says what to do (one_sentence_errors).
"""

import argparse
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import typing
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from tqdm import tqdm

from tools.schema import printable

MADE_BY = "MADE_BY"  # a file in a folder that a program wrote as a whole: what made it, as JSON
# How torch, its devices and the operating system say that memory is used up.
OUT_OF_MEMORY = re.compile(
    r"out of memory|allocate memory|not enough memory|ALLOC_FAILED|bad_alloc|Invalid buffer size"
)


class Parser(argparse.ArgumentParser):
    """argparse with every flag's default in --help, mistakes in one line, no abbreviations, and `~` for the home folder.

    An empty value is refused, since Path("") would be the current folder. texts: names of arguments that are no names of
    files but texts, and stay as they are. Of a description (a module's docstring, say) the first line is shown.
    """

    def __init__(self, texts=(), description=None, **kwargs):
        first_line = (description or "").partition("\n")[0]  # under python -OO there are no docstrings
        formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(description=first_line, formatter_class=formatter, allow_abbrev=False, **kwargs)
        self.texts = texts

    def parse_args(self, args=None, namespace=None):
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            if name not in self.texts:
                several = [self.usable(name, item) for item in (value if isinstance(value, list) else [value])]
                setattr(parsed, name, several if isinstance(value, list) else several[0])
        return parsed

    def usable(self, name, value):
        if isinstance(value, str) and not value.strip():
            self.error(f"--{name.replace('_', '-')} is given an empty text: is a variable unset?")
        return os.path.expanduser(value) if isinstance(value, str) else value

    def error(self, message):
        self.exit(2, f"{printable(f'{self.prog}: {message}', 350)} (see {self.prog} --help)\n")


def flag(default, help, least=None):
    """A field of a dataclass that is a flag of a program: its default, what it is, the least it may be."""
    return dataclasses.field(default=default, metadata={"help": help, "least": least})


def add_flags(parser, settings):
    """Give the parser a flag for each field of a dataclass of settings; from_flags makes one of what was given."""
    for field in dataclasses.fields(settings):
        name, kind = f"--{field.name.replace('_', '-')}", typing.get_type_hints(settings)[field.name]
        kinds = {one for one in typing.get_args(kind) or (kind,)} - {type(None)}
        options = {"default": field.default, "help": field.metadata["help"]}
        if kind is bool:
            parser.add_argument(name, action="store_true", **options)
        elif any(typing.get_origin(one) is tuple for one in kinds):
            parser.add_argument(name, nargs="+", metavar="NAME", **options)
        else:
            parser.add_argument(name, type=kinds.pop(), **options)


def from_flags(args, settings):
    """The dataclass of settings that the parsed flags give. Raises ValueError for a number that is too small."""
    values = {}
    for field in dataclasses.fields(settings):
        value, least = getattr(args, field.name), field.metadata["least"]
        if least is not None and value < least:
            raise ValueError(f"--{field.name.replace('_', '-')} must be at least {least}, not {value}")
        if isinstance(value, list):  # names, apart or with commas between
            value = tuple(name for item in value for name in item.split(",") if name)
        values[field.name] = value
    return settings(**values)


def shipped(name):
    """A path beside the programs, as "data/base": relative where the current folder is theirs, or above it."""
    path = Path(__file__).resolve().parents[1] / name
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# --- errors ------------------------------------------------------------------------------------------------------------


def is_out_of_memory(error):
    if isinstance(error, (RuntimeError, SafetensorError)):
        return isinstance(error, torch.OutOfMemoryError) or OUT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


def explain(error, smaller):
    """What to tell of an error that a user can mend; None of any other, which is a bug."""
    if is_out_of_memory(error):
        return f"out of memory: use a smaller {smaller}"
    if isinstance(error, OSError) and error.strerror:  # as the system gives it, without a word on what to do
        names = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        if isinstance(error, FileNotFoundError) and names:
            return f"no such file: {names}"
        return f"{names or 'a file or the output'}: {error.strerror}: check that it can be used, and that the disk has room"
    return str(error) if isinstance(error, (ValueError, OSError)) else None


@contextmanager
def one_sentence_errors(program, smaller="model"):
    """Turn what a user can mend (ValueError, OSError, out of memory) into one line on stderr and exit code 2.

    The library raises these with a sentence that says what to do; anything else is a bug and keeps its traceback.
    A bug of your own that happens to be a ValueError shows where it is with TRACEBACK=1 in the environment.
    smaller: what takes less memory in this program. SIGTERM ends a program as Ctrl-C does, with exit code 130.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a letter that the console lacks stops nothing
    try:
        yield
        sys.stdout.flush()
        return
    except KeyboardInterrupt:
        said, code = "interrupted", 130
    except BrokenPipeError:  # as of `... | head`: nobody reads on. Files are written before anything is printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes it
        sys.exit(141)
    except Exception as error:
        said, code = explain(error, smaller), 2
        if said is None or os.environ.get("TRACEBACK"):
            raise
    print(printable(f"{program}: {said}", 400), file=sys.stderr)
    sys.exit(code)


def progress(items, description, total=None, note=None):
    """Iterate with a bar on stderr, or with a plain line every few seconds where stderr is no terminal.

    note: a function whose text ("loss 2.31") stands beside the count; it is called only when something is shown.
    """
    total = len(items) if total is None else total
    bar = tqdm(items, description, total, leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty())
    started = said = time.monotonic()
    for done, item in enumerate(bar, start=1):
        yield item
        now = time.monotonic()
        if not bar.disable and note is not None and now - said >= 0.2:
            said = now
            bar.set_postfix_str(note(), refresh=False)
        elif bar.disable and (now - said >= 5 or (done == total and now - started >= 1)):
            said = now
            beside = "" if note is None else f", {note()}"
            print(f"{description}: {done}/{total}, {now - started:.0f} s{beside}", file=sys.stderr, flush=True)


# --- files and folders -------------------------------------------------------------------------------------------------


def lies_in(path, folder):
    """Whether a path is `folder`, or lies in it, by whatever name (a link, in capitals) the two are given."""
    path, folder = Path(path).resolve(), Path(folder)
    return folder.exists() and any(part.exists() and part.samefile(folder) for part in (path, *path.parents))


def check_apart(written, read, flag="--out"):
    """Raise ValueError where what is written would land on what is read, in it or around it. Both: paths, or None."""
    read = [path for path in read if path is not None and Path(path).exists()]
    for out in filter(None, written):
        for path in read:
            if lies_in(out, path) or lies_in(path, out):
                raise ValueError(f"{out} would be written, but {path} is read: give another {flag}")


def remove(path):
    """Remove a file or a folder with all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def named_when_full(path):
    """Let an error in writing name what was to be written, and say what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        if is_out_of_memory(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot write to {path} ({reason}): make room there, or give another place") from error


@contextmanager
def alone(lock, name):
    """Hold a lock file; ValueError where another process does. However a process ends, what it held is free again."""
    with named_when_full(name):
        try:
            held = FileLock(lock).acquire(timeout=0)
        except Timeout:
            raise ValueError(f"another process is writing {name}: wait until it ends, or give another name") from None
    with held:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no file that is open: there, filelock does it
                os.unlink(lock)


@contextmanager
def beside(path, name):
    """A path beside `path` to write to, for one process at a time. What is left there is removed: a killed one's, ours."""
    with named_when_full(name):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with alone(path.with_name(f".{path.name}.lock"), name):
        try:
            remove(temporary)
            yield temporary
        finally:
            remove(temporary)


@contextmanager
def atomic(path):
    """Give a temporary path beside `path` to write to; rename it onto `path` when the block ends well, else remove it."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write to {path}, which is not a file: give another name")
    with beside(path, path) as temporary, named_when_full(path):
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # as any new file; safetensors would keep it to its owner
        os.replace(temporary, path)


@contextmanager
def whole_folder(name, is_ours=lambda folder: (folder / MADE_BY).exists()):
    """Give a new folder beside the one named to write to; rename it when the block ends well, else remove it.

    So files that belong together come together. A folder that is there already is replaced if it is empty or, by
    is_ours(folder), a program's earlier output; else a ValueError says so, before the block begins. It is kept as
    .NAME.old until the new one has its name: a process killed between these two steps leaves it there, and the next puts
    it back first.
    """
    path = Path(name).resolve()
    old = path.with_name(f".{path.name}.old")
    if path == Path.cwd() or path in Path.cwd().parents:
        raise ValueError(f"cannot write to {name}, which holds the current folder: give another one")
    with beside(path, name) as temporary:
        with named_when_full(name):
            if old.exists() and not path.exists():
                old.rename(path)
            remove(old)
            temporary.mkdir()
        if path.exists() and not path.is_dir():
            raise ValueError(f"cannot write to {name}, which is a file: give another folder")
        if path.exists() and any(path.iterdir()) and not is_ours(path):
            raise ValueError(f"{name} holds what this program did not make: move it away, or give another folder")
        yield temporary
        with named_when_full(name):
            if path.exists():
                path.rename(old)
            temporary.rename(path)
            remove(old)


def digest(*contents):
    """A short name for bytes, texts, and whatever is told apart by its repr."""
    total = hashlib.sha256()
    for content in contents:
        content = content if isinstance(content, bytes) else repr(content).encode("utf-8", "backslashreplace")
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()[:16]


def digest_of_files(path):
    """Of a file, or of the files in a folder: of names and contents, hidden ones aside."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return digest(*(part for f in files if not f.name.startswith(".") for part in (f.name, file_digest(f))))


def file_digest(path):
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def as_json(content, indent=None):
    """JSON of the content on a line, or indented; what is not finite is null: JSON has no NaN."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), indent=indent, allow_nan=False) + "\n"


def write_text(path, text):
    """Write a file as UTF-8; what is none, from a file's name say, is replaced by "?"."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path, content):
    write_text(path, as_json(content, indent=1))


def write_lines(path, items):
    """One JSON object a line."""
    write_text(path, "".join(map(as_json, items)))


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
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here: try cpu, cuda or mps ({str(error).splitlines()[0]})"
        ) from None
    return device
