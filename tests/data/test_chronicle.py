"""data/check_chronicle.py: the shipped chronicle passes every check, and every check finds what it is there to find."""

import json
import random
import shutil

import pytest

from data.check_chronicle import (
    AT_LEAST,
    FOLDER,
    LIMIT,
    check_facts,
    check_people,
    check_questions,
    corpus,
    main,
    number,
    open_book,
    read_lines,
    share_right,
    shortcuts,
)
from data.chronicle.make_questions import make, share

FACT = {
    "id": "f1",
    "chapter": "01",
    "subject": "Ada",
    "attribute": "year of birth",
    "value": "1900",
    "quote": "born in 1900",
    "kind": "year",
}
QUESTION = {
    "question": "When did Ada come into the world?",
    "choices": ["1900", "1901", "1902", "1903"],
    "answer": 0,
    "fact": "f1",
}


@pytest.fixture(scope="module")
def facts():
    return read_lines(FOLDER / "facts.jsonl")


@pytest.fixture(scope="module")
def questions():
    return read_lines(FOLDER / "questions.jsonl")


@pytest.fixture(scope="module")
def text():
    return corpus()


def test_facts_stand_in_the_text(facts):
    chapters = {path.stem: path.read_text(encoding="utf-8") for path in (FOLDER / "text").glob("*.md")}
    assert len(chapters) >= AT_LEAST["chapters"] and len(facts) >= AT_LEAST["facts"]
    assert check_facts(facts, chapters) == []


def test_lives_are_possible(facts):
    assert check_people(read_lines(FOLDER / "people.jsonl"), facts) == []


def test_questions_fit_their_facts(facts, questions):
    assert len(questions) >= AT_LEAST["questions"]
    assert check_questions(questions, facts) == []


def test_no_shortcut_and_yet_answerable(questions, text):
    shares = shortcuts(questions, text)
    assert max(shares.values()) <= LIMIT, shares
    assert open_book(questions, text) > 0.75


def test_made_again_the_questions_are_the_same(facts, questions, text):
    assert make(facts, text) == questions


def test_values_of_a_kind_are_shared_evenly():
    facts = [{"id": value, "kind": "k", "value": value, "not": ["c"] if value == "a" else []} for value in "abcdef"]
    wrong = share(facts, random.Random(0))
    assert sorted("".join("".join(three) for three in wrong.values())) == sorted("abcdef" * 3)
    for fact in facts:
        assert len(set(wrong[fact["id"]])) == 3 and not {fact["value"], *fact["not"]} & set(wrong[fact["id"]])


@pytest.mark.parametrize(
    "change, said",
    [
        ({"quote": "in the year 1900"}, "does not stand in 01"),
        ({"chapter": "02"}, "does not stand in 02"),
        ({"value": "1901"}, "does not hold '1901'"),
    ],
)
def test_a_fact_that_is_not_told_is_found(change, said):
    (sentence,) = check_facts([{**FACT, **change}], {"01": "Ada was born in 1900.", "02": ""})
    assert said in sentence


def test_a_fact_told_twice_is_found():
    found = check_facts([FACT, FACT], {"01": "Ada was born in 1900."})
    assert found == ["f1: 2 facts have this id", "Ada, year of birth: told 2 times"]


@pytest.mark.parametrize(
    "people, facts",
    [
        ([{"name": "Ada", "born": 1899}], [FACT]),  # another year in the text
        ([{"name": "Ada", "born": 1900, "died": 1899}], []),
        ([{"name": "Ada", "born": 1900, "parents": ["Bo"]}, {"name": "Bo", "born": 1890}], []),
        ([{"name": "Ada", "born": 1900, "parents": ["Bo"]}, {"name": "Bo", "died": 1898}], []),
        ([{"name": "Ada", "spouse": "Bo"}, {"name": "Bo"}], []),
        ([{"name": "Ada", "born": 1900, "ages": {"f1": 1950}}], [{**FACT, "attribute": "age", "value": "forty-eight"}]),
        ([{"name": "Ada", "born": 1900, "died": 1950}], [{**FACT, "year": 1951, "people": ["Ada"]}]),
    ],
)
def test_an_impossible_life_is_found(people, facts):
    assert len(check_people(people, facts)) == 1


@pytest.mark.parametrize(
    "change, said",
    [
        ({"answer": 1}, "not the fact's value"),
        ({"choices": ["1900", "1901", "1901", "1902"]}, "not four different"),
        ({"question": "Was Ada born after 1901?"}, "holds the choice '1901'"),
        ({"question": "born in"}, "own wording"),
    ],
)
def test_a_bad_question_is_found(change, said):
    (sentence,) = check_questions([{**QUESTION, **change}], [FACT])
    assert said in sentence


def test_an_answer_given_away_is_found():
    other = {**FACT, "id": "f2", "attribute": "trade", "value": "smith", "quote": "a smith"}
    choices = ["smith", "cook", "nurse", "clerk"]
    telling = {"question": "What was Ada in 1900?", "choices": choices, "answer": 0, "fact": "f2"}
    assert check_questions([QUESTION, telling], [FACT, other]) == ["f1: given away by f2"]


def test_shortcuts_are_found():
    questions = [
        {"choices": ["longest", "a", "bb", "cc"], "answer": 0},
        {"choices": ["a", "longest", "dd", "ee"], "answer": 1},
    ]
    shares = shortcuts(questions, "Longest, longest! a")
    assert shares["the longest"] == shares["the most frequent in the text"] == 1
    assert shares["the shortest"] == 0 and shares["the least frequent in the text"] == 0
    assert shares["position 1"] == shares["position 2"] == 0.5


def test_ties_share_the_credit():
    assert share_right([{"answer": 2}], lambda question: [1, 0, 1, 0]) == 0.5
    assert share_right([{"answer": 3}], lambda question: [1, 0, 1, 0]) == 0


def test_numbers():
    assert [number(words) for words in ("seven", "nineteen", "forty", "ninety-eight", "1,460")] == [7, 19, 40, 98, 1460]


def test_the_program_says_what_is_wrong(tmp_path, capsys):
    folder = tmp_path / "chronicle"
    shutil.copytree(FOLDER, folder)
    lines = read_lines(folder / "questions.jsonl")
    lines[0]["answer"] = (lines[0]["answer"] + 1) % 4
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert main(folder) is True
    assert f"{lines[0]['fact']}: the right answer is not the fact's value" in capsys.readouterr().out
