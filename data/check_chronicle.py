"""Check the chronicle against its table of facts, and its questions against everything that would give them away.

    python data/check_chronicle.py     # a line a check; the exit status is 1 where one fails

What is checked: every quote stands in its chapter and holds the fact's value; people are born before they do anything
and do nothing when dead, parents and ages fit; questions have their fact's value as the right answer and are not
answered by another question; no rule that needs no reading (the longest choice, the one most frequent in the text,
...) is right more often than LIMIT.
"""

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from questions import read_questions
from tools.cli import Parser
from tools.reading import read_documents, read_text

FOLDER = Path(__file__).resolve().parent / "chronicle"
LIMIT = 0.30  # of questions that a shortcut may get right; chance is 0.25
AT_LEAST = {"chapters": 24, "words": 18_000, "facts": 300, "questions": 300}
UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
BORN_DIED = {"year of birth": "born", "year of death": "died"}  # attributes of facts -> those of people
TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10)))


def read_lines(path):
    return [json.loads(line) for line in read_text(path).splitlines() if line.strip()]


def corpus(folder=FOLDER):
    return "\n\n".join(read_documents(folder / "text"))


def number(words):
    """seventy-two -> 72; 1,460 -> 1460."""
    if words in UNITS:
        return UNITS.index(words)
    ten, _, unit = words.partition("-")
    return TENS[ten] + (UNITS.index(unit) if unit else 0) if ten in TENS else int(words.replace(",", ""))


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


def check_people(people, facts):
    """Sentences on lives that cannot have been so: born, died, parents, spouses, ages, and the years of facts."""
    lives, table, wrong = {person["name"]: person for person in people}, {fact["id"]: fact for fact in facts}, []
    for name, person in lives.items():
        born, died = person.get("born"), person.get("died")
        if born and died and not 0 < died - born < 105:
            wrong.append(f"{name}: lived from {born} to {died}")
        for parent in person.get("parents", []):
            if born and lives[parent].get("born") and not 15 <= born - lives[parent]["born"] <= 60:
                wrong.append(f"{name}: born in {born}, {parent} in {lives[parent]['born']}")
            if born and lives[parent].get("died") and born > lives[parent]["died"] + 1:
                wrong.append(f"{name}: born in {born}, {parent} died in {lives[parent]['died']}")
        spouse = person.get("spouse")
        if spouse and lives[spouse].get("spouse") != name:
            wrong.append(f"{name}: married to {spouse}, who is not married to {name}")
        for fact, year in person.get("ages", {}).items():
            if year - born - number(table[fact]["value"]) not in (0, 1):
                wrong.append(f"{name}: born in {born}, {table[fact]['value']} in {year} ({fact})")
    for fact in facts:
        if fact["kind"].startswith("year") and fact["subject"] in lives and fact["attribute"] in BORN_DIED:
            year = lives[fact["subject"]].get(BORN_DIED[fact["attribute"]])
            if year != int(fact["value"]):
                wrong.append(f"{fact['id']}: {fact['value']}, but {year} in people.jsonl")
        for name in fact.get("people", []):
            born, died = lives[name].get("born", 0), lives[name].get("died", 9999)
            if not born <= fact["year"] <= died:
                wrong.append(f"{fact['id']}: {name} ({born} to {died}) in {fact['year']}")
    return wrong


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


def open_book(questions, text):
    """How often a mere index finds the answer: the choice whose paragraph shares the rarest words with the question.

    Not a shortcut: it has the book open. It shows that the text answers the questions, though in other words.
    """
    texts = text.lower().split("\n\n")
    words = [set(re.findall(r"\w+", text)) for text in texts]
    found = Counter(word for paragraph in words for word in paragraph)
    choices = {choice for question in questions for choice in question["choices"]}
    places = {choice: [i for i, text in enumerate(texts) if occurrences(choice, text)] for choice in choices}

    def scores(question):
        asked = set(re.findall(r"\w+", question["question"].lower()))
        rarity = {word: math.log(len(words) / found[word]) for word in asked if found[word]}

        def nearest(choice):
            return max((math.fsum(rarity[word] for word in asked & words[i]) for i in places[choice]), default=0)

        return [nearest(choice) for choice in question["choices"]]

    return share_right(questions, scores)


# --- the program ---


def main(folder=FOLDER):
    chapters = {path.stem: read_text(path) for path in sorted((folder / "text").glob("*.md"))}
    text = corpus(folder)
    facts, people = read_lines(folder / "facts.jsonl"), read_lines(folder / "people.jsonl")
    questions = read_lines(folder / "questions.jsonl")
    read_questions(folder / "questions.jsonl")  # raises ValueError where eval_qa.py could not read them
    wrong = []
    sizes = {"chapters": len(chapters), "words": len(text.split()), "facts": len(facts), "questions": len(questions)}
    for name, size in sizes.items():
        print(f"{name}: {size:,}")
        if size < AT_LEAST[name]:
            wrong.append(f"less than {AT_LEAST[name]:,} {name}")
    for name, found in (
        ("facts that do not stand in the text", check_facts(facts, chapters)),
        ("lives that cannot have been so", check_people(people, facts)),
        ("questions that do not fit their facts, or give away an answer", check_questions(questions, facts)),
    ):
        print(f"{name}: {len(found)}")
        wrong += found
    print("right answers in position 1 to 4:", *(n for _, n in sorted(Counter(q["answer"] for q in questions).items())))
    for name, share in shortcuts(questions, text).items():
        print(f"always {name}: {100 * share:.1f}% right")
        if share > LIMIT:
            wrong.append(f"always {name}: more than {100 * LIMIT:.0f}%")
    index = open_book(questions, text)
    print(f"with the text open, the choice in the paragraph nearest to the question: {100 * index:.1f}% right")
    print("\n".join(wrong), end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    Parser(prog="check_chronicle.py", description=__doc__).parse_args()
    sys.exit(main())
