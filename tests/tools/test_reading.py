"""tools/reading.py: documents, and questions in other formats, as eval_qa.py reads them; what is wrong is named."""

import json
import os

import pytest

from questions import Question, read_question_sets, read_questions
from tools.reading import read_documents

GOOD = '{"question": "Who?", "choices": ["me", "you"], "answer": 1}'
# Made-up items in the two benchmarks' formats.
TRUTHFUL = {
    "question": "What do foxes sell?",
    "mc1_targets": {"Nothing": 0, "They sell nothing, as far as is known": 1, "Sea shells": 0},
    "mc2_targets": {"Nothing": 1, "They sell nothing, as far as is known": 1, "Sea shells": 0},
}

PRIMER = "Q: How many legs has a fox?\nA: It has four legs."

SWAG = {
    "ind": 7,
    "activity_label": "Sharpening a pencil",
    "ctx_a": "[header] How to sharpen it [title] Hold it  still. [step]  Press lightly.",
    "ctx_b": "the OLD fox",
    "label": 1,
    "endings": ["jumps over the dog.", " sells shells [title] to dogs. ", "[substeps] Runs."],
}


def write_truthfulqa(path, *items):
    path.write_text(json.dumps(list(items)))
    return path


def write_lines(path, *items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_truthfulqa_is_read_as_it_comes_and_after_a_primer(tmp_path):
    path = write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL, TRUTHFUL)
    choices = list(TRUTHFUL["mc1_targets"])
    expected = Question("Q: What do foxes sell?\nA:", tuple(choices), 1, benchmark="TruthfulQA MC1")
    hub = TRUTHFUL | {"mc1_targets": {"choices": choices, "labels": [0, 1, 0]}}
    assert read_questions(path) == [expected] * 2
    assert read_questions(write_lines(tmp_path / "hub.jsonl", hub)) == [expected]
    assert read_questions(path, PRIMER)[0].prompt == f"{PRIMER}\n\nQ: What do foxes sell?\nA:"


def test_hellaswag_is_read_as_it_comes_and_cleaned_up(tmp_path):
    path = write_lines(tmp_path / "hellaswag_val.jsonl", SWAG, SWAG | {"label": "0", "ctx_b": ""})
    first, second = read_questions(path, PRIMER)  # which is TruthfulQA's affair
    # Two of three spaces that a removed [step] leaves stay, as does the space before a choice: the harness's way.
    prompt = "Sharpening a pencil: How to sharpen it. Hold it still.  Press lightly."
    choices, notes = (
        ("jumps over the dog.", "sells shells. to dogs.", " Runs."),
        ("", "Sharpening a pencil", "HellaSwag"),
    )
    assert first == Question(f"{prompt} The old fox", choices, 1, *notes)
    assert second == Question(prompt, choices, 0, *notes)


@pytest.mark.parametrize(
    "item",
    [
        TRUTHFUL | {"mc1_targets": {"a": 1, "b": 1, "c": 0}},
        TRUTHFUL | {"mc1_targets": {"choices": ["a", "b"], "labels": [1, 0, 0]}},
        SWAG | {"label": ""},  # as in the test split
        SWAG | {"endings": ["a", "b", " [step] "]},  # nothing but layout
        {"ind": 7},
    ],
)
def test_a_malformed_item_of_a_benchmark_is_named_with_its_place(tmp_path, item):
    path = write_truthfulqa(tmp_path / "list.json", TRUTHFUL, item, TRUTHFUL)
    with pytest.raises(ValueError, match=f"^{path}, item 2: "):
        read_questions(path)


def test_notes_say_which_benchmark_was_read_and_after_which_primer(tmp_path):
    truthful = write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL)
    swag, own = write_lines(tmp_path / "swag.jsonl", SWAG), write_lines(tmp_path / "own.jsonl", json.loads(GOOD))
    primer, name = tmp_path / "primer.txt", tmp_path.name
    primer.write_text(PRIMER + "\n\n")
    sets, notes = read_question_sets([own, truthful, swag])
    assert list(sets) == [f"{name}/own", f"{name}/mc_task", f"{name}/swag"]
    assert notes == [f"{name}/mc_task: TruthfulQA MC1, without a primer", f"{name}/swag: HellaSwag"]
    sets, notes = read_question_sets([truthful, own], primer)
    assert notes == [f"{name}/mc_task: TruthfulQA MC1, after the primer in {primer}"]
    assert sets[f"{name}/mc_task"][0].prompt.startswith(PRIMER + "\n\nQ: What")
    assert sets[f"{name}/own"][0].prompt == "Question: Who?\nAnswer:"
    with pytest.raises(ValueError, match="which is not among the questions"):
        read_question_sets([swag], primer)


# --- documents --------------------------------------------------------------------------------------------------------

BOOK = "Before.\n\n# One\n\na #1\n\nb\n## Two\n#tag\n"
DOCUMENTS = [  # a file, what is in it, its documents
    ("corpus.txt", "one\nstill one\n\n\n  two\r\n \t\r\nthree\n\n", ["one\nstill one", "two", "three"]),
    ("marks.txt", "\ufeffone\n\u00a0\n\ufefftwo\u00a0words\n \t\n\u00a0\ufeff\n", ["one", "two words"]),
    ("book.md", BOOK, ["Before.", "# One\n\na #1\n\nb", "## Two\n#tag"]),
    ("book.txt", BOOK, ["Before.", "# One", "a #1", "b\n## Two\n#tag"]),
    ("notes.md", "one\n\ntwo", ["one", "two"]),
    ("corpus.jsonl", '{"text": " The fox.\\n\\nThe dog. "}\n{"text": "Two", "meta": {}}\n{"text": " "}\n',
     ["The fox.\n\nThe dog.", "Two"]),
    ("list.txt", '[\n {"text": "a"}, {"text": "b"}]', ["a", "b"]),  # JSON under the name of a text
    ("curly.txt", "{curly} text, not JSON\n\n{'a': 1}", ["{curly} text, not JSON", "{'a': 1}"]),
]  # fmt: skip


@pytest.mark.parametrize("name, text, documents", DOCUMENTS, ids=[name for name, *_ in DOCUMENTS])
def test_what_separates_the_documents_of_a_file(tmp_path, name, text, documents):
    (tmp_path / name).write_bytes(text.encode())
    assert read_documents(tmp_path / name) == documents


@pytest.mark.parametrize(
    "name, content, named",
    [
        ("a.txt", b"ab\xe9", r"a.txt is not UTF-8 text \(byte 2\)"),
        ("a.txt", "The fox".encode("utf-16-le"), "a.txt .*UTF-16.*UTF-8"),
        ("a.txt", b" \n\n\t\n", "a.txt holds no text"),
        (".", b"", "holds no text"),
        ("a.jsonl", b'{"text": "a"}\n{"title": "b"}\n', "a.jsonl, line 2: not a document"),
        ("a.jsonl", b"plain text", r"a.jsonl, line 1: not JSON \("),
        ("pipe", b"", "pipe is a folder, pipe or device"),
    ],
)
def test_a_file_that_holds_no_documents_is_named(tmp_path, name, content, named):
    os.mkfifo(tmp_path / "pipe")
    if name not in (".", "pipe"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=named):
        read_documents(tmp_path / name)


def test_a_folder_gives_the_documents_of_its_txt_and_md_files_in_order_each_once(tmp_path, capsys):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    texts = {"b.TXT": "b1\n\nb2", "a.md": "a", "deeper.md/c.txt": "c", "d.py": "d", "empty.txt": "", ".b.txt": "hidden"}
    for path, text in {**{corpus / name: text for name, text in texts.items()}, elsewhere / "e.txt": "e"}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "back").symlink_to(corpus)
    (corpus / "again.txt").symlink_to("b.TXT")
    (corpus / "broken.md").symlink_to("nowhere.md")
    assert sorted(read_documents(corpus)) == ["a", "b1", "b2", "c", "e"]
    (said,) = capsys.readouterr().err.splitlines()
    assert "is skipped" in said and "broken.md" in said
