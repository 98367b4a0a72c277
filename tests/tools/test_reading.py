"""tools/reading.py: documents, and questions in other formats, as eval_qa.py reads them; what is wrong is named."""

import json
import sys

import pytest

import eval_qa
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
    "ctx": "[header] How to sharpen it [title] Hold it  still. [step]  Press lightly. the OLD fox",
    "split": "val",
    "split_type": "indomain",
    "label": 1,
    "endings": ["jumps over the dog.", " sells shells [title] to dogs. ", "[substeps] Runs."],
    "source_id": "wikihow~7",
}


def write_truthfulqa(path, *items):
    path.write_text(json.dumps(list(items)))
    return path


def write_lines(path, *items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_truthfulqa_is_read_as_it_comes_and_after_a_primer(tmp_path):
    path = write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL, TRUTHFUL | {"question": "Who?"})
    first, second = read_questions(path)
    expected = Question("Q: What do foxes sell?\nA:", tuple(TRUTHFUL["mc1_targets"]), 1, benchmark="TruthfulQA MC1")
    assert first == expected
    choices = list(TRUTHFUL["mc1_targets"])
    hub = {"question": TRUTHFUL["question"], "mc1_targets": {"choices": choices, "labels": [0, 1, 0]}}
    assert read_questions(write_lines(tmp_path / "hub.jsonl", hub)) == [expected]
    assert second.prompt == "Q: Who?\nA:"
    first, second = read_questions(path, PRIMER)
    assert first.prompt == "Q: How many legs has a fox?\nA: It has four legs.\n\nQ: What do foxes sell?\nA:"
    assert (first.choices, first.answer) == (tuple(TRUTHFUL["mc1_targets"]), 1)


def test_hellaswag_is_read_as_it_comes_and_cleaned_up(tmp_path):
    path = write_lines(tmp_path / "hellaswag_val.jsonl", SWAG, SWAG | {"label": "0", "ctx_b": ""})
    for primer in ("", PRIMER):  # which is TruthfulQA's affair
        first, second = read_questions(path, primer)
        # Two of three spaces that a removed [step] leaves stay, as does the space before a choice: the harness's way.
        assert first == Question(
            "Sharpening a pencil: How to sharpen it. Hold it still.  Press lightly. The old fox",
            ("jumps over the dog.", "sells shells. to dogs.", " Runs."),
            1,
            attribute="Sharpening a pencil",
            benchmark="HellaSwag",
        )
        assert second.prompt == "Sharpening a pencil: How to sharpen it. Hold it still.  Press lightly."
        assert second.answer == 0


MALFORMED_BENCHMARKS = {
    "no question": {"mc1_targets": TRUTHFUL["mc1_targets"]},
    "targets no object": TRUTHFUL | {"mc1_targets": [1, 0]},
    "one choice": TRUTHFUL | {"mc1_targets": {"a": 1}},
    "two right": TRUTHFUL | {"mc1_targets": {"a": 1, "b": 1, "c": 0}},
    "uneven": TRUTHFUL | {"mc1_targets": {"choices": ["a", "b"], "labels": [1, 0, 0]}},
    "test split of the Hub": SWAG | {"label": ""},
    "label too large": SWAG | {"label": 3},
    "label negative": SWAG | {"label": -1},
    "nothing but layout": SWAG | {"endings": ["a", "b", " [step] "]},
    "neither": {"ind": 7},
}


@pytest.mark.parametrize("item", MALFORMED_BENCHMARKS.values(), ids=MALFORMED_BENCHMARKS)
def test_a_malformed_item_of_a_benchmark_is_named_with_its_place(tmp_path, item):
    for path, place in (
        (write_truthfulqa(tmp_path / "list.json", TRUTHFUL, item, TRUTHFUL), "item 2"),
        (write_lines(tmp_path / "lines.jsonl", SWAG, item, SWAG), "line 2"),
    ):
        with pytest.raises(ValueError) as error:
            read_questions(path)
        assert str(error.value).startswith(f"{path}, {place}: ")


@pytest.mark.parametrize(
    "read, content, named",
    [
        (read_questions, json.dumps([TRUTHFUL], indent=1).replace("},", "}").encode(), r"file, line \d+: not JSON"),
        (read_questions, b"[]", "file holds no questions"),
        (read_questions, b"ab\xe9", r"file is not UTF-8 text \(byte 2\)"),
        (read_documents, b"ab\xe9", r"file is not UTF-8 text \(byte 2\)"),
        (read_documents, b" \n\n\t\n", "file holds no text"),
        (lambda file: read_documents(file.parent), b"not the name of a text", "holds no text"),
    ],
)
def test_a_file_that_holds_nothing_of_its_kind_is_named(tmp_path, read, content, named):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=named):
        read(tmp_path / "file")


def test_notes_say_which_benchmark_was_read_and_after_which_primer(tmp_path):
    truthful = write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL)
    swag, own = write_lines(tmp_path / "swag.jsonl", SWAG), write_lines(tmp_path / "own.jsonl", json.loads(GOOD))
    primer = tmp_path / "primer.txt"
    primer.write_text(PRIMER + "\n\n")
    name = tmp_path.name
    sets, notes = read_question_sets([own, truthful, swag])
    assert list(sets) == [f"{name}/own", f"{name}/mc_task", f"{name}/swag"]
    assert notes == [f"{name}/mc_task: TruthfulQA MC1, without a primer", f"{name}/swag: HellaSwag"]
    sets, notes = read_question_sets([truthful, own], primer)
    assert notes == [f"{name}/mc_task: TruthfulQA MC1, after the primer in {primer}"]
    assert sets[f"{name}/mc_task"][0].prompt.startswith(PRIMER + "\n\nQ: What")
    assert sets[f"{name}/own"][0].prompt == "Question: Who?\nAnswer:"
    assert read_question_sets([own])[1] == []


def test_a_primer_without_truthfulqa_or_without_text_is_refused(tmp_path):
    (tmp_path / "TruthfulQA").mkdir()
    swag = write_lines(tmp_path / "TruthfulQA" / "swag.jsonl", SWAG)
    primer = tmp_path / "primer.txt"
    primer.write_text(PRIMER)
    with pytest.raises(ValueError, match="which is not among the questions"):
        read_question_sets([swag], primer)
    primer.write_text(" \n")
    with pytest.raises(ValueError, match=r"primer\.txt holds no text"):
        read_question_sets([write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL)], primer)


def test_blank_lines_separate_the_documents_of_a_file(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"one\nstill one\n\n\n  two\r\n \t\r\nthree\n\n")
    assert read_documents(path) == ["one\nstill one", "two", "three"]


def test_headings_separate_the_documents_of_an_md_file_that_has_any(tmp_path):
    text = "Before.\n\n# One\n\na #1\n\nb\n## Two\n#tag\n"
    for name, expected in {
        "book.md": ["Before.", "# One\n\na #1\n\nb", "## Two\n#tag"],
        "book.txt": ["Before.", "# One", "a #1", "b\n## Two\n#tag"],
    }.items():
        (tmp_path / name).write_text(text)
        assert read_documents(tmp_path / name) == expected
    (tmp_path / "notes.md").write_text("one\n\ntwo")
    assert read_documents(tmp_path / "notes.md") == ["one", "two"]


def test_a_folder_gives_the_documents_of_its_txt_and_md_files_in_order(tmp_path):
    (tmp_path / "deeper").mkdir()
    for name, text in {"b.txt": "b1\n\nb2", "a.md": "a", "deeper/c.txt": "c", "d.py": "d", "empty.txt": ""}.items():
        (tmp_path / name).write_text(text)
    for hidden in (".trash/a.md", ".b.txt"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("hidden")
    assert read_documents(tmp_path) == ["a", "b1", "b2", "c"]


def test_benchmarks_are_measured_and_named_below_the_table(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    truthful = write_truthfulqa(tmp_path / "mc_task.json", TRUTHFUL, TRUTHFUL)
    swag = write_lines(tmp_path / "swag.jsonl", SWAG, SWAG, SWAG)
    primer = tmp_path / "primer.txt"
    primer.write_text(PRIMER)
    arguments = ["--qa", truthful, swag, "--primer", primer, "--scores", tmp_path / "scores.jsonl"]
    monkeypatch.setattr(sys, "argv", ["eval_qa.py", "--model", str(tiny_llama_folder), *map(str, arguments)])
    eval_qa.main()
    name = tmp_path.name
    _, first, second, *notes = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == [f"{name}/mc_task", "2"] and second.split()[:2] == [f"{name}/swag", "3"]
    assert notes == [f"{name}/mc_task: TruthfulQA MC1, after the primer in {primer}", f"{name}/swag: HellaSwag"]
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["benchmark"] for line in lines] == ["TruthfulQA MC1"] * 2 + ["HellaSwag"] * 3
    assert lines[0]["prompt"].startswith(PRIMER)
