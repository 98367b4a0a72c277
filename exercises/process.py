"""A student's file runs in a process of its own, which is asked for numbers and tensors and for nothing else.

The grader stays outside. It makes the inputs, sends them in with the name of a function (a *scene*: what to do with the
student's code), and judges what comes back by oracles of its own. No points and no code come back, so code that replaces
the grader replaces a copy that nobody listens to. exercises/TEACHING.md says what this does not keep out.
"""

import importlib
import importlib.util
import io
import multiprocessing
import numbers
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch

import exercises
from exercises import NotWritten
from exercises.grading import Wrong

FOLDER = Path(__file__).resolve().parent
LARGEST = 1 << 26  # bytes of an answer
# A fork server imports torch and the graders once; each student's process is a fork of that, not of the grader.
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if FORKS else "spawn")


def plain(value):
    """`value` as it may pass between the processes: numbers, texts, tensors, and lists, tuples and dicts of these."""
    if value is ...:
        raise NotWritten
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None or isinstance(value, torch.dtype):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor).cpu().clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, (numbers.Real, np.number)):
        return float(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(plain, value))
    return {"a": type(value).__name__}


def encode(value):
    buffer = io.BytesIO()
    torch.save(plain(value), buffer)
    return buffer.getvalue()


def decode(data):
    return torch.load(io.BytesIO(data), weights_only=True)  # makes tensors and plain values, runs no code


# --- in the student's process ------------------------------------------------------------------------------------------


class Answers:
    """What a student's file defines: a name that is gone is a mistake one can mend, not a crash."""

    def __init__(self, names):
        self.__dict__.update(names)

    def __getattr__(self, name):
        raise Wrong(f"the file has no {name} any more: put it back under this name")


def load(file, folder=FOLDER):
    """The student's file as a module. Raises Wrong when it cannot be read."""
    folder = Path(folder).resolve()
    path = folder / f"{file}.py"
    exercises.__path__[:] = [str(folder), str(FOLDER)]  # who imports exercises.e02_directions gets this student's
    spec = importlib.util.spec_from_file_location(f"exercises.{file}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise Wrong(f"{path.name} cannot be loaded: {what_happened(error, path)}") from error
    return module


def what_happened(error, path):
    """An error in a student's code in one line, with the line of the file where there is one."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}"[:200] + (f" (line {lines[-1]} of {path.name})" if lines else "")


def outcome(path, function, *args):
    """[how it ended, what it returned or what is to be said]."""
    try:
        torch.manual_seed(28)  # the same random numbers each time
        return ["result", plain(function(*args))]
    except NotWritten:
        return ["blank", ""]
    except Wrong as error:
        return ["wrong", str(error)]
    except (Exception, SystemExit) as error:
        if os.environ.get("TRACEBACK"):
            traceback.print_exc()
        return ["wrong", f"it stops with {what_happened(error, path)}"]


def serve(connection, folder, file, silent):
    """Load the student's file and run scenes with it until the grader hangs up."""
    if hasattr(os, "setsid"):
        os.setsid()  # what the student's code starts ends with it
        os.closerange(3, connection.fileno()), os.closerange(connection.fileno() + 1, 1024)  # the fork server's
    shown = os.open(os.devnull, os.O_WRONLY) if silent else 2  # what it prints is no part of the report
    os.dup2(shown, 1), os.dup2(shown, 2)
    sys.stdout.reconfigure(line_buffering=True)
    torch.set_num_threads(1)
    connection.send_bytes(b"here")
    path = Path(folder).resolve() / f"{file}.py"
    loaded = []
    failed = outcome(path, lambda: loaded.append(Answers(vars(load(file, folder)))))
    while True:
        try:
            module, name, args = decode(connection.recv_bytes())
        except EOFError:
            return
        scene = getattr(importlib.import_module(module), name)
        answer = outcome(path, lambda: scene(*loaded, *args[0], **args[1])) if loaded else failed
        connection.send_bytes(encode(answer))


# --- in the grader's ---------------------------------------------------------------------------------------------------


class Student:
    """The process of one student's file: student(scene, *args) is what scene(the file's names, *args) returns there.

    timeout: seconds that the process may live. Raises NotWritten, or Wrong, for its author to mend.
    """

    def __init__(self, folder, file, timeout=60.0, silent=False):
        if FORKS:
            CONTEXT.set_forkserver_preload(["exercises.course"])
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, str(folder), file, silent), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv_bytes()  # before any of the student's code runs: only that is timed
        self.timeout, self.ends, self.broken = timeout, time.monotonic() + timeout, ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (OSError, AttributeError):  # it has ended, or has no group yet
            self.process.kill()
        self.process.join()
        self.connection.close()

    def __call__(self, scene, *args, **kwargs):
        how, value = self.ask(scene, args, kwargs)
        if how == "result":
            return value
        raise NotWritten if how == "blank" else Wrong(str(value))

    def call(self, name, *args):
        """What the student's function of this name returns; it must leave its arguments as they are."""
        result, after = self(called, name, *args)
        same = [a.equal(b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(args, after)]
        if not all(same):
            raise Wrong(f"your {name} changes what it is given: others need it as it was")
        return result

    def ask(self, scene, args, kwargs):
        """The outcome of a scene there, whatever the process does."""
        if not self.broken:
            try:
                self.connection.send_bytes(encode([scene.__module__, scene.__name__, [args, kwargs]]))
                if self.connection.poll(max(0.0, self.ends - time.monotonic())):
                    how, value = decode(self.connection.recv_bytes(LARGEST))
                    return str(how), value
                self.broken = f"it was stopped after {self.timeout:g} seconds: is there a loop without an end?"
                self.process.kill()
            except Exception as error:  # the process ended, or sends what is no answer
                self.process.join(1)
                ended = f"exit code {self.process.exitcode}, {type(error).__name__}"
                self.broken = f"no answer came back ({ended}): does it end Python, or use too much memory?"
        return "wrong", self.broken


# --- scenes that many graders use --------------------------------------------------------------------------------------


def called(student, name, *args):
    return getattr(student, name)(*args), args


def constant(student, name):
    return getattr(student, name)
