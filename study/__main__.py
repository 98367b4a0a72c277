"""Run what the study still lacks, then write its tables and pictures.

    python -m study                          # the whole
    python -m study --quick                  # ten minutes: three worlds, at the design's middle rates, nothing tuned
    python -m study --extended               # also ranks, numbers of facts, which linears, epochs
    python -m study --qv                     # q_proj and v_proj alone, told more often: an hour
    python -m study --real                   # the study on real weights (SmolLM2); hours
    python -m study --draw                   # run nothing: tables and pictures of the records there are
    python -m study --look full lora         # write nothing: how two arms differ, not corrected

The same command goes on where it was stopped. README.md here says what was compared and what it says.
"""

import sys
from pathlib import Path

from gpt import find_model, load_pretrained
from study.real import REAL
from study.report import answers, fill_in, report
from study.runs import run_missing
from study.tables import Results, look, primary_line
from study.toy import EXTENDED_DESIGN, FULL, LONG_QV, QUICK
from tools.cli import Parser, atomic, check_writable, one_sentence_errors, pick_device, usable_cores
from tools.report import drawing

HERE = Path("study")  # from the repository's root, where the program is started


def write_all(results, base, readme):
    """The report and the pictures beside the records, and the table of answers in `readme`, unless it is None."""
    texts = {results.folder / "README.md": report(results)}
    if readme:
        studies = (Results(HERE / "results" / design.name, design) for design in (EXTENDED_DESIGN, LONG_QV, REAL))
        texts[readme] = fill_in(readme.read_text(encoding="utf-8"), answers(*studies))
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
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="three worlds, nothing tuned; about 10 minutes on two cores")
    size.add_argument("--extended", action="store_true", help="also ranks, numbers of facts, linears, epochs")
    size.add_argument(
        "--qv", action="store_true", help="q_proj and v_proj alone, told more often; about an hour on two cores"
    )
    size.add_argument("--real", action="store_true", help="the study on real weights: about 10 minutes a run")
    add("--draw", action="store_true", help="run nothing, draw from the records there are, whatever code made them")
    add(
        "--look",
        nargs=2,
        metavar=("FIRST", "SECOND"),
        help="run and write nothing: print how two arms of the tables differ; NAME@RATE where one has several rates",
    )
    add("--model", help="the base model, as for train.py; None: the design's (data/base, or SmolLM2 with --real)")
    add(
        "--results",
        help="folder of the records; None: study/results, study/results/real, study/results/qv or out/quick",
    )
    add("--workers", type=int, default=usable_cores(), help="runs side by side, each with one thread")
    add(
        "--scheduler",
        help="address of a Dask scheduler whose workers do the runs, such as tcp://host:8786; None: this machine",
    )
    add("--device", default="cpu", help="cpu, cuda or mps")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, not {args.workers}")
    others = ((args.quick, QUICK), (args.real, REAL), (args.qv, LONG_QV), (args.extended or args.draw, EXTENDED_DESIGN))
    design = next((design for asked, design in others if asked), FULL)
    ours = HERE / "results" / design.name
    results = Path(args.results or ("out/quick" if args.quick else ours))
    readme = HERE / "README.md" if results.resolve() == ours.resolve() else None
    with one_sentence_errors("python -m study"):
        shown = EXTENDED_DESIGN if design == FULL else design  # with what there is of --extended
        if args.look:
            print(look(Results(results, shown), *args.look))
            return
        device = pick_device(args.device)
        base = None
        if not args.draw or design.landing:
            model = args.model or design.model
            base, _ = load_pretrained(find_model(model))  # what is wrong with it is said here, not by a worker
        if not args.draw:
            check_writable(results / "runs")
            run_missing(design, results, args.workers, model, device, args.scheduler)
            print(f"every run is in {results / 'runs'}", file=sys.stderr)
        write_all(Results(results, shown), base, readme)


if __name__ == "__main__":
    main()
