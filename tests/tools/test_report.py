"""tools/report.py: means and their errors, the table, the picture and the examples."""

import math

import pytest

from questions import Question
from tools.report import aligned, examples_text, mean_and_error, plus_minus


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_n():
    assert mean_and_error([1, 2, 4]) == pytest.approx((7 / 3, math.sqrt(7 / 3) / math.sqrt(3)))
    mean, error = mean_and_error([True, False, False, False])
    assert (mean, error) == pytest.approx((0.25, math.sqrt(0.25 * 0.75 / 3)))
    mean, error = mean_and_error([5.0])
    assert mean == 5 and math.isnan(error)


def test_an_error_that_is_none_is_not_printed():
    assert plus_minus(0.5, 0.0123) == "50.0 +- 1.2"
    assert plus_minus(0.5, math.nan) == "50.0" and plus_minus(1.23456, 0.01, scale=1, digits=3) == "1.235 +- 0.010"


def test_columns_are_aligned():
    assert aligned([["", "a", "long"], ["name", "1.0", "2"]]) == ["         a   long", "name   1.0      2"]


def test_examples_say_what_is_right():
    question = Question("Question: Who?\nAnswer:", ("me", "you"), 1)
    text = examples_text([question], {"untouched": ["me"], "mica": ["you"]})
    assert text.splitlines() == ["Who? (you)", "  untouched  me", "  mica       you  <- right"]
    assert examples_text([], {"untouched": []}) == ""
