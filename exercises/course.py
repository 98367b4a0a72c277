"""The exercises, what each is worth, and how students' files are graded: graders/ by pytest, the students' code apart."""

import ast
import importlib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from unittest import mock

import pytest
import torch

from exercises import NotWritten
from exercises.grading import Wrong
from exercises.process import FOLDER, Student

ROOT = FOLDER.parent
DONE, BLANK, WRONG = "done", "blank", "not yet"


@dataclass(frozen=True)
class Part:
    name: str  # what the student writes, as it is called in the file
    points: int
    check: Callable  # the grader's test: takes a Student; raises Wrong or NotWritten


@dataclass(frozen=True)
class Exercise:
    number: int
    file: str  # the student's, without .py
    title: str
    minutes: int
    parts: list[Part]
    solutions: list[str]  # "file: name", where the project has it and runs on it
    withheld: list[str]  # likewise, but nothing in the course runs on it, so that a student edition is without it
    grader: str  # its path

    @property
    def points(self):
        return sum(part.points for part in self.parts)


def exercise(path):
    """The exercise that a grader's file is about."""
    module = importlib.import_module(f"exercises.graders.{path.stem}")
    parts = [Part(*test.part, test) for test in vars(module).values() if hasattr(test, "part")]
    solutions, withheld = module.SOLUTIONS, getattr(module, "WITHHELD", [])
    return Exercise(int(path.stem[1:3]), path.stem, module.TITLE, module.MINUTES, parts, solutions, withheld, str(path))


EXERCISES = [exercise(path) for path in sorted(FOLDER.glob("graders/e*.py"))]


@dataclass(frozen=True)
class Result:
    """How one part of an exercise stands."""

    part: Part
    state: str  # DONE, BLANK or WRONG
    sentence: str = ""  # what to do about it


def result_of(part, error):
    """The Result that follows from what a part's check raised; None: nothing."""
    if error is None:
        return Result(part, DONE)
    if isinstance(error, NotWritten):
        return Result(part, BLANK, "not written yet")
    if isinstance(error, Wrong):
        return Result(part, WRONG, str(error))
    return Result(part, WRONG, f"the grader can make nothing of your answer ({type(error).__name__}: {error})"[:200])


def state_of(results):
    """DONE when all parts are, BLANK when all are, else WRONG."""
    states = {result.state for result in results}
    return states.pop() if len(states) == 1 else WRONG


@dataclass
class Grading:
    """A plugin of pytest that gives the graders their students and takes down how each part went."""

    folders: dict[str, Path]  # by the student's name
    numbers: list[int]
    timeout: float
    results: dict = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))  # {name: {number: [Result]}}

    def pytest_generate_tests(self, metafunc):
        metafunc.parametrize("name", list(self.folders), scope="session")  # one student after the other

    @pytest.fixture(scope="module")
    def student(self, request, name):
        file = Path(request.path).stem
        with Student(self.folders[name], file, self.timeout, silent=len(self.folders) > 1) as student:
            yield student

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "call" or call.excinfo is not None:
            exercise = next(e for e in EXERCISES if e.grader == str(item.path))
            part = next(part for part in exercise.parts if part.check is item.function)
            result = result_of(part, call.excinfo and call.excinfo.value)
            report.longrepr = result.sentence or None  # in the XML, instead of a traceback through the grader
            item.user_properties.append(("points", part.points))  # likewise in the XML
            name = item.callspec.params["name"]
            self.results[name][exercise.number].append(result)
            self.say(name, exercise)
        return report

    def say(self, name, exercise):
        """Print what is complete: an exercise's line, or in a class a student's."""
        results = self.results[name]
        if len(results[exercise.number]) < len(exercise.parts):
            return
        if len(self.folders) == 1:
            print(exercise_lines(exercise, results[exercise.number]), flush=True)
        elif len(results) == len(self.numbers):
            cells = [f"{earned(parts):4}" if state_of(parts) != BLANK else "   ." for parts in results.values()]
            print(f"{name:24.24}" + "".join(cells) + f"{sum(map(earned, results.values())):8}", flush=True)


def earned(results):
    return sum(result.part.points for result in results if result.state == DONE)


def exercise_lines(exercise, results):
    """A line for an exercise, and below it one for each part that is wrong; what several parts have in common, once."""
    state, points = state_of(results), f"{earned(results):2} of {exercise.points:2} points"
    line = f"{exercise.number:2}  {state:8} {points}  {exercise.minutes:3} minutes  {exercise.title}"
    lines, said = [f"{line:80} {exercise.file}.py"], set()
    for result in results if state == WRONG else []:
        if result.state != DONE and result.sentence not in said:
            lines.append(f"      {result.part.name}: {result.sentence}")
            said.add(result.sentence)
    return "\n".join(lines)


def grade(folders, numbers, timeout=60.0, junit=None):
    """{name: {number: [Result of each part]}} of the exercises of these numbers; prints as it goes.

    folders: {name: folder with a student's files}. junit: where pytest's XML is written.
    """
    grading = Grading(folders, numbers, timeout)
    arguments = [e.grader for e in EXERCISES if e.number in numbers]
    arguments += ["-c", os.devnull, f"--rootdir={ROOT}", "--noconftest", "-p", "no:terminal", "-p", "no:cacheprovider"]
    arguments += ["--capture=no"] + ([f"--junitxml={junit}"] if junit else [])
    if len(folders) > 1:
        print(f"{'':24}" + "".join(f"{number:4}" for number in numbers) + "  points", flush=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch.dict(os.environ, PYTEST_ADDOPTS="", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"):  # nobody else's settings
        code = pytest.main(arguments, plugins=[grading])
    torch.set_num_threads(threads)
    if code == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest, which runs the graders, ended with {code!r}")
    return grading.results


def shape_of(path):
    """A file's code without comments, docstrings and the names its author chose; None where it cannot be read."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    names = {}
    for node in ast.walk(tree):
        if getattr(node, "body", None) and isinstance(node.body, list):
            node.body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
        for attribute in ("id", "arg", "name"):
            if isinstance(getattr(node, attribute, None), str):
                setattr(node, attribute, names.setdefault(getattr(node, attribute), len(names)))
    return ast.dump(tree)


def same_answers(folders, numbers):
    """[(name, name, numbers of the exercises in which their code is the same)], blank files aside."""
    shapes = {}  # {(name, number): shape}
    for e in EXERCISES:
        blank = shape_of(FOLDER / f"{e.file}.py")
        for name, folder in folders.items():
            shape = shape_of(folder / f"{e.file}.py") if e.number in numbers else None
            shapes[name, e.number] = shape if shape != blank else None
    pairs = []
    for one, other in combinations(folders, 2):
        alike = [n for n in numbers if shapes[one, n] is not None and shapes[one, n] == shapes[other, n]]
        pairs += [(one, other, alike)] if alike else []
    return pairs


def as_json(results, pairs):
    """The results of a class as --json writes them."""
    students = {}
    for name, by_number in results.items():
        rows = []
        for e in EXERCISES:
            if e.number in by_number:
                parts = [
                    {"name": r.part.name, "of": r.part.points, "state": r.state, "sentence": r.sentence}
                    for r in by_number[e.number]
                ]
                row = {"number": e.number, "title": e.title, "state": state_of(by_number[e.number])}
                rows.append(row | {"points": earned(by_number[e.number]), "of": e.points, "parts": parts})
        students[name] = {"points": sum(row["points"] for row in rows), "exercises": rows}
    return {"students": students, "same answers": [list(pair) for pair in pairs]}


def where(solution):
    """ "lora.py: LoRALayer.merged" -> "lora.py, line 79: LoRALayer.merged"."""
    file, name = solution.split(": ")
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for step in name.split("."):
        node = next(node for node in body if getattr(node, "name", None) == step)
        body = node.body
    return f"{file}, line {node.lineno}: {name}"
