"""Grade the exercises, or one of them, or a class; measure what an exercise asks for; write what students are given.

python -m exercises                 # a line for each: done or not, points, minutes
python -m exercises 3               # one, or several
python -m exercises 3 --measure     # answer its question by measuring
python -m exercises --folder handed-in/* --json class.json     # for teachers: a table of all, see TEACHING.md
python -m exercises --student-edition OUT                      # likewise: the course without its answers
"""

import sys
from pathlib import Path

from exercises import NotWritten
from exercises.course import DONE, EXERCISES, as_json, earned, grade, same_answers, state_of, where
from exercises.edition import write_edition
from exercises.grading import Wrong
from exercises.process import FOLDER, load
from tools.cli import Parser, one_sentence_errors, write_json


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
    for number in args.numbers:
        if not 1 <= number <= last:
            parser.error(f"there is no exercise {number}: 1 to {last}")
    if args.measure and (len(args.numbers) != 1 or len(args.folder) != 1):
        parser.error("--measure takes the number of one exercise, of one student")
    args.numbers = sorted(set(args.numbers)) or [exercise.number for exercise in EXERCISES]
    return args


def measure(number, folder):
    try:
        load(EXERCISES[number - 1].file, folder).measure()
    except NotWritten:
        raise ValueError("this measures what you have written: write the bodies (and PREDICTION) first") from None
    except Wrong as error:
        raise ValueError(str(error)) from None


def names_of(folders):
    """{student's name: folder}: the folder's own name, or all of its path where two have the same."""
    paths = [Path(folder).resolve() for folder in dict.fromkeys(folders)]
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"--folder {path} is not a folder")
    last = [path.name for path in paths]
    return {path.name if last.count(path.name) == 1 else str(path): path for path in paths}


def grade_all(args):
    """Grade, print and write; return whether all that was asked for is done."""
    folders = names_of(args.folder)
    results = grade(folders, args.numbers, args.timeout, args.junit)
    pairs = same_answers(folders, args.numbers)
    worth = sum(EXERCISES[number - 1].points for number in args.numbers)
    done = {name: sum(state_of(parts) == DONE for parts in by.values()) for name, by in results.items()}
    if len(folders) == 1:
        [(name, by_number)] = results.items()
        print(f"{done[name]} of {len(args.numbers)} done, {sum(map(earned, by_number.values()))} of {worth} points")
    else:
        whole = sum(count == len(args.numbers) for count in done.values())
        print(f"{whole} of {len(folders)} students have all of {worth} points")
    for one, other, alike in pairs:
        print(f"the same code, but for names and comments: {one} and {other}, exercise {', '.join(map(str, alike))}")
    if args.json:
        write_json(Path(args.json), as_json(results, pairs))
    return all(count == len(args.numbers) for count in done.values())


def main(arguments=None):
    args = parse_arguments(arguments)
    with one_sentence_errors("python -m exercises"):
        if args.solutions:
            for number in args.numbers:
                for solution in EXERCISES[number - 1].solutions + EXERCISES[number - 1].withheld:
                    print(f"{number:2}  {where(solution)}")
        elif args.student_edition:
            write_edition(Path(args.student_edition))
        elif args.measure:
            measure(args.numbers[0], args.folder[0])
        elif not grade_all(args):
            sys.exit(1)


if __name__ == "__main__":
    main()
