"""Every grader: it passes right answers, however they are written, and says what is wrong with wrong ones."""

import importlib

import numpy as np
import pytest
import torch
from answers import e07_rotary
from here import grade

from exercises.course import BLANK, DONE, EXERCISES, state_of
from exercises.graders.e01_forward import case, formula
from exercises.graders.e07_rotary import CONFIG, turned
from exercises.grading import numpy
from exercises.process import NotWritten

ANSWERS = {exercise.file: importlib.import_module(f"answers.{exercise.file}") for exercise in EXERCISES}
RIGHT = [
    pytest.param(exercise, answer, id=f"{exercise.file}: {label}")
    for exercise in EXERCISES
    for label, answer in {"reference": {}, **ANSWERS[exercise.file].DIFFERENT}.items()
]
WRONG = [
    pytest.param(exercise, answer, words, id=f"{exercise.file}: {label}")
    for exercise in EXERCISES
    for label, (answer, words) in ANSWERS[exercise.file].WRONG.items()
]


def complaints(exercise, answer):
    """What is said of the reference, with `answer` put in."""
    results = grade(exercise, ANSWERS[exercise.file].REFERENCE | answer)
    return [result.sentence for result in results if result.state != DONE]


@pytest.mark.parametrize("exercise, answer", RIGHT)
def test_a_right_answer_passes(exercise, answer):
    assert complaints(exercise, answer) == []


@pytest.mark.parametrize("exercise, answer, words", WRONG)
def test_a_wrong_answer_is_refused_in_one_sentence(exercise, answer, words):
    [sentence] = complaints(exercise, answer)  # the other parts stay done
    assert words in sentence
    assert len(sentence) < 260 and "\n" not in sentence and "tensor(" not in sentence


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.file)
def test_there_are_many_of_both(exercise):
    assert len(ANSWERS[exercise.file].WRONG) >= 6 and len(ANSWERS[exercise.file].DIFFERENT) >= 2


def test_a_crash_names_the_error():
    [result] = grade(EXERCISES[3], {"merged": lambda layer: layer.no_such_thing})
    assert "AttributeError" in result.sentence and "no_such_thing" in result.sentence


def test_a_name_that_is_gone_is_asked_for():
    [result] = grade(EXERCISES[3], {})
    assert "merged" in result.sentence and "put it back" in result.sentence


def test_what_is_not_written_is_blank():
    def merged(layer):
        raise NotWritten

    results = grade(EXERCISES[3], {"merged": merged})
    assert state_of(results) == BLANK


def test_the_layers_oracle_is_pefts():
    peft = pytest.importorskip("peft")
    W, b, A, B, x = case(20, 12, 4)
    theirs = torch.nn.Sequential()
    theirs.q_proj = torch.nn.Linear(12, 20)
    theirs.q_proj.weight.data, theirs.q_proj.bias.data = W, b
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"]))
    inner = theirs.base_model.model.q_proj
    inner.lora_A["default"].weight.data, inner.lora_B["default"].weight.data = A, B
    np.testing.assert_allclose(formula(W, b, A, B, x, 3)[0], numpy(theirs(x).detach()), rtol=1e-4, atol=1e-5)


def test_the_rotary_oracle_is_transformers():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    positions = torch.arange(3, 12)
    cos, sin = e07_rotary.rotary_tables(positions, CONFIG)
    x = torch.randn(2, 6, 9, 8)
    theirs = llama.apply_rotary_pos_emb(x, x, cos[None], sin[None])[0]
    np.testing.assert_allclose(turned(numpy(x), positions.numpy()), numpy(theirs), atol=1e-5)
