"""Measure what a model knows: multiple-choice questions by log-likelihood, and the perplexity of a text.

    python eval_qa.py --model data/base --qa data/old/asked.jsonl data/new/questions.jsonl
    python eval_qa.py --adapter out/mica/seed0 --qa data/new/questions.jsonl --text data/old/text.txt
    python eval_qa.py --adapter out/mica/seed0 --ask "Where was Yara Eastmoor born?"
    python eval_qa.py --model HuggingFaceTB/SmolLM2-135M --qa mc_task.json hellaswag_val.jsonl --primer primer.txt

Question files: questions.py. The model reads a question and each choice is scored by the summed log-likelihood of its tokens.
Scoring follows lm-evaluation-harness: `acc` takes the likeliest choice, `acc_norm` the likeliest per character; the
standard error is the sample deviation / sqrt(n). Unlike there, a tie or NaN never counts as right. (In 16 bits, choices of
one token, such as A to D, do tie: use float32 for them.)
"""

import functools
import math
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adapter_io import base_for, find_adapter, load_trained
from corpus import perplexity
from fast.scoring import answer_questions
from gpt import find_model, generate, load_pretrained
from gpt.generate import NOT_FINITE
from lora import find_adapters, without_adapters
from questions import Question, question_prompt, read_question_sets
from tools.cli import Parser, check_apart, check_writable, one_sentence_errors, pick_device, shipped, write_lines
from tools.reading import read_documents
from tools.report import mean_and_error, plus_minus
from tools.schema import printable

BASE = shipped("data/base")

# --- scoring -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How a model answers one question."""

    loglikelihoods: list[float]  # of each choice, in nats
    acc: bool  # the right choice is likelier than each other
    acc_norm: bool  # likewise per character
    logprob: float  # of the right choice among the choices, in nats
    exact: bool  # greedy decoding writes the right choice and then a stop (stop_tokens); 3.5 would count as 3


def encode_question(tokenizer, question: Question, context_length: int) -> tuple[list[int], list[list[int]]]:
    """(ids of the prompt, [ids of each choice]).

    Prompt and choice are encoded together; what comes after as many tokens as the prompt alone has is the choice's. The
    prompt's are those it has alone, even where its last would merge with the choice. All this as in lm-evaluation-harness.
    """
    text = question.prompt.rstrip()
    border = question.prompt[len(text) :] + " "  # trailing spaces of the prompt belong to the choice
    prompt, choices = tokenizer.encode(text, bos=True), []
    for words in question.choices:
        whole = tokenizer.encode(text + border + words, bos=True)
        choices.append(whole[len(prompt) :] or whole[-1:])  # merging may leave it none of its own
    if max(map(len, choices)) > context_length:
        raise ValueError(f"a choice of {text[-200:]!r} does not fit the model's context of {context_length} tokens")
    return prompt, choices


@functools.cache
def stop_tokens(tokenizer) -> set[int]:
    """Tokens at which a greedy answer ends: end-of-text, and whatever begins with a line break or a full stop."""
    ids = range(tokenizer.vocab_size)
    return {i for i in ids if tokenizer.token_bytes(i).startswith((b"\n", b"."))} | {tokenizer.eot_id}


@torch.inference_mode()
def score_question(model, tokenizer, question: Question) -> Score:
    """The Score of one question in its plainest form: a forward pass a choice. The model is in eval mode."""
    context = model.config.context_length
    prompt, choices = encode_question(tokenizer, question, context)
    loglikelihoods, exact = [], False
    for index, choice in enumerate(choices):
        ids = torch.tensor((prompt + choice)[-context - 1 :], device=model.device)  # too long: it loses its beginning
        logits = model(ids[None, :context])[0].float()  # (time, vocab): what follows each token
        start = len(ids) - len(choice)
        predictions, wanted = logits[start - 1 : len(ids) - 1], ids[start:]  # (n, vocab), (n,)
        logs = predictions.log_softmax(-1).gather(1, wanted[:, None])  # (n, 1)
        loglikelihoods.append(logs.cpu().double().sum().item())
        if index == question.answer and len(ids) <= context:  # what follows the choice was predicted too
            exact = torch.equal(predictions.argmax(-1), wanted) and logits[-1].argmax().item() in stop_tokens(tokenizer)
    return make_score(question, loglikelihoods, exact)


def score_questions(model, tokenizer, questions: list[Question], batch_size=64, description="questions") -> list[Score]:
    """A Score for each question, in their order. batch_size: questions computed at once, at most."""
    was_training = model.training
    model.eval()
    encoded = [(*encode_question(tokenizer, q, model.config.context_length), q.answer) for q in questions]
    stops = stop_tokens(tokenizer)
    # What score_question does, sooner:
    answers = answer_questions(model, encoded, stops, tokenizer.eot_id, batch_size, description)
    model.train(was_training)
    return [make_score(question, *answer) for question, answer in zip(questions, answers, strict=True)]


def make_score(question: Question, loglikelihoods: list[float], exact: bool) -> Score:
    """Score of a question from its choices' log-likelihoods (nats)."""
    first = dict(zip(reversed(question.choices), reversed(loglikelihoods)))
    loglikelihoods = [first[choice] for choice in question.choices]  # the same text twice ties, whatever the rounding
    logs = torch.tensor(loglikelihoods, dtype=torch.float64)
    per_character = logs / torch.tensor([len(choice) for choice in question.choices])
    others = torch.arange(len(logs)) != question.answer
    return Score(
        loglikelihoods,
        acc=bool((logs[question.answer] > logs[others]).all()),  # False for a tie and for NaN
        acc_norm=bool((per_character[question.answer] > per_character[others]).all()),
        logprob=logs.log_softmax(0)[question.answer].item(),
        exact=exact,
    )


def summarise(scores: list[Score]) -> dict[str, float]:
    """{"n": ..., "acc": mean, "acc_se": its standard error, and so on for acc_norm, logprob, exact}; shares from 0 to 1."""
    summary = {"n": len(scores)}
    for name in ("acc", "acc_norm", "logprob", "exact"):
        summary[name], summary[name + "_se"] = mean_and_error([getattr(s, name) for s in scores])
    return summary


# A line break, or a full stop that ends a sentence: not the one of 1. or 3.5, of J. K. or of Dr. and Mrs.
END_OF_ANSWER = re.compile(r"\n|(?<!\b[A-Z])(?<!\b[A-Z][a-z])(?<!\b[A-Z][a-z][a-z])(?<!^\d)(?<!\s\d)\.(?!\d)")


def continuation(model, tokenizer, prompt: str, max_new_tokens=40) -> str:
    """What the model writes after a prompt, read as it stands, always the likeliest token, up to the end of the text."""
    ids = tokenizer.encode(prompt, bos=True)
    tokens = generate(model, torch.tensor([ids], device=model.device), max_new_tokens, eot_id=tokenizer.eot_id)
    new = tokens[0, len(ids) :].tolist()
    return tokenizer.decode(new[: new.index(tokenizer.eot_id)] if tokenizer.eot_id in new else new)


def greedy_answer(model, tokenizer, prompt: str) -> str:
    """The same after a question, up to a line break or the end of the first sentence."""
    written = continuation(model, tokenizer, prompt.rstrip())
    return END_OF_ANSWER.split(written, maxsplit=1)[0].strip().removesuffix(".")


# --- the program -------------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = Parser(("ask", "prompt"), "Multiple choice by log-likelihood; perplexity; answers.", prog="eval_qa.py")
    add = parser.add_argument
    base = f"None: what the adapter was trained on, else {BASE}"
    add("--model", help=f"a folder, *.gguf, package:NAME, or org/name[@revision] on the Hub; {base}")
    adapter = "folder of a run of train.py or of an adapter, or org/name[@revision] on the Hub"
    add("--adapter", help=f"{adapter}; fits the instruct variant too")
    add("--strength", type=float, default=1.0, help="how much of what the adapter learned is added, 0 to 1")
    add("--qa", nargs="+", default=[], metavar="FILE", help="question files: ours, TruthfulQA's or HellaSwag's")
    add("--primer", metavar="FILE", help="example questions to put before each of TruthfulQA's; None: none")
    add("--text", help="a .txt file or folder whose perplexity is reported")
    add("--ask", nargs="*", metavar="QUESTION", help="print its answers, with --adapter before and after; none: ask")
    add("--prompt", nargs="+", default=[], metavar="TEXT", help="likewise what follows a text, read as it stands")
    add("--batch-size", type=int, default=64, help="questions computed at once")
    add("--seq-len", type=int, default=128, help="window of the perplexity, in tokens")
    add("--device", default="auto", help="cpu, cuda, mps or auto: the fastest there is")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the model's weights")
    add("--scores", metavar="FILE", help="write every question's scores there, one JSON object a line")
    args = parser.parse_args()
    if args.batch_size < 1 or args.seq_len < 1:
        parser.error("--batch-size and --seq-len must be at least 1")
    if args.scores and not args.qa:
        parser.error("--scores has the scores of questions: give --qa")
    if not (args.qa or args.ask is not None or args.prompt or args.text):
        parser.error("nothing to measure: give --qa, --text, --ask or --prompt")
    return args


def measure_sets(model, tokenizer, sets, args):
    """Print a row for each set of questions; with --scores, write every question's."""
    if args.scores:
        check_writable(Path(args.scores).parent)
    width = max(20, *map(len, sets))
    print(f"{'questions':<{width}} {'n':>6} {'acc %':>14} {'acc_norm %':>14} {'log p(right)':>16} {'exact %':>14}")
    lines = []
    for name, questions in sets.items():
        scores = score_questions(model, tokenizer, questions, args.batch_size, name)
        if any(math.isnan(score.logprob) for score in scores):
            raise ValueError(NOT_FINITE)
        s = summarise(scores)
        acc, acc_norm, exact = (plus_minus(s[key], s[key + "_se"]) for key in ("acc", "acc_norm", "exact"))
        logprob = plus_minus(s["logprob"], s["logprob_se"], scale=1, digits=3)
        print(f"{name:<{width}} {s['n']:>6} {acc:>14} {acc_norm:>14} {logprob:>16} {exact:>14}", flush=True)
        lines += [{"set": name, **asdict(q), **asdict(s)} for q, s in zip(questions, scores)]
    if args.scores:
        write_lines(args.scores, lines)


def print_answer(model, tokenizer, asked, prompt, answer):
    """What the model writes; with adapters, also what it would write without."""
    print(asked)
    if adapted := bool(find_adapters(model)):
        with without_adapters(model):
            print(f"  untouched: {printable(answer(model, tokenizer, prompt)) or '(ends at once)'}")
    said = printable(answer(model, tokenizer, prompt)) or "(ends at once)"
    print(f"  {'with the adapter' if adapted else 'answer'}: {said}", flush=True)


def typed_questions():
    """Questions as they are typed, until an empty line."""
    while question := input("question (none: end)> ").strip() if sys.stdin.isatty() else sys.stdin.readline().strip():
        yield question


def main():
    args = parse_arguments()
    with one_sentence_errors("eval_qa.py", "--batch-size, --seq-len or --model"):
        sets, notes = read_question_sets(args.qa, args.primer)
        documents = read_documents(args.text) if args.text else None
        if args.adapter:  # what is wrong with it is said before a model is loaded
            adapter, config = find_adapter(args.adapter)
            args.model = base_for(config, args.model)
        folder = find_model(args.model or str(BASE))
        if args.scores and Path(args.scores).is_dir():
            raise ValueError(f"--scores {args.scores} is a folder: name a file")
        check_apart([args.scores], [folder, args.adapter, *args.qa, args.primer, args.text], "--scores")
        model, tokenizer = load_pretrained(folder, device=pick_device(args.device), dtype=getattr(torch, args.dtype))
        if args.adapter:
            load_trained(model, adapter, args.strength)
        if sets:
            measure_sets(model, tokenizer, sets, args)
        if documents:
            value = perplexity(model, tokenizer, documents, args.seq_len)
            if math.isnan(value):
                raise ValueError(NOT_FINITE)
            print(f"perplexity of {args.text}: {value:.3f}")
        for note in notes:
            print(note)
        if args.ask is not None and tokenizer.has_chat_template:
            print(f"note: {folder} has a chat template, which --ask does not use (--prompt can)", file=sys.stderr)
        for text in typed_questions() if args.ask == [] else args.ask or []:
            print_answer(model, tokenizer, text, question_prompt(text), greedy_answer)
        for text in args.prompt:
            print_answer(model, tokenizer, text, text, continuation)


if __name__ == "__main__":
    main()
