"""exercises/intro.ipynb: its outputs are stored and whole; a real kernel gives them again."""

import json
import re
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "exercises" / "intro.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def text_of(value):
    return value if isinstance(value, str) else "".join(value)


def printed(cells):
    """All that the cells print."""
    outputs = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join(text_of(output["text"]) for output in outputs)


def pictures(cells):
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


def test_it_is_stored_as_it_was_run_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert not any(output["output_type"] == "error" for cell in CODE for output in cell["outputs"])
    assert pictures(CODE) == 5
    assert "same bits: True" in printed(CODE)


def test_it_names_nothing_of_the_machine_it_ran_on():
    for output in (output for cell in CODE for output in cell["outputs"]):
        said = text_of(output.get("text", "")) + text_of(output.get("data", {}).get("text/plain", ""))
        assert not re.search(r"(/tmp|/root|/home|/Users|[A-Z]:\\)", said) and output.get("name") != "stderr"


def test_what_it_links_exists():
    for cell in NOTEBOOK["cells"]:
        for link in re.findall(r"\]\(([^)#]+)\)", text_of(cell["source"])):
            assert link.startswith("http") or (PATH.parent / link).exists(), link


@pytest.mark.slow
def test_a_real_kernel_gives_it_again():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(PATH, as_version=4)
    resources = {"metadata": {"path": str(PATH.parent)}}  # where Jupyter starts it
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert pictures(cells) == 5
    for wanted in (
        "same bits: True",
        "trained, of all: 12,288 of 2,176,704",
        "mica: 53,248 trained",
        "lora: 116,736 trained",
    ):
        assert wanted in printed(CODE) and wanted in printed(cells)
    learned = [float(value) for value in re.findall(r"new/questions +([\d.]+)", printed(cells))]
    untouched, mica, lora = learned
    assert untouched < 30 < mica < lora  # what the text around it says
