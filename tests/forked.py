"""A program in a process of its own without starting Python again: the child begins as a copy of the tests' process."""

import os
import signal
import sys
import tempfile
import traceback

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be copied here")


def start(action, out, err):
    """Run action() in a child that writes to the files `out` and `err`; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for number, file, name in ((1, out, "stdout"), (2, err, "stderr")):
            os.dup2(file.fileno(), number)
            setattr(sys, name, open(number, "w", closefd=False, buffering=1))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may be deaf to it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        action()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def forked(action, **streams):
    """Run action() in a child: (its exit code, what it wrote to stdout, to stderr). streams: out or err, as in start."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = start(action, **{"out": out, "err": err} | streams)
        _, status = os.waitpid(pid, 0)
        written = []
        for file in (out, err):
            file.seek(0)
            written.append(file.read().decode("utf-8", "replace"))
    return os.waitstatus_to_exitcode(status), *written
