"""What stages of the aggregation require of a run, and what takes it from them."""

import re

import pytest

from fedmtl_core.config import Config
from fedmtl_core.config.root import contradictions
from fedmtl_core.config.stages import CONTROL_VARIATES, NORMS, SHARING, STAGES, Breach, Property, require_compatible
from fedmtl_core.model.sharing import ModelShape, levels_of

ASYNC = Breach(Property.SYNCHRONOUS, "`rounds.mode: sync`", "'async'")


def test_a_stage_without_what_it_requires_is_refused_with_the_setting_that_is_in_its_way_and_the_reason():
    with pytest.raises(ValueError, match=r"^training\.control_variates: needs `rounds\.mode: sync`, got 'async': all"):
        require_compatible([CONTROL_VARIATES, SHARING], [ASYNC])
    with pytest.raises(ValueError, match=r"^sharing\.adaptive: needs `rounds\.mode: sync`, got 'async': layers"):
        require_compatible([SHARING], [ASYNC])


def test_a_stage_goes_with_a_breach_of_what_it_does_not_require():
    require_compatible([NORMS], [ASYNC])
    require_compatible([SHARING], [Breach(Property.WHOLE_UPDATES, "another")])


def test_a_breach_by_a_stage_is_one_that_the_stage_is_said_to_make():
    Breach(Property.WHOLE_UPDATES, "another", stage=NORMS)
    with pytest.raises(ValueError, match="the stage norms doesn't list SYNCHRONOUS in `breaks`"):
        Breach(Property.SYNCHRONOUS, "another", stage=NORMS)


def test_stages_have_names_of_their_own_and_require_nothing_that_they_break():
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert not any(stage.requires.keys() & stage.breaks for stage in STAGES)


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        (
            {"aggregation": {"task_weighting": "uniform"}},
            "aggregation.rule: needs `aggregation.task_weighting: exam",
        ),
        ({"aggregation": {"scaling": 2}}, "aggregation.rule: needs `aggregation.scaling: 1.0`, got 2.0: a rule"),
        ({"aggregation": {"scaling": "preserve"}}, "rule: needs `aggregation.scaling: 1.0`, got 'preserve': a rule"),
        (
            {"aggregation": {"normalization": "fednova"}},
            "aggregation.normalization: needs `aggregation.rule: mean`",
        ),
        (
            {"training": {"control_variates": True, "optimizer": "sgd"}},
            "training.control_variates: needs `aggregation.rule: mean`, got 'mine:Median': control variates correct",
        ),
        (
            {"sharing": {"adaptive": {"policy": "cosine", "layers": [0]}}},
            "aggregation.rule: needs `sharing.adaptive.policy: None`, got 'cosine': a rule combines the updates of all",
        ),
    ],
)
def test_a_rule_in_place_of_the_mean_does_not_go_with_what_needs_a_mean_or_one_for_each_task(sections, error):
    aggregation = {"rule": "mine:Median"} | sections.pop("aggregation", {})
    with pytest.raises(ValueError, match=re.escape(error)):
        Config.model_validate({"tasks": {"a": {}, "b": {}}, "aggregation": aggregation, **sections})


@pytest.mark.parametrize(
    "sections",
    [
        {"rounds": {"mode": "async"}},
        {"robustness": {"norms": {"action": "clip", "bound": 1}}},
        {"server_optimizer": {"name": "fedadam"}},
        {"tasks": {"a": {}, "b": {"auxiliary": {"weight": 0.5}}}},
    ],
)
def test_a_rule_goes_with_what_is_done_before_and_after_it(sections):
    Config.model_validate({"tasks": {"a": {}, "b": {}}, "aggregation": {"rule": "mine:Median"}, **sections})


def test_a_rule_is_the_mean_or_a_class_and_the_mean_where_a_run_of_before_does_not_say():
    assert Config.model_validate({"tasks": {"a": {}}}).aggregation.rule == "mean"
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        Config.model_validate({"aggregation": {"rule": "meam"}})


def test_a_run_is_not_taken_up_with_another_rule():
    stored, given = (
        Config.model_validate({"tasks": {"a": {}}, "aggregation": aggregation})
        for aggregation in ({}, {"rule": "mine:Median"})
    )
    assert contradictions(stored, stored) == []
    assert contradictions(stored, given) == ["aggregation.rule: the run has 'mean', got 'mine:Median'"]


# The policy `validated`.


def with_policy(*, tasks=("a", "b"), adaptive=(), **sections):
    sharing = {**sections.pop("sharing", {}), "adaptive": {"policy": "validated", **dict(adaptive)}}
    return Config.model_validate({"tasks": {task: {} for task in tasks}, "sharing": sharing, **sections})


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        (
            {"rounds": {"mode": "async"}},
            "sharing.adaptive.policy: validated: needs `rounds.mode: sync`, got 'async': tasks' updates of one round "
            "are mixed",
        ),
        (
            {"sharing": {"schedule": [{"after_round": 1, "layers": {"0": "task"}}]}},
            "sharing.adaptive.policy: validated: needs no `sharing.schedule`: each task has layers of its own for the",
        ),
        (
            {"training": {"control_variates": True, "optimizer": "sgd"}},
            "training.control_variates: needs another `sharing.adaptive.policy` than `validated`: control variates "
            "correct the updates of a component's own clients",
        ),
        (
            {"sharing": {"layers": {"1-2": "task"}}, "adaptive": {"layers": ["0-1"]}},
            "sharing.adaptive.layers: layer 1 is in `layers`, and stays fixed; remove it from one of the two",
        ),
        ({"adaptive": {"layers": ["heads"]}}, "expected a layer's number, a range such as 2-5, or one of"),
        ({"adaptive": {"options": {"a": 1}}}, "`options` are for a class of your own in `policy`, got `policy: valid"),
        ({"adaptive": {"trials": 0}}, "Input should be greater than or equal to 1"),
        ({"adaptive": {"trials": 17}}, "Input should be less than or equal to 16"),
        ({"adaptive": {"error_rate": 0}}, "Input should be greater than 0"),
        ({"adaptive": {"error_rate": 0.5}}, "Input should be less than 0.5"),
        ({"adaptive": {"error_rate": ".nan"}}, "sharing.adaptive.error_rate"),
        ({"adaptive": {"min_gain": -0.01}}, "Input should be greater than or equal to 0"),
        ({"adaptive": {"min_gain": 1}}, "Input should be less than 1"),
        ({"adaptive": {"policy": "validate"}}, "did you mean 'validated'"),
    ],
)
def test_validated_does_not_go_with_what_contradicts_it(sections, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        with_policy(**sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"aggregation": {"rule": "mine:Median"}},
        {"aggregation": {"normalization": "fednova"}},
        {"aggregation": {"task_weighting": "pcgrad"}, "adaptive": {"layers": ["0"]}},
        {"robustness": {"norms": {"action": "clip", "bound": 1}, "max_client_share": 0.5}},
        {"server_optimizer": {"name": "fedadam"}},
        {"training": {"head_epochs": 1, "proximal_mu": 0.1}},
        {"rounds": {"cohort": "over_select", "cohort_size": 2, "cohort_extra": 1}},
        {"sharing": {"norms": "shared", "head": "local", "layers": {"embeddings": "shared"}}},
        {"sharing": {"groups": {"pair": ["a", "b"]}, "layers": {"1": "pair"}}},
        {"early_stopping": {"patience": 1}},
        {"clients": [{"client_id": "x", "tasks": ["a", "b"]}]},
        {"tasks": ("a",)},
    ],
)
def test_validated_goes_with_what_happens_within_a_tasks_own_layers(sections):
    with_policy(**sections)


def test_with_validated_each_task_owns_what_nothing_else_names():
    def levels(**sections):
        shape = ModelShape({"e": "embeddings", "x": "0", "y": "1", "n": "1"}, {"a": ["h"], "b": ["g"]}, ["n"])
        return levels_of(shape, with_policy(**sections).sharing.rules())

    assert levels() == {"embeddings": "task", "0": "task", "1": "task"}
    assert levels(sharing={"layers": {"0": "shared"}}) == {"embeddings": "task", "0": "shared", "1": "task"}
    assert levels(adaptive={"layers": ["1"]}) == {"embeddings": "shared", "0": "shared", "1": "task"}
    named = levels(adaptive={"layers": ["0"]}, sharing={"layers": {"embeddings": "local"}})
    assert named == {"embeddings": "local", "0": "task", "1": "shared"}
    other = Config.model_validate({"tasks": {"a": {}}, "sharing": {"adaptive": {"policy": "cosine", "layers": ["1"]}}})
    assert other.sharing.rules().own == ()
