"""exercises/intro.ipynb: its outputs are stored and say what the text does; a real kernel gives them again."""

import json
import re
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "exercises" / "intro.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
# After each cell: the curves that it drew are no empty lines, and lie within the axes.
CURVES = """
for axes in ax.figure.axes:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for line in (line for line in axes.lines if line.get_transform() == axes.transData):
        x, y = line.get_data()
        assert len(x) > 1 and min(x) >= left and max(x) <= right and min(y) >= bottom and max(y) <= top, line
"""


def text_of(value):
    return value if isinstance(value, str) else "".join(value)


def printed(cells):
    """All that the cells print; what took over a second shows its progress on stderr, sometimes."""
    outputs = [output for cell in cells for output in cell["outputs"] if output.get("name") == "stdout"]
    return "".join(text_of(output["text"]) for output in outputs)


def pictures(cells):
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


def learned(text):
    """{model: {question set: %}} of the table."""
    rows = re.findall(r"^(\S+(?: \+ \S+)?) +((?:\S+ +[\d.]+ \+- [\d.]+   )+)", text, flags=re.MULTILINE)
    return {name: {key: float(value) for key, value in re.findall(r"(\S+) +([\d.]+) \+-", row)} for name, row in rows}


def check(cells):
    """The numbers are those that the text around them speaks of."""
    text = printed(cells)
    assert pictures(cells) == 6 and text.count("same bits: True") == 1
    assert "output to the bit: True" in text and "the same directions as the project's: True" in text
    for name, trained in (("mica", "53,248"), ("lora", "116,736"), ("lora + rehearsal", "116,736")):
        first, last = re.search(
            rf"^{re.escape(name)}: {trained} trained, first loss ([\d.]+), mean of the last ten ([\d.]+)$",
            text,
            re.MULTILINE,
        ).groups()
        assert 1.2 < float(first) < 3 and 0.4 < float(last) < 1.0  # nats a token
    new, old = ({name: row[key] for name, row in learned(text).items()} for key in ("new/questions", "old/never_asked"))
    assert new["untouched"] < 30 < new["mica"] < new["lora"] <= new["lora + rehearsal"] + 3
    forgotten = {name: old["untouched"] - kept for name, kept in old.items()}
    assert forgotten["mica"] > 15 and forgotten["lora"] > max(15, 2 * forgotten["lora + rehearsal"])


def test_it_is_stored_as_it_was_run_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert not any(output["output_type"] == "error" for cell in CODE for output in cell["outputs"])
    check(CODE)


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
    for i in reversed(range(len(notebook.cells))):
        if re.search(r"^(ax = draw|plt\.show)", notebook.cells[i].source, re.MULTILINE):
            notebook.cells.insert(i + 1, nbformat.v4.new_code_cell(CURVES))
    resources = {"metadata": {"path": str(PATH.parent)}}  # where Jupyter starts it
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source != CURVES]
    check(cells)
    machine = re.compile(r"^torch .*$", re.MULTILINE)
    if machine.search(printed(cells)).group() == machine.search(printed(CODE)).group():
        assert printed(cells) == printed(CODE)  # to the last digit, on a processor like the one it was stored on
