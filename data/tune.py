"""Find how a setting does on worlds that are not shipped: how the default learning rates and the difficulty were chosen.

    python data/tune.py --method lora --lr 1e-3 2e-3 3e-3 5e-3 1e-2 --world 101 102

A line a run, then the means over worlds; the rate with the highest mean of new-knowledge accuracy and never-asked
retention is a method's default (data/README.md). Nothing is tuned on what is reported: the shipped world, seed 0, is
refused, and retention is asked about never-asked subjects other than those of data/old.
"""

import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.make_data import OLD_SUBJECTS_REPORTED, SHIPPED_SEED, ask, old_subjects, world
from eval_qa import make_question
from gpt import load_pretrained
from gpt.cli import Parser, one_sentence_errors, pick_device
from train import METHODS, Settings, Task, adapt, copy_for, measure

NEW, CONTROL, RETENTION = "new", "unbound", "never-asked"


def tuning_retention(subjects=120):
    """Questions on never-asked old subjects that data/old does not ask about."""
    _, never_asked = old_subjects()
    chosen = never_asked[OLD_SUBJECTS_REPORTED : OLD_SUBJECTS_REPORTED + subjects]
    return ask(chosen, random.Random("retention for tuning"))["questions"]


def task_of(seed, retention):
    new = world(seed)
    sets = {NEW: new["questions"], CONTROL: new["unbound"], RETENTION: retention}
    return Task(new["corpus"], {name: [make_question(item) for item in items] for name, items in sets.items()}, {})


def main():
    defaults = Settings()
    parser = Parser(prog="tune.py", description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--lr", type=float, nargs="+", required=True, help="peak learning rates to try")
    parser.add_argument("--world", type=int, nargs="+", default=[101, 102], help="seeds of the worlds")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="passes over the corpus")
    parser.add_argument("--rank", type=int, default=defaults.rank, help="of the adapters")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="windows a step")
    parser.add_argument("--model", default="data/base", help="folder of the base model")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto")
    args = parser.parse_args()
    if SHIPPED_SEED in args.world:
        parser.error(f"--world {SHIPPED_SEED} is the shipped world: choose others")
    with one_sentence_errors("tune.py"):
        base, tokenizer = load_pretrained(args.model, device=pick_device(args.device))
        settings = Settings(rank=args.rank, epochs=args.epochs, batch_size=args.batch_size)
        tasks = {seed: task_of(seed, tuning_retention()) for seed in args.world}
        for lr in args.lr:
            rows = []
            for seed, task in tasks.items():
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
