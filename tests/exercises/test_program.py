"""python -m exercises: one student, a class with those who cheat, the student edition; the measuring parts."""

import io
import json
import pickle
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from exercises import measuring
from exercises.__main__ import main
from exercises.course import EXERCISES, FOLDER, ROOT, same_answers
from exercises.edition import emptied
from exercises.process import Student, constant, decode

WORTH = sum(exercise.points for exercise in EXERCISES)
COUNT = len(EXERCISES)
PUT_IN = "\nfrom answers.{} import REFERENCE  # noqa\nglobals().update(REFERENCE)\n"


@pytest.fixture
def folder(tmp_path):
    return blank(tmp_path / "ada")


def blank(folder):
    """A copy of the students' files."""
    folder.mkdir()
    for exercise in EXERCISES:
        shutil.copy(FOLDER / f"{exercise.file}.py", folder)
    return folder


def put_in(folder, exercise, text=None):
    """Append the reference, or any text, to a student's file."""
    with open(folder / f"{exercise.file}.py", "a", encoding="utf-8") as file:
        file.write(text or PUT_IN.format(exercise.file))


def graded(capsys, *arguments, done=False):
    """What it prints, by lines; its exit code is 1 unless all is done."""
    if done:
        main(list(map(str, arguments)))
    else:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        assert ended.value.code == 1
    return capsys.readouterr().out.splitlines()


def test_from_blank_to_done(folder, capsys):
    lines = graded(capsys, "--folder", folder)
    assert lines[-1] == f"0 of {COUNT} done, 0 of {WORTH} points" and len(lines) == COUNT + 1
    some = [EXERCISES[number - 1] for number in (2, 4, 5, 11)]  # test_graders.py has them all
    for exercise in some:
        put_in(folder, exercise)
    lines = graded(capsys, 2, 4, 5, 11, "--folder", folder, done=True)
    worth = sum(exercise.points for exercise in some)
    assert lines[-1] == f"4 of 4 done, {worth} of {worth} points"
    assert {line[4:8] for line in lines[:-1]} == {"done"}
    put_in(folder, EXERCISES[3], "\ndef merged(layer):\n    return layer.linear\n")
    lines = graded(capsys, 5, 4, "--folder", folder)
    assert lines[0].startswith(" 4  not yet   0 of  7 points") and lines[-1] == "1 of 2 done, 8 of 15 points"
    assert lines[1].startswith("      merged: your merged changes the layer: make a new nn.Linear")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("def merged(layer)\n    return 1\n", "e04_merging.py cannot be loaded: expected ':' (line 1)"),
        ("from exercises import NotWritten\nraise NotWritten\n", "NotWritten:  (line 2 of e04_merging.py)"),
        ("import sys\nsys.exit('done')\n", "SystemExit: done"),
        ("x = 1\n", "the file has no merged any more"),
        ("def merged(layer):\n    return layer.weights\n", "(line 2 of e04_merging.py)"),
        ("import os\ndef merged(layer):\n    os._exit(0)\n", "no answer came back (exit code 0"),
        (None, "FileNotFoundError"),
    ],
)
def test_a_file_that_does_not_work_is_one_sentence(tmp_path, capsys, monkeypatch, text, sentence):
    if text is not None:
        (tmp_path / "e04_merging.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = graded(capsys, 4, "--folder", ".")
    assert len(lines) == 3 and sentence in lines[1]


REPLACED = """
import exercises.course, exercises.grading, exercises.process
exercises.grading.require = exercises.grading.judge = lambda *a, **k: None
exercises.course.result_of = lambda part, error: exercises.course.Result(part, "done")
exercises.process.called = lambda student, name, *args: (args, args)
"""
# Whoever writes into every pipe there is finds that only arrays are read from it.
FORGED = """
import io, os, pickle, torch
class Evil:
    def __reduce__(self):
        return os.mkdir, ("{}",)
for fd in range(3, 64):
    try:
        os.write(fd, len(pickle.dumps(Evil())).to_bytes(4, "big") + pickle.dumps(Evil()))
    except OSError:
        pass
"""


def test_a_class(tmp_path, capsys):
    names = ("ada", "ben", "cyd", "dan", "eve", "fay", "gil")
    ada, ben, cyd, dan, eve, fay, gil = (blank(tmp_path / name) for name in names)
    for exercise in (EXERCISES[1], EXERCISES[4]):
        put_in(ada, exercise)
        put_in(cyd, exercise, "\nwhile True:\n    pass\n")
        put_in(dan, exercise, "\nraise ZeroDivisionError('\\x00\\x1b')\n")  # what XML cannot hold
        put_in(eve, exercise, REPLACED)
        put_in(fay, exercise, FORGED.format(tmp_path / "evil"))
        put_in(gil, exercise, "\nprint('2 of 2 done')\nimport os\nos._exit(0)\n")
    put_in(ben, EXERCISES[4], PUT_IN.format("e05_packing").replace("REFERENCE)", "REFERENCE)  # mine"))
    files = ["--json", tmp_path / "class.json", "--junit", tmp_path / "class.xml"]
    lines = graded(capsys, 2, 5, "--timeout", 3, *files, "--folder", *(tmp_path / name for name in names))
    assert lines[0].split() == ["2", "5", "points"]
    assert [line.split() for line in lines[1:8]] == [
        ["ada", "7", "8", "15"],
        ["ben", ".", "8", "8"],
        *([name, "0", "0", "0"] for name in ("cyd", "dan", "eve", "fay", "gil")),
    ]
    assert lines[8] == "1 of 7 students have all of 15 points"
    assert "ada and ben, exercise 5" in "\n".join(lines[9:]) and not (tmp_path / "evil").exists()
    students = json.loads((tmp_path / "class.json").read_text(encoding="utf-8"))["students"]
    assert students["ada"]["points"] == 15 and students["ada"]["exercises"][0]["state"] == "done"
    assert "stopped after 3 seconds" in students["cyd"]["exercises"][0]["parts"][0]["sentence"]
    assert "ZeroDivisionError" in students["dan"]["exercises"][1]["parts"][0]["sentence"]
    cases = ElementTree.parse(tmp_path / "class.xml").getroot().findall(".//testcase")
    assert len(cases) == 3 * 7 and sum(case.find("failure") is not None for case in cases) == 17
    assert all(case.find("properties/property").get("name") == "points" for case in cases)


def test_what_comes_back_runs_no_code():
    with pytest.raises(pickle.UnpicklingError):
        decode(pickle.dumps(io.BytesIO))


def test_an_object_of_ones_own_comes_back_as_its_name(tmp_path):
    text = "class Sly(float):\n    def __eq__(self, other):\n        return True\n\n\nX, Y = Sly(3), object()\n"
    (tmp_path / "e04_merging.py").write_text(text, encoding="utf-8")
    with Student(tmp_path, "e04_merging") as student:
        assert type(student(constant, "X")) is float and student(constant, "Y") == {"a": "object"}


def test_same_code_is_found_under_other_names(tmp_path):
    one, other, third = tmp_path / "one", tmp_path / "other", tmp_path / "third"
    bodies = [
        "    total = out_features\n    return total",
        "    # mine\n    n = out_features\n    return n",
        "    return 7",
    ]
    for folder, body in zip((one, other, third), bodies):
        text = (blank(folder) / "e02_directions.py").read_text(encoding="utf-8")
        head, tail = text.rsplit("    raise NotWritten", 1)
        (folder / "e02_directions.py").write_text(head + body + tail, encoding="utf-8")
    assert same_answers({"one": one, "other": other, "third": third}, [1, 2]) == [("one", "other", [2])]


def test_a_student_may_import_an_answer_of_hers_and_gets_no_others(folder, tmp_path, capsys):
    ben = blank(tmp_path / "ben")
    for place in (folder, ben):
        use = "\nfrom exercises.e02_directions import minor_directions as mine\nmine(torch.eye(3), 1)\n"
        put_in(place, EXERCISES[2], use)
    put_in(folder, EXERCISES[1])
    assert "cannot be loaded: NotWritten" in graded(capsys, 3, "--folder", ben)[1]  # his is blank
    assert "blank" in graded(capsys, 3, "--folder", folder)[0]


@pytest.mark.parametrize("arguments", [["99"], ["0"], ["--measure"], ["1", "2", "--measure"], ["--folder", "nowhere"]])
def test_impossible_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_student_edition_holds_no_answer(tmp_path, capsys):
    main(["--student-edition", str(tmp_path / "course")])
    command = [sys.executable, "-m", "exercises", "2", "11"]
    ran = subprocess.run(command, cwd=tmp_path / "course", capture_output=True, text=True)
    assert ran.returncode == 1 and "0 of 2 done, 0 of 13 points" in ran.stdout, ran.stderr
    capsys.readouterr()
    main(["--solutions"])
    assert "lora.py: LoRALayer.forward" in capsys.readouterr().out
    texts = {path.relative_to(tmp_path / "course"): path for path in (tmp_path / "course").rglob("*.*")}
    assert {"tests", "study", "bench", ".git"}.isdisjoint(path.parts[0] for path in texts)
    everything = "\n".join(p.read_text("utf-8") for p in texts.values() if p.suffix in (".py", ".md", ".ipynb"))
    teaching = (FOLDER / "TEACHING.md").read_text(encoding="utf-8").split("## Answers")[1].splitlines()
    answers = [line.strip() for line in teaching if len(line.strip()) > 40 and "---" not in line]
    answers += ["67_108_864", "67,108,864", "10,092,544", "REFERENCE ="]
    for exercise in EXERCISES:
        for solution in exercise.solutions + exercise.withheld:
            file, name = solution.split(": ")
            text = (ROOT / file).read_text(encoding="utf-8")
            kept = emptied(text, name, "").splitlines()
            body = "\n".join(line for line in text.splitlines() if line not in kept)
            assert len(body) > 10  # the solution is where it is said to be
            answers += [body] if solution in exercise.withheld else []
    assert len(answers) > 40 and [answer for answer in answers if answer in everything] == []


@pytest.fixture
def small(monkeypatch):
    """Little is told and asked, and not often, but in all other respects as a student measures."""
    whole, own_text = measuring.shipped_task, measuring.own_text

    def task(documents=None):
        found = whole(documents)
        sets = {name: questions[:4] for name, questions in found.question_sets.items()}
        return type(found)(found.documents[:2], sets, found.texts)

    monkeypatch.setattr(measuring, "shipped_task", task)
    monkeypatch.setattr(measuring, "own_text", lambda base, tokenizer, tokens: own_text(base, tokenizer, tokens // 100))


@pytest.mark.parametrize("number", [1, 2, 4, 8, 9, 11, 12])  # 12 stands for those that train
def test_the_measuring_part_runs(number, folder, capsys, small):
    if number == 12:
        with pytest.raises(SystemExit) as stopped:
            main([str(number), "--measure", "--folder", str(folder)])
        assert stopped.value.code == 2 and "first" in capsys.readouterr().err
    put_in(folder, EXERCISES[number - 1])
    main([str(number), "--measure", "--folder", str(folder)])
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 5, 6, 7, 10, 13, 14])
def test_the_slower_measuring_parts_run(number, folder, capsys, small):
    test_the_measuring_part_runs(number, folder, capsys, small)


def test_the_page_for_students_has_the_same_points_and_minutes():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = text.split("| ---: | --- |")[1].splitlines()[1 : COUNT + 1]
    for exercise, row in zip(EXERCISES, rows, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == [str(exercise.number), f"`{exercise.file}.py`"]
        assert cells[-2:] == [str(exercise.minutes), str(exercise.points)]
    minutes = sum(exercise.minutes for exercise in EXERCISES)
    assert re.search(rf"Together {minutes} minutes and {WORTH} points", text)
