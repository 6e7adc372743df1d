"""What adapters of products, and of unequal ranks, can't be combined with."""

import re

import pytest

from fedmtl_core.config import Config

RANKS = {"clinic": 2, "lab": 16}


def config(adapters, **sections):
    return Config.model_validate({"tasks": {"a": {}, "b": {}}, "model": {"adapters": adapters}, **sections})


@pytest.mark.parametrize("aggregation", ["freeze_a", "alternate", "average", "stack"])
def test_ranks_need_svd(aggregation):
    error = (
        "model.adapters.ranks: factors of different ranks can't be averaged; needs `aggregation: svd`, got "
        f"'{aggregation}'"
    )
    with pytest.raises(ValueError, match=re.escape(error)):
        config({"aggregation": aggregation, "ranks": RANKS})


def test_a_server_optimizer_does_not_go_with_factors_that_are_replaced():
    for aggregation in ("svd", "stack"):
        error = f"server_optimizer.name: `model.adapters.aggregation: {aggregation}` replaces the factors"
        with pytest.raises(ValueError, match=re.escape(error)):
            config({"aggregation": aggregation}, server_optimizer={"name": "fedadam"})
    config({"aggregation": "average"}, server_optimizer={"name": "fedadam"})


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        ({"aggregation": {"normalization": "fednova"}}, "aggregation.normalization: needs `none` with"),
        ({"aggregation": {"scaling": 2.0}}, "aggregation.scaling: needs 1.0 with `model.adapters.ranks`, got 2.0"),
        ({"aggregation": {"scaling": "preserve"}}, "aggregation.scaling: needs 1.0 with"),
        ({"aggregation": {"task_weighting": "pcgrad"}}, "aggregation.task_weighting: needs `examples` or `uniform` or"),
        ({"robustness": {"norms": {"action": "clip", "bound": 1}}}, "robustness.norms.action: needs `none`, `report`"),
    ],
)
def test_ranks_do_not_go_with_what_compares_updates_with_the_models_factors(sections, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        config({"aggregation": "svd", "ranks": RANKS}, **sections)
    config({"aggregation": "svd"}, **sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"aggregation": {"task_weighting": "uniform"}},
        {"robustness": {"norms": {"action": "refuse", "median_factor": 3}}},
        {"wire": {"download": "int8"}, "training": {"update": "delta"}},
    ],
)
def test_ranks_go_with_what_takes_factors_as_they_are(sections):
    made = config({"aggregation": "svd", "ranks": RANKS}, **sections)
    assert made.model.adapters.ranks == RANKS


def test_the_servers_model_has_the_largest_rank_and_a_plan_the_rank_of_clients_without_their_own():
    section = {"adapters": {"aggregation": "svd", "rank": 4, "ranks": RANKS}}
    made = Config.model_validate({"tasks": {"sst2": {}}, "model": section})
    assert made.adapters().rank == 16
    assert made.plan("sst2").adapters.rank == 4
