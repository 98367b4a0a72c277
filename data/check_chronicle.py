"""Check the chronicle against its table of facts, and its questions against everything that would give them away.

    python -m data.check_chronicle     # a line a check; the exit status is 1 where one fails

What is checked: every quote stands in its chapter and holds the fact's value; questions have their fact's value as the
right answer and are not answered by another question; no rule that needs no reading (the longest choice, the one most
frequent in the text, ...) is right more often than LIMIT.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

from questions import read_questions
from tools.cli import Parser
from tools.reading import read_documents, read_text

FOLDER = Path(__file__).resolve().parent / "chronicle"
LIMIT = 0.30  # of questions that a shortcut may get right; chance is 0.25


def read_lines(path):
    return [json.loads(line) for line in read_text(path).splitlines() if line.strip()]


def corpus(folder=FOLDER):
    return "\n\n".join(read_documents(folder / "text"))


def occurrences(phrase, text):
    """How often a phrase stands in a text (in lower case), from border to border of words."""
    phrase = phrase.lower()
    return len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)) if phrase in text else 0


# --- facts ---


def check_facts(facts, chapters):
    """Sentences that say what is wrong. chapters: {name: text}."""
    ids = Counter(fact["id"] for fact in facts)
    wrong = [f"{name}: {count} facts have this id" for name, count in ids.items() if count > 1]
    for fact in facts:
        if fact["quote"] not in chapters.get(fact["chapter"], ""):
            wrong.append(f"{fact['id']}: its quote does not stand in {fact['chapter']}")
        if fact["value"].lower() not in fact["quote"].lower():
            wrong.append(f"{fact['id']}: its quote does not hold {fact['value']!r}")
    told = Counter((fact["subject"], fact["attribute"]) for fact in facts)
    return wrong + [f"{subject}, {attribute}: told {n} times" for (subject, attribute), n in told.items() if n > 1]


# --- questions ---


def check_questions(questions, facts):
    """Sentences on questions that are not their facts', or that give away an answer."""
    table, wrong = {fact["id"]: fact for fact in facts}, []
    asked = Counter(question["question"] for question in questions)
    wrong += [f"asked {n} times: {text}" for text, n in asked.items() if n > 1]
    for question in questions:
        fact, choices = table.get(question["fact"]), question["choices"]
        if fact is None or choices[question["answer"]] != fact["value"]:
            wrong.append(f"{question['fact']}: the right answer is not the fact's value")
            continue
        if len({choice.lower() for choice in choices}) != 4:
            wrong.append(f"{fact['id']}: not four different choices")
        if set(choices) & set(fact.get("not", [])):
            wrong.append(f"{fact['id']}: a choice that is not to be one")
        for choice in choices:
            if occurrences(choice, question["question"].lower()):
                wrong.append(f"{fact['id']}: the question holds the choice {choice!r}")
        if question["question"].lower() in fact["quote"].lower():
            wrong.append(f"{fact['id']}: the question is the text's own wording")
        for other in questions:
            text = other["question"].lower()
            if other is not question and fact["subject"].lower() in text and occurrences(fact["value"], text):
                wrong.append(f"{fact['id']}: given away by {other['fact']}")
    return wrong


def share_right(questions, scores):
    """How often the choice with the highest score is right; n equal ones count 1/n each. scores: question -> 4."""
    total = 0
    for question in questions:
        values = scores(question)
        best = [i for i, value in enumerate(values) if value == max(values)]
        total += (question["answer"] in best) / len(best)
    return total / len(questions)


def shortcuts(questions, text):
    """{what one could always choose: how often that is right}."""
    text = text.lower()
    count = {choice: occurrences(choice, text) for choice in {c for q in questions for c in q["choices"]}}
    chosen = Counter(choice.lower() for q in questions for choice in q["choices"])
    rules = {
        "the most frequent in the text": lambda q: [count[c] for c in q["choices"]],
        "the least frequent in the text": lambda q: [-count[c] for c in q["choices"]],
        "the longest": lambda q: [len(c) for c in q["choices"]],
        "the shortest": lambda q: [-len(c) for c in q["choices"]],
        "the most frequent as a choice": lambda q: [chosen[c.lower()] for c in q["choices"]],
        "the least frequent as a choice": lambda q: [-chosen[c.lower()] for c in q["choices"]],
    }
    for position in range(4):
        rules[f"position {position + 1}"] = lambda q, position=position: [i == position for i in range(4)]
    return {name: share_right(questions, rule) for name, rule in rules.items()}


# --- the program ---


def main(folder=FOLDER):
    chapters = {path.stem: read_text(path) for path in sorted((folder / "text").glob("*.md"))}
    text = corpus(folder)
    facts, questions = read_lines(folder / "facts.jsonl"), read_lines(folder / "questions.jsonl")
    read_questions(folder / "questions.jsonl")  # raises ValueError where eval_qa.py could not read them
    wrong = []
    print(f"chapters: {len(chapters)}\nwords: {len(text.split()):,}\nfacts: {len(facts)}\nquestions: {len(questions)}")
    for name, found in (
        ("facts that do not stand in the text", check_facts(facts, chapters)),
        ("questions that do not fit their facts, or give away an answer", check_questions(questions, facts)),
    ):
        print(f"{name}: {len(found)}")
        wrong += found
    print("right answers in position 1 to 4:", *(n for _, n in sorted(Counter(q["answer"] for q in questions).items())))
    for name, share in shortcuts(questions, text).items():
        print(f"always {name}: {100 * share:.1f}% right")
        if share > LIMIT:
            wrong.append(f"always {name}: more than {100 * LIMIT:.0f}%")
    print("\n".join(wrong), end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    Parser(prog="check_chronicle.py", description=__doc__).parse_args()
    sys.exit(main())
