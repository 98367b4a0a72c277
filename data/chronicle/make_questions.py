"""Write questions.jsonl from facts.jsonl: three wrong choices and a position for the right one.

    python -m data.chronicle.make_questions

A fact with "distractors" takes three of these, such that by length, and by how often it stands in the text, the right
choice comes first, second, third and last about equally often. All others share theirs with the facts of the same
"kind" (men, towns, years of one span, ...), each value being a wrong choice three times for every time it is the right
one, so that to be a likely value says nothing. Values under "not" are never wrong choices there: they would be right
as well, or absurd. Same facts and text, same questions, byte for byte.
"""

import json
import random
from collections import Counter
from functools import cache
from itertools import combinations

from data.check_chronicle import FOLDER, corpus, occurrences, read_lines
from tools.cli import Parser, atomic

SEED = 0


def faults(fact, choices):
    """How many of three wrong choices do not do: right, absurd, or there twice."""
    banned = {fact["value"], *fact.get("not", [])}
    return sum(choice in banned for choice in choices) + 3 - len(set(choices))


def share(facts, rng):
    """{id: three wrong choices} for facts of one kind: their values, each three times as often as it is right.

    Begins with any sharing, and exchanges two choices at random wherever that leaves no more faults than before.
    """
    right = Counter(fact["value"] for fact in facts)
    pool = [value for value, n in right.items() for _ in range(min(3 * n, len(facts) - n))]  # not where it is right
    spare = [value for value in right if 3 * right[value] < len(facts) - right[value]]
    pool += rng.sample(spare, 3 * len(facts) - len(pool))
    rng.shuffle(pool)
    threes = [pool[i : i + 3] for i in range(0, len(pool), 3)]
    for _ in range(100_000):
        faulty = [i for i, fact in enumerate(facts) if faults(fact, threes[i])]
        if not faulty:
            return {fact["id"]: three for fact, three in zip(facts, threes)}
        i, j, a, b = rng.choice(faulty), rng.randrange(len(facts)), rng.randrange(3), rng.randrange(3)
        before = faults(facts[i], threes[i]) + faults(facts[j], threes[j])
        threes[i][a], threes[j][b] = threes[j][b], threes[i][a]
        if faults(facts[i], threes[i]) + faults(facts[j], threes[j]) > before:
            threes[i][a], threes[j][b] = threes[j][b], threes[i][a]
    raise ValueError(f"no way found to share the values of {facts[0]['kind']!r}")


def pick(fact, goal, measures, rng):
    """Three of a fact's distractors, such that about goal[i] of them have more of measures[i] than the right choice."""

    def distance(three):
        above = [sum((m(c) > m(right)) + 0.5 * (m(c) == m(right)) for c in three) for m in measures]
        return sum(abs(a - b) for a, b in zip(above, goal))

    right, threes = fact["value"], list(combinations(fact["distractors"], 3))
    rng.shuffle(threes)
    return list(min(threes, key=distance))


def make(facts, text, seed=SEED):
    """The questions of facts. text: the chronicle, for how often a choice stands in it."""
    text = text.lower()
    measures = [cache(lambda choice: occurrences(choice, text)), len]
    rng = random.Random(f"questions on the chronicle {seed}")
    facts = [fact for fact in facts if "question" in fact]
    own = [fact for fact in facts if "distractors" in fact]
    ranks = [[(i + 0.5) * 3 / len(own) for i in range(len(own))] for _ in measures]  # from 0 to 3, of all alike many
    for rank in ranks:
        rng.shuffle(rank)
    wrong = {fact["id"]: pick(fact, goal, measures, rng) for fact, *goal in zip(own, *ranks)}
    others = [fact for fact in facts if "distractors" not in fact]
    for kind in sorted({fact["kind"] for fact in others}):
        wrong |= share([fact for fact in others if fact["kind"] == kind], rng)
    positions = [i % 4 for i in range(len(facts))]
    rng.shuffle(positions)
    questions = []
    for fact, position in zip(facts, positions):
        choices = wrong[fact["id"]]
        choices.insert(position, fact["value"])
        question = {"question": fact["question"], "choices": choices, "answer": position, "subject": fact["subject"]}
        questions.append(question | {"attribute": fact["attribute"], "fact": fact["id"]})
    return questions


def main():
    Parser(prog="make_questions.py", description=__doc__).parse_args()
    facts = read_lines(FOLDER / "facts.jsonl")
    questions = make(facts, corpus())
    path = FOLDER / "questions.jsonl"
    content = "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")
    print(f"{path}: {len(questions)} questions")


if __name__ == "__main__":
    main()
