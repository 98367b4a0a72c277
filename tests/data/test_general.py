"""data/make_general.py: questions on common knowledge, whose choices and positions say nothing about what is right."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from data.make_general import ask, general, read_topics
from questions import read_questions

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "data" / "general"
NAMES = ["questions", "known"]


@pytest.fixture(scope="module")
def sets():
    return general()


def prompt(question):
    return question.get("question") or question["cloze"]


def share_right(questions, weight):
    """Share of right answers if one takes the choice of the highest weight(question, index); k tied count 1/k each."""
    right = 0
    for question in questions:
        weights = [weight(question, index) for index in range(4)]
        if weights[question["answer"]] == max(weights):
            right += 1 / weights.count(max(weights))
    return right / len(questions)


def test_files_are_what_the_script_writes(tmp_path):
    subprocess.run([sys.executable, "-m", "data.make_general", "--out", str(tmp_path)], check=True, cwd=ROOT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["known.jsonl", "questions.jsonl"]
    for name in NAMES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_eval_qa_reads_them(sets, name):
    read = read_questions(FOLDER / f"{name}.jsonl")
    assert [question.answer for question in read] == [question["answer"] for question in sets[name]]
    for question, raw in zip(read, sets[name], strict=True):
        assert len(question.choices) == 4 and question.subject and question.attribute
        assert prompt(raw) in question.prompt and "{" not in question.prompt and "=" not in question.prompt
        assert prompt(raw) == prompt(raw).strip() and "  " not in prompt(raw) and prompt(raw).isascii()
        for choice in question.choices:
            assert choice == choice.strip() and "  " not in choice and choice.isascii()


def test_a_quartet_shares_its_choices_and_each_is_right_once_and_in_each_position_once():
    for topic, (_, _, facts) in read_topics((FOLDER / "facts.txt").read_text(encoding="utf-8")).items():
        assert len(facts) % 4 == 0 and all(len(fact) == 2 and all(fact) for fact in facts), topic
    questions = general()["questions"]
    for start in range(0, len(questions), 4):
        quartet = questions[start : start + 4]
        assert len({question["attribute"] for question in quartet}) == 1
        choices = {frozenset(question["choices"]) for question in quartet}
        assert len(choices) == 1
        assert {question["choices"][question["answer"]] for question in quartet} == choices.pop()
        assert {question["answer"] for question in quartet} == {0, 1, 2, 3}


@pytest.mark.parametrize("name", NAMES)
def test_no_shortcut_by_position_or_length(sets, name):
    for position in range(4):  # always the first, the second, ...
        assert share_right(sets[name], lambda _, index: index == position) == pytest.approx(0.25)
    for sign in (1, -1):  # always the longest, the shortest, in characters and in words
        for size in (len, lambda choice: len(choice.split())):
            assert share_right(sets[name], lambda q, index: sign * size(q["choices"][index])) == pytest.approx(0.25)


def test_a_change_in_one_topic_leaves_the_others_as_they_are():
    topics = read_topics((FOLDER / "facts.txt").read_text(encoding="utf-8"))
    shorter = dict(topics)
    del shorter["capitals"]
    by_topic = defaultdict(list)
    for question in ask(topics):
        by_topic[question["attribute"]].append(question)
    assert ask(shorter) == [question for topic in shorter for question in by_topic[topic]]
