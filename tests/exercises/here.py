"""Grading answers that stand in a test: the student's process is this one, and all else is as it is."""

from pathlib import Path

from exercises.course import result_of
from exercises.process import Answers, Student, decode, encode, outcome


class Here(Student):
    """A Student whose file defines `names`."""

    def __init__(self, names):
        self.names = Answers(names)

    def ask(self, scene, args, kwargs):
        args, kwargs = decode(encode([args, kwargs]))
        return decode(encode(outcome(Path("here.py"), lambda: scene(self.names, *args, **kwargs))))


def grade(exercise, names):
    """[Result of each part] of a student's names."""
    results = []
    for part in exercise.parts:
        error = None
        try:
            part.check(Here(names))
        except Exception as raised:
            error = raised
        results.append(result_of(part, error))
    return results
