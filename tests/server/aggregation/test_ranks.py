"""Adapters of unequal ranks: a client's form of the model's factors, and the way back."""

import pytest
import torch

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.wire.layout import Layout
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.ranks import EQUAL_RANKS, Ranks, cut_layout, require_fitting
from fedmtl_server.aggregation.stages.adapters import AdapterProducts
from tests.server.aggregation.adapters import components, cut, factors, products, relative, update
from tests.server.aggregation.updates import begun
from tests.support import TinyEncoder, specs

EXACT = 1e-6
KINDS = pytest.mark.parametrize("kind", ["lora", "rslora"])
HEAD = {"heads.lora_A.weight": torch.arange(6.0).view(2, 3)}
"""A head whose task has an unlucky name."""
BASE = factors(0, 6) | HEAD


def ranks(kind="lora"):
    return Ranks(AdapterSettings(6, alpha=16.0, kind=kind), 3, {"small": 2, "large": 6})


def first(parameters, rank):
    """The first rows of A and columns of B."""
    return {
        name: one[:rank] if name.endswith("lora_A.weight") and "encoder" in name else one[:, :rank]
        for name, one in parameters.items()
        if name.startswith("encoder.")
    }


def as_received(made, client_id):
    return {scope: made.cut(one, made.of(client_id)) for scope, one in components(BASE).items()}


def named(parts):
    return {name: view.clone() for one in parts.values() for name, view in one.views().items()}


def scaled(parameters, factor):
    return {layer: factor * one for layer, one in products(parameters).items()}


def test_a_client_has_its_own_rank_and_any_other_caller_the_default():
    made = ranks()
    assert [made.of(client) for client in ("small", "large", "anybody", "")] == [2, None, 3, 3]
    assert [made.settings_of(client).rank for client in ("small", "large", "")] == [2, 6, 3]


def test_without_ranks_everything_is_the_models():
    config = Config.model_validate({"tasks": {"a": {}}, "model": {"adapters": {"aggregation": "svd"}}})
    assert Ranks.of_config(config) is EQUAL_RANKS
    layouts = [one.layout for one in components(BASE).values()]
    assert (EQUAL_RANKS.of("a"), EQUAL_RANKS.settings_of("a")) == (None, None)
    assert EQUAL_RANKS.layouts_of("a", layouts) is layouts


@KINDS
def test_a_client_computes_with_the_first_terms_of_the_models_product(kind):
    made = ranks(kind)
    received = named(as_received(made, "small"))
    wanted = scaled(first(BASE, 2), made.model.scale)
    assert relative(scaled(received, made.settings_of("small").scale), wanted) < EXACT
    assert torch.equal(received["heads.lora_A.weight"], HEAD["heads.lora_A.weight"])


def test_a_component_without_factors_is_the_models_own():
    head = components(HEAD)["task:lora_A"]
    assert ranks().cut(head, 2) is head
    assert cut_layout(head.layout, 2) is head.layout


def test_a_clients_layout_is_that_of_a_model_with_adapters_of_its_rank():
    def layout(rank):
        settings = AdapterSettings(rank, 16.0, targets=("dense",))
        model = MultiTaskModel(TinyEncoder(), specs("sst2"), hidden_size=4, adapters=settings)
        return Layout.of("shared", model.exchanged())

    assert cut_layout(layout(4), 2) == layout(2) != layout(4)


@KINDS
@pytest.mark.parametrize("as_delta", [False, True], ids=["parameters", "delta"])
def test_an_update_counts_with_its_clients_product_in_the_models_layout(kind, as_delta):
    made, received = ranks(kind), as_received(ranks(kind), "small")
    trained = factors(1, 2) | {"heads.lora_A.weight": HEAD["heads.lora_A.weight"] + 1}
    sent = update("small", trained, 3, task="lora_A", base=named(received) if as_delta else None)
    before = {scope: one.buffer.clone() for scope, one in sent.components.items()}
    wide = made.widened(sent, received, components(BASE))
    assert all(torch.equal(sent.components[scope].buffer, one) for scope, one in before.items())
    assert {scope: one.layout for scope, one in wide.components.items()} == {
        scope: one.layout for scope, one in components(BASE).items()
    }
    got, client_scale = named(wide.components), made.settings_of("small").scale
    assert relative(scaled(got, made.model.scale), scaled(trained, client_scale)) < EXACT
    assert torch.equal(got["heads.lora_A.weight"], trained["heads.lora_A.weight"])
    assert (wide.kind, wide.num_examples, wide.update.update_id) == ("parameters", 3, "small")
    rest = first({name: one.flip(0 if "lora_A" in name else 1) for name, one in got.items()}, 4)
    assert not any(one.any() for one in rest.values())


@KINDS
def test_two_rounds_of_unequal_ranks_are_the_float64_computation(kind):
    """Ranks 2, 3 and 6, in two rounds that follow one another."""
    made, model = ranks(kind), components(factors(0, 6, b=0.0))
    examples = {"small": 3, "other": 1, "large": 4}
    for round_ in (1, 2):
        parts, counted = {}, []
        for number, client in enumerate(examples):
            rank = made.settings_of(client).rank
            received = model if made.of(client) is None else {s: made.cut(one, rank) for s, one in model.items()}
            moved = factors(10 * round_ + number, rank)
            parts[client] = {name: one + moved[name] for name, one in named(received).items()}
            sent = update(client, parts[client], examples[client], base=named(received) if number else None)
            counted.append(sent if made.of(client) is None else made.widened(sent, received, model))
        pipeline = Pipeline([AdapterProducts("svd")])
        aggregation = begun(pipeline, counted, model, round_)
        for one in counted:
            aggregation.add(one)
        model = dict(aggregation.close().components)
        folded = [
            {layer: made.settings_of(client).scale * one for layer, one in products(part).items()}
            for client, part in parts.items()
        ]
        wanted = {
            layer: cut(sum(n / 8 * one[layer] for n, one in zip(examples.values(), folded, strict=True)), 6)
            for layer in folded[0]
        }
        assert relative(scaled(named(model), made.model.scale), wanted) < EXACT
        # A client of rank 2 gets the nearest product of rank 2.
        small = scaled(named({s: made.cut(one, 2) for s, one in model.items()}), made.settings_of("small").scale)
        assert relative(small, {layer: cut(one, 2) for layer, one in wanted.items()}) < 1e-5


def test_ranks_that_fit_together_are_served_exactly():
    made, model = ranks(), components(factors(0, 6))
    parts = {"small": factors(1, 2), "other": factors(2, 3)}
    counted = [made.widened(update(client, one), model, model) for client, one in parts.items()]
    pipeline = Pipeline([AdapterProducts("svd")])
    aggregation = begun(pipeline, counted, model)
    for one in counted:
        aggregation.add(one)
    got = scaled(named(aggregation.close().components), made.model.scale)
    folded = [
        {layer: made.settings_of(client).scale * one for layer, one in products(part).items()}
        for client, part in parts.items()
    ]
    assert relative(got, {layer: folded[0][layer] / 2 + folded[1][layer] / 2 for layer in folded[0]}) < EXACT
    assert pipeline.metadata()["adapters"]["inexactness"]["shared"] < EXACT


# What doesn't fit.


@pytest.mark.parametrize(
    ("adapters", "error"),
    [
        (
            {"rank": 8},
            "model.adapters.rank: expected at most 7, since layer.0.query has 7 outputs, and a product of its factors "
            "can have no larger rank; got 8",
        ),
        ({"rank": 2, "ranks": {"lab": 9}}, "model.adapters.ranks.lab: expected at most 8, since layer.0"),
        ({"rank": 9, "ranks": {"lab": 9}}, "model.adapters.rank: expected at most 8, since"),
    ],
)
def test_a_rank_above_a_layers_dimension_is_refused_with_the_layer_and_the_key(adapters, error):
    section = Config.model_validate(
        {"tasks": {"a": {}}, "model": {"adapters": {"aggregation": "svd", **adapters}}}
    ).model.adapters
    with pytest.raises(ConfigError) as caught:
        require_fitting(section, [one.layout for one in components(factors(0, section.largest_rank)).values()])
    assert str(caught.value).startswith(error)


def test_a_rank_of_the_smaller_dimension_fits():
    section = Config.model_validate(
        {"tasks": {"a": {}}, "model": {"adapters": {"aggregation": "svd", "rank": 7}}}
    ).model.adapters
    require_fitting(section, [one.layout for one in components(factors(0, 7)).values()])
