"""lora.py: the layer against its formula and PEFT's, and replacing, merging and counting on a whole model."""

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import nn
from torch.nn import functional as F

import ablations
from gpt.model import GPT
from lora import LoRALayer, replace_linears
from mica import MiCALayer
from milora import MiLoRALayer, PiSSALayer
from train import METHODS

TARGETS = ["q_proj", "v_proj"]  # weights (24, 24) and (12, 24)
SHAPES = {"tall": (30, 12), "wide": (12, 30), "square": (20, 20)}  # (out, in)
TRAINED = {  # what each method trains
    LoRALayer: "AB", MiCALayer: "A", ablations.MajorMiCALayer: "A", ablations.RandomMiCALayer: "A",
    ablations.OrthonormalMiCALayer: "A", ablations.TrainedMiCALayer: "AB", ablations.TransposedMiCALayer: "B",
    ablations.LoRAFALayer: "B", MiLoRALayer: "AB", PiSSALayer: "AB",
}  # fmt: skip
ALL = {name: method.layer for name, method in METHODS.items() if method.layer}  # with one of your own, if you add it
every_layer = pytest.mark.parametrize("layer_class", ALL.values(), ids=ALL)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def trained_by(layer_class):
    """The names of the factors that a method trains; of one of your own, those that it says it does."""
    lone = layer_class(nn.Linear(6, 4), 2, 2)
    return TRAINED.get(layer_class) or {name for name, p in lone.named_parameters() if p.requires_grad}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(TINY)


@pytest.fixture
def ids():
    return torch.randint(64, (2, 10), generator=torch.Generator().manual_seed(1))


def train(model, ids, steps=3):
    """A few steps over *all* parameters, with weight decay: only requires_grad protects the frozen ones."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        logits = model(ids[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def state_of(model):
    """All that a failed call must leave alone."""
    modules = [(name, module, module.training) for name, module in model.named_modules()]
    return modules, [(name, id(p), p.requires_grad, p.tolist()) for name, p in model.named_parameters()]


def randomize(layer):
    """Factors as training might leave them."""
    layer.A.data = torch.randn(layer.A.shape, dtype=layer.A.dtype)
    layer.B.data = torch.randn(layer.B.shape, dtype=layer.B.dtype)
    return layer


# --- one layer ---


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_forward_is_the_formula(dtype, tolerance):
    torch.manual_seed(0)
    layer = randomize(LoRALayer(nn.Linear(7, 5, dtype=dtype), rank=3, alpha=12))
    x = torch.randn(2, 4, 7, dtype=dtype)
    W, b, A, B, X = (t.detach().double().numpy() for t in (layer.linear.weight, layer.linear.bias, layer.A, layer.B, x))
    expected = X @ W.T + b + 12 / 3 * (X @ A.T) @ B.T
    y = layer(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(layer.delta().double().numpy(), 12 / 3 * B @ A, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_start_of_the_factors(dtype):
    torch.manual_seed(0)
    layer = LoRALayer(nn.Linear(400, 50, dtype=dtype), rank=8, alpha=8)
    assert layer.A.shape == (8, 400) and layer.B.shape == (50, 8)
    factors = torch.float64 if dtype == torch.float64 else torch.float32
    assert layer.A.dtype == layer.B.dtype == layer.delta().dtype == factors
    assert layer(torch.ones(1, 400, dtype=dtype)).dtype == dtype
    assert not layer.B.any()
    bound = 400**-0.5  # Kaiming-uniform with a = sqrt(5): uniform within 1 / sqrt(in)
    assert 0.99 * bound < layer.A.abs().max() <= bound
    assert layer.A.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@every_layer
@every_shape
def test_plain_factors_make_a_plain_lora_of_the_same_function(layer_class, shape):
    torch.manual_seed(0)
    layer = randomize(layer_class(nn.Linear(shape[1], shape[0], dtype=torch.float64), rank=4, alpha=12))
    A, B = layer.plain_factors()
    k = A.shape[0]
    assert A.shape == (k, shape[1]) and B.shape == (shape[0], k) and not A.requires_grad and not B.requires_grad
    plain = LoRALayer(layer.linear, rank=k, alpha=layer.scaling * k)
    plain.A.data, plain.B.data = A, B
    x = torch.randn(3, shape[1], dtype=torch.float64)
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.merged()(x), layer(x), rtol=1e-12, atol=1e-12)


# --- a whole model ---


@every_layer
def test_training_moves_what_the_method_trains_and_nothing_else(model, ids, layer_class):
    names = replace_linears(model, layer_class, 4, 8, TARGETS)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    train(model, ids)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {f"{name}.{factor}" for name in names for factor in trained_by(layer_class)}


def break_a_weight(model):
    model.layers[1].self_attn.v_proj.weight.data[0, 0] = float("nan")


REFUSED = [  # settings, what is done to the model before, what the sentence names
    (dict(rank=13), None, ["rank 13", "1 to 12"]),  # fits q_proj, which comes first, but not v_proj
    (dict(alpha=0), None, ["alpha", "0"]),
    (dict(dropout=1.0), None, ["dropout", "1.0"]),
    (dict(targets=["q_proj", "c_attn"]), None, ["c_attn", "down_proj", "v_proj"]),
    (dict(targets=["norm"]), None, ["norm"]),  # it exists, but is not linear
    ({}, lambda model: replace_linears(model, LoRALayer, 4, 4, ["k_proj"]), ["adapted"]),
    ({}, break_a_weight, ["NaN"]),
]


@pytest.mark.parametrize("settings, before, words", REFUSED)
def test_what_cannot_be_adapted_is_refused_and_the_model_left_as_it_was(model, settings, before, words):
    if before:
        before(model)
    state = state_of(model)
    with pytest.raises(ValueError) as refused:
        replace_linears(model, LoRALayer, **dict(rank=4, alpha=4, targets=TARGETS, dropout=0.0) | settings)
    assert all(word in str(refused.value) for word in words)
    assert repr(state_of(model)) == repr(state)  # repr: NaN is not itself


def test_merging_rounds_a_16_bit_weight_once():
    torch.manual_seed(0)
    layer = randomize(LoRALayer(nn.Linear(64, 64, bias=False, dtype=torch.bfloat16), 4, 4))
    layer.B.data *= 1e-2
    W, delta = layer.linear.weight, layer.delta()
    merged = layer.merged().weight
    assert merged.dtype == torch.bfloat16 and torch.equal(merged, (W.float() + delta).bfloat16())
    assert not torch.equal(merged, W + delta.bfloat16())  # what rounding the change first would give
    assert layer.merged().bias is None
