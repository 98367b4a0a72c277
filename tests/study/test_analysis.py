"""study/analysis.py: where a change lies, on changes made by hand, and the forgetting loss beside a naive one."""

import pytest
import torch
from conftest import SENTENCES, TINY

from ablations import TransposedMiCALayer
from gpt import GPT, load_pretrained
from lora import LoRALayer, find_adapters, merge_adapters, replace_linears
from mica import MiCALayer
from study.analysis import BINS, amplification, changes, forgetting_loss, landing, shares, similarity
from train import copy_for


def svd(out, in_):
    W = torch.randn(out, in_, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return W, *torch.linalg.svd(W, full_matrices=False)


def test_amplifying_a_component_of_the_weight_by_c_is_amplification_c():
    W, U, S, Vh = svd(30, 20)
    for k in (0, 7, 19):
        dW = -3 * S[k] * torch.outer(U[:, k], Vh[k])
        assert amplification(W, dW, U[:, k : k + 1], Vh[k : k + 1].T) == pytest.approx(3)
    dW = 0.5 * (U[:, 3:5] * S[3:5]) @ Vh[3:5]
    assert amplification(W, dW, U[:, 3:5], Vh[3:5].T) == pytest.approx(0.5)


def test_similarity_of_subspaces():
    Q = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert similarity(Q[:, :4], Q[:, :4] @ turn) == pytest.approx(1)
    assert similarity(Q[:, :4], Q[:, 4:8]) == pytest.approx(0, abs=1e-12)
    assert similarity(Q[:, :4], Q[:, 2:6]) == pytest.approx(0.5)


def test_shares_add_up_to_what_lies_in_the_subspace():
    W, U, _, Vh = svd(60, 48)  # two directions a bin; 12 directions of the output are beyond W's reach
    expected = torch.zeros(BINS, dtype=torch.float64)
    expected[[0, 5]] = torch.tensor([0.75, 0.25], dtype=torch.float64)
    dW = 3**0.5 * torch.outer(U[:, 1], Vh[9]) + torch.outer(U[:, 10], Vh[9])
    assert torch.allclose(shares(U, dW), expected)
    assert shares(Vh.T, dW.T)[4] == pytest.approx(1)
    beyond = torch.linalg.qr(torch.cat([U, torch.randn(60, 1, dtype=torch.float64)], dim=1)).Q[:, -1:]
    assert shares(U, beyond @ Vh[:1]).sum() == pytest.approx(0, abs=1e-12)
    anything = torch.randn(60, 48, dtype=torch.float64)
    assert shares(Vh.T, anything.T).sum() == pytest.approx(1)
    assert shares(U, anything).sum() < 1


def trained(base, layer):
    """A copy of `base` whose q_proj and up_proj have adapters with something in them."""
    model = copy_for(base, "mica")
    replace_linears(model, layer, 2, 4, ["q_proj", "up_proj"])
    with torch.no_grad():
        for adapter in find_adapters(model).values():
            for factor in adapter.parameters():
                if factor.requires_grad:
                    factor.add_(torch.randn_like(factor))
    return model


def test_the_change_is_the_same_before_and_after_merging():
    torch.manual_seed(0)
    base = GPT(TINY)
    model = trained(base, LoRALayer)
    before = changes(base, model)
    assert list(before) == [f"{i}.{part}" for i in range(2) for part in ("self_attn.q_proj", "mlp.up_proj")]
    merge_adapters(model)
    after = changes(base, model)
    assert after.keys() == before.keys()
    for name, (W, dW) in before.items():
        assert torch.equal(W, base.layers.get_submodule(name).weight.double())
        assert torch.allclose(after[name][1], dW, atol=1e-6)
    assert changes(base, base) == {}


@pytest.mark.parametrize("layer, side, other", [(MiCALayer, "left", "right"), (TransposedMiCALayer, "right", "left")])
def test_mica_lands_in_the_minor_left_directions_and_its_mirror_image_in_the_right(layer, side, other):
    torch.manual_seed(0)
    base = GPT(TINY)
    found = landing(base, trained(base, layer), rank=2)
    assert sum(found[side][-2:]) == pytest.approx(1) and sum(found[other][-2:]) < 0.9
    assert found["projections"].keys() == {"q_proj", "up_proj"}
    for measured in found["projections"].values():
        assert measured[f"{side}_minor"] == pytest.approx(1, abs=1e-4)
        assert measured[f"{side}_major"] == pytest.approx(0, abs=1e-4)
        assert 0 < measured[f"{other}_minor"] < 0.99


def test_landing_of_a_change_that_is_a_multiple_of_the_weight_and_of_none():
    torch.manual_seed(0)
    base = GPT(TINY)
    model = copy_for(base, "full")
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight *= 1.5
    found = landing(base, model, rank=2)["projections"]
    assert found.keys() == {"q_proj"}
    assert found["q_proj"]["amplification"] == pytest.approx(0.5, rel=1e-4)
    assert found["q_proj"]["left_major"] == pytest.approx(1, abs=1e-4)
    assert found["q_proj"]["right_major"] == pytest.approx(1, abs=1e-4)
    assert landing(base, base, rank=2) is None
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    assert landing(base, model, rank=2) is None


def test_forgetting_loss_is_the_cross_entropy_against_the_base(tiny_folder):
    base, tokenizer = load_pretrained(tiny_folder)
    other = copy_for(base, "full")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ids = [tokenizer.eot_id]
    for text in SENTENCES[:3]:
        ids += [*tokenizer.encode(text), tokenizer.eot_id]
    ids = ids[:-1]  # what follows the last token is not known
    losses = {base: [], other: []}
    for start in range(0, len(ids), 24):  # a window at a time, a token at a time
        window = torch.tensor([ids[start : start + 24]])
        expected = base(window).softmax(-1)[0]
        for model, some in losses.items():
            predicted = model(window).softmax(-1)[0]
            some += [-(p * q.log()).sum().item() for p, q in zip(expected, predicted)]
    for model, some in losses.items():
        computed = forgetting_loss(base, model, tokenizer, SENTENCES[:3], seq_len=24, batch_size=2)
        assert computed == pytest.approx(sum(some) / len(some), rel=1e-5)
    assert sum(losses[other]) > sum(losses[base])  # the base's own entropy is the least
