"""Fused adapted layers have the outputs and gradients of `peft`'s, except for rounding."""

import dataclasses

import pytest
import torch
from torch import nn

from fedmtl_client import trainer as training
from fedmtl_client.data import EncodedRows, load_task_data
from fedmtl_client.fused_adapters import fuse_adapters
from fedmtl_client.trainer import Trainer
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.model.adapters import adapted_layers, factor_of
from fedmtl_core.model.modeling import TOY_MODEL, MultiTaskModel, load_encoder, load_tokenizer
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.tasks.glue import PRESETS

SPEC = PRESETS["sst2"]
PLAN = dataclasses.replace(
    Config.model_validate({"model": {"server_model": TOY_MODEL}, "tasks": {"sst2": {}}}).plan("sst2"),
    learning_rate=1e-2,
)
TOKENIZER = load_tokenizer(TOY_MODEL)


def new_model(**settings):
    encoder, size = load_encoder(TOY_MODEL, weights=False)
    adapters = AdapterSettings(**{"rank": 3, "alpha": 5.0, **settings})
    model = MultiTaskModel(encoder, [SPEC], hidden_size=size, pooling="mean", adapters=adapters)
    model.freeze([])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if factor_of(name) == "b":
                parameter.add_(torch.linspace(-0.3, 0.4, parameter.numel()).view(parameter.shape))
    return model


def rows():
    data = load_task_data(SPEC, DataConfig(builtin="sst2"))
    return EncodedRows(data.train.head(40), SPEC, TOKENIZER, 48)


def gradients(model, *, fused):
    """The loss's gradients of one batch, and the outputs."""
    inputs = TOKENIZER(["a fine film", "no plot, no wit and no end"], return_tensors="pt", padding=True)
    model.zero_grad()
    if fused:
        with fuse_adapters(model):
            outputs = model("sst2", inputs)
    else:
        outputs = model("sst2", inputs)
    (outputs * torch.tensor([[1.0, -2.0], [0.5, 3.0]])).sum().backward()
    return outputs.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("a_is_frozen", [True, False])
@pytest.mark.parametrize("settings", [{}, {"kind": "rslora"}, {"targets": ("query", "output.dense")}])
def test_outputs_and_gradients_are_those_of_peft(a_is_frozen, settings):
    model = new_model(a_is_frozen=a_is_frozen, **settings).eval()
    outputs, expected = gradients(model, fused=False)
    fused, got = gradients(model, fused=True)
    torch.testing.assert_close(fused, outputs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fused, outputs)  # it is another computation
    assert got.keys() == expected.keys()
    assert any(factor_of(name) == "a" for name in got) != a_is_frozen
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_gradients_are_those_of_numerical_differentiation():
    """In float64, of the layer's input and of both factors."""
    from fedmtl_client.fused_adapters import _Adapted

    torch.manual_seed(1)
    x, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (2, 5), (4, 2)))
    weight, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, a, b: _Adapted.apply(x, weight, bias, a, b, 1.7), (x, a, b))
    assert torch.autograd.gradcheck(lambda x, b: _Adapted.apply(x, weight, None, a.detach(), b, 1.7), (x, b))


@pytest.mark.parametrize("settings", [{"kind": "dora"}, {"dropout": 0.5}])
def test_what_is_no_plain_sum_stays_as_it_is(settings):
    model = new_model(**settings)
    with fuse_adapters(model):
        assert all("forward" not in vars(layer) for layer in adapted_layers(model.encoder).values())


def test_a_layer_whose_weights_are_trained_too_stays_as_it_is():
    model = new_model()
    first, *others = adapted_layers(model.encoder).values()
    first.get_base_layer().bias.requires_grad_(True)
    with fuse_adapters(model):
        assert "forward" not in vars(first)
        assert all("forward" in vars(layer) for layer in others)


def test_layers_are_those_of_peft_again_after_an_error():
    model = new_model()
    with pytest.raises(KeyboardInterrupt), fuse_adapters(model):
        raise KeyboardInterrupt
    assert all("forward" not in vars(layer) for layer in adapted_layers(model.encoder).values())


def test_a_model_without_adapters_trains_as_ever():
    encoder, size = load_encoder(TOY_MODEL, weights=False)
    model = MultiTaskModel(encoder, [SPEC], hidden_size=size)
    with fuse_adapters(model):
        assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("a_is_frozen", [True, False])
def test_a_round_of_training_gives_the_same_model(a_is_frozen, monkeypatch):
    trained = {}
    for kind in ("fused", "peft"):
        seen = []
        monkeypatch.setattr(training, "fuse_adapters", fuse_adapters if kind == "fused" else _not_fused)
        monkeypatch.setattr(
            Trainer,
            "loss",
            lambda self, model, *batch, loss=Trainer.loss, seen=seen: (
                seen.append("forward" in vars(next(iter(adapted_layers(model.encoder).values())))),
                loss(self, model, *batch),
            )[1],
        )
        model = new_model(a_is_frozen=a_is_frozen)
        Trainer(SPEC, PLAN, torch.device("cpu")).train(model, rows(), 1, seed=1)
        trained[kind] = {name: value.clone() for name, value in model.exchanged().items()}
        assert set(seen) == {kind == "fused"}
        monkeypatch.undo()
    first = new_model(a_is_frozen=a_is_frozen).exchanged()
    for name, value in trained["peft"].items():
        moved = float((value - first[name]).detach().abs().max())
        assert moved > 1e-4, name
        torch.testing.assert_close(trained["fused"][name], value, rtol=0, atol=moved * 0.02, msg=name)


def _not_fused(model: nn.Module):
    from contextlib import nullcontext

    return nullcontext()
