"""Grade the exercises, or one of them; measure what an exercise asks for; say where the solutions are.

python -m exercises                 # a line for each: done or not, points, minutes
python -m exercises 3               # one, or several
python -m exercises 3 --measure     # answer its question by measuring
python -m exercises --solutions     # where in the project each solution stands
python -m exercises --folder handed-in/ada       # for teachers: another folder with the students' files
"""

from exercises import NotWritten
from exercises.course import EXERCISES, FOLDER, load, report, where
from exercises.grading import Wrong
from tools.cli import Parser, one_sentence_errors


def parse_arguments(arguments=None):
    parser = Parser(prog="python -m exercises", description=__doc__)
    numbers = range(1, len(EXERCISES) + 1)
    add = parser.add_argument
    add("numbers", nargs="*", type=int, metavar="N", help=f"exercises, 1 to {len(EXERCISES)}; none: all")
    add("--measure", action="store_true", help="run the measuring part of one exercise, most with your own code in it")
    add("--solutions", action="store_true", help="say where in the project each solution stands")
    add("--folder", default=str(FOLDER), help="folder with the files that are graded")
    args = parser.parse_args(arguments)
    for number in args.numbers:
        if number not in numbers:
            parser.error(f"there is no exercise {number}: 1 to {len(EXERCISES)}")
    if args.measure and len(args.numbers) != 1:
        parser.error("--measure takes the number of one exercise")
    args.numbers = args.numbers or list(numbers)
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    with one_sentence_errors("python -m exercises"):
        if args.solutions:
            for number in args.numbers:
                for solution in EXERCISES[number - 1].solutions:
                    print(f"{number:2}  {where(solution)}")
        elif args.measure:
            try:
                load(EXERCISES[args.numbers[0] - 1].file, args.folder).measure()
            except NotWritten:
                raise ValueError(
                    "this measures what you have written: write the bodies (and PREDICTION) first"
                ) from None
            except Wrong as error:
                raise ValueError(str(error)) from None
        else:
            report(args.numbers, args.folder)


if __name__ == "__main__":
    main()
