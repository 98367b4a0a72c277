"""Write data/general: what a real language model knows before it is taught anything, as questions with four choices.

    python -m data.make_general                  # writes data/general/questions.jsonl and known.jsonl, byte for byte

The facts are in data/general/facts.txt. Four facts at a time are a *quartet*: their four right answers are the choices
of each of the four questions, and the right one stands once in each position. So a rule that looks only at the choices,
or only at their positions, is right in exactly one case out of four.
"""

import json
import random
from pathlib import Path

from tools.cli import Parser, atomic, one_sentence_errors

FOLDER = Path(__file__).parent / "general"
LEFT_OUT = ("calendar and time", "numbers", "reading")  # topics that known.jsonl leaves out; README.md says why


def read_topics(text):
    """facts.txt -> {topic: (form, wording, [(left, right), ...])}; form is "question" or "cloze"."""
    topics = {}
    for line in text.splitlines():
        if line.startswith("== "):
            name, form, wording = line.removeprefix("== ").split(" ; ")
            topics[name] = (form, wording, [])
        elif line and topics:  # before the first topic there is an introduction
            topics[name][2].extend(tuple(fact.split(" = ")) for fact in line.split(" ; "))
    return topics


def ask(topics):
    """Questions about every fact, as eval_qa.py reads them, in the order of facts.txt."""
    questions = []
    for name, (form, wording, facts) in topics.items():
        rng = random.Random(name)  # a change in one topic leaves the others as they are
        for start in range(0, len(facts), 4):
            quartet = facts[start : start + 4]
            for (left, right), position in zip(quartet, rng.sample(range(4), 4), strict=True):
                text = wording.format(left)
                choices = rng.sample([other for _, other in quartet if other != right], 3)
                choices.insert(position, right)
                number = sum(question["attribute"] == name for question in questions) + 1
                subject = left if wording != "{}" else f"{name} {number}"  # there, what is left is the whole question
                question = {form: text[0].upper() + text[1:], "choices": choices, "answer": position}
                questions.append(question | {"subject": subject, "attribute": name})
    return questions


def general():
    """{"questions": all candidates, "known": those of the topics that are kept}."""
    questions = ask(read_topics((FOLDER / "facts.txt").read_text(encoding="utf-8")))
    return {"questions": questions, "known": [q for q in questions if q["attribute"] not in LEFT_OUT]}


def main():
    parser = Parser(prog="make_general.py", description=__doc__)
    parser.add_argument("--out", default=FOLDER, type=Path, help="folder that gets the two files")
    args = parser.parse_args()
    with one_sentence_errors("make_general.py"):
        args.out.mkdir(parents=True, exist_ok=True)
        for name, questions in general().items():
            path = args.out / f"{name}.jsonl"
            with atomic(path) as temporary:
                content = "".join(json.dumps(question) + "\n" for question in questions)
                temporary.write_text(content, encoding="utf-8", newline="\n")
            print(f"{path}: {len(questions)} questions")


if __name__ == "__main__":
    main()
