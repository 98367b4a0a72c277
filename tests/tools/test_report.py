"""tools/report.py: means and their errors, the table, the picture and the examples."""

import math

import pytest

from tools import report
from tools.report import mean_and_error, plus_minus


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_n():
    assert mean_and_error([1, 2, 4]) == pytest.approx((7 / 3, math.sqrt(7 / 3) / math.sqrt(3)))
    assert mean_and_error([True, False, False, False]) == pytest.approx((0.25, math.sqrt(0.25 * 0.75 / 3)))
    mean, error = mean_and_error([5.0])
    assert mean == 5 and math.isnan(error)
    assert plus_minus(0.5, 0.0123) == "50.0 +- 1.2" and plus_minus(0.5, math.nan) == "50.0"  # none is not printed


# --- the picture ------------------------------------------------------------------------------------------------------

PANELS = {"new knowledge": "new", "retention": "old"}


def summary(new, old):
    zeros = dict.fromkeys(["acc_se", "acc_norm", "acc_norm_se", "exact", "exact_se", "logprob", "logprob_se"], 0.0)
    return {"new": {"acc": new} | zeros, "old": {"acc": old} | zeros, "perplexity": {}}


def record(new, old, **more):
    rest = {"history": [{"epoch": 1}], "trained": 1, "all": 2, "lr": 1.0, "seconds": 1.0}
    return {"summary": summary(new, old)} | rest | more


def axes_of(runs, tmp_path, monkeypatch):
    """The panels that are drawn of runs, once the picture is written."""
    from tools.drawing import plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    colors = dict.fromkeys(runs, "blue")
    report.draw_comparison({"summary": summary(0.25, 0.75)}, runs, colors, PANELS, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    axes = plt.gcf().axes
    monkeypatch.undo()
    plt.close("all")
    return axes


def test_what_is_learned_is_drawn_against_what_is_kept_through_the_strengths(tmp_path, monkeypatch):
    half = [{"0.5": summary(0.5, 0.75)}, {"0.5": summary(0.75, 0.5)}]
    runs = {"mica": [record(1.0, 0.5, strengths=half[0]), record(0.5, 0.25, strengths=half[1])]}
    runs["full"] = [record(1.0, 0.0, strengths={"0.5": summary(0.25, 0.5), "2": summary(0.0, 0.0)})] * 2
    *panels, ax = axes_of(runs, tmp_path, monkeypatch)
    mica, full, untouched = ax.get_lines()
    assert len(panels) == 2 and (mica.get_label(), full.get_label()) == ("mica", "full")
    assert mica.get_xydata().tolist() == [[75, 25], [62.5, 62.5], [37.5, 75]]  # (kept, learned), means over the seeds
    assert full.get_xydata().tolist() == [[75, 25], [50, 25], [0, 100], [0, 0]]
    assert untouched.get_xydata().tolist() == [[75, 25]] and ax.get_ylim() == (0, 105)
    runs = {"mica": [record(1.0, 0.5, strengths=half[0])], "lora": [record(1.0, 0.5)]}
    assert len(axes_of(runs, tmp_path, monkeypatch)) == 2  # without strengths of every run there is no such panel


def test_an_error_in_drawing_is_one_line_after_the_table(tmp_path, monkeypatch, capsys):
    def draw(*_):
        assert "new, %" in capsys.readouterr().out  # seen and written before
        assert (tmp_path / "results.json").exists()
        raise RuntimeError("latex could not\nbe found")

    monkeypatch.setattr(report, "draw_comparison", draw)
    report.write_report(tmp_path, {"summary": summary(0.25, 0.75)}, {"mica": [record(1.0, 0.5)]}, PANELS, {}, "", ())
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"note: {tmp_path / 'comparison.png'} is not drawn (RuntimeError: latex could not be found)"
