"""gpt/model.py: the same logits as transformers, whichever way the tokens come in."""

from dataclasses import replace

import pytest
import torch
from conftest import CONFIGS, LLAMA3_ROPE, TINY, llama_config, reference, transformers, write_folder

from gpt import KVCache
from gpt.model import rotary_tables
from gpt.weights import load_model, parse_config


def test_logits_equal_transformers_up_to_the_end_of_the_context(any_folder):
    input_ids = torch.randint(0, 512, (2, 96), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours, theirs = load_model(any_folder)(input_ids), reference(any_folder)(input_ids).logits
    assert theirs.std() > 0.5  # logits that differ enough for the comparison to mean something
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e4}, LLAMA3_ROPE], ids=["default", "llama3"])
def test_logits_equal_transformers_over_4096_tokens(rope, tmp_path):
    config = llama_config(max_position_embeddings=4096, num_hidden_layers=2, rope_parameters=rope)
    folder = write_folder(tmp_path, config)
    input_ids = torch.randint(0, 512, (1, 4096), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours, theirs = load_model(folder)(input_ids), reference(folder)(input_ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


LLAMA32_ROPE = LLAMA3_ROPE | {
    "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("head_dim", "rope"),
    [(128, 10000.0), (64, 100000.0), (128, 1000000.0), (64, LLAMA32_ROPE), (128, LLAMA32_ROPE | {"factor": 8.0})],
    ids=["Llama 2", "SmolLM2", "Qwen3", "Llama 3.2", "Llama 3.1"],
)
def test_rotary_angles_of_real_models_equal_transformers(head_dim, rope):
    rope = rope if isinstance(rope, dict) else {"rope_type": "default", "rope_theta": rope}
    config = llama_config(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=rope)
    positions = torch.tensor([0, 1, 5, 8191, 8192, 131071])
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    ours = rotary_tables(positions, parse_config(config.to_dict()))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their[0], atol=1e-4, rtol=0)


def test_the_tiny_llama3_has_fast_blended_and_slow_rotations():
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
    plain, scaled = (rotary(CONFIGS[name]()).inv_freq for name in ("llama", "llama3.1"))
    ratio = plain / scaled
    assert ((ratio == 1).sum(), (ratio == 4).sum(), len(ratio)) == (1, 3, 6)


def test_bfloat16_loads_and_stays_close(any_folder, input_ids):
    exact = load_model(any_folder)
    rounded = load_model(any_folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        exact, rounded = exact(input_ids), rounded(input_ids)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize("sizes", [[1] * 20, [7, 1, 12]])
def test_cache_in_chunks(any_folder, input_ids, sizes):
    model = load_model(any_folder)
    cache = KVCache(model.config, batch_size=2, max_length=20)
    with torch.inference_mode():
        chunks = [model(chunk, cache=cache) for chunk in input_ids.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(chunks, dim=1), model(input_ids), atol=1e-4, rtol=0)
    assert cache.length == 20


def test_explicit_positions_and_mask_equal_the_defaults(any_folder, input_ids):
    model = load_model(any_folder)
    positions = torch.arange(20)
    mask = torch.ones(20, 20, dtype=torch.bool).tril().expand(2, 1, 20, 20)
    with torch.inference_mode():
        plain = model(input_ids)
        for given in (positions, positions.expand(2, 20)):
            torch.testing.assert_close(model(input_ids, positions=given, mask=mask), plain, atol=1e-4, rtol=0)
        assert (model(input_ids, positions=positions.flip(0)) - plain).abs().max() > 0.1  # positions are used


def test_packed_texts_do_not_see_each_other(any_folder, input_ids):
    """Two texts in one row, with positions from zero and a block mask, give the logits of each text alone."""
    model = load_model(any_folder)
    first, second = input_ids[:1, :8], input_ids[1:, :12]
    text = torch.tensor([0] * 8 + [1] * 12)
    mask = (text[:, None] == text) & torch.ones(20, 20, dtype=torch.bool).tril()
    positions = torch.cat([torch.arange(8), torch.arange(12)])
    with torch.inference_mode():
        packed = model(torch.cat([first, second], dim=1), positions=positions[None], mask=mask[None, None])
        alone = torch.cat([model(first), model(second)], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)


def test_later_tokens_do_not_change_earlier_logits(any_folder, input_ids):
    model = load_model(any_folder)
    changed = input_ids.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 512
    with torch.inference_mode():
        before, after = model(input_ids), model(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], atol=1e-5, rtol=0)
    assert (before[:, 10:] - after[:, 10:]).abs().max() > 0.1


def test_gradients_equal_transformers(any_folder, input_ids):
    """The tied embedding is one parameter here, and gets the gradient of both its uses."""
    model = load_model(any_folder)
    theirs = reference(any_folder)
    for logits in (model(input_ids), theirs(input_ids).logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()).backward()
    embedding = theirs.get_input_embeddings().weight
    torch.testing.assert_close(model.embed_tokens.weight.grad, embedding.grad, atol=1e-4, rtol=1e-3)
    assert (model.lm_head.weight is model.embed_tokens.weight) == theirs.config.tie_word_embeddings


def test_too_long_a_sequence_is_refused(tiny_llama_folder):
    model = load_model(tiny_llama_folder)
    cache = KVCache(model.config, batch_size=1, max_length=96)
    with torch.inference_mode():
        model(torch.zeros(1, 96, dtype=torch.long), cache=cache)
        for more, past in [(97, None), (1, cache)]:
            with pytest.raises(ValueError, match="context of 96"):
                model(torch.zeros(1, more, dtype=torch.long), cache=past)


@pytest.mark.parametrize("change", [{"family": "rwkv"}, {"n_kv_heads": 3}])
def test_bad_configurations(change):
    with pytest.raises(ValueError, match=str(*change.values())):
        replace(TINY, **change)
