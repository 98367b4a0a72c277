"""What students are given: the project as far as the course needs it, without the answers."""

import ast
import shutil
from pathlib import Path

from exercises.course import BLANK, EXERCISES, ROOT, grade, state_of
from exercises.process import FOLDER
from tools.cli import whole_folder, write_text

ROOMS = ("data", "exercises", "fast", "gpt", "pictures", "tools")  # study/, bench/ and tests/ hold answers
BESIDE = (".py", ".md", ".txt", ".toml", ".ini", ".cff", "")
LEFT_OUT = [FOLDER / "TEACHING.md"]


def emptied(text, name, said):
    """A module's text in which the function `name` ("Class.method") keeps its docstring and otherwise only raises."""
    body = ast.parse(text).body
    for step in name.split("."):
        node = next(node for node in body if getattr(node, "name", None) == step)
        body = node.body
    first = body[1] if ast.get_docstring(node) and len(body) > 1 else body[0]
    lines = text.splitlines(keepends=True)
    lines[first.lineno - 1 : node.end_lineno] = [f'{" " * first.col_offset}raise NotImplementedError("{said}")\n']
    return "".join(lines)


def files():
    """The paths that an edition holds."""
    beside = [p for p in ROOT.iterdir() if p.suffix in BESIDE and not p.name.startswith(".")]
    for path in sorted([*beside, *(p for room in ROOMS for p in (ROOT / room).rglob("*"))]):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(ROOT).parts)
        if path.is_file() and not hidden and path not in LEFT_OUT:
            yield path


def write_edition(out):
    """Copy the course into the folder `out`. Raises ValueError where exercises/ holds solutions."""
    graded = grade(FOLDER, [exercise.number for exercise in EXERCISES])
    begun = [exercise.file for exercise, results in graded if state_of(results) != BLANK]
    if begun:
        raise ValueError(f"{', '.join(begun)} in exercises/ are not blank: write the edition from a fresh clone")
    with whole_folder(out, is_ours=lambda folder: False) as new:
        for path in files():
            copy = new / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        for exercise in EXERCISES:
            for path, name in (solution.split(": ") for solution in exercise.withheld):
                if (new / path).exists():
                    said = f"exercise {exercise.number} asks for this"
                    write_text(new / path, emptied((new / path).read_text(encoding="utf-8"), name, said))
    print(f"{out}: {sum(path.is_file() for path in Path(out).rglob('*'))} files")
