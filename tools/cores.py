"""USABLE: how many cores this process may use; under taskset less than the machine has. Import it before torch."""

import os

count = getattr(os, "process_cpu_count", None)  # from Python 3.13 on
# Read once and early: on some machines libraries that torch loads bind the process to all cores again.
USABLE = count() if count else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
