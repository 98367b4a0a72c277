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
from exercises.course import EXERCISES, FOLDER, ROOT, same_answers, where
from exercises.edition import emptied
from exercises.process import Student, constant, decode

WORTH = sum(exercise.points for exercise in EXERCISES)
COUNT = len(EXERCISES)
PUT_IN = "\nfrom answers.{} import REFERENCE  # noqa\nglobals().update(REFERENCE)\n"
files = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.file)


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
    for exercise in EXERCISES:
        put_in(folder, exercise)
    lines = graded(capsys, "--folder", folder, done=True)
    assert lines[-1] == f"{COUNT} of {COUNT} done, {WORTH} of {WORTH} points"
    assert {line[4:8] for line in lines[:-1]} == {"done"}


def test_some_of_them(folder, capsys):
    put_in(folder, EXERCISES[4])
    assert graded(capsys, 5, "--folder", folder, done=True)[-1] == "1 of 1 done, 8 of 8 points"
    assert graded(capsys, 5, 4, "--folder", folder)[-1] == "1 of 2 done, 8 of 15 points"


def test_as_a_program_it_says_what_to_do_about_a_wrong_answer(folder):
    path = folder / "e04_merging.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("    raise NotWritten", "    return layer.linear", 1), encoding="utf-8")
    command = [sys.executable, "-m", "exercises", "4", "--folder", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[0].startswith(" 4  not yet   0 of  7 points")
    assert lines[1] == "      merged: your merged changes the layer itself: make a new nn.Linear"


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("def merged(layer)\n    return 1\n", "e04_merging.py cannot be loaded: expected ':' (line 1)"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("from exercises import NotWritten\nraise NotWritten\n", "outside of all functions"),
        ("import sys\nsys.exit('done')\n", "SystemExit: done"),
        ("x = 1\n", "the file has no merged any more"),
        ("def merged(layer):\n    return layer.weights\n", "(line 2 of e04_merging.py)"),
        (
            "import os\ndef merged(layer):\n    os._exit(0)\n",
            "no answer came back (its process ended with exit code 0)",
        ),
        (None, "there is no file e04_merging.py"),
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
        put_in(dan, exercise, "\n1 / 0\n")
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
    assert "outside of all functions" in graded(capsys, 3, "--folder", ben)[1]  # his is blank
    assert "blank" in graded(capsys, 3, "--folder", folder)[0]


def test_where_the_solutions_are(capsys):
    main(["--solutions"])
    lines = capsys.readouterr().out.splitlines()
    assert {int(line[:2]) for line in lines} == set(range(1, COUNT + 1))
    assert any("lora.py, line " in line and line.endswith("LoRALayer.forward") for line in lines)
    assert all(where(solution) for exercise in EXERCISES for solution in exercise.withheld)


@pytest.mark.parametrize("arguments", [["99"], ["0"], ["--measure"], ["1", "2", "--measure"], ["--folder", "nowhere"]])
def test_impossible_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    out = tmp_path_factory.mktemp("edition") / "course"
    main(["--student-edition", str(out)])
    return out


def test_the_student_edition_holds_no_answer(edition):
    texts = [path.read_text(encoding="utf-8") for path in edition.rglob("*") if path.suffix in (".py", ".md", ".ipynb")]
    everything = "\n".join(texts)
    assert (
        not list(edition.rglob("TEACHING.md")) and not (edition / "tests").exists() and not (edition / ".git").exists()
    )
    teaching = (FOLDER / "TEACHING.md").read_text(encoding="utf-8").split("## Answers")[1].splitlines()
    answers = [line.strip() for line in teaching if len(line.strip()) > 40 and "---" not in line]
    answers += ["67_108_864", "67,108,864", "10,092,544", "REFERENCE ="]
    for exercise in EXERCISES:
        for file, name in (solution.split(": ") for solution in exercise.withheld):
            text = (ROOT / file).read_text(encoding="utf-8")
            kept = emptied(text, name, "").splitlines()
            answers.append("\n".join(line for line in text.splitlines() if line not in kept))
            assert len(answers[-1]) > 40
    assert len(answers) > 40 and [answer for answer in answers if answer in everything] == []


@pytest.mark.slow
def test_a_class_from_the_student_edition(edition, tmp_path):
    """Five submissions, one command, in the folder that students were given."""
    copies = {name: tmp_path / name for name in ("right", "blank", "endless", "crash", "replaced")}
    for name, folder in copies.items():
        folder.mkdir()
        for exercise in EXERCISES:
            shutil.copy(edition / "exercises" / f"{exercise.file}.py", folder)
            if name == "right":
                answers = "import sys\nsys.path.append({!r})\n".format(str(ROOT / "tests" / "exercises"))
                put_in(folder, exercise, "\n" + answers + PUT_IN.format(exercise.file))
            elif name != "blank":
                text = {"endless": "while True:\n    pass\n", "crash": "1 / 0\n", "replaced": REPLACED}[name]
                put_in(folder, exercise, "\n" + text)
    command = [sys.executable, "-m", "exercises", "--timeout", "10", "--json", tmp_path / "class.json", "--folder"]
    done = subprocess.run([*command, *copies.values()], cwd=edition, capture_output=True, text=True)
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:6]}
    print(done.stdout, done.stderr)
    assert done.returncode == 1
    assert rows["right"] == [*(str(exercise.points) for exercise in EXERCISES), str(WORTH)]
    assert rows["blank"] == ["."] * COUNT + ["0"] and {row[-1] for name, row in rows.items() if name != "right"} == {
        "0"
    }


@files
def test_a_students_file_says_what_is_wanted(exercise):
    text = (FOLDER / f"{exercise.file}.py").read_text(encoding="utf-8")
    assert text.startswith(f'"""Exercise {exercise.number}: ')
    docstring = text.split('"""')[1]
    for wanted in ("Goal:", "Shapes", "Measure before you look on", f"python -m exercises {exercise.number} --measure"):
        assert wanted in docstring
    for part in exercise.parts:
        names = [name.split(".")[-1] for name in part.name.split(", ")]
        assert all(name in text for name in names) or part.name == "the four numbers"


ANSWERLESS = {"e01_forward", "e04_merging", "e05_packing"}  # what they measure needs no answer


@pytest.mark.parametrize("exercise", [e for e in EXERCISES if e.file not in ANSWERLESS], ids=lambda e: e.file)
def test_measuring_before_writing_is_refused(exercise, folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(exercise.number), "--measure", "--folder", str(folder)])
    assert stopped.value.code == 2 and "first" in capsys.readouterr().err


TRAINING = {
    "e03_frozen",
    "e05_packing",
    "e07_rotary",
    "e10_method",
    "e12_landing",
    "e13_rehearsal",
    "e14_quiet",
}  # or many questions


@pytest.mark.parametrize(
    "exercise", [pytest.param(e, id=e.file, marks=[pytest.mark.slow] if e.file in TRAINING else []) for e in EXERCISES]
)
def test_the_measuring_part_runs(exercise, folder, capsys, monkeypatch):
    whole = measuring.shipped_task

    def small(documents=None):
        task = whole(documents)
        sets = {name: questions[:4] for name, questions in task.question_sets.items()}
        return type(task)(task.documents[:8], sets, task.texts)

    monkeypatch.setattr(measuring, "shipped_task", small)  # in all other respects as a student runs it
    put_in(folder, exercise)
    main([str(exercise.number), "--measure", "--folder", str(folder)])
    assert capsys.readouterr().out


def test_the_page_for_students_has_the_same_points_and_minutes():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = text.split("| ---: | --- |")[1].splitlines()[1 : COUNT + 1]
    for exercise, row in zip(EXERCISES, rows, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == [str(exercise.number), f"`{exercise.file}.py`"]
        assert cells[-2:] == [str(exercise.minutes), str(exercise.points)]
    minutes = sum(exercise.minutes for exercise in EXERCISES)
    assert re.search(rf"Together {minutes} minutes and {WORTH} points", text)


def test_texts_on_a_subject_become_one_document():
    documents = measuring.documents_by_subject()
    assert len(documents) == 120
    assert all(document.count(". ") > 20 for document in documents)
