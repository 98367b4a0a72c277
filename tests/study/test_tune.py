"""study/tune.py: what is never tuned on, and that a rate can be tried."""

import sys

import pytest

from data.make_data import SHIPPED_SEED, old_subjects, old_world
from study import toy, tune


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tune", *map(str, arguments)])
    tune.main()


def test_the_shipped_world_is_never_tuned_on(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--method", "mica", "--lr", "1e-2", "--world", 101, SHIPPED_SEED)
    assert stop.value.code == 2
    assert "shipped world" in capsys.readouterr().err


def test_retention_is_tuned_on_other_old_subjects_than_the_reported_ones():
    _, never_asked = old_subjects()
    tuned_on = {question["subject"] for question in toy.tuning_retention()}
    reported = {question["subject"] for name, items in old_world().items() if name != "text" for question in items}
    assert len(tuned_on) == 120 and len(reported) == 180
    assert not tuned_on & reported
    assert tuned_on <= {subject.name for subject in never_asked}


def test_each_rate_is_tried_on_each_world(tiny_llama_folder, monkeypatch, capsys):
    monkeypatch.setattr(tune, "SUBJECTS_PER_KIND", 1)
    monkeypatch.setattr(toy, "tuning_retention", lambda: old_world()["asked"][:5])
    options = ["--world", 101, 102, "--epochs", 1, "--rank", 2, "--model", tiny_llama_folder, "--device", "cpu"]
    run(monkeypatch, "--method", "mica", "--lr", "1e-2", "2e-2", *options)
    lines = capsys.readouterr().out.splitlines()
    shown = [(line.split(" lr ")[1].split()[0], line.split(" epochs 1 ")[1][:10].strip()) for line in lines]
    assert shown == [(lr, what) for lr in ("0.01", "0.02") for what in ("world 101", "world 102", "mean")]
