"""Run what a study still lacks, then write its tables and pictures.

    python -m study                          # the toy study
    python -m study --qv                     # another design: see --help
    python -m study --draw                   # run nothing: tables and pictures of the records there are
    python -m study --look full lora         # write nothing: how two arms differ, not corrected
    python -m study --tune mica 1e-2 2e-2    # what learning rates do, on the tuning worlds

The same command goes on where it was stopped. README.md here says what was compared and what it says.
"""

import sys
from argparse import SUPPRESS
from pathlib import Path

from tools import cores  # isort: skip, before torch

from gpt import find_model, load_pretrained
from study.directions import DIRECTIONS
from study.real import REAL
from study.report import answers, fill_in, report
from study.runs import run_missing
from study.tables import Results, look, primary_line, rates_table
from study.toy import EXTENDED_DESIGN, FULL, LONG_QV, QUICK, STRENGTHS, STRENGTHS_QV, tuning
from tools.cli import Parser, atomic, check_writable, one_sentence_errors, pick_device
from tools.report import drawing

HERE = Path("study")  # from the repository's root, where the program is started
DESIGNS = {
    "--quick": (QUICK, "three worlds, nothing tuned: about 10 minutes on two cores"),
    "--extended": (EXTENDED_DESIGN, "the toy study, and ranks, numbers of facts, linears, epochs: 35 minutes more"),
    "--qv": (LONG_QV, "q_proj and v_proj alone, told more often: an hour on two cores"),
    "--real": (REAL, "real weights (SmolLM2): about 10 minutes a run"),
    "--strengths": (STRENGTHS, "what was learned turned up and down: 80 minutes of one core"),
    "--strengths-qv": (STRENGTHS_QV, "the same in q_proj and v_proj: about two hours of one core"),
    "--directions": (DIRECTIONS, "which directions a frozen factor may reach: about three hours of one core"),
}


def write_all(results, base, readme):
    """The report and the pictures beside the records, and the table of answers in `readme`, unless it is None."""
    texts = {results.folder / "README.md": report(results)}
    if readme:
        studies = (EXTENDED_DESIGN, STRENGTHS, LONG_QV, REAL)
        table = answers(*(Results(HERE / "results" / study.name, study) for study in studies))
        texts[readme] = fill_in(readme.read_text(encoding="utf-8"), table)
    for path, text in texts.items():
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print("\n".join([primary_line(results), *map(str, texts)]))
    with drawing("what is missing of the pictures"):
        from study.figures import draw_all, save_figure  # here, since a broken matplotlibrc may stop the import

        for name, figure in draw_all(results, base).items():
            save_figure(figure, results.folder / f"{name}.png")
            print(results.folder / f"{name}.png")


def main():
    parser = Parser(prog="python -m study", description=__doc__)
    parser.set_defaults(design=FULL)
    add, size = parser.add_argument, parser.add_mutually_exclusive_group()
    for flag, (design, said) in DESIGNS.items():
        size.add_argument(flag, action="store_const", dest="design", const=design, default=SUPPRESS, help=said)
    size.add_argument(
        "--tune", nargs="+", metavar=("METHOD", "RATE"), help="try these learning rates on the tuning worlds"
    )
    add("--draw", action="store_true", help="run nothing, draw from the records there are, whatever code made them")
    add("--look", nargs=2, metavar="ARM", help="only print how two arms differ; NAME@RATE where one has several rates")
    add("--model", help="the base model, as for train.py; None: the design's (data/base, or SmolLM2 with --real)")
    add("--results", help="folder of the records; None: one in study/results, out/quick or out/tune")
    add("--workers", type=int, default=cores.USABLE, help="runs side by side, each with one thread")
    add("--device", default="cpu", help="cpu, cuda or mps")
    args = parser.parse_args()
    with one_sentence_errors("python -m study"):
        if args.workers < 1:
            raise ValueError(f"--workers {args.workers}: give at least 1 worker")
        design = tuning(args.tune[0], args.tune[1:]) if args.tune else args.design
        ours = HERE / "results" / design.name
        results = Path(args.results or ("out/tune" if args.tune else "out/quick" if design is QUICK else ours))
        readme = HERE / "README.md" if results.resolve() == ours.resolve() else None
        shown = EXTENDED_DESIGN if design is FULL else design  # with what there is of --extended
        if args.look:
            print(look(Results(results, shown), *args.look))
            return
        device, base, model = pick_device(args.device), None, args.model or design.model
        if not args.draw or design.landing:
            base, _ = load_pretrained(find_model(model))  # what is wrong with it is said here, not by a worker
        if not args.draw:
            check_writable(results / "runs")
            run_missing(design, results, args.workers, model, device)
            print(f"every run is in {results / 'runs'}", file=sys.stderr)
        if args.tune:
            print(rates_table(Results(results, design)))
        else:
            write_all(Results(results, shown), base, readme)


if __name__ == "__main__":
    main()
