"""What the programs share: one-sentence errors with exit code 2, progress on stderr, files and folders written whole.

Three rules have their one place here. What is written never lands on what is read (check_apart). A file or a folder is
written under another name beside its own and renamed (atomic, whole_folder), by one process at a time (alone). And what
goes wrong is one printable line that names the file and says what to do (one_sentence_errors).
"""

import argparse
import ctypes
import errno
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: there, nothing keeps a second process out
    fcntl = None

MADE_BY = "MADE_BY"  # a file in a folder that a program wrote as a whole: what made it, as JSON
# How torch, its devices and the operating system say that memory is used up.
OUT_OF_MEMORY = re.compile(
    r"out of memory|allocate memory|not enough memory|ALLOC_FAILED|bad_alloc|Invalid buffer size"
)
# What a terminal would obey instead of showing: control characters, and those that turn the writing round.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Parser(argparse.ArgumentParser):
    """argparse that says every flag's default in --help and a mistake in one line, and takes no empty text for a value.

    may_be_empty: names of arguments that are not meant here.
    """

    def __init__(self, may_be_empty=(), **kwargs):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)
        self.may_be_empty = may_be_empty

    def parse_args(self, args=None, namespace=None):
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            for text in value if isinstance(value, list) else [value]:
                empty = isinstance(text, str) and not text.strip()  # Path("") would be the current folder
                if empty and name not in self.may_be_empty:
                    self.error(f"--{name.replace('_', '-')} is given an empty text: is a variable unset?")
        return parsed

    def error(self, message):
        self.exit(2, sentence(f"{self.prog}: {message}", f"(see {self.prog} --help)") + "\n")


# --- errors ------------------------------------------------------------------------------------------------------------


def printable(text):
    """A text as one line that any terminal shows as it stands: what does not print is a space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def sentence(text, ending="", limit=400):
    """A text and its ending as one printable line of fewer than `limit` characters: of too many, the middle is left out."""
    text, ending = printable(text), printable(ending)
    room = limit - 2 - len(ending)
    if len(text) > room:  # what is wrong stands at the beginning, what to do at the end
        text = f"{text[: room // 2]} ... {text[-(room - room // 2 - 5) :]}"
    return f"{text} {ending}".rstrip()


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
        return f"{names or 'a file or the output'}: {error.strerror}: check that it can be used, and that the disk has room"
    return str(error) if isinstance(error, (ValueError, OSError)) else None


@contextmanager
def one_sentence_errors(program, smaller="model"):
    """Turn what a user can mend (ValueError, OSError, out of memory) into one line on stderr and exit code 2.

    The library raises these with a sentence that says what to do; anything else is a bug and keeps its traceback.
    A bug of your own that happens to be a ValueError shows where it is with TRACEBACK=1 in the environment.
    smaller: what takes less memory in this program. SIGTERM and SIGHUP end a program as Ctrl-C does, with 128 + their
    number for an exit code.
    """
    with unbreakable_console(), stopped_by_signals():
        try:
            yield
            sys.stdout.flush()
            return
        except KeyboardInterrupt as stop:
            said, code = "interrupted", 128 + (stop.args[0] if stop.args else signal.SIGINT)
        except Exception as error:
            said, code = explain(error, smaller), 2
            if said is None or os.environ.get("TRACEBACK"):
                raise
        print(sentence(f"{program}: {said}"), file=sys.stderr)
        sys.exit(code)


@contextmanager
def stopped_by_signals():
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, unless whoever started us has them ignored."""
    names = ["SIGINT", "SIGTERM", "SIGHUP"] if threading.current_thread() is threading.main_thread() else []
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in signals}

    def stop(number, frame):
        raise KeyboardInterrupt(number)

    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


class Console:
    """A standard stream for people: what it cannot encode is escaped, what a terminal would obey is blank.

    lost: the kind of error after which nobody listens: what is written from then on is dropped, and the work goes on.
    """

    def __init__(self, stream, lost):
        self.stream, self.lost = stream or open(os.devnull, "w"), lost  # None: it was closed before we began
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self.attempt(self.stream.write, CONTROL.sub(" ", text))
        return len(text)

    def flush(self):
        self.attempt(self.stream.flush)

    def attempt(self, action, *arguments):
        try:
            action(*arguments)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            if not isinstance(error, self.lost):
                raise


@contextmanager
def unbreakable_console():
    """Results are kept whoever reads what is printed: a pipe may end, stderr be closed, an encoding lack letters."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Console(sys.stdout, BrokenPipeError), Console(sys.stderr, OSError)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before


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
    while True:
        with named_when_full(name):
            file = open(lock, "ab")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if fcntl is None or os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                break
        except BlockingIOError:
            file.close()
            raise ValueError(f"another process is writing {name}: wait until it ends, or give another name") from None
        except FileNotFoundError:  # whoever held it has just removed it: once more
            pass
        except OSError:  # a file system without locks
            break
        file.close()
    try:
        yield
    finally:
        if fcntl is None:
            file.close()  # Windows removes no file that is open
        with suppress(OSError):
            lock.unlink()
        file.close()


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


def exchange(one, other):
    """Let two folders change names in one step; False where the system or the disk cannot."""
    try:
        system = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return system.renamex_np(os.fsencode(one), os.fsencode(other), 2) == 0  # RENAME_SWAP
        return system.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):
        return False


@contextmanager
def whole_folder(name, is_ours=lambda folder: (folder / MADE_BY).exists()):
    """Give a new folder beside the one named to write to; rename it when the block ends well, else remove it.

    So files that belong together come together. A folder that is there already is replaced if it is empty or, by
    is_ours(folder), a program's earlier output; else a ValueError says so, before the block begins. Where the two cannot
    be exchanged in one step, a process killed in between leaves the earlier one at .NAME.old; the next puts it back first.
    """
    path = Path(name).resolve()
    old = path.with_name(f".{path.name}.old")
    if path == Path.cwd() or path in Path.cwd().parents:
        raise ValueError(f"cannot write to {name}, which holds the current folder: give another one")
    with beside(path, name) as temporary:
        with named_when_full(name):
            if old.exists() and not path.exists():
                old.rename(path)
            temporary.mkdir()
        if path.exists() and not path.is_dir():
            raise ValueError(f"cannot write to {name}, which is a file: give another folder")
        if path.exists() and any(path.iterdir()) and not is_ours(path):
            raise ValueError(f"{name} holds what this program did not make: move it away, or give another folder")
        try:
            yield temporary
        except OSError as error:  # said by atomic, of a file in the temporary folder
            if str(temporary) not in str(error):
                raise
            raise OSError(str(error).replace(str(temporary), str(name))) from error
        with named_when_full(name):
            if not (path.exists() and exchange(temporary, path)):
                remove(old)
                if path.exists():
                    path.rename(old)
                temporary.rename(path)
            remove(old)


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
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here: try cpu, cuda or mps ({str(error).splitlines()[0]})"
        ) from None
    return device
