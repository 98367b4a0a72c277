"""data/check_chronicle.py: the shipped chronicle passes every check, and every check finds what it is there to find."""

import json
import random
import shutil

import pytest

from data.check_chronicle import FOLDER, check_facts, check_questions, corpus, main, read_lines, share_right, shortcuts
from data.chronicle.make_questions import make, share

FACT = {"id": "f1", "chapter": "01", "subject": "Ada", "attribute": "year of birth", "value": "1900"}
FACT |= {"quote": "born in 1900", "kind": "year"}
QUESTION = {"question": "When did Ada come into the world?", "choices": ["1900", "1901", "1902", "1903"]}
QUESTION |= {"answer": 0, "fact": "f1"}


def test_the_program_passes_what_is_shipped_and_says_what_is_wrong(tmp_path, capsys):
    assert main() is False
    assert "facts that do not stand in the text: 0" in capsys.readouterr().out
    folder = tmp_path / "chronicle"
    shutil.copytree(FOLDER, folder)
    lines = read_lines(folder / "questions.jsonl")
    lines[0]["answer"] = (lines[0]["answer"] + 1) % 4
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert main(folder) is True
    assert f"{lines[0]['fact']}: the right answer is not the fact's value" in capsys.readouterr().out


def test_made_again_the_questions_are_the_same():
    assert make(read_lines(FOLDER / "facts.jsonl"), corpus()) == read_lines(FOLDER / "questions.jsonl")


def test_values_of_a_kind_are_shared_evenly():
    facts = [{"id": value, "kind": "k", "value": value, "not": ["c"] if value == "a" else []} for value in "abcdef"]
    wrong = share(facts, random.Random(0))
    assert sorted("".join("".join(three) for three in wrong.values())) == sorted("abcdef" * 3)
    for fact in facts:
        assert len(set(wrong[fact["id"]])) == 3 and not {fact["value"], *fact["not"]} & set(wrong[fact["id"]])


@pytest.mark.parametrize(
    "change, said",
    [({"chapter": "02"}, "does not stand in 02"), ({"value": "1901"}, "does not hold '1901'")],
)
def test_a_fact_that_is_not_told_is_found(change, said):
    (sentence,) = check_facts([FACT | change], {"01": "Ada was born in 1900.", "02": ""})
    assert said in sentence


@pytest.mark.parametrize(
    "change, said",
    [
        ({"choices": ["1900", "1901", "1901", "1902"]}, "not four different"),
        ({"question": "Was Ada born after 1901?"}, "holds the choice '1901'"),
        ({"question": "born in"}, "own wording"),
    ],
)
def test_a_bad_question_is_found(change, said):
    (sentence,) = check_questions([QUESTION | change], [FACT])
    assert said in sentence


def test_an_answer_given_away_is_found():
    other = FACT | {"id": "f2", "attribute": "trade", "value": "smith", "quote": "a smith"}
    choices = ["smith", "cook", "nurse", "clerk"]
    telling = {"question": "What was Ada in 1900?", "choices": choices, "answer": 0, "fact": "f2"}
    assert check_questions([QUESTION, telling], [FACT, other]) == ["f1: given away by f2"]


def test_shortcuts_are_found_and_ties_share_the_credit():
    questions = [
        {"choices": ["longest", "a", "bb", "cc"], "answer": 0},
        {"choices": ["a", "longest", "dd", "ee"], "answer": 1},
    ]
    shares = shortcuts(questions, "Longest, longest! a")
    assert shares["the longest"] == shares["the most frequent in the text"] == 1
    assert shares["the shortest"] == 0 and shares["position 1"] == 0.5
    assert share_right([{"answer": 2}], lambda question: [1, 0, 1, 0]) == 0.5
