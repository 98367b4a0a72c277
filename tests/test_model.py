"""gpt/model.py: the same logits as transformers, whichever way the tokens come in."""

import pytest
import torch
from conftest import gpt2_config, llama_config, reference, write_folder

from gpt import GPT, GPTConfig, KVCache, load_pretrained

VARIANTS = {
    "llama-tied-grouped": llama_config(),
    "llama-untied": llama_config(tie_word_embeddings=False),
    "llama-multi-head": llama_config(num_key_value_heads=4),
    "llama-one-kv-head": llama_config(num_key_value_heads=1),
    "gpt2-tied": gpt2_config(),
    "gpt2-untied": gpt2_config(tie_word_embeddings=False),
    "gpt2-inner": gpt2_config(n_inner=40),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name, tmp_path, input_ids):
    folder = write_folder(tmp_path, VARIANTS[name])
    model, _ = load_pretrained(folder)
    with torch.inference_mode():
        ours, theirs = model(input_ids), reference(folder)(input_ids).logits
    assert theirs.std() > 0.5  # logits that differ enough for the comparison to mean something
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_bfloat16_loads_and_stays_close(tiny_folder, input_ids):
    exact, _ = load_pretrained(tiny_folder)
    rounded, _ = load_pretrained(tiny_folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        exact, rounded = exact(input_ids), rounded(input_ids)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize("sizes", [[20], [5, 15], [1] * 20, [7, 1, 12]])
def test_cache_in_chunks(tiny_folder, input_ids, sizes):
    model, _ = load_pretrained(tiny_folder)
    cache = KVCache(model.config, batch_size=2, max_length=20)
    with torch.inference_mode():
        chunks = [model(chunk, cache=cache) for chunk in input_ids.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(chunks, dim=1), model(input_ids), atol=1e-4, rtol=0)
    assert cache.length == 20


def test_explicit_positions_and_mask_equal_the_defaults(tiny_folder, input_ids):
    model, _ = load_pretrained(tiny_folder)
    positions = torch.arange(20)
    mask = torch.ones(20, 20, dtype=torch.bool).tril().expand(2, 1, 20, 20)
    with torch.inference_mode():
        plain = model(input_ids)
        for given in (positions, positions.expand(2, 20)):
            torch.testing.assert_close(model(input_ids, positions=given, mask=mask), plain, atol=1e-4, rtol=0)
        assert (model(input_ids, positions=positions.flip(0)) - plain).abs().max() > 0.1  # positions are used


def test_packed_texts_do_not_see_each_other(tiny_folder, input_ids):
    """Two texts in one row, with positions from zero and a block mask, give the logits of each text alone."""
    model, _ = load_pretrained(tiny_folder)
    first, second = input_ids[:1, :8], input_ids[1:, :12]
    text = torch.tensor([0] * 8 + [1] * 12)
    mask = (text[:, None] == text) & torch.ones(20, 20, dtype=torch.bool).tril()
    positions = torch.cat([torch.arange(8), torch.arange(12)])
    with torch.inference_mode():
        packed = model(torch.cat([first, second], dim=1), positions=positions[None], mask=mask[None, None])
        alone = torch.cat([model(first), model(second)], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)


def test_later_tokens_do_not_change_earlier_logits(tiny_folder, input_ids):
    model, _ = load_pretrained(tiny_folder)
    changed = input_ids.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 512
    with torch.inference_mode():
        before, after = model(input_ids), model(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], atol=1e-5, rtol=0)
    assert (before[:, 10:] - after[:, 10:]).abs().max() > 0.1


def test_gradients_equal_transformers(tiny_folder, input_ids):
    """The tied embedding is one parameter here, and gets the gradient of both its uses."""
    model, _ = load_pretrained(tiny_folder)
    theirs = reference(tiny_folder)
    for logits in (model(input_ids), theirs(input_ids).logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()).backward()
    embedding = theirs.get_input_embeddings().weight
    torch.testing.assert_close(model.embed_tokens.weight.grad, embedding.grad, atol=1e-4, rtol=1e-3)
    assert model.lm_head.weight is model.embed_tokens.weight


def test_too_long_a_sequence_is_refused(tiny_folder):
    model, _ = load_pretrained(tiny_folder)
    with pytest.raises(ValueError, match="97 tokens do not fit the model's context of 96"):
        model(torch.zeros(1, 97, dtype=torch.long))
    cache = KVCache(model.config, batch_size=1, max_length=96)
    with torch.inference_mode():
        model(torch.zeros(1, 96, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match="context of 96"):
            model(torch.zeros(1, 1, dtype=torch.long), cache=cache)


@pytest.mark.parametrize(
    ("change", "message"), [({"family": "rwkv"}, "rwkv"), ({"n_kv_heads": 3}, "3 key/value heads")]
)
def test_bad_configurations(change, message):
    good = dict(
        family="llama", vocab_size=8, context_length=8, hidden_size=8, intermediate_size=8, n_layers=1, n_heads=4,
        n_kv_heads=2, head_dim=2,
    )  # fmt: skip
    GPT(GPTConfig(**good))
    with pytest.raises(ValueError, match=message):
        GPTConfig(**(good | change))
