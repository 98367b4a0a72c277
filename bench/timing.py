"""What every script here measures with: seconds in turns and their spread, memory, and a process of its own."""

import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

CPU = torch.device("cpu")


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function, device=CPU):
    """(seconds of a call, its result)"""
    synchronize(device)
    began = time.perf_counter()
    result = function()
    synchronize(device)
    return time.perf_counter() - began, result


def in_turns(sides, rounds, device=CPU):
    """{name: [(seconds, result), ...]} of functions that are each called once a round, the first to go alternating."""
    found = {name: [] for name in sides}
    for i in rounds:
        for name in list(sides) if i % 2 else list(sides)[::-1]:
            found[name].append(timed(sides[name], device))
    return found


def median_seconds(function, times):
    """(median seconds of a call, its last result)"""
    calls = [timed(function) for _ in range(times)]
    return statistics.median(seconds for seconds, _ in calls), calls[-1][1]


def spread(values, form=".3f"):
    """median (least to most)"""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def resident(field="VmRSS"):
    """Bytes of this process's resident memory now; field="VmHWM": at its highest. NaN where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def forget_peak(device=CPU):
    """The highest memory is counted anew from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak(device=CPU):
    """The highest memory in bytes: allocated on a GPU, else resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")


def in_a_process(module, *arguments):
    """The JSON that a program prints as its last line, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])
