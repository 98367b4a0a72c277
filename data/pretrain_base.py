"""Train the shipped base model, tokenizer included, from scratch on the old world (data/make_data.py).

    python -m data.pretrain_base     # about 15 minutes on one CPU core; the same command goes on where it was stopped

The model gets its folder when it is finished. Until then, OUT.unfinished holds what the next pass needs.

A pass over the old world is one text on each of its 900 subjects, in ever-new wordings, and questions with answers on
the *asked* half of them only. So the model learns what the questions mean, and can answer them about the other half.
The first passes tell of a fifth of the subjects only, five times as often: what each fact needs is to be seen often
enough for the model to learn *how* to tie facts to names, and with few subjects it gets there several times sooner
(the plateau of arXiv 2503.21676). data/README.md has the recipe's figures.
"""

import hashlib
import io
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer as TokenizerTrainer
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F

from corpus import IGNORE, pack
from data.make_data import old_question, old_subjects, old_text
from gpt import GPT, GPTConfig, load_tokenizer, save_pretrained
from tools.cli import MADE_BY, Parser, atomic, one_sentence_errors, pick_device, whole_folder, write_json
from train import learning_rate

END_OF_TEXT = "<|endoftext|>"
FEWER = 5  # the first passes tell of one subject in so many, and so many times as often
CONFIG = GPTConfig("llama", 2048, 256, 192, 512, n_layers=4, n_heads=6, n_kv_heads=6, head_dim=32)


def one_pass(asked, never_asked, questions_each, rng):
    """The documents of one pass over the old world, shuffled."""
    documents = [old_text(subject, rng) for subject in asked + never_asked]
    documents += [old_question(subject, rng) for subject in asked for _ in range(questions_each)]
    rng.shuffle(documents)
    return documents


def train_tokenizer(documents, folder):
    """A byte-level BPE of CONFIG.vocab_size tokens, as tokenizer.json and tokenizer_config.json."""
    trainer = TokenizerTrainer(models.BPE())
    trainer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = dict(vocab_size=CONFIG.vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    trainer.train_from_iterator(documents, trainers.BpeTrainer(**options, show_progress=False))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    settings |= {"model_max_length": CONFIG.context_length}
    with atomic(folder / "tokenizer.json") as temporary:
        temporary.write_text(trainer.to_str(pretty=True), encoding="utf-8")  # trainer.save has errors of its own
    with atomic(folder / "tokenizer_config.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n")


def initialise(model):
    """Normal weights of deviation 0.02; smaller for what adds to the residual stream, as in GPT-2."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * CONFIG.n_layers) if residual else 0.02)


def main():
    parser = Parser(prog="pretrain_base.py", description="Train the base model on the old world.")
    add = parser.add_argument
    add("--out", default="out/base", help="folder to write")
    add("--passes", type=int, default=70, help="passes over the old world (about 100,000 tokens each)")
    add("--start-small", type=float, default=0.2, help="share of the passes that tell of a fifth of the subjects")
    add("--questions-each", type=int, default=4, help="questions a pass on each asked subject")
    add("--lr", type=float, default=2e-3, help="peak learning rate")
    add("--batch-size", type=int, default=16, help="windows a step")
    add("--seq-len", type=int, default=128, help="window, in tokens")
    add("--weight-decay", type=float, default=0.05, help="of matrices")
    add("--seed", type=int, default=0, help="of initialisation, wordings and order")
    add("--device", default="auto", help="cpu, cuda, mps or auto")
    args = parser.parse_args()
    with one_sentence_errors("pretrain_base.py", "--batch-size or --seq-len"):
        pretrain(args, Path(args.out), pick_device(args.device))


def pretrain(args, out, device):
    """Train the model pass after pass, and write it when all are done."""
    unfinished = out.with_name(f"{out.name}.unfinished")
    with whole_folder(out) as new:
        torch.manual_seed(args.seed)
        rng = random.Random(f"pretraining {args.seed}")
        asked, never_asked = old_subjects()
        train_tokenizer(one_pass(asked, never_asked, args.questions_each, random.Random("tokenizer")), new)
        tokenizer = load_tokenizer(new)
        made_from = {name: value for name, value in vars(args).items() if name not in ("out", "device")}
        made_from |= {"device": str(device), "torch": str(torch.__version__), "threads": torch.get_num_threads()}
        words = (new / "tokenizer.json").read_bytes()  # they tell of the data, too
        made_from |= {"tokenizer": hashlib.sha256(words).hexdigest()}

        model = GPT(CONFIG).to(device)
        initialise(model)
        matrices, vectors = ([p for p in model.parameters() if (p.dim() == 2) == two] for two in (True, False))
        groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))

        started, tokens, step, steps, passes = time.monotonic(), 0, 0, None, 0
        saved = read_unfinished(unfinished, made_from)
        if saved:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            rng.setstate(saved["rng"])
            tokens, step, steps, passes = saved["counts"]
            print(f"going on after pass {passes}, from {unfinished}", file=sys.stderr)
        for number in range(passes + 1, args.passes + 1):
            few, repeats = (len(asked) // FEWER, FEWER) if number <= args.start_small * args.passes else (None, 1)
            told = [one_pass(asked[:few], never_asked[:few], args.questions_each, rng) for _ in range(repeats)]
            ids = [tokenizer.encode(text) for texts in told for text in texts]
            inputs, targets = pack(ids, tokenizer.eot_id, args.seq_len)  # (windows, seq_len)
            steps_a_pass = len(inputs) // args.batch_size
            steps, losses = steps or steps_a_pass * args.passes, []
            for x, y in zip(inputs.split(args.batch_size)[:steps_a_pass], targets.split(args.batch_size)):
                x, y = x.to(device), y.to(device)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(min(step, steps), steps, args.lr, warmup=0.05)
                with torch.autocast(device.type, torch.bfloat16):
                    logits = model(x)  # (batch, seq_len, vocab)
                loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=IGNORE)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
                step, tokens = step + 1, tokens + x.numel()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng.getstate()}
            state |= {"made from": made_from, "counts": (tokens, step, steps, number)}
            with atomic(unfinished) as temporary:
                torch.save(state, content := io.BytesIO())  # to a file on a full disk it would be a RuntimeError
                temporary.write_bytes(content.getvalue())
            said = f"loss {torch.stack(losses).mean():.4f}, {tokens:,} tokens, {time.monotonic() - started:.0f} s"
            print(f"pass {number}/{args.passes}: {said}", file=sys.stderr, flush=True)
        save_pretrained(model, new, tokenizer)
        write_json(new / MADE_BY, {"program": "pretrain_base.py"} | made_from)
    unfinished.unlink(missing_ok=True)
    total = sum(p.numel() for p in model.parameters())
    print(f"{out}: {total:,} parameters, {tokens:,} tokens, {time.monotonic() - started:.0f} s")


def read_unfinished(path, made_from):
    """What an earlier call had after its last pass; None where there is none, or it was called otherwise."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        old, *_ = (saved[name] for name in ("made from", "model", "optimizer", "rng", "counts"))
    except Exception as error:  # torch has many for a file that is not what it should be
        raise ValueError(f"{path} cannot be read ({error}): remove it to begin anew") from None
    if old == made_from:
        return saved
    print(f"beginning anew: {path} was made with other settings", file=sys.stderr)


if __name__ == "__main__":
    main()
