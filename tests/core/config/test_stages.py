"""What stages of the aggregation require of a run, and what takes it from them."""

import re

import pytest

from fedmtl_core.config import Config
from fedmtl_core.config.root import contradictions
from fedmtl_core.config.stages import CONTROL_VARIATES, NORMS, SHARING, STAGES, Breach, Property, require_compatible

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
