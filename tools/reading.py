"""What people bring: texts, folders of documents, and files of questions in our own format, TruthfulQA's or HellaSwag's.

Everything is checked as it is read: a ValueError names the file, the line or item, and what is wrong with it.
"""

import re
from pathlib import Path

from tools.schema import parse_json, read_text

BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
HEADING = re.compile(r"^(?=#{1,6} )", re.MULTILINE)


def read_documents(path):
    """The documents of a text file, or of a folder's .txt and .md files (hidden ones aside): what blank lines separate.

    In an .md file with headings, each begins a document: a chapter stays whole. Of a file of JSON lines {"text": ...}, as
    data sets come, each is a document. Never an empty list: without any text a ValueError is raised.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".txt", ".md"))
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    documents = [document for file in files for document in split_documents(file, read_text(file))]
    if not documents:
        raise ValueError(f"{path} holds no text" + (" (no .txt or .md file with any)" if path.is_dir() else ""))
    return documents


def split_documents(path, text):
    """The documents of one file's text; path: for messages."""
    if Path(path).suffix not in (".jsonl", ".json") and not text.startswith('{"'):
        sections = Path(path).suffix.lower() == ".md" and HEADING.search(text)
        return [part.strip() for part in re.split(HEADING if sections else BLANK_LINE, text) if part.strip()]
    items = json_items(path, text)
    for place, item in items:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise ValueError(f'{place}: not a document {{"text": "..."}}: give plain text, or JSON lines that hold it so')
    return [item["text"].strip() for _, item in items if item["text"].strip()]


def table_name(path):
    """How tables call a file: data/new/cloze.jsonl -> new/cloze."""
    path = Path(path).absolute()
    return f"{path.parent.name}/{path.stem}"


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


def to_our_format(item, primer=""):
    """An item as its file gives it -> the same in our format; what is in ours already, or in none, stays as it is.

    primer: text that TruthfulQA's questions follow. Raises ValueError that says what is wrong with it.
    """
    convert = {"mc1_targets": truthfulqa, "endings": hellaswag}
    for key in convert.keys() & (item.keys() if isinstance(item, dict) else set()):
        try:
            return convert[key](item, primer)
        except (KeyError, TypeError, AttributeError) as error:
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"not a whole question of TruthfulQA or HellaSwag ({said})") from None
    return item


def truthfulqa(item, primer):
    """An item of TruthfulQA (arXiv 2109.07958) -> its MC1 question, after the primer's examples if any.

    "mc1_targets" is {choice: label} in its mc_task.json, {"choices": [...], "labels": [...]} on the Hub.
    """
    targets = item["mc1_targets"]
    if targets.keys() == {"choices", "labels"}:
        choices, labels = targets["choices"], targets["labels"]
    else:
        choices, labels = list(targets.keys()), list(targets.values())
    paired = isinstance(choices, list) and isinstance(labels, list) and len(choices) == len(labels) >= 2
    if not paired or sorted(labels) != [0] * (len(labels) - 1) + [1] or not all(c.strip() for c in choices):
        raise ValueError('"mc1_targets" must give two or more choices, 1 for the right one and 0 for the others')
    if not item["question"].strip():
        raise ValueError('"question" must be a non-empty string')
    prompt = f"Q: {item['question']}\nA:"
    prompt = f"{primer}\n\n{prompt}" if primer else prompt
    return {"prompt": prompt, "choices": choices, "answer": labels.index(1), "benchmark": "TruthfulQA MC1"}


def without_brackets(line):
    """A line without [what is in brackets]. Only up to the last "]" is searched: "[" a thousand times is quadratic else."""
    head, bracket, tail = line.rpartition("]")
    return re.sub(r"\[.*?\]", "", head + bracket) + tail


def hellaswag(item, primer):
    """A line of HellaSwag's validation file (arXiv 1905.07830), cleaned up as lm-evaluation-harness does; no primer."""

    def clean(text):  # WikiHow's texts have leftovers of their layout, in brackets
        lines = text.strip().replace(" [title]", ". ").split("\n")
        return "\n".join(map(without_brackets, lines)).replace("  ", " ")

    prompt = clean(f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}")
    choices, answer = list(map(clean, item["endings"])), item["label"]
    answer = int(answer) if str(answer).isdecimal() else -1  # the test split has none
    several = isinstance(item["endings"], list) and len(choices) >= 2
    if not (several and all(choice.strip() for choice in choices) and 0 <= answer < len(choices)):
        raise ValueError('"endings" must be two or more texts, and "label" the index of the right one')
    attribute = item["activity_label"]
    return {"prompt": prompt, "choices": choices, "answer": answer, "attribute": attribute, "benchmark": "HellaSwag"}
