"""Grade the exercises, or one of them, or a class; measure what an exercise asks for; write what students are given.

python -m exercises                 # a line for each: done or not, points, minutes
python -m exercises 3               # one, or several
python -m exercises 3 --measure     # answer its question by measuring
python -m exercises --folder handed-in/* --json class.json     # for teachers: a table of all, see TEACHING.md
python -m exercises --student-edition OUT                      # likewise: the course without its answers
"""

import sys
from pathlib import Path

from exercises import NotWritten, course
from exercises.course import BLANK, DONE, EXERCISES, earned, state_of
from exercises.edition import write_edition
from exercises.grading import Wrong
from exercises.process import FOLDER, load
from tools.cli import Parser, one_sentence_errors, write_json, write_text


def parse_arguments(arguments=None):
    parser = Parser(prog="python -m exercises", description=__doc__)
    last = EXERCISES[-1].number
    add = parser.add_argument
    add("numbers", nargs="*", type=int, metavar="N", help=f"exercises, 1 to {last}; none: all")
    add("--measure", action="store_true", help="run the measuring part of one exercise, most with your own code in it")
    add("--folder", nargs="+", default=[str(FOLDER)], help="folders with the files that are graded, one a student")
    add("--timeout", type=float, default=60.0, metavar="SECONDS", help="what a student's file may take for an exercise")
    add("--json", metavar="FILE", help="write all results and sentences there")
    add("--junit", metavar="FILE", help="likewise as JUnit XML, for a classroom's own software")
    add("--solutions", action="store_true", help="say where in the project each solution stands")
    add("--student-edition", metavar="OUT", help="write the course without its answers into this new folder")
    args = parser.parse_args(arguments)
    args.numbers = sorted(set(args.numbers)) or [exercise.number for exercise in EXERCISES]
    if not 1 <= args.numbers[0] <= args.numbers[-1] <= last:
        parser.error(f"exercises are 1 to {last}")
    if args.measure and (len(args.numbers) != 1 or len(args.folder) != 1):
        parser.error("--measure takes the number of one exercise, of one student")
    for folder in args.folder:
        if not Path(folder).is_dir():
            parser.error(f"--folder {folder} is not a folder")
    return args


def measure(number, folder):
    try:
        load(EXERCISES[number - 1].file, folder).measure()
    except NotWritten:
        raise ValueError("this measures what you have written: write the bodies (and PREDICTION) first") from None
    except Wrong as error:
        raise ValueError(str(error)) from None


def grade_all(args):
    """Grade, print and write; return whether all that was asked for is done."""
    paths = [Path(folder).resolve() for folder in dict.fromkeys(args.folder)]
    alone, last = len(paths) == 1, [path.name for path in paths]
    folders = {path.name if last.count(path.name) == 1 else str(path): path for path in paths}
    worth = sum(EXERCISES[number - 1].points for number in args.numbers)
    if not alone:
        print(f"{'':24}" + "".join(f"{number:4}" for number in args.numbers) + "  points", flush=True)
    graded, done, points = {}, {}, {}
    for name, folder in folders.items():
        graded[name] = []
        for exercise, results in course.grade(folder, args.numbers, args.timeout, silent=not alone):
            graded[name].append((exercise, results))
            if alone:
                print(course.exercise_lines(exercise, results), flush=True)
        parts = [results for _, results in graded[name]]
        done[name], points[name] = sum(state_of(one) == DONE for one in parts), sum(map(earned, parts))
        if not alone:
            cells = ["   ." if state_of(one) == BLANK else f"{earned(one):4}" for one in parts]
            print(f"{name:24.24}{''.join(cells)}{points[name]:8}", flush=True)
    whole = sum(count == len(args.numbers) for count in done.values())
    if alone:
        print(f"{done[name]} of {len(args.numbers)} done, {points[name]} of {worth} points")
    else:
        print(f"{whole} of {len(folders)} students have all of {worth} points")
    pairs = course.same_answers(folders, args.numbers)
    for one, other, alike in pairs:
        print(f"the same code, but for names and comments: {one} and {other}, exercise {', '.join(map(str, alike))}")
    if args.json:
        write_json(Path(args.json), course.as_json(graded, pairs))
    if args.junit:
        write_text(Path(args.junit), course.as_junit(graded))
    return whole == len(folders)


def main(arguments=None):
    args = parse_arguments(arguments)
    with one_sentence_errors("python -m exercises"):
        if args.solutions:
            for exercise in (EXERCISES[number - 1] for number in args.numbers):
                for solution in exercise.solutions + exercise.withheld:
                    print(f"{exercise.number:2}  {solution}")
        elif args.student_edition:
            write_edition(Path(args.student_edition))
        elif args.measure:
            measure(args.numbers[0], args.folder[0])
        elif not grade_all(args):
            sys.exit(1)


if __name__ == "__main__":
    main()
