"""The exercises, what each is worth, how a student's file is graded, and a class's: its table, JSON and JUnit XML."""

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from xml.etree import ElementTree

import torch

from exercises import NotWritten
from exercises.grading import Wrong
from exercises.process import FOLDER, Student
from tools.schema import printable

ROOT = FOLDER.parent
DONE, BLANK, WRONG = "done", "blank", "not yet"


@dataclass(frozen=True)
class Part:
    name: str  # what the student writes, as it is called in the file
    points: int
    check: Callable  # of the grader: takes a Student; raises Wrong or NotWritten


@dataclass(frozen=True)
class Exercise:
    number: int
    file: str  # the student's, without .py
    title: str
    minutes: int
    parts: list[Part]
    solutions: list[str]  # "file: name", where the project has it and runs on it
    withheld: list[str]  # likewise, but nothing in the course runs on it, so that a student edition is without it

    @property
    def points(self):
        return sum(part.points for part in self.parts)


def exercise(path):
    """The exercise that a grader's file is about."""
    grader = importlib.import_module(f"exercises.graders.{path.stem}")
    parts = [Part(*check.worth, check) for check in vars(grader).values() if hasattr(check, "worth")]
    withheld = getattr(grader, "WITHHELD", [])
    return Exercise(int(path.stem[1:3]), path.stem, grader.TITLE, grader.MINUTES, parts, grader.SOLUTIONS, withheld)


EXERCISES = [exercise(path) for path in sorted(FOLDER.glob("graders/e*.py"))]


# --- one student -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """How one part of an exercise stands."""

    part: Part
    state: str  # DONE, BLANK or WRONG
    sentence: str = ""  # what to do about it


def result_of(part, student):
    try:
        torch.manual_seed(28)
        part.check(student)
        return Result(part, DONE)
    except NotWritten:
        return Result(part, BLANK, "not written yet")
    except Wrong as error:
        return Result(part, WRONG, str(error))
    except Exception as error:
        said = f"the grader can make nothing of your answer ({type(error).__name__}: {error})"
        return Result(part, WRONG, said.splitlines()[0][:200])


def state_of(results):
    """DONE when all parts are, BLANK when all are, else WRONG."""
    states = {result.state for result in results}
    return states.pop() if len(states) == 1 else WRONG


def earned(results):
    return sum(result.part.points for result in results if result.state == DONE)


def grade(folder, numbers, timeout=60.0, silent=False):
    """Yields (exercise, its parts' Results) of a folder with a student's files, for the exercises of these numbers."""
    for number in numbers:
        exercise = EXERCISES[number - 1]
        with Student(folder, exercise.file, timeout, silent) as student:
            yield exercise, [result_of(part, student) for part in exercise.parts]


def exercise_lines(exercise, results):
    """A line for an exercise, and below it one for each part that is wrong; what several parts have in common, once."""
    state, points = state_of(results), f"{earned(results):2} of {exercise.points:2} points"
    line = f"{exercise.number:2}  {state:8} {points}  {exercise.minutes:3} minutes  {exercise.title}"
    said = {}
    for result in results if state == WRONG else []:
        said.setdefault(result.sentence, result)
    wrong = [f"      {r.part.name}: {r.sentence}" for r in said.values() if r.state != DONE]
    return "\n".join([f"{line:80} {exercise.file}.py", *wrong])


# --- a class: {student's name: [(exercise, its parts' Results)]} -------------------------------------------------------


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
    """[(name, name, numbers of the exercises in which their code is the same)] of {name: folder}, blank files aside."""
    alike = {pair: [] for pair in combinations(folders, 2)}
    for number in numbers:
        file = f"{EXERCISES[number - 1].file}.py"
        shapes = {name: shape_of(folder / file) for name, folder in folders.items()}
        for one, other in alike:
            if shapes[one] == shapes[other] and shapes[one] not in (None, shape_of(FOLDER / file)):
                alike[one, other].append(number)
    return [(*pair, numbers) for pair, numbers in alike.items() if numbers]


def as_json(graded, pairs):
    """What --json writes."""
    students = {}
    for name, exercises in graded.items():
        rows = []
        for exercise, results in exercises:
            row = {"number": exercise.number, "title": exercise.title, "state": state_of(results)}
            row |= {"points": earned(results), "of": exercise.points, "parts": []}
            for r in results:
                part = {"name": r.part.name, "of": r.part.points}
                row["parts"].append(part | {"state": r.state, "sentence": r.sentence})
            rows.append(row)
        students[name] = {"points": sum(row["points"] for row in rows), "exercises": rows}
    return {"students": students, "same answers": [list(pair) for pair in pairs]}


def as_junit(graded):
    """What --junit writes, as text: a case for each part, with its points as a property."""
    suite = ElementTree.Element("testsuite", name="exercises")
    for name, exercises in graded.items():
        for exercise, result in ((exercise, result) for exercise, results in exercises for result in results):
            about = {"classname": f"{name}.{exercise.file}", "name": result.part.name}
            case = ElementTree.SubElement(suite, "testcase", about)
            properties = ElementTree.SubElement(case, "properties")
            ElementTree.SubElement(properties, "property", name="points", value=str(result.part.points))
            if result.state != DONE:
                ElementTree.SubElement(case, "failure", message=printable(result.sentence))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
