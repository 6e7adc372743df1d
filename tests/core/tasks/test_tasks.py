"""The task registry and the scope table."""

from dataclasses import replace

import pytest

from fedmtl_core.errors import ConfigError
from fedmtl_core.model.scopes import SHARED, factor_scope, group_of, group_scope, scope_of, task_of, task_scope
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.spec import TaskSpec, Traits


def test_the_glue_presets_have_their_number_of_outputs():
    widths = {name: spec.num_outputs for name, spec in PRESETS.items()}
    assert widths == {"sst2": 2, "qqp": 2, "stsb": 1, "mrpc": 2, "cola": 2, "rte": 2, "qnli": 2, "mnli": 3}


def test_the_glue_presets_have_glues_main_metrics():
    assert PRESETS["cola"].main_metric == "matthews"
    assert PRESETS["stsb"].metrics == ("pearson", "spearman")
    assert PRESETS["qqp"].metrics == ("accuracy", "f1")
    assert PRESETS["mnli"].hub_splits == ("train", "validation_matched")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "classification", "labels": ("one",)}, "at least 2 labels, got 1"),
        ({"type": "regression", "labels": ("a", "b")}, "a regression task has no labels"),
        ({"type": "regression", "text_columns": ("a", "b", "c")}, "expected 1 or 2 text columns"),
        (
            {"type": "classification", "labels": ("a", "b", "c"), "metrics": ("f1",)},
            "the metric f1 needs exactly 2 labels, got 3",
        ),
        (
            {"type": "classification", "labels": ("a", "b"), "value_range": (0, 1)},
            r"tasks\.x\.value_range: a classification task has no values",
        ),
        (
            {"type": "regression", "value_range": (5.0, 0.0)},
            r"expected the lowest value, then the highest, got \[5\.0, 0\.0\]",
        ),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TaskSpec(**({"name": "x", "text_columns": ("a",), "label_column": "y"} | fields))


COUNT = Traits("count", ("closeness",), has_labels=False, is_labelled=True, metric_bounds={"closeness": (-1.0, 0.0)})


def test_a_task_of_a_plug_in_takes_the_traits_it_is_given_and_imports_nothing():
    spec = TaskSpec("visits", "no_such_module:Count", ("text",), "visits", traits=COUNT)
    assert (spec.kind, spec.metrics, dict(spec.metric_bounds)) == ("count", ("closeness",), {"closeness": (-1.0, 0.0)})
    renamed = replace(spec, name="calls")
    assert (renamed.kind, renamed.traits) == ("count", COUNT)
    with pytest.raises(ConfigError, match=r"tasks\.visits: a count task has no labels"):
        replace(spec, labels=("a", "b"), name="visits")


def test_a_task_of_a_plug_in_without_its_traits_is_refused():
    message = r"tasks\.visits\.type: no_such_module:Count isn't built in, and has no traits"
    with pytest.raises(ConfigError, match=message):
        TaskSpec("visits", "no_such_module:Count", ("text",), "visits")


def test_a_built_in_type_keeps_its_own_traits():
    assert TaskSpec("t", "regression", ("text",), "y", traits=COUNT).kind == "regression"


def test_a_parameter_belongs_to_its_head_or_to_everybody():
    assert scope_of("heads.sst2.weight") == task_scope("sst2") == "task:sst2"
    assert scope_of("encoder.embeddings.word_embeddings.weight") == SHARED
    assert scope_of("encoder.heads.sst2.weight") == SHARED
    assert task_of("task:sst2") == "sst2"
    assert task_of(SHARED) is None


def test_one_factor_of_a_tasks_or_groups_adapters_belongs_to_the_task_or_group():
    assert task_of(factor_scope("b", task_scope("sst2"))) == "sst2"
    assert group_of(factor_scope("a", group_scope("pairs"))) == "pairs"
    assert (task_of("factor_b:shared"), group_of("factor_b:task:sst2")) == (None, None)


def tickets(*labels: str) -> TaskSpec:
    return TaskSpec("tickets", "classification" if labels else "regression", ("text",), "kind", labels)


MANY = tuple(f"label-{i}" for i in range(30))


@pytest.mark.parametrize(
    ("theirs", "mine", "message"),
    [
        (
            ("bug", "question", "praise"),
            ("praise", "bug", "question"),
            r"^task tickets: the server has the labels bug, question, praise; this client has praise, bug, question\. "
            r".*tasks\.tickets\.labels",
        ),
        (
            ("bug", "praise"),
            ("bug", "praise", "question"),
            "the labels bug, praise; this client has bug, praise, quest",
        ),
        (("bug", "praise"), (), "the server has the task type classification; this client has regression"),
        ((), ("bug", "praise"), "the server has the task type regression; this client has classification"),
        (
            MANY,
            (*MANY[:25], "x", *MANY[26:]),
            "has 30 labels, and number 25 is 'label-25'; this client has 30, .* is 'x'",
        ),
        (MANY, MANY[:29], "the server has 30 labels; this client has 29"),
    ],
)
def test_a_servers_task_that_means_something_else_by_its_labels_is_told_with_both(theirs, mine, message):
    server = tickets(*theirs)
    with pytest.raises(ConfigError, match=message):
        tickets(*mine).require_same(server.kind, server.labels)
    server.require_same(server.kind, list(server.labels))
