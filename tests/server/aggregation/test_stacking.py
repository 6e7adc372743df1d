"""Adapters that are added to the base, against an independent computation in float64."""

import math

import pytest
import torch

from fedmtl_core.config import AggregationConfig, NormsConfig
from fedmtl_core.model.merging import merge
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.stages.normalization import FedNova
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.aggregation.stages.stacking import StackedAdapters
from fedmtl_server.aggregation.stages.task_weighting import TaskWeights
from fedmtl_server.aggregation.task_weighting import make_weighting
from tests.server.aggregation.adapters import SHAPES, components, factors, mean_products, relative, update
from tests.server.aggregation.updates import begun

SETTINGS = AdapterSettings(6, alpha=3.0, is_stacked=True)
START = factors(0, rank=6, b=0.0)
CLIENTS = {"a": factors(1, 6), "b": factors(2, 6), "c": factors(3, 6)}
EXAMPLES = {"a": 3, "b": 1, "c": 4}
BY_EXAMPLES = [3 / 8, 1 / 8, 4 / 8]


def base(seed=7):
    """The adapters that a round starts with, and the weights beside them, which are small beside the products."""
    draw = torch.Generator().manual_seed(seed)
    weights = {f"{layer}.weight": 1e-3 * torch.randn(*shape, generator=draw) for layer, shape in SHAPES.items()}
    return {**components(START), "merged": Component.pack("merged", weights)}


def closed(stage, updates, *others, round_=1, start=None):
    pipeline = Pipeline([stage, *others])
    start = start or base()
    aggregation = begun(pipeline, updates, start, round_)
    for one in updates:
        aggregation.add(one)
    return aggregation.close()


def updates_of(parts=CLIENTS, start=None, **fields):
    return [update(client, one, EXAMPLES[client], base=start, **fields) for client, one in parts.items()]


def change(aggregate):
    """What the round added to each weight, by layer, in float64."""
    before, after = base()["merged"].views(), aggregate.base["merged"].views()
    return {layer: (after[f"{layer}.weight"].double() - before[f"{layer}.weight"].double()).numpy() for layer in SHAPES}


def scaled(by_layer, scale=SETTINGS.scale):
    return {layer: scale * one for layer, one in by_layer.items()}


@pytest.mark.parametrize("start", [None, START], ids=["parameters", "delta"])
def test_the_base_gets_the_scaled_mean_product(start):
    aggregate = closed(StackedAdapters(SETTINGS), updates_of(start=start))
    assert list(aggregate.base) == ["merged"]
    assert relative(change(aggregate), scaled(mean_products(list(CLIENTS.values()), BY_EXAMPLES))) < 1e-6


def test_the_stack_leads_from_the_old_base_to_the_new_one_bit_for_bit():
    stage = StackedAdapters(SETTINGS)
    aggregate = closed(stage, updates_of())
    sent = stage.broadcast()
    assert sent.stack_base == base()["merged"].digest()
    mine = base()["merged"]
    merge(mine.views(), sent.components["stack:shared"])
    assert mine.digest() == aggregate.base["merged"].digest()


def test_new_adapters_have_other_random_factors_in_each_round_and_products_of_zero():
    first, again, later = (
        closed(StackedAdapters(SETTINGS), updates_of(), round_=round_).components["shared"].views()
        for round_ in (1, 1, 2)
    )
    for name, value in first.items():
        assert torch.equal(value, again[name])
        if "lora_B" in name:
            assert not value.any()
        else:
            assert not torch.equal(value, later[name])
            assert value.abs().max() <= 1 / math.sqrt(value.shape[1])


def test_the_task_weights_count():
    tasks = {"a": "sst2", "b": "sst2", "c": "qqp"}
    updates = [update(client, one, EXAMPLES[client], task=tasks[client]) for client, one in CLIENTS.items()]
    weights = TaskWeights(make_weighting(AggregationConfig(task_weighting="uniform")), 0)
    aggregate = closed(StackedAdapters(SETTINGS), updates, weights)
    wanted = mean_products(list(CLIENTS.values()), [3 / 8, 1 / 8, 1 / 2])  # a and b share one half
    assert relative(change(aggregate), scaled(wanted)) < 1e-6


def test_products_are_normalized_by_steps():
    steps = {"a": 10, "b": 30, "c": 10}
    updates = [
        update(client, one, EXAMPLES[client], extras={"normalization": {"num_steps": steps[client]}})
        for client, one in CLIENTS.items()
    ]
    aggregate = closed(StackedAdapters(SETTINGS), updates, FedNova())
    effective = sum(share * steps[client] for client, share in zip(CLIENTS, BY_EXAMPLES, strict=True))
    shares = [share * effective / steps[client] for client, share in zip(CLIENTS, BY_EXAMPLES, strict=True)]
    assert relative(change(aggregate), scaled(mean_products(list(CLIENTS.values()), shares))) < 1e-6


@pytest.mark.parametrize("start", [None, START], ids=["parameters", "delta"])
def test_the_products_of_clipped_factors_count(start):
    bound = 5.0
    norms = NormScreening(NormsConfig(action="clip", bound=bound))
    aggregate = closed(StackedAdapters(SETTINGS), updates_of(start=start), norms)
    parts = []
    for one in CLIENTS.values():
        norm = math.sqrt(sum(float(((one[name] - START[name]).double() ** 2).sum()) for name in one))
        parts.append({name: START[name] + (one[name] - START[name]) * min(bound / norm, 1) for name in one})
    assert relative(change(aggregate), scaled(mean_products(parts, BY_EXAMPLES))) < 1e-6


@pytest.mark.parametrize("value", [math.nan, 1e30], ids=["factor", "product"])
def test_after_a_discarded_component_base_and_stack_stay_as_they_are(value):
    """A factor that isn't finite, or factors that are, with a product beyond float32."""
    stage = StackedAdapters(SETTINGS)
    closed(stage, updates_of())
    before = stage.broadcast(), stage.state()
    damaged = {name: torch.full_like(tensor, value) for name, tensor in CLIENTS["a"].items()}
    aggregate = closed(stage, updates_of({**CLIENTS, "a": damaged}), round_=2)
    assert [one.scope for one in aggregate.discarded] == ["shared"]
    assert not aggregate.base
    assert "shared" not in aggregate.components
    assert (stage.broadcast(), stage.state()) == before


def test_a_restored_stage_sends_the_same_stack():
    stage, restored = StackedAdapters(SETTINGS), StackedAdapters(SETTINGS)
    layouts = [components(START)["shared"].layout]
    assert stage.state_layouts(layouts, stage.state().metadata) == []
    closed(stage, updates_of())
    state = stage.state()
    assert stage.state_layouts(layouts, state.metadata) == [state.components["stack:shared"].layout]
    restored.restore(state, layouts)
    assert restored.broadcast() == stage.broadcast()


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_the_base_is_that_of_pefts_concatenated_adapters(kind):
    peft = pytest.importorskip("peft")
    settings = AdapterSettings(6, alpha=12.0, kind=kind, is_stacked=True)
    aggregate = closed(StackedAdapters(settings), updates_of())
    layer, (outputs, inputs) = next(iter(SHAPES.items()))
    root = torch.nn.Sequential()
    root.add_module("dense", torch.nn.Linear(inputs, outputs, dtype=torch.float64))
    config = peft.LoraConfig(r=6, lora_alpha=12, target_modules=["dense"], use_rslora=kind == "rslora")
    model = peft.PeftModel(root, config, "a")
    for client in ("b", "c"):
        model.add_adapter(client, config)
    dense = model.base_model.model.dense
    with torch.no_grad():
        for client, one in CLIENTS.items():
            dense.lora_A[client].weight.data = one[f"{layer}.lora_A.weight"].double()
            dense.lora_B[client].weight.data = one[f"{layer}.lora_B.weight"].double()
        model.base_model.add_weighted_adapter(list(CLIENTS), BY_EXAMPLES, "all", combination_type="cat")
        wanted = dense.get_delta_weight("all") / (dense.scaling["all"] if kind == "rslora" else 1)
    assert relative({layer: change(aggregate)[layer]}, {layer: wanted.numpy()}) < 1e-6
