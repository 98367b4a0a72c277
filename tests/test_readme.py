"""README.md: the files and tests it names exist, and CI finds the two commands in it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GRADED_BY = re.findall(r'`pytest (tests/\w+\.py)(?: -k (?:"([^"]+)"|(\w+)))?`', README)


def test_there_are_exercises_with_tests():
    assert len(GRADED_BY) >= 5


@pytest.mark.parametrize(("path", "quoted", "word"), GRADED_BY)
def test_the_tests_that_grade_an_exercise_exist(path, quoted, word):
    names = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for part in (quoted or word or "test_").split(" or "):
        assert any(part in name for name in names), f"{path} has no test named like {part}"


def test_every_file_of_the_tree_exists():
    tree = README.split("## Reading order and file tree")[1].split("```")[1]
    names = [line.split()[0] for line in tree.strip().splitlines()]
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_two_commands_stand_on_lines_of_their_own():
    commands = re.findall(r"^pip install -r (requirements[-\w]*\.txt) && (.+)$", README, flags=re.MULTILINE)
    assert commands == [("requirements.txt", "python train.py --method mica"), ("requirements-test.txt", "pytest")]
