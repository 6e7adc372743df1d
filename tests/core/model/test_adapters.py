"""Adapters in an encoder: where they are, what they are called, and how they start."""

import copy
import hashlib

import pytest
import torch
from torch import nn
from transformers import BertModel

from fedmtl_core.errors import ConfigError
from fedmtl_core.model import adapters
from fedmtl_core.model.encoders import TOY_MODEL, load_encoder
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.wire.layout import Component, Layout, digest_of, digests_of
from tests.support import specs

FIRST = "encoder.encoder.layer.0.attention.self.query"
LAYERS = [
    f"encoder.layer.{number}.{name}"
    for number in range(2)
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]
INPUTS = {
    "input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}


def encoder(seed=1) -> BertModel:
    return load_encoder(TOY_MODEL, weights=False, seed=seed)[0].eval()


def settings(**more) -> AdapterSettings:
    return AdapterSettings(**{"rank": 4, "alpha": 8.0, "seed": 3, **more})


def model(**more) -> MultiTaskModel:
    own = encoder()
    return MultiTaskModel(own, specs("sst2"), hidden_size=64, adapters=settings(**more))


def set_randomly(one: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, parameter in one.named_parameters():
        if adapters.factor_of(name) == "b":
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


class TestNames:
    """Pinned: both sides of a federation must give a tensor the same name, whatever version of peft each has."""

    def test_adapters_are_named_after_their_layer(self):
        assert list(model().exchanged()) == [
            *(f"encoder.{layer}.{factor}.weight" for layer in LAYERS for factor in ("lora_A", "lora_B")),
            "heads.sst2.weight",
            "heads.sst2.bias",
        ]

    def test_doras_norms_are_named_after_their_layer(self):
        names = [name for name in model(kind="dora").exchanged() if name.startswith(FIRST)]
        assert sorted(names) == [f"{FIRST}.{one}.weight" for one in ("lora_A", "lora_B", "lora_magnitude_vector")]

    def test_the_base_has_the_names_of_the_encoder_without_adapters_and_their_order(self):
        plain = [f"encoder.{name}" for name in encoder().state_dict()]
        (base,) = model().base().values()
        assert [name for name in base if "lora_" not in name] == plain
        assert "lora_" not in " ".join(base)

    def test_factors_that_keep_their_first_values_follow_the_base(self):
        (base,) = model(a_is_frozen=True).base().values()
        assert list(base)[-len(LAYERS) :] == [f"encoder.{layer}.lora_A.weight" for layer in LAYERS]
        assert not any("lora_A" in name for name in model(a_is_frozen=True).exchanged())

    def test_shapes_and_first_values(self):
        tensors = model().exchanged()
        a, b = tensors[f"{FIRST}.lora_A.weight"], tensors[f"{FIRST}.lora_B.weight"]
        assert (a.shape, b.shape, a.dtype, b.dtype) == ((4, 64), (64, 4), torch.float32, torch.float32)
        assert not b.any()
        digest = hashlib.sha256(a.detach().numpy().tobytes()).hexdigest()
        assert digest == GOLDEN_FIRST_A
        generator = torch.Generator()
        drawn = hashlib.sha256(f"3:{FIRST.removeprefix('encoder.')}.lora_A.weight".encode()).digest()
        generator.manual_seed(int.from_bytes(drawn[:8], "little", signed=True))
        assert torch.equal(a, torch.rand(4, 64, generator=generator) * 0.25 - 0.125)


GOLDEN_FIRST_A = "53a1f1ff5229d77a80daba9613e93dfd6346d3c57bf47bade919a6d1096a2a44"


class TestFirstValues:
    def first(self, **more) -> torch.Tensor:
        return model(**more).exchanged()[f"{FIRST}.lora_A.weight"].detach()

    def test_they_depend_on_the_seed_and_the_name_only(self):
        first = self.first()
        torch.manual_seed(99)
        assert torch.equal(self.first(), first)
        assert torch.equal(self.first(targets=("query",)), first)
        assert torch.equal(self.first(kind="dora"), first)
        assert not torch.equal(self.first(seed=4), first)
        others = {name: one for name, one in model().exchanged().items() if name.endswith("query.lora_A.weight")}
        assert len({one.detach().numpy().tobytes() for one in others.values()}) == 2

    def test_the_global_random_state_stays(self):
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        own = encoder()
        torch.manual_seed(1)
        adapters.inject(own, settings())
        assert torch.equal(torch.rand(3), expected)

    def test_doras_norms_are_those_of_the_weights_rows(self):
        own = model(kind="dora")
        (base,) = own.base().values()
        norms = base[f"{FIRST}.weight"].norm(dim=1)
        assert torch.equal(own.exchanged()[f"{FIRST}.lora_magnitude_vector.weight"], norms)


class TestInjection:
    @pytest.mark.parametrize("is_training", [True, False])
    @pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
    def test_the_outputs_and_the_mode_stay_the_same(self, kind, is_training):
        own = encoder()
        expected = own(**INPUTS).last_hidden_state
        own.train(is_training)
        adapters.inject(own, settings(kind=kind, dropout=0.5))
        assert {module.training for module in own.modules()} == {is_training}
        got = own.eval()(**INPUTS).last_hidden_state
        assert torch.allclose(got, expected, atol=1e-6)

    @pytest.mark.parametrize(("kind", "scale"), [("lora", 8 / 4), ("rslora", 8 / 4**0.5)])
    def test_a_layer_computes_with_the_weight_plus_the_scaled_product(self, kind, scale):
        own = encoder()
        adapters.inject(own, settings(kind=kind))
        set_randomly(own)
        layer = own.encoder.layer[0].attention.self.query
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        inputs = torch.randn(5, 64)
        weight = layer.base_layer.weight.double() + scale * b.double() @ a.double()
        expected = inputs.double() @ weight.T + layer.base_layer.bias.double()
        assert torch.allclose(layer(inputs).double(), expected, atol=1e-5)
        assert settings(kind=kind).scale == scale

    @pytest.mark.parametrize(
        ("targets", "count"),
        [(("query",), 2), (("query", "value"), 4), (("layer.1.output.dense",), 1), (("dense",), 7), ((LAYERS[0],), 1)],
    )
    def test_targets_are_names_or_their_ends(self, targets, count):
        found = adapters.target_layers(encoder(), targets)
        assert len(found) == count
        assert all(any(name == one or name.endswith(f".{one}") for one in targets) for name in found)

    def test_without_targets_all_linear_layers_in_numbered_layers_are_adapted(self):
        assert list(adapters.target_layers(encoder(), ())) == LAYERS  # not the pooler's

    def test_an_unknown_target_is_refused_with_the_ends_that_are_there(self):
        with pytest.raises(ConfigError) as error:
            adapters.inject(encoder(), settings(targets=("query", "quary")))
        assert str(error.value) == (
            "model.adapters.targets: the encoder has no linear layer 'quary'; its linear layers end in query, key, "
            "value, dense"
        )

    def test_an_encoder_with_adapters_gets_no_others(self):
        own = encoder()
        adapters.inject(own, settings())
        before = {name: one.clone() for name, one in own.named_parameters()}
        with pytest.raises(ConfigError, match="has adapters already"):
            adapters.inject(own, settings())
        assert all(torch.equal(one, before[name]) for name, one in own.named_parameters())


class TestFreezing:
    @pytest.mark.parametrize("a_is_frozen", [True, False])
    def test_the_base_is_never_trained(self, a_is_frozen):
        own = model(a_is_frozen=a_is_frozen)
        (base,) = own.base().values()
        for names in ((), (f"{FIRST}.lora_B.weight", "heads.sst2.bias")):
            own.freeze(names)
            trained = {name for name, one in own.exchanged().items() if one.requires_grad}
            assert trained == own.exchanged().keys() - set(names)
            assert not any(one.requires_grad for one in base.values())

    def test_exchanged_and_base_are_all_tensors_once(self):
        own = model()
        (base,) = own.base().values()
        assert not own.exchanged().keys() & base.keys()
        assert len(own.exchanged()) + len(base) == len(own.state_dict())

    def test_without_adapters_there_is_no_base(self):
        assert MultiTaskModel(encoder(), specs("sst2"), hidden_size=64).base() == {}


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_a_merged_encoder_is_plain_and_computes_the_same(kind):
    own = encoder()
    adapters.inject(own, settings(kind=kind))
    set_randomly(own)
    before = copy.deepcopy(own.state_dict())
    plain = adapters.merged(own)
    assert list(plain.state_dict()) == list(encoder().state_dict())
    with torch.inference_mode():
        got, expected = plain.eval()(**INPUTS).last_hidden_state, own.eval()(**INPUTS).last_hidden_state
        assert torch.allclose(got, expected, atol=1e-5)
        assert not torch.allclose(got, encoder()(**INPUTS).last_hidden_state, atol=1e-3)
    assert all(torch.equal(one, before[name]) for name, one in own.state_dict().items())
    assert all(one.requires_grad for one in plain.parameters())


def test_the_digest_of_tensors_is_that_of_their_component():
    """With padding between tensors of different dtypes, a scalar, and an empty tensor."""
    tensors = {
        "a": torch.randn(3, dtype=torch.float16),
        "b": torch.randn(2, 2),
        "c": torch.tensor(1.5, dtype=torch.float64),
        "d": torch.empty(0, 4),
        "e": torch.randn(4, 3).T,
        "f": torch.randn(3).bfloat16(),
    }
    component = Component.pack("x", tensors)
    assert Layout.of("x", tensors).num_bytes > sum(one.nbytes for one in tensors.values())
    assert digest_of(tensors) == component.digest()
    assert list(digests_of(tensors).values()) == component.tensor_digests()
