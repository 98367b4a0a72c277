"""Every grader: it passes right answers, however they are written, and says what is wrong with wrong ones."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from exercises.course import BLANK, DONE, EXERCISES, result_of, state_of
from exercises.graders.e01_forward import case, formula
from exercises.graders.e07_rotary import CONFIG, turned
from exercises.grading import numpy
from exercises.process import Answers, NotWritten, Student, decode, encode, outcome
from gpt.model import rotary_tables

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


class Here(Student):
    """A Student whose file defines these names, in this process; all else is as it is."""

    def __init__(self, names):
        self.names = Answers(names)

    def ask(self, scene, args, kwargs):
        args, kwargs = decode(encode([args, kwargs]))
        return decode(encode(outcome(Path("here.py"), lambda: scene(self.names, *args, **kwargs))))


def grade(exercise, names):
    return [result_of(part, Here(names)) for part in exercise.parts]


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


def not_written(layer):
    raise NotWritten


@pytest.mark.parametrize(
    "names, words",
    [
        ({"merged": lambda layer: layer.no_such_thing}, "AttributeError"),
        ({}, "the file has no merged any more: put it back"),
        ({"merged": not_written}, "not written yet"),
    ],
)
def test_a_crash_and_what_is_missing_are_named(names, words):
    results = grade(EXERCISES[3], names)
    assert words in results[0].sentence and (state_of(results) == BLANK) == ("yet" in words)


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
    cos, sin = rotary_tables(positions, CONFIG)
    x = torch.randn(2, 6, 9, 8)
    theirs = llama.apply_rotary_pos_emb(x, x, cos[None], sin[None])[0]
    np.testing.assert_allclose(turned(numpy(x), positions.numpy()), numpy(theirs), atol=1e-5)
