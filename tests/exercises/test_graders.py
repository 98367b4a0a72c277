"""Every grader: it passes the project's own function and one written differently, and says what is wrong with wrong ones."""

import importlib

import pytest
import torch

from exercises import NotWritten
from exercises.course import BLANK, DONE, EXERCISES, WRONG, grade, state_of

ANSWERS = {exercise.file: importlib.import_module(f"answers.{exercise.file}") for exercise in EXERCISES}
by_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.file)
WRONG_ANSWERS = [
    pytest.param(exercise, answer, words, id=f"{exercise.file}: {label}")
    for exercise in EXERCISES
    for label, (answer, words) in ANSWERS[exercise.file].WRONG.items()
]


def sentences(results):
    return [f"{result.part.name}: {result.sentence}" for result in results if result.state != DONE]


@by_exercise
def test_the_reference_passes(exercise):
    assert sentences(grade(exercise, answers=ANSWERS[exercise.file].REFERENCE)) == []


@by_exercise
def test_a_correct_answer_written_differently_passes(exercise):
    different = ANSWERS[exercise.file].DIFFERENT
    for answer in different if isinstance(different, list) else [different]:
        assert sentences(grade(exercise, answers=answer)) == []


@by_exercise
def test_there_are_six_wrong_answers_or_more(exercise):
    assert len(ANSWERS[exercise.file].WRONG) >= 6


@pytest.mark.parametrize("exercise, answer, words", WRONG_ANSWERS)
def test_a_wrong_answer_is_refused_in_one_sentence(exercise, answer, words):
    results = grade(exercise, answers=ANSWERS[exercise.file].REFERENCE | answer)
    [sentence] = [result.sentence for result in results if result.state != DONE]  # the other parts stay done
    assert words in sentence
    assert len(sentence) < 260 and "\n" not in sentence and "tensor(" not in sentence


def test_a_crash_names_the_error():
    def broken(layer):
        return layer.no_such_thing

    [result] = grade(EXERCISES[3], answers={"merged": broken})
    assert "AttributeError" in result.sentence and "no_such_thing" in result.sentence


def test_a_name_that_is_gone_is_asked_for():
    [result] = grade(EXERCISES[3], answers={})
    assert "merged" in result.sentence and "put it back" in result.sentence


def test_grading_leaves_torch_as_it_was():
    def careless(layer):
        torch.manual_seed(3)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        raise NotWritten

    before = torch.get_rng_state()
    [result] = grade(EXERCISES[3], answers={"merged": careless})
    assert result.state == BLANK and state_of([result]) == BLANK != WRONG
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
