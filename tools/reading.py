"""What people bring: texts, folders of documents, and files of questions in our own format, TruthfulQA's or HellaSwag's.

Everything is checked as it is read: a ValueError names the file, the line or item, and what is wrong with it.
"""

import json
import re
from pathlib import Path


def read_text(path):
    """The text of a file. Raises ValueError when it is not UTF-8, OSError when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def read_documents(path):
    """The documents of a .txt file, or of a folder's .txt and .md files (hidden ones aside): what blank lines separate.

    Never an empty list: without any text a ValueError is raised.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".txt", ".md"))
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    documents = [part.strip() for file in files for part in re.split(r"\n[ \t\r]*\n", read_text(file)) if part.strip()]
    if not documents:
        raise ValueError(f"{path} holds no text" + (" (no .txt or .md file with any)" if path.is_dir() else ""))
    return documents


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
    text = read_text(path)
    whole = text.lstrip().startswith("[")
    pieces = [(0, text)] if whole else [(n, line) for n, line in enumerate(text.split("\n")) if line.strip()]
    items = []
    for lines_before, piece in pieces:
        try:
            items.append((f"{path}, line {lines_before + 1}", json.loads(piece)))
        except json.JSONDecodeError as error:
            place = f"{path}, line {lines_before + error.lineno}"
            raise ValueError(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
    if whole:
        return [(f"{path}, item {number}", item) for number, item in enumerate(items[0][1], start=1)]
    return items


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
    """An item of TruthfulQA's mc_task.json (arXiv 2109.07958) -> its MC1 question, after the primer's examples if any."""
    choices, labels = list(item["mc1_targets"].keys()), list(item["mc1_targets"].values())
    if sorted(labels) != [0] * (len(labels) - 1) + [1] or len(labels) < 2 or not all(c.strip() for c in choices):
        raise ValueError('"mc1_targets" must give two or more choices, 1 for the right one and 0 for the others')
    if not item["question"].strip():
        raise ValueError('"question" must be a non-empty string')
    prompt = f"Q: {item['question']}\nA:"
    prompt = f"{primer}\n\n{prompt}" if primer else prompt
    return {"prompt": prompt, "choices": choices, "answer": labels.index(1), "benchmark": "TruthfulQA MC1"}


def hellaswag(item, primer):
    """A line of HellaSwag's validation file (arXiv 1905.07830), cleaned up as lm-evaluation-harness does; no primer."""

    def clean(text):  # WikiHow's texts have leftovers of their layout, in brackets
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    prompt = clean(f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}")
    choices, answer = list(map(clean, item["endings"])), item["label"]
    answer = int(answer) if str(answer).isdecimal() else -1  # the test split has none
    several = isinstance(item["endings"], list) and len(choices) >= 2
    if not (several and all(choice.strip() for choice in choices) and 0 <= answer < len(choices)):
        raise ValueError('"endings" must be two or more texts, and "label" the index of the right one')
    attribute = item["activity_label"]
    return {"prompt": prompt, "choices": choices, "answer": answer, "attribute": attribute, "benchmark": "HellaSwag"}
