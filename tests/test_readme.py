"""The documents: what they name and link exists, CI finds the two commands, the six lines of Python print True."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXERCISES = (ROOT / "EXERCISES.md").read_text(encoding="utf-8")
GRADED_BY = re.findall(r'`pytest (tests/[\w/]+\.py)(?: -k (?:"([^"]+)"|(\w+)))?`', EXERCISES)
DOCUMENTS = [path for path in sorted(ROOT.rglob("*.md")) if not {".venv", "venv"} & set(path.parts)]


def test_there_are_exercises_with_tests():
    assert len(GRADED_BY) >= 10


@pytest.mark.parametrize(("path", "quoted", "word"), GRADED_BY)
def test_the_tests_that_grade_an_exercise_exist(path, quoted, word):
    names = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for part in (quoted or word or "test_").split(" or "):
        assert any(part in name for name in names), f"{path} has no test named like {part}"


def test_every_file_of_the_map_exists():
    tree = README.split("## The map")[1].split("```")[1]
    names = [line.split()[0] for line in tree.splitlines() if line.strip()]
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []


def anchors(document):
    """What GitHub makes of a document's headings: "## The map" is #the-map."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = document.parent / name if name else document
            assert target.exists(), f"{link} does not exist"
            assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_the_two_commands_stand_on_lines_of_their_own():
    commands = re.findall(r"^pip install -r (requirements[-\w]*\.txt) && (.+)$", README, flags=re.MULTILINE)
    assert commands == [("requirements.txt", "python train.py --method mica"), ("requirements-test.txt", "pytest")]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_the_lines_of_python_print_true(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(README.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == "True\n"
