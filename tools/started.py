"""Imported by a program before all else: Ctrl-C while torch is imported ends it at once, without a traceback."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is to be ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # tools.cli takes over when the program begins
