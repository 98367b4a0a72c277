"""matplotlib as it comes, whatever a matplotlibrc or MPLBACKEND say: the same pictures everywhere, and no screen needed."""

import os

if not os.environ.get("MPLBACKEND", "").startswith("module://"):  # a notebook's own shows its pictures
    os.environ["MPLBACKEND"] = "agg"  # another may be none that this matplotlib knows
import matplotlib
from matplotlib import pyplot as plt

matplotlib.rcdefaults()

__all__ = ["plt"]
