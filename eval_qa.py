"""Measure what a model knows: multiple-choice questions by log-likelihood, and the perplexity of a text.

    python eval_qa.py --model data/base --qa data/old/asked.jsonl data/new/questions.jsonl
    python eval_qa.py --model data/base --adapter out/mica/seed0/adapter --qa data/new/questions.jsonl --text data/old/text.txt

A question file has one JSON object a line: "question", "choices" (two or more), "answer" (index of the right choice), and,
if you like, "subject" and "attribute". The model reads `Question: ...\\nAnswer:` and each choice is scored by the summed
log-likelihood of " " + choice. With "cloze" instead of "question" it reads that sentence's beginning as it stands.

Scoring follows lm-evaluation-harness: `acc` takes the likeliest choice, `acc_norm` the likeliest per character; the standard
error is the sample deviation / sqrt(n). Unlike there, a tie or NaN never counts as right.
"""

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from adapter_io import load_adapters
from gpt import load_pretrained
from gpt.cli import Parser, atomic, check_writable, one_sentence_errors, pick_device, progress

IGNORE = -100  # cross_entropy's mark for "no target here"


# --- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    prompt: str  # what the model reads before a choice
    choices: tuple[str, ...]
    answer: int  # index of the right choice
    subject: str = ""
    attribute: str = ""


def read_text(path):
    """The text of a file. Raises ValueError when it is not UTF-8, OSError when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def make_question(item):
    """A question as JSON gives it -> Question. Raises ValueError that says what is wrong with it."""
    if not isinstance(item, dict):
        raise ValueError('not a JSON object {"question": ..., "choices": [...], "answer": ...}')
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
    prompt = f"Question: {text}\nAnswer:" if key == "question" else text
    return Question(prompt, tuple(choices), answer, str(item.get("subject", "")), str(item.get("attribute", "")))


def read_questions(path):
    """A file of questions, one JSON object a line. Raises ValueError with the number of a malformed line."""
    questions = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                questions.append(make_question(json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


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


def pack(documents, eot_id, seq_len):
    """Lay token lists end to end, end-of-text before, between and after them, and cut the stream into windows.

    Returns inputs and targets, both (windows, seq_len): every token but the first is a target once. The last window is
    filled up with end-of-text, which is no target there (IGNORE).
    """
    stream = [eot_id]
    for ids in documents:
        stream += [*ids, eot_id]
    missing = -(len(stream) - 1) % seq_len
    inputs = torch.tensor(stream[:-1] + [eot_id] * missing).view(-1, seq_len)
    targets = torch.tensor(stream[1:] + [IGNORE] * missing).view(-1, seq_len)
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


def encode_choices(tokenizer, question, context_length):
    """(prompt, branches, scored): tokens all choices share, each choice's further tokens, and how many at its end count.

    Prompt and choice are encoded together and split at the prompt's length, as lm-evaluation-harness does; tokens that
    merge across that border differ between choices and so move into the branches. A prompt too long loses its beginning.
    """
    text = question.prompt.rstrip()
    border = question.prompt[len(text) :] or " "  # trailing spaces of the prompt belong to the choice
    n_prompt = len(tokenizer.encode(text))
    wholes = [tokenizer.encode(text + border + choice) for choice in question.choices]
    shared = 0
    while shared < n_prompt and all(len(ids) > shared + 1 and ids[shared] == wholes[0][shared] for ids in wholes):
        shared += 1
    branches = [ids[shared:] for ids in wholes]
    scored = [len(ids) - min(n_prompt, len(ids) - 1) for ids in wholes]
    room = context_length - max(map(len, branches))
    if room < 1:
        raise ValueError(
            f"the choices of {question.prompt!r} do not fit the model's context of {context_length} tokens"
        )
    return wholes[0][:shared][-room:], branches, scored


def lay_out(encoded, eot_id):
    """A batch of encoded questions as one tensor each of ids, positions, mask, and of the predictions to read off.

    A row is its prompt followed by all its branches. A branch sees the prompt and itself, and its positions continue the
    prompt's, so the prompt is computed once for all choices.
        ids, positions (batch, time); mask (batch, 1, time, time), True where attention is allowed
        predictions (n, 5): row, index that predicts, token predicted, choice,
            1 if it counts for the choice's likelihood (0: it is the stop after the choice's last token)
    """
    time = max(len(prompt) + sum(map(len, branches)) for prompt, branches, _ in encoded)
    ids = torch.full((len(encoded), time), eot_id)
    positions = torch.zeros(len(encoded), time, dtype=torch.long)
    segment = torch.full((len(encoded), time), -1)  # 0 prompt, 1.. branches, -1 padding
    predictions = []
    for row, (prompt, branches, scored) in enumerate(encoded):
        end = len(prompt)
        ids[row, :end], positions[row, :end], segment[row, :end] = torch.tensor(prompt), torch.arange(end), 0
        for choice, (branch, n_scored) in enumerate(zip(branches, scored)):
            start, end = end, end + len(branch)
            ids[row, start:end] = torch.tensor(branch)
            positions[row, start:end] = torch.arange(len(prompt), len(prompt) + len(branch))
            segment[row, start:end] = choice + 1
            for i in range(len(branch) - n_scored, len(branch)):
                predictions.append((row, start + i - 1 if i else len(prompt) - 1, branch[i], choice, 1))
            predictions.append((row, end - 1, eot_id, choice, 0))
    causal = torch.ones(time, time, dtype=torch.bool).tril()
    sees, seen = segment[:, :, None], segment[:, None, :]
    mask = causal & ((seen == 0) | (seen == sees))  # (batch, time, time)
    return ids, positions, mask.unsqueeze(1), torch.tensor(predictions)


def stop_tokens(tokenizer):
    """Tokens at which a greedy answer ends: end-of-text, and whatever begins with a line break or a full stop."""
    texts = (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
    return {i for i, text in enumerate(texts) if text.startswith(("\n", "."))} | {tokenizer.eot_id}


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
    """A Score for each question, in their order. batch_size: questions computed at once."""
    was_training = model.training
    model.eval()
    encoded = [encode_choices(tokenizer, question, model.config.context_length) for question in questions]
    order = sorted(
        range(len(questions)), key=lambda i: -sum(map(len, encoded[i][1])) - len(encoded[i][0])
    )  # alike in length
    stops = stop_tokens(tokenizer)
    scores = [None] * len(questions)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for batch in progress(batches, description):
        ids, positions, mask, predictions = lay_out([encoded[i] for i in batch], tokenizer.eot_id)
        device = model.device
        hidden = model.hidden_states(ids.to(device), positions.to(device), mask.to(device))  # (batch, time, hidden)
        row, at, token, choice, counts = predictions.T
        logits = model.lm_head(hidden[row.to(device), at.to(device)]).float()  # (predictions, vocab)
        logs = logits.log_softmax(-1).gather(1, token.to(device)[:, None]).squeeze(1).cpu().double()
        greedy = logits.argmax(-1).cpu()
        as_greedy = torch.where(counts == 1, greedy == token, torch.tensor([int(g) in stops for g in greedy]))
        for i, index in enumerate(batch):
            question, mine = questions[index], row == i
            sums = [logs[mine & (choice == c) & (counts == 1)].sum().item() for c in range(len(question.choices))]
            exact = bool(as_greedy[mine & (choice == question.answer)].all())
            scores[index] = score(sums, question.answer, [len(c) for c in question.choices], exact)
    model.train(was_training)
    return scores


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
    inputs, targets = pack([tokenizer.encode(text) for text in documents], tokenizer.eot_id, seq_len)
    total = 0.0
    for x, y in zip(inputs.split(batch_size), targets.split(batch_size)):
        logits = model(x.to(model.device)).float()  # (batch, seq_len, vocab)
        total += F.cross_entropy(
            logits.flatten(0, 1), y.flatten().to(model.device), ignore_index=IGNORE, reduction="sum"
        ).item()
    model.train(was_training)
    mean = torch.tensor(total, dtype=torch.float64) / (targets != IGNORE).sum()
    return mean.exp().item()  # inf where math.exp would raise


# --- the program -------------------------------------------------------------------------------------------------------


def cell(mean, error, scale=100, digits=1):
    """A table's "mean +- error"; without the error where there is none (NaN)."""
    return f"{scale * mean:.{digits}f}" + ("" if math.isnan(error) else f" +- {scale * error:.{digits}f}")


def label(path):
    """How tables call a file: data/new/cloze.jsonl -> new/cloze."""
    path = Path(path).absolute()
    return f"{path.parent.name}/{path.stem}"


def main():
    parser = Parser(prog="eval_qa.py", description="Multiple-choice accuracy by log-likelihood, and perplexity.")
    parser.add_argument(
        "--model", default="data/base", help="folder with config.json, model.safetensors, tokenizer.json"
    )
    parser.add_argument("--adapter", help="folder of a trained adapter to put on the model")
    parser.add_argument("--qa", nargs="+", required=True, metavar="FILE", help="question files, one JSON object a line")
    parser.add_argument("--text", help="a .txt file or folder whose perplexity is reported too")
    parser.add_argument("--batch-size", type=int, default=64, help="questions computed at once")
    parser.add_argument("--seq-len", type=int, default=128, help="window of the perplexity, in tokens")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto: the fastest there is")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the model's weights"
    )
    parser.add_argument("--scores", metavar="FILE", help="write every question's scores there, one JSON object a line")
    args = parser.parse_args()
    if args.batch_size < 1 or args.seq_len < 1:
        parser.error("--batch-size and --seq-len must be at least 1")
    with one_sentence_errors("eval_qa.py"):
        sets = {path: read_questions(path) for path in args.qa}
        documents = read_documents(args.text) if args.text else None
        model, tokenizer = load_pretrained(
            args.model, device=pick_device(args.device), dtype=getattr(torch, args.dtype)
        )
        if args.adapter:
            load_adapters(model, args.adapter)
        if args.scores:
            check_writable(Path(args.scores).parent)
        print(f"{'questions':<20} {'n':>6} {'acc %':>14} {'acc_norm %':>14} {'log p(right)':>16} {'exact %':>14}")
        lines = []
        for path, questions in sets.items():
            scores = score_questions(model, tokenizer, questions, args.batch_size, label(path))
            s = summarise(scores)
            acc, acc_norm, exact = (cell(s[name], s[name + "_se"]) for name in ("acc", "acc_norm", "exact"))
            logprob = cell(s["logprob"], s["logprob_se"], scale=1, digits=3)
            print(f"{label(path):<20} {s['n']:>6} {acc:>14} {acc_norm:>14} {logprob:>16} {exact:>14}", flush=True)
            lines += [json.dumps({"set": label(path), **asdict(q), **asdict(s)}) for q, s in zip(questions, scores)]
        if documents:
            print(f"perplexity of {args.text}: {perplexity(model, tokenizer, documents, args.seq_len):.3f}")
        if args.scores:
            with atomic(args.scores) as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
