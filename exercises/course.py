"""The twelve exercises, what each is worth, and how a student's file is graded."""

import ast
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import exercises
from exercises import NotWritten
from exercises.graders import (
    e01_forward,
    e02_directions,
    e03_frozen,
    e04_merging,
    e05_packing,
    e06_scoring,
    e07_rotary,
    e08_milora,
    e09_inverse,
    e10_method,
    e11_counting,
    e12_landing,
)
from exercises.grading import Wrong

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
DONE, BLANK, WRONG = "done", "blank", "not yet"


@dataclass(frozen=True)
class Part:
    name: str  # what the student writes, as it is called in the file
    points: int
    check: Callable  # takes the student's file, as an Answers; raises Wrong


@dataclass(frozen=True)
class Exercise:
    title: str
    file: str  # the student's, without .py
    minutes: int
    parts: list[Part]
    solutions: list[str]  # "file: name", where the project, or a test, has it

    @property
    def points(self):
        return sum(part.points for part in self.parts)


def part(name, points, check):
    return Part(name, points, check)


EXERCISES = [
    Exercise(
        "the layer: no bit changes, in any dtype", "e01_forward", 20,
        [part("MyLoRA.init_factors", 3, e01_forward.start), part("MyLoRA.forward", 7, e01_forward.forward)],
        ["lora.py: LoRALayer.init_factors", "lora.py: LoRALayer.forward", "lora.py: LoRALayer.update"],
    ),
    Exercise(
        "minor directions", "e02_directions", 15,
        [part("minor_directions", 5, e02_directions.directions), part("never_written", 2, e02_directions.null_space)],
        ["mica.py: minor_directions"],
    ),
    Exercise(
        "frozen means frozen", "e03_frozen", 20,
        [part("MyMiCA.init_factors", 6, e03_frozen.frozen), part("FIRST_GRADIENTS", 2, e03_frozen.first_gradients)],
        ["mica.py: MiCALayer.init_factors"],
    ),
    Exercise(
        "merging, rounded once", "e04_merging", 15,
        [part("merged", 7, e04_merging.merging)],
        ["lora.py: LoRALayer.merged"],
    ),
    Exercise(
        "packing", "e05_packing", 25,
        [part("pack", 8, e05_packing.packing)],
        ["eval_qa.py: pack"],
    ),
    Exercise(
        "multiple choice by log-likelihood", "e06_scoring", 40,
        [part("score_questions", 10, e06_scoring.scoring)],
        ["eval_qa.py: score_question", "eval_qa.py: encode_question", "fast/scoring.py: answer_questions"],
    ),
    Exercise(
        "rotary positions", "e07_rotary", 30,
        [part("rotate", 5, e07_rotary.rotation), part("from_interleaved", 4, e07_rotary.conversion)],
        ["gpt/model.py: rotate", "gpt/gguf.py: unpair"],
    ),
    Exercise(
        "MiLoRA's start", "e08_milora", 20,
        [part("MyMiLoRA.init_factors", 6, e08_milora.start), part("left_over", 2, e08_milora.undivided)],
        ["milora.py: MiLoRALayer.init_factors"],
    ),
    Exercise(
        "inverse iteration", "e09_inverse", 35,
        [part("inverse_iteration", 6, e09_inverse.iteration), part("shrinking", 3, e09_inverse.rate)],
        ["fast/subspace.py: inverse_iteration"],
    ),
    Exercise(
        "a method of your own", "e10_method", 40,
        [
            part("RandomReader.init_factors", 5, e10_method.method),
            part("interval", 4, e10_method.intervals),
            part("PREDICTION", 1, e10_method.prediction),
        ],
        ["mica.py: TransposedMiCALayer.init_factors", "mica.py: OrthonormalMiCALayer.directions", "study/stats.py: paired",
         "mica.py: LoRAFALayer.init_factors"],
    ),
    Exercise(
        "counting parameters", "e11_counting", 20,
        [
            part("the four numbers", 4, e11_counting.numbers),
            part("mica_part", 1, e11_counting.part),
            part("LARGEST_PART, SMALLEST_PART", 1, e11_counting.extremes),
        ],
        ["lora.py: count_trainable", "bench/footprint.py: row"],
    ),
    Exercise(
        "where dW lands", "e12_landing", 30,
        [
            part("amplification", 3, e12_landing.amplifying),
            part("similarity", 2, e12_landing.similar),
            part("outside", 2, e12_landing.outside_of),
            part("OUTSIDE_OF_B", 1, e12_landing.derivation),
        ],
        ["study/analysis.py: amplification", "study/analysis.py: similarity", "study/analysis.py: landing"],
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How one part of an exercise stands."""

    part: Part
    state: str  # DONE, BLANK or WRONG
    sentence: str = ""  # what to do about it


class Answers:
    """What a student's file defines: a name that is gone is a mistake one can mend, not a crash."""

    def __init__(self, names):
        self.__dict__.update(names)

    def __getattr__(self, name):
        raise Wrong(f"the file has no {name} any more: put it back under this name")


def load(file, folder=FOLDER):
    """The student's file as a module. Raises Wrong when it cannot be read."""
    folder = Path(folder).resolve()
    path = folder / f"{file}.py"
    exercises.__path__[:] = [str(folder), str(FOLDER)]  # who imports exercises.e02_directions gets this student's
    for exercise in EXERCISES:
        sys.modules.pop(f"exercises.{exercise.file}", None)
    spec = importlib.util.spec_from_file_location(f"exercises.{file}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise Wrong(f"there is no file {path.name} in {path.parent}") from None
    except NotWritten:
        raise Wrong(f"{path.name} calls a body that is not written yet, outside of all functions") from None
    except (Exception, SystemExit) as error:
        raise Wrong(f"{path.name} cannot be loaded: {what_happened(error, path)}") from error
    return module


def what_happened(error, path):
    """An error in a student's code in one line, with the line of the file where there is one."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    said = (str(error).strip().splitlines() or [""])[0]
    where = f" (line {lines[-1]} of {path.name})" if lines else ""
    return f"{type(error).__name__}: {said}"[:200] + where


def grade_part(part, answers, path):
    """The Result of one part. The check starts from the same random numbers each time, and leaves torch as it was."""
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            part.check(answers)
        except NotWritten:
            return Result(part, BLANK, "not written yet")
        except Wrong as error:
            return Result(part, WRONG, str(error))
        except (Exception, SystemExit) as error:
            if os.environ.get("TRACEBACK"):
                raise
            return Result(part, WRONG, f"it stops with {what_happened(error, path)}")
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            torch.set_grad_enabled(gradients)
    return Result(part, DONE)


def grade(exercise, folder=FOLDER, answers=None):
    """[Result of each part]. answers: what to grade instead of the file in `folder`."""
    path = Path(folder).resolve() / f"{exercise.file}.py"
    try:
        answers = Answers(vars(load(exercise.file, folder)) if answers is None else answers)
    except Wrong as error:
        return [Result(part, WRONG, str(error)) for part in exercise.parts[:1]] + [
            Result(part, BLANK) for part in exercise.parts[1:]
        ]
    return [grade_part(part, answers, path) for part in exercise.parts]


def state_of(results):
    """DONE when all parts are, BLANK when all are, else WRONG."""
    states = {result.state for result in results}
    return states.pop() if len(states) == 1 else WRONG


def where(solution):
    """ "lora.py: LoRALayer.merged" -> "lora.py, line 79: LoRALayer.merged"."""
    file, name = solution.split(": ")
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for step in name.split("."):
        node = next(node for node in body if getattr(node, "name", None) == step)
        body = node.body
    return f"{file}, line {node.lineno}: {name}"


def report(numbers, folder=FOLDER):
    """Grade the exercises of these numbers and print a line for each; return how many are done."""
    done = points = 0
    for number in numbers:
        exercise = EXERCISES[number - 1]
        results = grade(exercise, folder)
        state = state_of(results)
        earned = sum(result.part.points for result in results if result.state == DONE)
        done, points = done + (state == DONE), points + earned
        line = f"{number:2}  {state:8} {earned:2} of {exercise.points:2} points  {exercise.minutes:3} minutes  {exercise.title}"
        print(f"{line:80} {exercise.file}.py".rstrip(), flush=True)
        if state == WRONG:
            for result in results:
                if result.state != DONE and result.sentence:
                    print(f"      {result.part.name}: {result.sentence}", flush=True)
    worth = sum(EXERCISES[number - 1].points for number in numbers)
    print(f"{done} of {len(numbers)} done, {points} of {worth} points")
    return done
