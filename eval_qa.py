"""Measure what a model knows: multiple-choice questions by log-likelihood, and the perplexity of a text.

    python eval_qa.py --model data/base --qa data/old/asked.jsonl data/new/questions.jsonl
    python eval_qa.py --model data/base --adapter out/mica/seed0 --qa data/new/questions.jsonl --text data/old/text.txt
    python eval_qa.py --model HuggingFaceTB/SmolLM2-135M --qa mc_task.json hellaswag_val.jsonl --primer primer.txt

A question file has one JSON object a line: "question", "choices" (two or more), "answer" (index of the right choice), and,
if you like, "subject" and "attribute". The model reads `Question: ...\\nAnswer:` and each choice is scored by the summed
log-likelihood of " " + choice. With "cloze" instead of "question" it reads that sentence's beginning as it stands.
TruthfulQA's mc_task.json (MC1) and HellaSwag's validation file are read as they come.

Scoring follows lm-evaluation-harness: `acc` takes the likeliest choice, `acc_norm` the likeliest per character; the standard
error is the sample deviation / sqrt(n). Unlike there, a tie or NaN never counts as right.
"""

import functools
import json
import math
import re
import sys
from dataclasses import asdict, dataclass, replace
from os.path import commonprefix
from pathlib import Path

import torch
from torch.nn import functional as F

from adapter_io import load_adapters
from gpt import KVCache, SharedBeginning, find_model, load_pretrained
from gpt.cli import Parser, atomic, check_writable, one_sentence_errors, pick_device, progress

IGNORE = -100  # cross_entropy's mark for "no target here"
BATCH_TOKENS = 2**14  # computed at once, at most, when questions are long
BATCH_LOGITS = 2**25  # likewise: numbers, not tokens, so that a large vocabulary fits
SHARED = 64  # prompts that begin with this many tokens alike, as after a primer, have their beginning computed once


# --- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    prompt: str  # what the model reads before a choice
    choices: tuple[str, ...]
    answer: int  # index of the right choice
    subject: str = ""
    attribute: str = ""
    benchmark: str = ""  # where the file is one of those that people compare on


def read_text(path):
    """The text of a file. Raises ValueError when it is not UTF-8, OSError when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def make_question(item, primer=""):
    """A question as JSON gives it -> Question. Raises ValueError that says what is wrong with it."""
    if not isinstance(item, dict):
        raise ValueError('not a JSON object {"question": ..., "choices": [...], "answer": ...}')
    try:
        if "mc1_targets" in item:
            return truthfulqa_question(item, primer)
        if "endings" in item:
            return hellaswag_question(item)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a whole question of TruthfulQA or HellaSwag ({type(error).__name__}: {error})") from None
    key = "question" if "question" in item else "cloze"
    text, choices, answer = item.get(key), item.get("choices"), item.get("answer")
    if not (isinstance(text, str) and text.strip()):
        raise ValueError('"question" (or "cloze") must be a non-empty string')
    if not (isinstance(choices, list) and len(choices) >= 2 and all(isinstance(c, str) and c.strip() for c in choices)):
        raise ValueError('"choices" must be a list of two or more non-empty strings')
    if len(set(choices)) < len(choices):
        raise ValueError('"choices" must differ from each other')
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f'"answer" must be the index of the right choice, 0 to {len(choices) - 1}')
    prompt = f"Question: {text}\nAnswer:" if key == "question" else text.rstrip()  # the space belongs to the choice
    return Question(prompt, tuple(choices), answer, str(item.get("subject", "")), str(item.get("attribute", "")))


def truthfulqa_question(item, primer):
    """An item of TruthfulQA's mc_task.json (arXiv 2109.07958) -> its MC1 question, after the primer's examples if any."""
    choices, labels = tuple(item["mc1_targets"].keys()), list(item["mc1_targets"].values())
    if sorted(labels) != [0] * (len(labels) - 1) + [1] or len(labels) < 2 or not all(c.strip() for c in choices):
        raise ValueError('"mc1_targets" must give two or more choices, 1 for the right one and 0 for the others')
    if not item["question"].strip():
        raise ValueError('"question" must be a non-empty string')
    prompt = f"Q: {item['question']}\nA:"
    return Question(f"{primer}\n\n{prompt}" if primer else prompt, choices, labels.index(1), benchmark="TruthfulQA MC1")


def hellaswag_question(item):
    """A line of HellaSwag's validation file (arXiv 1905.07830) -> Question, cleaned up as lm-evaluation-harness does."""

    def clean(text):  # WikiHow's texts have leftovers of their layout, in brackets
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    prompt = clean(f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}")
    choices, answer = tuple(map(clean, item["endings"])), item["label"]
    answer = int(answer) if str(answer).isdecimal() else -1  # the test split has none
    several = isinstance(item["endings"], list) and len(choices) >= 2
    if not (several and all(choice.strip() for choice in choices) and 0 <= answer < len(choices)):
        raise ValueError('"endings" must be two or more texts, and "label" the index of the right one')
    return Question(prompt, choices, answer, attribute=item["activity_label"], benchmark="HellaSwag")


def read_questions(path, primer=""):
    """A file of questions, one JSON object a line, or one JSON list. primer: text that TruthfulQA's questions follow.

    Raises ValueError with the number of a malformed line, or of the item in the list.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
        places = [f"{path}, item {number}" for number in range(1, len(items) + 1)]
    else:
        items, places = [], []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                places.append(f"{path}, line {number}")
                try:
                    items.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{places[-1]}: not JSON ({error.msg} at column {error.colno})") from None
    questions = []
    for item, place in zip(items, places, strict=True):
        try:
            questions.append(make_question(item, primer))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def read_question_sets(paths, primer_path=None):
    """({label: questions} of question files, notes to print with their results).

    primer_path: a file with the example questions that customarily come before each of TruthfulQA's.
    """
    primer = read_text(primer_path).rstrip() if primer_path else ""
    if primer_path and not primer:
        raise ValueError(f"{primer_path} holds no text")
    sets = read_all(paths, functools.partial(read_questions, primer=primer))
    notes = []
    for name, questions in sets.items():
        benchmark = questions[0].benchmark
        if benchmark == "TruthfulQA MC1":
            benchmark += f", after the primer in {primer_path}" if primer else ", without a primer"
        if benchmark:
            notes.append(f"{name}: {benchmark}")
    if primer and not any(questions[0].benchmark == "TruthfulQA MC1" for questions in sets.values()):
        raise ValueError(f"the primer {primer_path} is for TruthfulQA's mc_task.json, which is not among the questions")
    return sets, notes


def label(path):
    """How tables call a file: data/new/cloze.jsonl -> new/cloze."""
    path = Path(path).absolute()
    return f"{path.parent.name}/{path.stem}"


def read_all(paths, read):
    """{label: read(path)}. Raises ValueError for two different files that tables would call the same."""
    contents, read_from = {}, {}
    for path in paths:
        name, file = label(path), Path(path).resolve()
        if read_from.setdefault(name, file) != file:
            raise ValueError(f"{path} is a second file that tables would call {name}: rename one of them")
        if name not in contents:
            contents[name] = read(path)
    return contents


def read_documents(path):
    """The documents of a .txt file, or of a folder's .txt and .md files (hidden ones aside): what blank lines separate.

    Never an empty list: without any text a ValueError is raised.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".txt", ".md"))
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    documents = [part.strip() for file in files for part in re.split(r"\n[ \t\r]*\n", read_text(file)) if part.strip()]
    if not documents:
        raise ValueError(f"{path} holds no text" + (" (no .txt or .md file with any)" if path.is_dir() else ""))
    return documents


def pack(documents, eot_id, seq_len, bos_id=None):
    """Lay token lists end to end, end-of-text before, between and after them, and cut the stream into windows.

    bos_id: what the model's texts begin with, if anything: each document then does, and nothing else comes first.
    Returns inputs and targets, both (windows, seq_len): every token but the first is a target once, except bos_id, which
    follows end-of-text by convention. The last window is filled up with end-of-text, which is no target there (IGNORE).
    """
    between = [eot_id] if bos_id in (None, eot_id) else [eot_id, bos_id]
    stream = between[-1:]
    for ids in documents:
        stream += [*ids, *between]
    stream = stream[: len(stream) + 1 - len(between)]  # nothing begins after the last
    missing = -(len(stream) - 1) % seq_len
    inputs = torch.tensor(stream[:-1] + [eot_id] * missing).view(-1, seq_len)
    targets = torch.tensor(stream[1:] + [IGNORE] * missing).view(-1, seq_len)
    if len(between) == 2:
        targets[targets == bos_id] = IGNORE
    return inputs, targets


# --- scoring -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How a model answers one question."""

    loglikelihoods: list[float]  # of each choice, in nats
    acc: bool  # the right choice is likelier than each other
    acc_norm: bool  # likewise per character
    logprob: float  # of the right choice among the choices, in nats
    exact: bool  # greedy decoding writes the right choice and stops


@dataclass(frozen=True)
class Row:
    """What is computed together: a prompt, once, and after it each branch as if it were alone."""

    question: int
    prompt: list[int]
    branches: dict[int, list[int]]  # choice -> its tokens
    ends: int | None  # the choice after which the model is asked what follows; None where that leaves its context

    def read(self, choice):
        """A branch's tokens but the last one, after which nothing is asked."""
        return self.branches[choice] if choice == self.ends else self.branches[choice][:-1]

    def __len__(self):
        return len(self.prompt) + sum(len(self.read(choice)) for choice in self.branches)


def encode_question(tokenizer, question, index, context_length):
    """The Rows of a question: one with all its choices, or one for each choice where its text does not fit the context.

    Prompt and choice are encoded together; what comes after as many tokens as the prompt alone has is the choice's. The
    prompt's are those it has alone, even where its last would merge with the choice. All this as in lm-evaluation-harness,
    as is that a text too long loses its beginning.
    """
    text = question.prompt.rstrip()
    border = question.prompt[len(text) :] + " "  # trailing spaces of the prompt belong to the choice
    prompt = tokenizer.encode(text, bos=True)
    branches = {}
    for choice, words in enumerate(question.choices):
        whole = tokenizer.encode(text + border + words, bos=True)
        branches[choice] = whole[len(prompt) :] or whole[-1:]  # merging may leave it none of its own
    longest = max(map(len, branches.values()))
    if longest > context_length:
        raise ValueError(f"a choice of {text[-200:]!r} does not fit the model's context of {context_length} tokens")
    if len(prompt) + longest <= context_length:
        return [Row(index, prompt, branches, ends=question.answer)]
    rows = []
    for choice, branch in branches.items():
        room = context_length + 1 - len(branch)  # the last token is predicted, not read
        rows.append(Row(index, prompt[-room:], {choice: branch}, ends=question.answer if len(prompt) < room else None))
    return rows


def lay_out(rows, eot_id):
    """A batch of Rows as one tensor each of ids, positions, mask, and of the predictions to read off.

    A row is its prompt followed by all its branches. A branch sees the prompt and itself, and its positions continue the
    prompt's, so the prompt is computed once for all choices.
        ids, positions (batch, time); mask (batch, 1, time, time), True where attention is allowed
        predictions (n, 6): row, index that predicts, token predicted, question, choice,
            1 if it counts for the choice's likelihood (0: it is the stop after the right choice's last token)
    """
    time = max(map(len, rows))
    ids = torch.full((len(rows), time), eot_id)
    positions = torch.zeros(len(rows), time, dtype=torch.long)
    segment = torch.full((len(rows), time), -1)  # 0 prompt, 1.. branches, -1 padding
    predictions = []
    for i, row in enumerate(rows):
        end = len(row.prompt)
        ids[i, :end], positions[i, :end], segment[i, :end] = torch.tensor(row.prompt), torch.arange(end), 0
        for choice, branch in row.branches.items():
            read = row.read(choice)
            start, end = end, end + len(read)
            ids[i, start:end] = torch.tensor(read)
            positions[i, start:end] = torch.arange(len(row.prompt), len(row.prompt) + len(read))
            segment[i, start:end] = choice + 1
            for j, token in enumerate(branch):
                at = start + j - 1 if j else len(row.prompt) - 1
                predictions.append((i, at, token, row.question, choice, 1))
            if choice == row.ends:
                predictions.append((i, end - 1, eot_id, row.question, choice, 0))
    causal = torch.ones(time, time, dtype=torch.bool).tril()
    sees, seen = segment[:, :, None], segment[:, None, :]
    mask = causal & ((seen == 0) | (seen == sees))  # (batch, time, time)
    return ids, positions, mask.unsqueeze(1), torch.tensor(predictions)


def batches_of(rows, batch_size):
    """[(beginning, rows), ...]: at most batch_size Rows alike in length, and BATCH_TOKENS tokens unless one alone has more.

    beginning: the tokens that begin all prompts of the batch, taken off the rows; [] where less than SHARED are alike.
    """
    groups = {}  # the first tokens, or () for rows that share too few -> rows
    for row in rows:
        groups.setdefault(tuple(row.prompt[:SHARED]), []).append(row)
    alone = [start for start, group in groups.items() if len(start) < SHARED or len(group) == 1]
    groups[()] = [row for start in alone for row in groups.pop(start)]
    batches = []
    for start, group in groups.items():
        beginning = commonprefix([row.prompt[:-1] for row in group]) if start else []  # a prompt keeps its last token
        room = 0  # for rows in the last batch
        for row in sorted(group, key=len, reverse=True):
            row = replace(row, prompt=row.prompt[len(beginning) :])
            if not room:
                batches.append((beginning, []))
                room = max(1, min(batch_size, BATCH_TOKENS // len(row)))
            batches[-1][1].append(row)
            room -= 1
    return batches


@functools.cache
def stop_tokens(tokenizer):
    """Tokens at which a greedy answer ends: end-of-text, and whatever begins with a line break or a full stop."""
    ids = range(tokenizer.vocab_size)
    return {i for i in ids if tokenizer.token_bytes(i).startswith((b"\n", b"."))} | {tokenizer.eot_id}


def predict(model, hidden, tokens):
    """(log-probability in nats of each of `tokens` (n,) after hidden (n, hidden), likeliest token there), both (n,)."""
    size = max(1, BATCH_LOGITS // model.config.vocab_size)
    logs, greedy = [], []
    for part, wanted in zip(hidden.split(size), tokens.split(size)):
        logits = model.lm_head(part).float()  # (size, vocab)
        logs.append(logits.log_softmax(-1).gather(1, wanted[:, None]).squeeze(1))
        greedy.append(logits.argmax(-1))
    return torch.cat(logs), torch.cat(greedy)


def score(loglikelihoods, answer, lengths, exact):
    """Score of one question from its choices' log-likelihoods (nats) and lengths (characters)."""
    logs = torch.tensor(loglikelihoods, dtype=torch.float64)
    per_character = logs / torch.tensor(lengths)
    others = torch.arange(len(logs)) != answer
    return Score(
        loglikelihoods,
        acc=bool((logs[answer] > logs[others]).all()),  # False for a tie and for NaN
        acc_norm=bool((per_character[answer] > per_character[others]).all()),
        logprob=logs.log_softmax(0)[answer].item(),
        exact=exact,
    )


@torch.inference_mode()
def score_questions(model, tokenizer, questions, batch_size=64, description="questions"):
    """A Score for each question, in their order. batch_size: questions computed at once, at most."""
    was_training = model.training
    model.eval()
    device, context = model.device, model.config.context_length
    rows = [row for i, question in enumerate(questions) for row in encode_question(tokenizer, question, i, context)]
    cut = len({row.question for row in rows if len(row.branches) == 1})  # questions have two choices or more
    if cut:
        print(
            f"{description}: {cut} do not fit the context of {context} tokens; they lose their beginning",
            file=sys.stderr,
        )
    stops = torch.tensor(sorted(stop_tokens(tokenizer)))
    shape = (len(questions), max(len(question.choices) for question in questions))
    loglikelihoods = torch.zeros(shape, dtype=torch.float64)
    misses = torch.zeros(shape, dtype=torch.long)  # predictions that are not what greedy decoding would write
    cache, cached = None, []  # of the latest beginning
    for beginning, batch in progress(batches_of(rows, batch_size), description):
        ids, positions, mask, predictions = lay_out(batch, tokenizer.eot_id)
        if beginning:
            if beginning != cached:
                cache, cached = (
                    KVCache(model.config, 1, len(beginning), device, model.embed_tokens.weight.dtype),
                    beginning,
                )
                model.hidden_states(torch.tensor([beginning], device=device), cache=cache)
            positions += len(beginning)
            mask = F.pad(mask, (len(beginning), 0), value=True)  # (batch, 1, time, total): all see the beginning
        shared = SharedBeginning(cache) if beginning else None
        hidden = model.hidden_states(
            ids.to(device), positions.to(device), mask.to(device), shared
        )  # (batch, time, hidden)
        row, at, token, question, choice, counts = predictions.T
        logs, greedy = predict(model, hidden[row.to(device), at.to(device)], token.to(device))
        logs, greedy = logs.cpu().double(), greedy.cpu()
        loglikelihoods.index_put_((question, choice), logs * counts, accumulate=True)
        as_greedy = torch.where(counts == 1, greedy == token, torch.isin(greedy, stops))
        misses.index_put_((question, choice), (~as_greedy).long(), accumulate=True)
    for question, logs in zip(questions, loglikelihoods):  # the same text twice is a tie, whatever the rounding
        logs[: len(question.choices)] = logs[list(map(question.choices.index, question.choices))]
    model.train(was_training)
    return [
        score(logs[: len(q.choices)].tolist(), q.answer, [len(c) for c in q.choices], bool(missed[q.answer] == 0))
        for q, logs, missed in zip(questions, loglikelihoods, misses)
    ]


def mean_and_error(values):
    """(mean, standard error = sample deviation / sqrt(n)); the error of a single value is NaN."""
    values = torch.tensor([float(value) for value in values], dtype=torch.float64)
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error


def summarise(scores):
    """{"n": ..., "acc": mean, "acc_se": its standard error, and so on for acc_norm, logprob, exact}; shares from 0 to 1."""
    summary = {"n": len(scores)}
    for name in ("acc", "acc_norm", "logprob", "exact"):
        summary[name], summary[name + "_se"] = mean_and_error([getattr(s, name) for s in scores])
    return summary


@torch.inference_mode()
def perplexity(model, tokenizer, documents, seq_len=128, batch_size=32):
    """exp of the mean negative log-likelihood a token of `documents` (strings), packed into windows of seq_len tokens."""
    was_training = model.training
    model.eval()
    seq_len = min(seq_len, model.config.context_length)
    documents = [tokenizer.encode(text) for text in documents]
    inputs, targets = pack(documents, tokenizer.eot_id, seq_len, tokenizer.bos_id)
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(inputs.split(batch_size), targets.split(batch_size)):
        hidden = model.hidden_states(x.to(model.device))  # (batch, seq_len, hidden)
        counts = y != IGNORE
        logs, _ = predict(model, hidden[counts.to(model.device)], y[counts].to(model.device))
        total -= logs.double().sum().cpu()
    model.train(was_training)
    return (total / (targets != IGNORE).sum()).exp().item()  # inf where math.exp would raise


# --- the program -------------------------------------------------------------------------------------------------------


def cell(mean, error, scale=100, digits=1):
    """A table's "mean +- error"; without the error where there is none (NaN)."""
    return f"{scale * mean:.{digits}f}" + ("" if math.isnan(error) else f" +- {scale * error:.{digits}f}")


def main():
    parser = Parser(prog="eval_qa.py", description="Multiple-choice accuracy by log-likelihood, and perplexity.")
    add = parser.add_argument
    add("--model", default="data/base", help="a model's folder, or org/name[@revision] on the Hugging Face Hub")
    add(
        "--adapter",
        help="folder of a run of train.py, or of an adapter, to put on the model; also on its instruct variant",
    )
    add(
        "--qa",
        nargs="+",
        required=True,
        metavar="FILE",
        help="question files, one JSON object a line; TruthfulQA's mc_task.json; HellaSwag's validation file",
    )
    add("--primer", metavar="FILE", help="example questions to put before each of TruthfulQA's; None: none")
    add("--text", help="a .txt file or folder whose perplexity is reported too")
    add("--batch-size", type=int, default=64, help="questions computed at once")
    add("--seq-len", type=int, default=128, help="window of the perplexity, in tokens")
    add("--device", default="auto", help="cpu, cuda, mps or auto: the fastest there is")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the model's weights")
    add("--scores", metavar="FILE", help="write every question's scores there, one JSON object a line")
    args = parser.parse_args()
    if args.batch_size < 1 or args.seq_len < 1:
        parser.error("--batch-size and --seq-len must be at least 1")
    with one_sentence_errors("eval_qa.py"):
        sets, notes = read_question_sets(args.qa, args.primer)
        documents = read_documents(args.text) if args.text else None
        folder = find_model(args.model)
        model, tokenizer = load_pretrained(folder, device=pick_device(args.device), dtype=getattr(torch, args.dtype))
        if args.adapter:
            load_adapters(model, args.adapter)
        if args.scores:
            check_writable(Path(args.scores).parent)
        width = max(20, *map(len, sets))
        print(f"{'questions':<{width}} {'n':>6} {'acc %':>14} {'acc_norm %':>14} {'log p(right)':>16} {'exact %':>14}")
        lines = []
        for name, questions in sets.items():
            scores = score_questions(model, tokenizer, questions, args.batch_size, name)
            s = summarise(scores)
            acc, acc_norm, exact = (cell(s[key], s[key + "_se"]) for key in ("acc", "acc_norm", "exact"))
            logprob = cell(s["logprob"], s["logprob_se"], scale=1, digits=3)
            print(f"{name:<{width}} {s['n']:>6} {acc:>14} {acc_norm:>14} {logprob:>16} {exact:>14}", flush=True)
            lines += [json.dumps({"set": name, **asdict(q), **asdict(s)}) for q, s in zip(questions, scores)]
        if documents:
            print(f"perplexity of {args.text}: {perplexity(model, tokenizer, documents, args.seq_len):.3f}")
        print("\n".join(notes), end="\n" if notes else "")
        if args.scores:
            with atomic(args.scores) as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
