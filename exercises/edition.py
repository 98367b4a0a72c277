"""What students are given: the project as far as the course needs it, without the answers."""

import ast
import contextlib
import io
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
    for path in sorted(ROOT.iterdir()):
        if path.name in ROOMS:
            found = [p for p in sorted(path.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
            yield from (p for p in found if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))
        elif path.is_file() and path.suffix in BESIDE and not path.name.startswith("."):
            yield path


def write_edition(out):
    """Copy the course into the folder `out`. Raises ValueError where exercises/ holds solutions."""
    numbers = [exercise.number for exercise in EXERCISES]
    with contextlib.redirect_stdout(io.StringIO()):
        [results] = grade({"": FOLDER}, numbers).values()
    begun = [EXERCISES[number - 1].file for number, parts in results.items() if state_of(parts) != BLANK]
    if begun:
        raise ValueError(f"{', '.join(begun)} in exercises/ are not blank: write the edition from a fresh clone")
    with whole_folder(out, is_ours=lambda folder: False) as new:
        for path in files():
            if path not in LEFT_OUT:
                copy = new / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        for exercise in EXERCISES:
            for file, name in (solution.split(": ") for solution in exercise.withheld):
                if (new / file).exists():
                    said = f"exercise {exercise.number} asks for this"
                    write_text(new / file, emptied((new / file).read_text(encoding="utf-8"), name, said))
    print(f"{out}: {sum(path.is_file() for path in Path(out).rglob('*'))} files")
