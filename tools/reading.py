"""What people bring: texts, folders of documents, and files of questions in our own format, TruthfulQA's or HellaSwag's.

Everything is checked as it is read: a ValueError names the file, the line or item, and what is wrong with it.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.schema import build, parse_json, read_text

BLANK_LINE = re.compile(r"\n\s*\n")
HEADING = re.compile(r"^(?=#{1,6} )", re.MULTILINE)


def read_documents(path):
    """The documents of a text file, or of a folder's .txt and .md files (text_files): what blank lines separate.

    In an .md file with headings, each begins a document: a chapter stays whole. Of a file of JSON lines {"text": ...}, as
    data sets come, each is a document. Byte-order marks are taken off wherever they are, and a no-break space is a space.
    Never an empty list: without any text a ValueError is raised.
    """
    path = Path(path)
    files = text_files(path) if path.is_dir() else [path]
    documents = [document for file in files for document in split_documents(file, read_text(file))]
    if not documents:
        raise ValueError(f"{path} holds no text" + (" (no .txt or .md file with any)" if path.is_dir() else ""))
    return documents


def text_files(folder):
    """The .txt and .md files in a folder and below, in order, each once, hidden ones aside; links are followed.

    A line on stderr names what is called so but is no file: a broken link, say.
    """

    def stop(error):  # os.walk would leave out what it cannot read
        raise error

    found, entered = {}, set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        here, folders[:] = Path(place), [name for name in folders if not name.startswith(".")]
        if here.resolve() in entered:
            folders.clear()  # a link that leads back
            continue
        entered.add(here.resolve())
        for file in (here / name for name in files):
            if file.suffix.lower() in (".txt", ".md") and not file.name.startswith("."):
                if file.is_file():
                    found.setdefault(file.resolve(), file)
                else:
                    print(f"note: {file} is skipped: it is a broken link, or no file", file=sys.stderr)
    return sorted(found.values())


def split_documents(path, text):
    """The documents of one file's text; path: for messages."""
    text = text.replace("\ufeff", "").replace("\u00a0", " ")
    if Path(path).suffix not in (".jsonl", ".json") and not re.match(r'\s*\[?\s*\{\s*"', text):
        sections = Path(path).suffix.lower() == ".md" and HEADING.search(text)
        return [part.strip() for part in re.split(HEADING if sections else BLANK_LINE, text) if part.strip()]
    items = json_items(path, text)
    for place, item in items:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise ValueError(
                f'{place}: not a document {{"text": "..."}}: give plain text, or JSON lines that hold it so'
            )
    return [item["text"].strip() for _, item in items if item["text"].strip()]


def table_name(path):
    """How tables call a file: data/new/cloze.jsonl -> new/cloze. What is not UTF-8 in a name is "?"."""
    path = Path(path).absolute()
    return f"{path.parent.name}/{path.stem}".encode("utf-8", "replace").decode("utf-8")


def read_named(paths, read):
    """{table_name(path): read(path)}. Raises ValueError for two different files that tables would call the same."""
    contents, read_from = {}, {}
    for path in paths:
        name, file = table_name(path), Path(path).resolve()
        if read_from.setdefault(name, file) != file:
            raise ValueError(f"{path} is a second file that tables would call {name}: rename one of them")
        if name not in contents:
            contents[name] = read(path)
    return contents


# --- questions ---------------------------------------------------------------------------------------------------------


def read_json_items(path):
    """[(place, item), ...] of a file of JSON objects, one a line, or of one JSON list; place is for error messages."""
    return json_items(path, read_text(path))


def json_items(path, text):
    if text.lstrip().startswith("["):
        return [(f"{path}, item {number}", item) for number, item in enumerate(parse_json(text, path), start=1)]
    places = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [(place, parse_json(line, place)) for place, line in places]


@dataclass
class TruthfulQA:
    """A question of TruthfulQA (arXiv 2109.07958) in its multiple-choice form MC1."""

    question: str
    mc1_targets: dict  # {choice: label} in its mc_task.json, {"choices": [...], "labels": [...]} on the Hub


@dataclass
class Targets:
    choices: list[str]
    labels: list[int]


@dataclass
class HellaSwag:
    """A line of HellaSwag's validation file (arXiv 1905.07830)."""

    activity_label: str
    ctx_a: str
    ctx_b: str
    endings: list[str]
    label: int | str  # index of the right ending; the test split has none


def to_our_format(item, primer=""):
    """An item as its file gives it -> the same in our format; what is in ours already, or in none, stays as it is.

    primer: text that TruthfulQA's questions follow. Raises ValueError that says what is wrong with it.
    """
    keys = item.keys() if isinstance(item, dict) else ()
    if "mc1_targets" in keys:
        return from_truthfulqa(build(TruthfulQA, item), primer)
    return from_hellaswag(build(HellaSwag, item)) if "endings" in keys else item


def from_truthfulqa(item, primer):
    raw = item.mc1_targets
    if raw.keys() != {"choices", "labels"}:
        raw = {"choices": list(raw.keys()), "labels": list(raw.values())}
    targets = build(Targets, raw)
    if len(targets.choices) != len(targets.labels) or sorted(targets.labels) != [0] * (len(targets.labels) - 1) + [1]:
        raise ValueError('"mc1_targets" must give 1 for the right choice and 0 for each other')
    prompt = f"Q: {item.question}\nA:"
    prompt = f"{primer}\n\n{prompt}" if primer else prompt
    answer = targets.labels.index(1)
    return {"prompt": prompt, "choices": targets.choices, "answer": answer, "benchmark": "TruthfulQA MC1"}


def from_hellaswag(item):
    """Cleaned up as lm-evaluation-harness does; without a primer."""

    def clean(text):  # WikiHow's texts have leftovers of their layout, in brackets
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    prompt = clean(f"{item.activity_label}: {item.ctx_a} {item.ctx_b.capitalize()}")
    choices, answer = list(map(clean, item.endings)), int(item.label) if str(item.label).isdecimal() else -1
    attribute = item.activity_label
    return {"prompt": prompt, "choices": choices, "answer": answer, "attribute": attribute, "benchmark": "HellaSwag"}
