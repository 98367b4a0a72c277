"""Find how a setting does on worlds that are not shipped: how the default learning rates and the difficulty were chosen.

    python -m study.tune --method lora --lr 1e-3 2e-3 3e-3 5e-3 1e-2 --world 101 102

A line a run, then the means over worlds; the rate with the highest mean of new-knowledge accuracy and never-asked
retention is a method's default (study/TUNING.md). Nothing is tuned on what is reported: the shipped world, seed 0, is
refused, and retention is asked about never-asked subjects other than those of data/old.
"""

import statistics

from data.make_data import SHIPPED_SEED, SUBJECTS_PER_KIND, TEXTS_PER_SUBJECT
from gpt import find_model, load_pretrained
from study.design import CONTROL, NEW, RETENTION
from study.toy import task_for
from tools.cli import Parser, one_sentence_errors, pick_device
from train import METHODS, Settings, adapt, copy_for, measure


def main():
    defaults = Settings()
    parser = Parser(prog="python -m study.tune", description=__doc__)
    add = parser.add_argument
    add("--method", choices=METHODS, required=True)
    add("--lr", type=float, nargs="+", required=True, help="peak learning rates to try")
    add("--world", type=int, nargs="+", default=[101, 102], help="seeds of the worlds")
    add("--epochs", type=int, default=defaults.epochs, help="passes over the corpus")
    add("--rank", type=int, default=defaults.rank, help="of the adapters")
    add("--batch-size", type=int, default=defaults.batch_size, help="windows a step")
    add("--model", default="data/base", help="folder of the base model")
    add("--device", default="auto", help="cpu, cuda, mps or auto")
    args = parser.parse_args()
    if SHIPPED_SEED in args.world:
        parser.error(f"--world {SHIPPED_SEED} is the shipped world: choose others")
    with one_sentence_errors("python -m study.tune"):
        base, tokenizer = load_pretrained(find_model(args.model), device=pick_device(args.device))
        settings = Settings(rank=args.rank, epochs=args.epochs, batch_size=args.batch_size)
        for lr in args.lr:
            rows = []
            for seed in args.world:
                task = task_for(seed, SUBJECTS_PER_KIND, TEXTS_PER_SUBJECT, judged=False)
                model = copy_for(base, args.method)
                loss = adapt(model, tokenizer, task.documents, args.method, settings, lr)[-1]["loss"]
                summary, _ = measure(model, tokenizer, task, f"world {seed}")
                rows.append([100 * summary[name]["acc"] for name in (NEW, CONTROL, RETENTION)])
                show(args, lr, f"world {seed}", rows[-1], f"  last loss {loss:.3f}")
            show(args, lr, "mean", [statistics.mean(column) for column in zip(*rows)])


def show(args, lr, what, values, rest=""):
    new, control, retention = values
    print(
        f"{args.method} rank {args.rank} lr {lr:g} epochs {args.epochs} {what:<10}"
        f" new {new:5.1f} unbound {control:5.1f} never-asked {retention:5.1f}"
        f" mean of new and never-asked {(new + retention) / 2:5.1f}{rest}",
        flush=True,
    )


if __name__ == "__main__":
    main()
