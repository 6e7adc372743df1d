"""Who shares which parameter: the table of scopes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from fedmtl_core.config import Config, validated
from fedmtl_core.errors import ConfigError
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.model.sharing import ModelShape, SharingRules, make_table, parts_text
from tests.support import specs

TASKS = ("sst2", "qqp", "stsb")
GROUPS = {"pairs": ["qqp", "stsb"]}
SHAPE = ModelShape(
    parts={
        "encoder.e": "embeddings",
        "encoder.0.w": "0",
        "encoder.0.n": "0",
        "encoder.1.w": "1",
        "encoder.p": "pooler",
    },
    heads={task: (f"heads.{task}.w", f"heads.{task}.b") for task in TASKS},
    norms={"encoder.0.n"},
)


def table(**rules):
    return make_table(TASKS, SHAPE, SharingRules(**rules))


def components(made):
    return {scope: list(made.tensors(scope)) for scope in made.scopes}


def test_without_rules_all_share_the_encoder_and_each_task_has_its_head():
    made = table()
    assert components(made) == {
        "shared": ["encoder.e", "encoder.0.w", "encoder.0.n", "encoder.1.w", "encoder.p"],
        "task:sst2": ["heads.sst2.w", "heads.sst2.b"],
        "task:qqp": ["heads.qqp.w", "heads.qqp.b"],
        "task:stsb": ["heads.stsb.w", "heads.stsb.b"],
    }
    assert made.scopes_for("qqp") == ("shared", "task:qqp")
    assert made.is_one_model


def test_a_layer_of_groups_has_a_component_for_each_group_and_slices_go_from_the_outside_in():
    made = table(groups=GROUPS, layers={"0": "shared", "1": "group", "pooler": "task"})
    assert components(made) == {
        "shared": ["encoder.e", "encoder.0.w", "encoder.0.n"],
        "group:pairs": ["encoder.1.w"],
        "task:sst2": ["encoder.1.w", "encoder.p", "heads.sst2.w", "heads.sst2.b"],  # alone outside of all groups
        "task:qqp": ["encoder.p", "heads.qqp.w", "heads.qqp.b"],
        "task:stsb": ["encoder.p", "heads.stsb.w", "heads.stsb.b"],
    }
    assert made.scopes_for("stsb") == ("shared", "group:pairs", "task:stsb")
    assert made.scopes_for("sst2") == ("shared", "task:sst2")
    assert made.members("group:pairs") == ("qqp", "stsb")
    assert not made.is_one_model


def test_tasks_outside_of_all_groups_share_with_one_another_what_groups_share():
    made = make_table(
        ("a", "b", "c", "d"),
        ModelShape({"encoder.w": "0"}, {task: [f"heads.{task}.w"] for task in "abcd"}),
        SharingRules(groups={"g": ["a", "b"]}, layers={"0": "group"}),
    )
    assert made.scopes == ("group:g", "group:c+d", "task:a", "task:b", "task:c", "task:d")
    assert made.by_task["d"]["encoder.w"] == "group:c+d"


def test_groups_are_a_tree_and_a_layer_may_be_shared_at_each_of_its_levels():
    tree = {"pairs": ["qqp", "stsb"], "all_but_one": ["pairs", "mrpc"]}
    made = make_table(
        ("sst2", "qqp", "stsb", "mrpc"),
        ModelShape({"w0": "0", "w1": "1", "w2": "2"}, {task: [] for task in ("sst2", "qqp", "stsb", "mrpc")}),
        SharingRules(groups=tree, layers={"0": "all", "1": "all_but_one", "2": "group"}),
    )
    assert made.by_task["stsb"] == {"w0": "shared", "w1": "group:all_but_one", "w2": "group:pairs"}
    assert made.by_task["mrpc"] == {"w0": "shared", "w1": "group:all_but_one", "w2": "task:mrpc"}
    assert made.by_task["sst2"] == {"w0": "shared", "w1": "task:sst2", "w2": "task:sst2"}
    assert made.scopes_for("qqp") == ("shared", "group:all_but_one", "group:pairs")


def test_what_is_local_is_in_no_component():
    made = table(head="local", norms="local", layers={"pooler": "local"})
    assert made.local_for("qqp") == ("encoder.0.n", "encoder.p", "heads.qqp.w", "heads.qqp.b")
    assert components(made) == {"shared": ["encoder.e", "encoder.0.w", "encoder.1.w"]}
    assert made.scopes_for("qqp") == ("shared",)


def test_norms_are_shared_by_whom_they_are_said_to_whatever_their_layer():
    made = table(layers={"0": "task"}, norms="shared")
    assert made.by_task["qqp"]["encoder.0.w"] == "task:qqp"
    assert made.by_task["qqp"]["encoder.0.n"] == "shared"


def test_blocks_that_were_moved_hold_instead_of_the_rules():
    made = make_table(TASKS, SHAPE, SharingRules(), {"1": (("sst2", "stsb"), ("qqp",))})
    assert made.by_task["stsb"]["encoder.1.w"] == "group:sst2+stsb"
    assert made.by_task["qqp"]["encoder.1.w"] == "task:qqp"
    assert made.by_task["qqp"]["encoder.0.w"] == "shared"


def test_a_model_of_which_nothing_is_shared_is_refused():
    with pytest.raises(ConfigError, match="sharing: all parameters of sst2's model are local"):
        table(head="local", layers={"0-1": "local", "embeddings": "local", "pooler": "local"})


def test_a_layer_that_the_encoder_has_not_is_named_with_those_it_has():
    expected = re.escape("sharing.layers: the encoder has no layer 2; it has 0, 1, embeddings, pooler")
    with pytest.raises(ConfigError, match=expected):
        table(layers={"1-7": "task"})


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        (
            {"groups": {"g": ["qqp", "cola"]}},
            "sharing.groups.g: there is no task or group 'cola'; expected one of sst2, qqp",
        ),
        ({"groups": {"g": []}}, "sharing.groups.g: expected at least one task or group, got none"),
        ({"groups": {"qqp": ["sst2"]}}, "'qqp' is a task, and can't be a group's name too"),
        ({"groups": {"task": ["sst2"]}}, "'task' is the name of a level"),
        ({"groups": {"a b": ["sst2"]}}, "a group's name: expected 1 to 64 letters"),
        (
            {"groups": {"g": ["sst2"], "h": ["sst2", "qqp"]}},
            "'sst2' is in 'g' and in 'h'; it can be in one group only, and once",
        ),
        ({"groups": {"g": ["sst2", "sst2"]}}, "'sst2' is twice in 'g'"),
        ({"groups": {"g": ["h"], "h": ["g"]}}, "'g' is in 'h' is in 'g': a group can't be in itself"),
        ({"groups": {"g": ["g"]}}, "'g' is in 'g': a group can't be in itself"),
        ({"layers": {3: "task", "2-5": "shared"}}, "sharing.layers: layer 3 occurs twice, in '3' and in '2-5'"),
        ({"layers": {"5-2": "task"}}, "the range '5-2' ends before it begins"),
        ({"layers": {"last": "task"}}, "expected a layer's number, a range such as 2-5, or one of embeddings, pooler"),
        ({"layers": {"0": "gruop"}}, "layers.0: expected one of shared, all, group, task, local; there are no groups"),
        ({"layers": {"0": "group"}}, "layers.0: `group` needs groups in `sharing.groups`"),
        (
            {"groups": GROUPS, "norms": "pair"},
            "norms: expected one of shared, all, group, task, local, or one of the g",
        ),
        ({"head": "group"}, "sharing.head: input should be 'task' or 'local'"),
    ],
)
def test_rules_that_make_no_sense_are_refused_in_words(sharing, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        validated({"tasks": dict.fromkeys(TASKS), "sharing": sharing}, "the file")


def test_yamls_numbers_are_layers(tmp_path):
    config = Config.model_validate({"tasks": {"sst2": {}}, "sharing": {"layers": {0: "task", "1-2": "local"}}})
    assert config.sharing.layers == {"0": "task", "1-2": "local"}


def test_the_settings_that_the_documentation_shows_are_settings():
    text = (Path(__file__).parents[3] / "docs" / "sharing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 5
    sick = {"type": "regression", "text_columns": ["sentence1", "sentence2"], "label_column": "relatedness"}
    for block in blocks:
        tasks = {**dict.fromkeys((*TASKS, "cola")), "sick": sick}
        validated({"tasks": tasks, **yaml.safe_load(block)}, "docs/sharing.md")


def bert():
    return BertModel(
        BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=3, num_attention_heads=1, intermediate_size=4)
    )


def test_berts_parameters_are_found_in_its_parts():
    shape = MultiTaskModel(bert(), specs("sst2"), hidden_size=4).shape()
    assert set(shape.parts.values()) == {"embeddings", "0", "1", "2", "pooler"}
    assert shape.parts["encoder.embeddings.LayerNorm.weight"] == "embeddings"
    assert shape.parts["encoder.encoder.layer.2.attention.self.query.weight"] == "2"
    assert shape.parts["encoder.pooler.dense.bias"] == "pooler"
    assert len(shape.norms) == 2 * (1 + 3 * 2)  # weight and bias: of the embeddings, and two in each layer
    assert all(".LayerNorm." in name for name in shape.norms)
    assert shape.heads == {"sst2": ["heads.sst2.weight", "heads.sst2.bias"]}


def test_an_encoder_whose_layers_lie_elsewhere_is_understood_too():
    encoder = DistilBertModel(DistilBertConfig(vocab_size=9, dim=4, n_layers=2, n_heads=1, hidden_dim=4))
    shape = MultiTaskModel(encoder, specs("sst2"), hidden_size=4).shape()
    assert set(shape.parts.values()) == {"embeddings", "0", "1"}
    assert len(shape.norms) == 2 * (1 + 2 * 2)


def test_parts_in_words_join_consecutive_layers():
    assert parts_text(["embeddings", "0", "1", "2", "4", "pooler"]) == "embeddings, layers 0-2, layer 4, pooler"
    assert parts_text(["9", "10", "rest"]) == "layers 9-10, rest"
    assert parts_text([]) == ""


LEVELS = st.sampled_from(["shared", "group", "task", "local", "g0", "g1"])


@st.composite
def worlds(draw):
    """Tasks, a tree of two groups, and any level for each of three layers and the norms."""
    tasks = tuple("abcde"[: draw(st.integers(2, 5))])
    first = draw(st.lists(st.sampled_from(tasks), min_size=1, unique=True))
    second = [task for task in tasks if task not in first and draw(st.booleans())]
    groups = {"g0": first, "g1": [*second, "g0"] if draw(st.booleans()) or not second else second}
    layers = {str(number): draw(LEVELS) for number in range(3)}
    shape = ModelShape(
        {f"encoder.{number}.{kind}": str(number) for number in range(3) for kind in ("w", "n")} | {"encoder.r": "rest"},
        {task: [f"heads.{task}.w"] for task in tasks},
        {f"encoder.{number}.n" for number in range(3)},
    )
    norms = draw(st.none() | LEVELS)
    return tasks, shape, SharingRules(groups, layers, draw(st.sampled_from(["task", "local"])), norms)


@given(worlds())
def test_every_parameter_of_every_task_has_one_scope_and_the_slice_covers_the_model(world):
    tasks, shape, rules = world
    made = make_table(tasks, shape, rules)
    for task in tasks:
        model = [*shape.parts, *shape.heads[task]]
        sent = [name for scope in made.scopes_for(task) for name in made.tensors(scope)]
        kept = list(made.local_for(task))
        assert sorted(sent + kept) == sorted(model)  # each once, none forgotten
    for scope in made.scopes:
        members = made.members(scope)
        for task in tasks:  # a component is whole in the slices of the tasks that share it, and in no other
            mine = [name for name, one in made.by_task[task].items() if one == scope]
            assert mine == (list(made.tensors(scope)) if task in members else [])
    assert len({made.members(scope) for scope in made.scopes}) == len(made.scopes)  # one component for a set of tasks
    sizes = [[len(made.members(scope)) for scope in made.scopes_for(task)] for task in tasks]
    assert all(one == sorted(one, reverse=True) for one in sizes)  # from the outside in
