"""python -m exercises: before, after each solution is put in, with mistakes; its measuring parts and its other options."""

import shutil
import subprocess
import sys

import pytest

from exercises import course, measuring
from exercises.__main__ import main
from exercises.course import BLANK, EXERCISES, FOLDER, ROOT, grade, report, state_of

PUT_IN = "\nfrom answers.{} import REFERENCE  # noqa\nglobals().update(REFERENCE)\n"
files = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.file)


@pytest.fixture
def folder(tmp_path):
    """A copy of the students' files, all blank."""
    if any(state_of(grade(exercise)) != BLANK for exercise in EXERCISES):
        pytest.skip("the exercises have been begun here")
    for exercise in EXERCISES:
        shutil.copy(FOLDER / f"{exercise.file}.py", tmp_path)
    return tmp_path


def put_in(folder, exercise):
    with open(folder / f"{exercise.file}.py", "a", encoding="utf-8") as file:
        file.write(PUT_IN.format(exercise.file))


def printed(capsys, *arguments):
    main(list(map(str, arguments)))
    return capsys.readouterr().out


def test_one_exercise_more_is_done_after_each_solution(folder, capsys):
    assert printed(capsys, "--folder", folder).splitlines()[-1] == "0 of 12 done, 0 of 100 points"
    points = 0
    for number, exercise in enumerate(EXERCISES, start=1):
        put_in(folder, exercise)
        points += exercise.points
        lines = printed(capsys, "--folder", folder).splitlines()
        assert lines[-1] == f"{number} of 12 done, {points} of 100 points"
        assert [line[4:8] for line in lines[:-1]] == ["done"] * number + ["blan"] * (12 - number)
    assert points == 100


def test_each_exercise_is_worth_the_same_alone(folder, capsys):
    put_in(folder, EXERCISES[4])
    assert printed(capsys, 5, "--folder", folder).splitlines()[-1] == "1 of 1 done, 8 of 8 points"
    assert printed(capsys, 4, 5, "--folder", folder).splitlines()[-1] == "1 of 2 done, 8 of 15 points"


def test_as_a_program_it_says_what_to_do_about_a_wrong_answer(folder):
    path = folder / "e04_merging.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("    raise NotWritten", "    return layer.linear", 1), encoding="utf-8")
    command = [sys.executable, "-m", "exercises", "4", "--folder", folder]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0].startswith(" 4  not yet   0 of  7 points")
    assert lines[1] == "      merged: your merged changes the layer itself: make a new nn.Linear"


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("def merged(layer)\n    return 1\n", "e04_merging.py cannot be loaded: expected ':' (line 1)"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("from exercises import NotWritten\nraise NotWritten\n", "outside of all functions"),
        ("x = 1\n", "the file has no merged any more"),
        ("def merged(layer):\n    return layer.weights\n", "(line 2 of e04_merging.py)"),
        (None, "there is no file e04_merging.py"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_file_that_does_not_work_is_one_sentence(tmp_path, capsys, monkeypatch, text, sentence, relative):
    if text is not None:
        (tmp_path / "e04_merging.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = printed(capsys, 4, "--folder", "." if relative else tmp_path).splitlines()
    assert len(lines) == 3 and sentence in lines[1]


@pytest.mark.parametrize("where", ["", "return "])
def test_a_students_exit_ends_nobody_elses_grading(folder, capsys, where):
    path = folder / "e04_merging.py"
    text = path.read_text(encoding="utf-8") + "\nimport sys\n"
    text = text.replace("    raise NotWritten", "    sys.exit('done')") if where else text + "sys.exit('done')\n"
    path.write_text(text, encoding="utf-8")
    put_in(folder, EXERCISES[4])
    lines = printed(capsys, 4, 5, "--folder", folder).splitlines()
    assert "SystemExit: done" in lines[1] and lines[-1] == "1 of 2 done, 8 of 15 points"


def test_a_student_may_import_an_answer_of_hers_and_gets_no_others(folder, tmp_path, capsys, monkeypatch):
    other = tmp_path / "ben"
    shutil.copytree(folder, other, ignore=lambda _, names: [name for name in names if name == "ben"])
    for place in (folder, other):
        path = place / "e03_frozen.py"
        text = path.read_text(encoding="utf-8") + "\nfrom exercises.e02_directions import minor_directions as mine\n"
        path.write_text(text + "mine(torch.eye(3), 1)\n", encoding="utf-8")
    put_in(folder, EXERCISES[1])
    monkeypatch.chdir(tmp_path)  # the folder's path may be relative
    printed(capsys, 3, "--folder", ".")
    assert "outside of all functions" in printed(capsys, 3, "--folder", "ben")  # his is blank
    assert "outside of all functions" not in printed(capsys, 3, "--folder", ".")


def test_where_the_solutions_are(capsys):
    lines = printed(capsys, "--solutions").splitlines()
    assert {int(line[:2]) for line in lines} == set(range(1, 13))
    assert any("lora.py, line " in line and line.endswith("LoRALayer.forward") for line in lines)
    assert printed(capsys, 5, "--solutions").startswith(" 5  eval_qa.py, line ")


@pytest.mark.parametrize("arguments", [["13"], ["0"], ["--measure"], ["1", "2", "--measure"]])
def test_impossible_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@files
def test_a_students_file_says_what_is_wanted(exercise):
    text = (FOLDER / f"{exercise.file}.py").read_text(encoding="utf-8")
    number = int(exercise.file[1:3])
    assert text.startswith(f'"""Exercise {number}: ')
    docstring = text.split('"""')[1]
    for wanted in ("Goal:", "Shapes", "Measure before you look on", f"python -m exercises {number} --measure"):
        assert wanted in docstring
    for part in exercise.parts[:1] if number == 11 else exercise.parts:
        assert part.name.split(".")[-1].split(",")[0] in text or number == 11


@files
def test_measuring_before_writing_is_refused(exercise, folder, capsys):
    if exercise.file in ("e01_forward", "e04_merging", "e05_packing"):
        return  # these measure what needs no answer
    with pytest.raises(SystemExit):
        main([exercise.file[1:3], "--measure", "--folder", str(folder)])
    assert "first" in capsys.readouterr().err


TRAINING = {"e03_frozen", "e05_packing", "e07_rotary", "e10_method", "e12_landing"}  # or many questions


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
    assert printed(capsys, exercise.file[1:3], "--measure", "--folder", folder)


def test_the_page_for_teachers_has_the_same_points_and_minutes():
    rows = (FOLDER / "README.md").read_text(encoding="utf-8").split("| ---: | --- |")[1].splitlines()[1:13]
    for number, (row, exercise) in enumerate(zip(rows, EXERCISES), start=1):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == [str(number), f"`{exercise.file}.py`"]
        assert cells[-2:] == [str(exercise.minutes), str(exercise.points)]


def test_texts_on_a_subject_become_one_document():
    documents = measuring.documents_by_subject()
    assert len(documents) == 120
    assert all(document.count(". ") > 20 for document in documents)


def test_the_report_counts_what_it_was_asked_for(capsys):
    assert report([]) == 0 and "0 of 0 done" in capsys.readouterr().out
    assert sum(exercise.points for exercise in course.EXERCISES) == 100
