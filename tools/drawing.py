"""matplotlib as it comes, whatever a matplotlibrc or MPLBACKEND say: the same pictures everywhere, and no screen needed."""

import os

given = os.environ.pop("MPLBACKEND", "")  # perhaps one that this matplotlib does not know: its import would fail
import matplotlib

matplotlib.rcdefaults()
matplotlib.use(given if given.startswith("module://") else "agg")  # the former is a notebook's, which shows pictures
if given:
    os.environ["MPLBACKEND"] = given  # for processes that are started from here

from matplotlib import pyplot as plt

__all__ = ["plt"]
