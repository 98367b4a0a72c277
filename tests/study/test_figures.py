"""study/figures.py: pictures of made-up records; the program that writes them."""

import sys
from pathlib import Path

import pytest
from made_up import write_study

from lora import LoRALayer
from study import __main__ as program
from study import figures
from study.design import Arm
from study.tables import Results
from study.toy import EXTENDED_DESIGN, QUICK
from train import METHODS, Method

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["epochs", "bars", "frontier", "parameters", "landing", "extended"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of the whole study, of made-up records."""
    return Results(write_study(tmp_path_factory.mktemp("whole"), EXTENDED_DESIGN), EXTENDED_DESIGN)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "landing"])
def test_pictures_are_drawn(made, name, tmp_path):
    figures.save_figure(getattr(figures, f"draw_{name}")(made), tmp_path / f"{name}.png")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_method_has_the_look_of_its_line_in_METHODS_and_one_that_names_none_a_plain_one(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method(LoRALayer, lr=1e-2))
    monkeypatch.setitem(METHODS, "lora", Method(LoRALayer, lr=1e-2, color="red", marker="x"))
    monkeypatch.delitem(METHODS, "pissa")
    looks = [figures.style(Arm(name, name)) for name in ("lora", "mine", "pissa")]
    assert looks == [{"color": "red", "marker": "x"}, *2 * [{"color": "#666666", "marker": "o"}]]


def run_program(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
    monkeypatch.chdir(ROOT)
    program.main()


def test_the_program_draws_what_there_is_and_leaves_the_readme_alone_when_it_is_not_of_the_study(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(METHODS, "mine", Method(LoRALayer, lr=1e-2))  # one's own, of which the study knows nothing
    write_study(tmp_path / "q", QUICK)
    before = {path: path.read_bytes() for path in (ROOT / "README.md", ROOT / "study/README.md")}
    run_program(monkeypatch, "--quick", "--draw", "--results", tmp_path / "q")
    assert "Primary comparison, mica - lora" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "q").iterdir()}
    assert written == {"runs", "README.md", *(f"{name}.png" for name in NAMES if name != "extended")}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_without_results_one_sentence(tmp_path, monkeypatch, capsys):
    for study, sentence in (([], "does not yet hold two worlds"), (["--real"], "does not yet hold a judged run")):
        with pytest.raises(SystemExit) as stopped:
            run_program(monkeypatch, *study, "--draw", "--results", tmp_path)
        assert stopped.value.code == 2 and sentence in capsys.readouterr().err
