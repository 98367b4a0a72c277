"""gpt/generate.py and `python -m gpt`: the same text as transformers, with and without the cache; sampling; errors."""

import io
import json
import runpy
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from conftest import reference

from gpt import generate, load_pretrained
from gpt.generate import next_tokens
from gpt.tokenizer import template
from gpt.weights import load_model


@pytest.fixture
def model(tiny_folder):
    return load_pretrained(tiny_folder)[0]


def test_greedy_with_and_without_cache_and_in_transformers(any_folder, input_ids):
    model = load_model(any_folder)
    cached = generate(model, input_ids, 50)
    assert cached.shape == (2, 70) and cached.dtype == torch.long
    assert torch.equal(cached, generate(model, input_ids, 50, use_cache=False))
    assert torch.equal(cached[:, :20], input_ids)
    theirs = reference(any_folder).generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=50, do_sample=False, pad_token_id=0
    )
    assert torch.equal(cached, theirs)


def test_samples_with_and_without_cache(model, input_ids):
    def sample(seed, use_cache):
        generator = torch.Generator().manual_seed(seed)
        return generate(
            model, input_ids, 50, temperature=0.7, top_k=40, top_p=0.9, generator=generator, use_cache=use_cache
        )

    assert torch.equal(sample(0, True), sample(0, False))
    assert not torch.equal(sample(0, True), sample(1, True))


def test_however_small_the_temperature_the_likeliest_is_drawn():
    logits = torch.tensor([[-2.0, 3.0, 2.9, -1.0]])
    for temperature in (1e-3, 1e-30, 1e-40, 5e-324):
        assert next_tokens(logits, temperature).item() == 1


def drawn(n=20000, **options):
    """How often each of five tokens with probabilities 0.1, 0.4, 0.05, 0.15, 0.3 is drawn."""
    logits = torch.tensor([0.1, 0.4, 0.05, 0.15, 0.3]).log() + 3
    ids = next_tokens(logits.repeat(n, 1), generator=torch.Generator().manual_seed(0), **options)
    return ids.bincount(minlength=5) / n


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0}, [0.1, 0.4, 0.05, 0.15, 0.3]),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.6}, [0, 4 / 7, 0, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.8}, [0, 8 / 17, 0, 3 / 17, 6 / 17]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.6}, [0, 4 / 7, 0, 0, 3 / 7]),
        ({"temperature": 0.5}, [0.01 / 0.285, 0.16 / 0.285, 0.0025 / 0.285, 0.0225 / 0.285, 0.09 / 0.285]),
    ],
)
def test_what_is_sampled_how_often(options, expected):
    frequencies, expected = drawn(**options), torch.tensor(expected, dtype=torch.float)
    assert torch.equal(frequencies > 0, expected > 0)
    torch.testing.assert_close(frequencies, expected, atol=0.015, rtol=0)


def test_stops_when_every_row_has_ended(model, input_ids):
    free = generate(model, input_ids, 30)
    eot_id = free[0, 24].item()  # row 0 ends here at the latest
    first = [(row[20:] == eot_id).nonzero()[:1] + 20 for row in free]  # where each row says it, if it does
    stopped = generate(model, input_ids, 30, eot_id=eot_id)
    ends = [f.item() if len(f) else 49 for f in first]
    assert stopped.shape[1] == max(ends) + 1
    for row, free_row, end in zip(stopped, free, ends, strict=True):
        assert torch.equal(row[: end + 1], free_row[: end + 1])
        assert (row[end + 1 :] == eot_id).all()
    alone = generate(model, input_ids[:1], 30, eot_id=eot_id)
    assert alone.shape[1] == ends[0] + 1 <= 25
    assert alone[0, -1] == eot_id


def test_an_end_of_text_in_the_prompt_does_not_end(model, input_ids):
    free = generate(model, input_ids, 3)
    eot_id = next(token.item() for token in input_ids[0] if not (free[:, 20:] == token).any())
    assert torch.equal(generate(model, input_ids, 3, eot_id=eot_id), free)


@pytest.mark.parametrize("use_cache", [True, False])
def test_stays_within_the_context(model, input_ids, use_cache):
    assert generate(model, input_ids, 1000, use_cache=use_cache).shape == (2, 96)


def test_result_may_be_trained_on(model, input_ids):
    """inference_mode's tensors cannot enter autograd; the result must be an ordinary one."""
    model(generate(model, input_ids, 2)).sum().backward()
    assert model.norm.weight.grad is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": 1.0, "top_k": 0}, "top_k 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p 0"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "needs one"),
        ({"input_ids": torch.zeros(1, 96, dtype=torch.long)}, "leave room in the context of 96"),
    ],
)
def test_arguments_out_of_range(model, input_ids, changes, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **({"input_ids": input_ids, "max_new_tokens": 1} | changes))


# The program


def run(*arguments):
    """(exit code, stdout, stderr) of `python -m gpt`, in this process: that is sooner."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["gpt", *map(str, arguments)])
        try:
            runpy.run_module("gpt", run_name="__main__")
            code = 0
        except SystemExit as stopped:
            code = stopped.code
    return code, out.getvalue(), err.getvalue()


def test_program(tiny_llama_folder):
    model, tokenizer = load_pretrained(tiny_llama_folder)
    code, out, err = run(tiny_llama_folder, "The sea", "--max-new-tokens", 8, "--temperature", 0, "--device", "cpu")
    assert (code, err) == (0, "")
    tokens = generate(model, torch.tensor([tokenizer.encode("The sea")]), 8, eot_id=tokenizer.eot_id)
    assert out.endswith(f"\n\n{tokenizer.decode(tokens[0])}\n")
    total = sum(parameter.numel() for parameter in model.parameters())
    attention = 3 * (2 * 32 * 48 + 2 * 32 * 24)  # layers * (query and output + key and value)
    mlp = 3 * 3 * 32 * 56
    assert f"parameters         {total:,}\n" in out
    assert f"attention        {attention:,} (" in out
    assert f"MLP              {mlp:,} (" in out
    assert f"embeddings       {512 * 32:,} (" in out
    assert "n_kv_heads         2\n" in out
    half = load_pretrained(tiny_llama_folder, dtype=torch.bfloat16)[0]
    _, out, _ = run(tiny_llama_folder, "The sea", "--max-new-tokens", 8, "--temperature", 0, "--dtype", "bfloat16")
    tokens = generate(half, torch.tensor([tokenizer.encode("The sea")]), 8, eot_id=tokenizer.eot_id)
    assert out.endswith(f"\n\n{tokenizer.decode(tokens[0])}\n")


def test_program_begins_as_the_models_texts_do_but_does_not_show_it(tiny_llama_folder, tmp_path):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "bos")
    content = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": template("<|user|>", 1)}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    model, tokenizer = load_pretrained(folder)
    _, out, _ = run(folder, "The sea", "--max-new-tokens", 8, "--temperature", 0, "--device", "cpu")
    ids = [1, *tokenizer.encode("The sea")]
    tokens = generate(model, torch.tensor([ids]), 8, eot_id=tokenizer.eot_id)[0]
    assert out.endswith(f"\n\n{tokenizer.decode(tokens[1:])}\n")
    assert not torch.equal(tokens[1:], generate(model, torch.tensor([ids[1:]]), 8, eot_id=tokenizer.eot_id)[0])


def test_a_program_that_fails_says_one_line():
    code, out, err = run("nowhere", "x")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("python -m gpt: ") and "nowhere" in err


def test_program_without_prompt_text(tiny_gpt2_folder):
    """An empty prompt begins a document, and the seed decides the sample."""
    model, tokenizer = load_pretrained(tiny_gpt2_folder)
    code, out, err = run(tiny_gpt2_folder, "", "--max-new-tokens", 5, "--seed", 3, "--top-k", 20, "--device", "cpu")
    start, seed = torch.tensor([[tokenizer.eot_id]]), torch.Generator().manual_seed(3)
    tokens = generate(model, start, 5, temperature=0.8, top_k=20, eot_id=tokenizer.eot_id, generator=seed)
    assert (code, err) == (0, "")
    assert out.endswith(f"\n\n<|endoftext|>{tokenizer.decode(tokens[0, 1:])}\n")
