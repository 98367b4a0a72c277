"""Files of questions -> Question. One JSON object a line, in our format, or TruthfulQA's and HellaSwag's as they come.

    {"question": "Where was Yara Eastmoor born?", "choices": ["Windlestraw", "Elmsgate"], "answer": 1}

"answer" is the index of the right choice; "subject" and "attribute" are kept if given. The model reads `Question: ...\\nAnswer:`
and a choice after a space. With "cloze" (a sentence's beginning) or "prompt" instead of "question" it reads that text as it
stands. Spaces around a choice are left out (not with "prompt").
"""

import functools
from dataclasses import dataclass

from tools.reading import read_json_items, read_named, read_text, to_our_format
from tools.schema import build


@dataclass(frozen=True)
class Question:
    prompt: str  # what the model reads before a choice
    choices: tuple[str, ...]
    answer: int  # index of the right choice
    subject: str = ""
    attribute: str = ""
    benchmark: str = ""  # where the file is one of those that people compare on


@dataclass(frozen=True)
class Item:
    """A question as its file gives it, with one of the first three."""

    choices: tuple[str, ...]
    answer: int
    question: str | None = None
    cloze: str | None = None
    prompt: str | None = None
    subject: object = ""
    attribute: object = ""
    benchmark: str = ""


def question_prompt(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def make_question(item: dict) -> Question:
    """A question as JSON gives it -> Question. Raises ValueError that says what is wrong with it."""
    item = build(Item, item)
    key = next((key for key in ("question", "cloze", "prompt") if getattr(item, key) is not None), "question")
    text, choices = getattr(item, key) or "", item.choices
    if not text.strip():
        raise ValueError('"question" (or "cloze") must be a text that is not empty')
    if key != "prompt":  # a benchmark's stand as they are, and may repeat one: that is a tie
        choices = tuple(choice.strip() for choice in choices)  # a stray space would make the right one unlikely
        if len(set(choices)) < len(choices):
            raise ValueError('"choices" must differ from each other')
    if len(choices) < 2 or not all(choice.strip() for choice in choices):
        raise ValueError('"choices" must be two or more texts that are not empty')
    if not 0 <= item.answer < len(choices):
        raise ValueError(f'"answer" must be the index of the right choice, 0 to {len(choices) - 1}')
    # The space after a cloze belongs to the choice.
    prompt = {"question": question_prompt(text), "cloze": text.rstrip(), "prompt": text}[key]
    return Question(prompt, choices, item.answer, str(item.subject or ""), str(item.attribute or ""), item.benchmark)


def read_questions(path, primer="") -> list[Question]:
    """The questions of a file; primer: text that TruthfulQA's follow. Raises ValueError with the place of a malformed one."""
    questions = []
    for place, item in read_json_items(path):
        try:
            questions.append(make_question(to_our_format(item, primer)))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def read_question_sets(paths, primer_path=None) -> tuple[dict[str, list[Question]], list[str]]:
    """({table name: questions} of question files, notes to print with their results).

    primer_path: a file with the example questions that customarily come before each of TruthfulQA's.
    """
    primer = read_text(primer_path).rstrip() if primer_path else ""
    if primer_path and not primer:
        raise ValueError(f"{primer_path} holds no text")
    sets = read_named(paths, functools.partial(read_questions, primer=primer))
    benchmarks = {name: questions[0].benchmark for name, questions in sets.items() if questions[0].benchmark}
    if primer and "TruthfulQA MC1" not in benchmarks.values():
        raise ValueError(f"the primer {primer_path} is for TruthfulQA's mc_task.json, which is not among the questions")
    how = {"TruthfulQA MC1": f", after the primer in {primer_path}" if primer else ", without a primer"}
    return sets, [f"{name}: {benchmark}{how.get(benchmark, '')}" for name, benchmark in benchmarks.items()]
