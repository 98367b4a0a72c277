"""Damaged and odd files of every kind: refused in one good sentence, or read as transformers and tokenizers read them.

    python tests/test_mutations.py 5000          # as many cases, of another seed each time it is given one
    python tests/test_mutations.py 5000 7

A case takes a kind of input, changes it somewhere, and reads it. What counts as a fault: any error but ValueError and
OSError; a message of several lines, with what does not print, or of 400 characters and more; more than ten seconds; a model
or tokenizer that comes out other than the libraries have it.
"""

import contextlib
import copy
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program

import tokenizers
import torch
from conftest import CONFIGS, END_OF_TEXT, SENTENCES, reference, transformers, write_folder
from safetensors.torch import load_file, save_file

from adapter_io import load_adapters, save_adapters
from gpt import load_tokenizer
from gpt.weights import load_model
from lora import LoRALayer, merge_adapters, replace_linears
from questions import read_questions

FAMILIES = ["llama", "llama3.1", "mistral-window", "qwen2", "qwen3", "gpt2"]
NASTY = [
    None, True, 0, -1, 2, 48, 0.5, 1e300, 1e-300, 10**30, 10**400, 2**63, "", "x", "▁", "1", "\x1b[31m\x07", "a\nb",
    "x" * 5000, "\ud800", [], {}, [[]], [None], [0], ["x"], {"a": 1}, {"": None}, [1, 2, 3],
]  # fmt: skip
TEXTS = [*SENTENCES, " hello", f"x{END_OF_TEXT}y<|user|>", "", "  ", "\u2581x", "\u00e9 123 \u65e5\n\n"]
QUESTIONS = [
    {"question": "Who?", "choices": ["a", "b"], "answer": 1, "subject": "x"},
    {"question": "Who?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}},
    {"activity_label": "A", "ctx_a": "b [x]", "ctx_b": "c", "endings": ["d", "e"], "label": 1},
]


# --- mutations --------------------------------------------------------------------------------------------------------


def places(value):
    """Every (container, key) of a JSON value; of a long one a few."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, item in items if len(items) < 40 else items[:5] + items[-5:]:
        yield value, key
        yield from places(item)


def mutate_json(rng, content):
    """The text of `content` with something changed, as a value or in the text itself."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = [*places(content)]
        if not found:  # all of it is deleted
            break
        container, key = rng.choice(found)
        what = rng.randrange(6)
        if what == 0 and len(found) > 1:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container[rng.choice(["x", "", str(key) + "_", "type", "content"])] = container.pop(key)
        elif what == 2:
            other, name = rng.choice(found)
            container[key] = copy.deepcopy(other[name])
        elif what == 3 and isinstance(container[key], (int, float)):
            container[key] = rng.choice([container[key] + 1, container[key] - 1, -container[key], container[key] * 2])
        else:
            container[key] = copy.deepcopy(rng.choice(NASTY))
    text = json.dumps(content)
    at = rng.randrange(len(text))
    odd = [
        "[" * 100_000 + text,
        text + text,
        text.replace(":", ": NaN,", 1),
        "\ufeff" + text,
        "",
        text[:at] + "\0" + text[at:],
    ]
    return rng.choice(odd) if rng.random() < 0.15 else text


def mutate_bytes(rng, content):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(min(len(content), rng.choice([8, 200, 2000, len(content)])) or 1)
        end = rng.choice([at, at + 1, at + rng.randrange(1, 9), len(content)])
        content[at:end] = rng.randbytes(rng.choice([0, 1, rng.randrange(1, 9)]))
    return bytes(content)


def write(path, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)


# --- the kinds of input -----------------------------------------------------------------------------------------------


def same_logits(folder):
    """load_model's logits are those of transformers; where it refuses the folder, nothing is compared."""
    ours = load_model(folder)
    ids = torch.randint(0, ours.config.vocab_size, (1, min(20, ours.config.context_length)))
    with torch.inference_mode():
        try:
            expected = reference(folder)(ids, use_cache=False).logits
        except Exception:
            return
        torch.testing.assert_close(ours(ids), expected, atol=1e-3, rtol=1e-3)


def same_ids(folder):
    ours = load_tokenizer(folder)
    try:
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except KeyboardInterrupt:
        raise
    except BaseException:  # a panic is one
        return
    for text in TEXTS:
        try:
            ids = ours.encode(text)
        except ValueError as error:
            assert "for which the tokenizer has no token" in str(error)
            continue
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        if ours.bos_id is not None:
            assert ours.encode(text, bos=True)[0] == theirs.encode(text).ids[0] == ours.bos_id


class Inputs:
    """What is mutated, made once, and how each kind of it is read."""

    def __init__(self, folder):
        self.here, self.models, self.adapter = folder / "case", {}, folder / "adapter"
        for name in FAMILIES:
            (folder / name).mkdir()
            with contextlib.redirect_stderr(io.StringIO()):
                self.models[name] = write_folder(folder / name, CONFIGS[name]())
        self.base = load_model(self.models["llama"])
        adapted = copy.deepcopy(self.base)
        replace_linears(adapted, LoRALayer, rank=2, alpha=4, targets=("q_proj", "down_proj"))
        save_adapters(adapted, self.adapter)

    def take(self, folder):
        shutil.rmtree(self.here, ignore_errors=True)
        return Path(shutil.copytree(folder, self.here))

    def edit(self, rng, path):
        if path.suffix == ".json":
            write(path, mutate_json(rng, json.loads(path.read_text(encoding="utf-8"))))
        else:
            write(path, mutate_bytes(rng, path.read_bytes()))

    def config(self, rng):
        folder = self.take(self.models[rng.choice(FAMILIES)])
        self.edit(rng, folder / "config.json")
        same_logits(folder)

    def tokenizer(self, rng):
        folder = self.take(self.models["llama"])
        self.edit(rng, folder / rng.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]))
        same_ids(folder)

    def weights(self, rng):
        folder = self.take(self.models[rng.choice(FAMILIES)])
        path, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
        tensors = load_file(path)
        if rng.random() < 0.4:  # in the numbers
            changes = [lambda t: t[..., :-1], lambda t: t.int(), lambda t: t * float("nan"), lambda t: t.double(),
                       lambda t: t.flatten(), lambda t: t.half() * 1e30, lambda t: t.bfloat16()]  # fmt: skip
            name = rng.choice([*tensors])
            tensors[name] = rng.choice(changes)(tensors[name]).contiguous()
            tensors |= {rng.choice(["x", "lm_head.weight", "a\nb"]): torch.zeros(3)} if rng.random() < 0.3 else {}
            save_file(tensors, path, metadata={"format": "pt"})
        elif rng.random() < 0.3:
            path.unlink()
            torch.save(tensors, pickled)
            self.edit(rng, pickled)
        else:
            self.edit(rng, path)
        same_logits(folder)

    def adapter_files(self, rng):
        folder, model = self.take(self.adapter), copy.deepcopy(self.base)
        self.edit(rng, folder / rng.choice(["adapter_config.json", "adapter_config.json", "adapter_model.safetensors"]))
        load_adapters(model, folder)
        merge_adapters(model)

    def questions(self, rng):
        self.here.mkdir(exist_ok=True)
        write(self.here / "q.jsonl", mutate_json(rng, rng.choice(QUESTIONS)))
        for question in read_questions(self.here / "q.jsonl"):
            assert len(question.choices) >= 2 and all(map(str.strip, question.choices)) and question.prompt.strip()


KINDS = ["config", "tokenizer", "weights", "adapter_files", "questions"]


# --- the test ---------------------------------------------------------------------------------------------------------


def hangs(*_):
    raise TimeoutError("more than ten seconds")


def run_cases(folder, cases, seed):
    """({kind: [refused, read]}, [what went wrong])."""
    transformers.logging.set_verbosity_error()
    inputs, counts, faults = Inputs(folder), {kind: [0, 0] for kind in KINDS}, []
    before = signal.signal(signal.SIGALRM, hangs)
    for case in range(cases):
        kind, rng = KINDS[case % len(KINDS)], random.Random(f"{seed} {case}")
        signal.alarm(10)
        try:
            getattr(inputs, kind)(rng)
            counts[kind][1] += 1
        except Exception as error:
            said = str(error).replace(str(folder), "folder")  # wherever the tests are run
            counts[kind][0] += 1
            meant = isinstance(error, (ValueError, OSError)) and not isinstance(error, TimeoutError)
            if not meant or not said.isprintable() or not 15 <= len(said) < 400:
                faults.append(f"{seed} {case} {kind}: {type(error).__name__}: {said[:600]!r}")
        finally:
            signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    return counts, faults


def test_some_mutations_are_refused_well_or_read_as_the_libraries_do(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts, faults = run_cases(tmp_path, 180, seed=0)
    assert not faults, "\n".join(faults)
    assert all(min(pair) > 0 for pair in counts.values()), counts


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        many, seed = int((*sys.argv[1:], 5000)[0]), int((*sys.argv[1:], 0, 1)[1])
        counts, faults = run_cases(Path(place), many, seed)
    for name, (refused, read) in counts.items():
        print(f"{name:<17} {refused:>5} refused {read:>5} read")
    print("\n".join(faults) or "no fault")
    sys.exit(bool(faults))
