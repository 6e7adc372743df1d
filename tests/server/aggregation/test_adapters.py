"""The products of adapters after a round, against an independent computation in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedmtl_core.config import AggregationConfig, Config, NormsConfig
from fedmtl_core.model.scopes import factor_scope, group_scope, task_scope
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_server.aggregation.low_rank import Product, weighted_sum
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.stages.adapters import AdapterProducts
from fedmtl_server.aggregation.stages.auxiliary import AuxiliaryTasks
from fedmtl_server.aggregation.stages.normalization import FedNova
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.aggregation.stages.preserved_norm import PreservedNorm
from fedmtl_server.aggregation.stages.task_weighting import TaskWeights
from fedmtl_server.aggregation.task_weighting import make_weighting
from fedmtl_server.aggregation.values import ScreenedUpdate
from tests.server.aggregation.adapters import (
    SHAPES,
    components,
    cut,
    factors,
    mean_products,
    padded,
    products,
    relative,
    update,
)
from tests.server.aggregation.updates import begun

EXACT = 1e-6
BASE = factors(0, rank=6)
CLIENTS = {"a": factors(1, 6), "b": factors(2, 6), "c": factors(3, 6)}
EXAMPLES = {"a": 3, "b": 1, "c": 4}
BY_EXAMPLES = [3 / 8, 1 / 8, 4 / 8]


def closed(pipeline, updates, base, round_=1):
    """The result of a round, with everything that stages do at its end."""
    aggregation = begun(pipeline, updates, base, round_)
    for one in updates:
        aggregation.add(one)
    return aggregation.close()


def served(aggregate, *scopes):
    """The factors after the round, by name."""
    return {
        name: view
        for scope in scopes or aggregate.components
        for name, view in aggregate.components[scope].views().items()
    }


def inexactness(pipeline):
    return pipeline.metadata().get("adapters", {}).get("inexactness", {})


def updates_of(parts, base=None, **fields):
    return [update(client, one, EXAMPLES[client], base=base, **fields) for client, one in parts.items()]


def only(parts, letter):
    """The factors A or B alone."""
    return {name: tensor for name, tensor in parts.items() if f"lora_{letter.upper()}" in name}


# Exact without a stage: one factor at a time.


@pytest.mark.parametrize("base", [None, BASE], ids=["parameters", "delta"])
def test_freeze_a_serves_the_mean_product(base):
    frozen = only(factors(9, 6), "a")
    parts = {client: only(one, "b") for client, one in CLIENTS.items()}
    start = only(BASE, "b")
    aggregate = closed(Pipeline(), updates_of(parts, base and start), components(start))
    wanted = mean_products([frozen | one for one in parts.values()], BY_EXAMPLES)
    assert relative(products(frozen | served(aggregate)), wanted) < EXACT


@pytest.mark.parametrize("factor", ["a", "b"])
@pytest.mark.parametrize("base", [None, BASE], ids=["parameters", "delta"])
def test_alternate_serves_the_mean_product_of_the_factor_in_turn_and_leaves_the_other(base, factor):
    other = only(BASE, "b" if factor == "a" else "a")
    trained, start = {client: only(one, factor) for client, one in CLIENTS.items()}, only(BASE, factor)
    scopes = dict.fromkeys(start, factor_scope(factor, "shared"))
    both = components(BASE, scopes | dict.fromkeys(other, factor_scope("b" if factor == "a" else "a", "shared")))
    aggregate = closed(Pipeline(), updates_of(trained, base and start, scopes=scopes), both)
    assert list(aggregate.components) == [factor_scope(factor, "shared")]
    wanted = mean_products([other | one for one in trained.values()], BY_EXAMPLES)
    assert relative(products(other | served(aggregate)), wanted) < EXACT


# `svd`, and the error of `average`.


@pytest.mark.parametrize("base", [None, BASE], ids=["parameters", "delta"])
@pytest.mark.parametrize("rank", [1, 2])
def test_svd_serves_the_mean_product_if_the_ranks_together_fit(base, rank):
    """Three clients' products of rank 1 or 2, in factors of rank 6."""
    parts = {client: padded(factors(seed, rank), 6) for seed, client in enumerate(CLIENTS, 1)}
    pipeline = Pipeline([AdapterProducts("svd")])
    aggregate = closed(pipeline, updates_of(parts, base), components(BASE))
    assert relative(products(served(aggregate)), mean_products(list(parts.values()), BY_EXAMPLES)) < EXACT
    assert 0 < inexactness(pipeline)["shared"] < EXACT  # the rounding to float32


def test_svd_serves_the_nearest_product_of_the_models_rank_and_reports_what_is_lost():
    pipeline = Pipeline([AdapterProducts("svd")])
    aggregate = closed(pipeline, updates_of(CLIENTS), components(BASE))
    wanted = mean_products(list(CLIENTS.values()), BY_EXAMPLES)
    nearest = {layer: cut(matrix, 6) for layer, matrix in wanted.items()}
    assert relative(products(served(aggregate)), nearest) < EXACT
    assert inexactness(pipeline) == {"shared": pytest.approx(relative(nearest, wanted), rel=1e-5)}
    assert inexactness(pipeline)["shared"] > 0.01


@pytest.mark.parametrize("base", [None, BASE], ids=["parameters", "delta"])
def test_the_error_of_average_is_that_of_the_dense_products(base):
    pipeline = Pipeline([AdapterProducts("average")])
    plain = served(closed(Pipeline(), updates_of(CLIENTS, base), components(BASE)))
    got = served(closed(pipeline, updates_of(CLIENTS, base), components(BASE)))
    assert all(torch.equal(got[name], plain[name]) for name in plain)  # it is measured, not changed
    wanted = mean_products(list(CLIENTS.values()), BY_EXAMPLES)
    assert inexactness(pipeline) == {"shared": pytest.approx(relative(products(got), wanted), rel=1e-5)}
    assert inexactness(pipeline)["shared"] > 0.1


def test_the_error_of_average_is_measured_for_ranks_above_a_dimension_too():
    base, parts = factors(0, 20), {"a": factors(1, 20), "b": factors(2, 20)}
    pipeline = Pipeline([AdapterProducts("average")])
    got = served(closed(pipeline, updates_of(parts), components(base)))
    wanted = mean_products(list(parts.values()), [3 / 4, 1 / 4])
    assert inexactness(pipeline) == {"shared": pytest.approx(relative(products(got), wanted), rel=1e-5)}


def test_one_client_is_served_its_own_product_by_either():
    for aggregation in ("average", "svd"):
        pipeline = Pipeline([AdapterProducts(aggregation)])
        aggregate = closed(pipeline, updates_of({"a": CLIENTS["a"]}), components(BASE))
        assert relative(products(served(aggregate)), products(CLIENTS["a"])) < EXACT
        assert inexactness(pipeline)["shared"] < EXACT


def test_products_of_zero_have_no_error():
    """B is 0 at first, and stays so for clients that don't train."""
    zeros = factors(0, 6, b=0.0)
    for aggregation in ("average", "svd"):
        pipeline = Pipeline([AdapterProducts(aggregation)])
        aggregate = closed(pipeline, updates_of(dict.fromkeys(CLIENTS, zeros)), components(zeros))
        assert not any(matrix.any() for matrix in products(served(aggregate)).values())
        assert inexactness(pipeline) == {"shared": 0.0}


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_svd_equals_pefts_own_combination_in_float64(kind):
    peft = pytest.importorskip("peft")
    settings = AdapterSettings(6, alpha=12.0, kind=kind)
    aggregate = closed(Pipeline([AdapterProducts("svd")]), updates_of(CLIENTS), components(BASE))
    layer, (outputs, inputs) = next(iter(SHAPES.items()))
    root = nn.Sequential()
    root.add_module("dense", nn.Linear(inputs, outputs, dtype=torch.float64))
    config = peft.LoraConfig(r=6, lora_alpha=12, target_modules=["dense"], use_rslora=kind == "rslora")
    model = peft.PeftModel(root, config, "a")
    for client in ("b", "c"):
        model.add_adapter(client, config)
    dense = model.base_model.model.dense
    with torch.no_grad():
        for client, one in CLIENTS.items():
            dense.lora_A[client].weight.data = one[f"{layer}.lora_A.weight"].double()
            dense.lora_B[client].weight.data = one[f"{layer}.lora_B.weight"].double()
        assert dense.scaling["a"] == settings.scale
        model.base_model.add_weighted_adapter(list(CLIENTS), BY_EXAMPLES, "all", combination_type="cat")
        stacked = dense.get_delta_weight("all") / (dense.scaling["all"] if kind == "rslora" else 1)
        model.base_model.add_weighted_adapter(list(CLIENTS), BY_EXAMPLES, "best", combination_type="svd", svd_rank=6)
        best = dense.get_delta_weight("best") / (dense.scaling["best"] if kind == "rslora" else 1)
    pairs = [Product(one[f"{layer}.lora_B.weight"], one[f"{layer}.lora_A.weight"]) for one in CLIENTS.values()]
    total = weighted_sum(pairs, BY_EXAMPLES)
    assert relative({layer: settings.scale * (total.b @ total.a).numpy()}, {layer: stacked.numpy()}) < 1e-12
    got = settings.scale * products(served(aggregate))[layer]
    assert relative({layer: got}, {layer: best.numpy()}) < EXACT


# Which products count, and how much.


def clipped_to(parameters, bound):
    """The factors as they count: the change from the base has at most this norm."""
    norm = math.sqrt(sum(float(((one - BASE[name]).double() ** 2).sum()) for name, one in parameters.items()))
    return {name: BASE[name] + (one - BASE[name]) * min(bound / norm, 1) for name, one in parameters.items()}


@pytest.mark.parametrize("base", [None, BASE], ids=["parameters", "delta"])
def test_the_products_of_clipped_factors_count(base):
    norms = NormScreening(NormsConfig(action="clip", bound=5.0))
    pipeline = Pipeline([norms, AdapterProducts("svd")])
    aggregate = closed(pipeline, updates_of(CLIENTS, base), components(BASE))
    parts = [clipped_to(one, 5.0) for one in CLIENTS.values()]
    wanted = {layer: cut(matrix, 6) for layer, matrix in mean_products(parts, BY_EXAMPLES).items()}
    assert relative(products(served(aggregate)), wanted) < EXACT


TASKS = {"a": "sst2", "b": "sst2", "c": "qqp"}


def of_tasks(base=None, **fields):
    return [
        update(client, one, EXAMPLES[client], task=TASKS[client], base=base, **fields)
        for client, one in CLIENTS.items()
    ]


def weighting(name="uniform", **section):
    return TaskWeights(make_weighting(AggregationConfig(task_weighting=name, **section)), 7)


@pytest.mark.parametrize(
    ("stages", "coefficients"),
    [
        # Two tasks count alike, and within a task examples do.
        (lambda: [weighting()], [3 / 8, 1 / 8, 1 / 2]),
        (lambda: [weighting("fixed", task_weights={"sst2": 3.0, "qqp": 1.0})], [9 / 16, 3 / 16, 1 / 4]),
        # The coefficients add up to 1.5: half of the model's own product is taken away.
        (lambda: [weighting(scaling=1.5)], [9 / 16, 3 / 16, 3 / 4]),
        (
            lambda: [AuxiliaryTasks({"qqp": Config.model_validate(AUXILIARY).tasks["qqp"].auxiliary})],
            [3 / 5, 1 / 5, 1 / 5],
        ),
        # τ_eff = (3 * 10 + 1 * 20 + 4 * 40) / 8 = 26.25
        (lambda: [FedNova()], [3 / 8 * 2.625, 1 / 8 * 1.3125, 1 / 2 * 0.65625]),
    ],
    ids=["uniform", "fixed", "scaling", "auxiliary", "fednova"],
)
@pytest.mark.parametrize("base", [None, BASE], ids=["parameters", "delta"])
def test_products_count_like_other_parameters(stages, coefficients, base):
    steps = {client: {"normalization": {"num_steps": taken}} for client, taken in zip("abc", (10, 20, 40), strict=True)}
    updates = [
        dataclasses.replace(one, update=dataclasses.replace(one.update, extras=steps[one.client_id]))
        for one in of_tasks(base)
    ]
    for aggregation in ("svd", "average"):
        pipeline = Pipeline([*stages(), AdapterProducts(aggregation)])
        aggregate = closed(pipeline, updates, components(BASE))
        wanted = mean_products(list(CLIENTS.values()), coefficients, BASE)
        nearest = {layer: cut(matrix, 6) for layer, matrix in wanted.items()}
        got = products(served(aggregate))
        if aggregation == "svd":
            assert relative(got, nearest) < EXACT
        assert inexactness(pipeline) == {"shared": pytest.approx(relative(got, wanted), rel=1e-5)}
        weights = [part.weight for part in aggregate.contributions["shared"]]
        np.testing.assert_allclose(weights, coefficients)


AUXILIARY = {"tasks": {"sst2": {}, "qqp": {"auxiliary": {"weight": 0.25}}}}


def test_the_factor_that_preserves_a_norm_is_on_the_products_change():
    pipeline = Pipeline([weighting(scaling="preserve"), PreservedNorm(), AdapterProducts("svd")])
    aggregate = closed(pipeline, of_tasks(), components(BASE))
    (factor,) = aggregate.scaling["shared"].values()
    assert factor > 1
    coefficients = [factor * one for one in (3 / 8, 1 / 8, 1 / 2)]
    wanted = mean_products(list(CLIENTS.values()), coefficients, BASE)
    assert relative(products(served(aggregate)), {layer: cut(one, 6) for layer, one in wanted.items()}) < EXACT


@pytest.mark.parametrize("scope_of", [task_scope, lambda task: group_scope(f"g-{task}")], ids=["tasks", "groups"])
def test_every_component_has_the_mean_product_of_its_own_clients(scope_of):
    updates = [
        update(client, one, EXAMPLES[client], task=TASKS[client], scopes=dict.fromkeys(one, scope_of(TASKS[client])))
        for client, one in CLIENTS.items()
    ]
    scopes = [scope_of("sst2"), scope_of("qqp")]
    base = {scope: components(BASE, dict.fromkeys(BASE, scope))[scope] for scope in scopes}
    pipeline = Pipeline([AdapterProducts("svd")])
    aggregate = closed(pipeline, updates, base)
    wanted = mean_products([CLIENTS["a"], CLIENTS["b"]], [3 / 4, 1 / 4])
    got = products(served(aggregate, scopes[0]))
    assert relative(got, {layer: cut(matrix, 6) for layer, matrix in wanted.items()}) < EXACT
    assert relative(products(served(aggregate, scopes[1])), products(CLIENTS["c"])) < EXACT
    assert inexactness(pipeline)[scopes[0]] > 0.01 > EXACT > inexactness(pipeline)[scopes[1]]


def test_factors_in_different_components_have_no_mean_product():
    """`sharing.adapters: {a: shared, b: task}`."""
    pipeline = Pipeline([AdapterProducts("average")])
    scopes = dict.fromkeys(only(BASE, "b"), task_scope("sst2"))
    closed(pipeline, updates_of(CLIENTS, scopes=scopes), components(BASE, scopes))
    assert inexactness(pipeline) == {}


# What isn't finite, and rounds that change nothing.


def test_a_decomposition_beyond_float32_leaves_the_component_as_it_was():
    """B has the singular values, and they are the square of what is sent."""
    huge = {name: 1e25 * tensor for name, tensor in CLIENTS["a"].items()}
    pipeline = Pipeline([AdapterProducts("svd")])
    aggregate = closed(pipeline, updates_of({"a": huge}), components(BASE))
    assert aggregate.components == {}
    (discarded,) = aggregate.discarded
    assert "its adapters's step isn't finite" in discarded.reason
    assert inexactness(pipeline) == {}


def test_an_infinite_mean_is_discarded_before_the_products():
    infinite = {name: torch.full_like(tensor, math.inf) for name, tensor in BASE.items()}
    pipeline = Pipeline([AdapterProducts("svd")])
    aggregate = closed(pipeline, updates_of({"a": infinite}), components(BASE))
    assert (dict(aggregate.components), len(aggregate.discarded)) == ({}, 1)


def test_a_report_has_the_error_of_its_own_round_alone():
    """A round that fails or evaluates has none, as after a restart."""
    pipeline = Pipeline([AdapterProducts("average")])
    closed(pipeline, updates_of(CLIENTS), components(BASE))
    assert inexactness(pipeline)
    pipeline.begin(components(BASE), 2)
    assert inexactness(pipeline) == {}


def test_the_updates_stay_as_they_are():
    updates: list[ScreenedUpdate] = updates_of(CLIENTS)
    before = [one.components["shared"].buffer.clone() for one in updates]
    closed(Pipeline([AdapterProducts("svd")]), updates, components(BASE))
    assert all(
        torch.equal(one.components["shared"].buffer, bytes_) for one, bytes_ in zip(updates, before, strict=True)
    )
