"""The mode of `sharing`: one word in place of the section, and what follows from it."""

import re

import pytest

from fedmtl_core import config as configuration
from fedmtl_core.config import Config, SharingConfig, contradictions, validated
from fedmtl_core.errors import ConfigError

TWO = {"sst2": {}, "qqp": {}}
VALIDATED = {"adaptive": {"policy": "validated"}}


def of(sharing, tasks=TWO, **sections) -> Config:
    return validated({"tasks": tasks, "sharing": sharing, **sections}, "the file")


def loaded(tmp_path, text, *overrides) -> SharingConfig:
    """The section of a file with two tasks, which is the same after a dump."""
    path = tmp_path / "c.yaml"
    path.write_text(f"tasks: {{sst2: {{}}, qqp: {{}}}}\n{text}\n")
    read = configuration.load(path, overrides)
    path.write_text(configuration.dump(read))
    assert configuration.load(path) == read
    return read.sharing


def values(section):
    """A section's keys with values of their own."""
    return section.model_dump(exclude_defaults=True)


def test_plain_is_the_section_of_defaults(tmp_path):
    assert loaded(tmp_path, "sharing: plain") == loaded(tmp_path, "sharing: {}") == SharingConfig()
    assert loaded(tmp_path, "") == loaded(tmp_path, "sharing:") == SharingConfig(mode="plain")


@pytest.mark.parametrize(
    "text",
    ["sharing: auto", "sharing: 'auto'", "sharing: {mode: auto}", "sharing: {mode: auto, adaptive: {policy: ~}}"],
)
def test_auto_is_the_policy_that_validates(text, tmp_path):
    assert values(loaded(tmp_path, text)) == {"mode": "auto", **VALIDATED}


def test_from_python_the_word_is_a_section_too():
    given = Config(tasks=TWO, sharing=SharingConfig(mode="auto"))  # type: ignore[arg-type]
    assert given == Config.model_validate({"tasks": TWO, "sharing": "auto"}) == configuration.resolve(given)
    assert values(given.sharing) == {"mode": "auto", **VALIDATED}


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("", ["sharing=auto"], {"mode": "auto", **VALIDATED}),
        ("sharing: auto", ["sharing=plain"], {}),
        (
            "sharing: auto",
            ["sharing.adaptive.max_parameters=3"],
            {"mode": "auto", "adaptive": {"policy": "validated", "max_parameters": 3}},
        ),
        (
            "",
            ["sharing=auto", "sharing.adaptive.max_parameters=3", "sharing.layers.1=shared"],
            {
                "mode": "auto",
                "layers": {"1": "shared"},
                "adaptive": {"policy": "validated", "max_parameters": 3},
            },
        ),
        ("sharing: {layers: {1: task}}", ["sharing=auto"], {"mode": "auto", **VALIDATED}),
        ("sharing: {layers: {1: task}}", ["sharing.mode=auto"], {"mode": "auto", "layers": {"1": "task"}, **VALIDATED}),
        ("sharing: auto", ["sharing.adaptive.policy=cosine"], {"mode": "auto", "adaptive": {"policy": "cosine"}}),
        ("sharing: auto", ["sharing.mode=plain", "sharing.head=local"], {"head": "local"}),
    ],
)
def test_overrides_replace_the_word_or_add_to_it(text, overrides, expected, tmp_path):
    assert values(loaded(tmp_path, text, *overrides)) == expected


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("sharing: atuo", [], "c.yaml:2: sharing: expected `auto`, `plain`, or keys such as `layers` (got 'atuo')"),
        ("sharing: on", [], "c.yaml:2: sharing: expected `auto`, `plain`, or keys such as `layers` (got on)"),
        ("sharing: [auto]", [], "c.yaml:2: sharing: expected `auto`, `plain`, or keys such as `layers` (got ['auto'])"),
        ("sharing: {mode: Auto}", [], "c.yaml:2: sharing.mode: input should be 'plain' or 'auto' (got 'Auto')"),
        ("sharing: {auto: {}}", [], "c.yaml:2: sharing.auto: unknown key; Allowed: mode, groups, layers"),
        ("", ["sharing=3"], "--set sharing: expected `auto`, `plain`, or keys such as `layers` (got 3)"),
        (
            "sharing: auto",
            ["sharing.adaptiv.patience=1"],
            "--set sharing.adaptiv.patience: unknown key; did you mean 'a",
        ),
    ],
)
def test_another_word_is_refused_where_it_stands(text, overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        loaded(tmp_path, text, *overrides)


def test_with_one_task_auto_is_plain_and_goes_with_everything_that_plain_goes_with():
    one = {"sst2": {}}
    auto, plain = of("auto", one), of("plain", one)
    assert auto.sharing.adaptive.policy is None
    assert auto.sharing.rules() == plain.sharing.rules()
    assert contradictions(auto, plain) == contradictions(plain, auto) == []
    of("auto", one, rounds={"mode": "async"})
    of("auto", one, aggregation={"rule": "mine:Median"})


@pytest.mark.parametrize(
    ("sharing", "model", "expected"),
    [
        ("plain", {}, "task"),
        ("auto", {}, "form"),
        (VALIDATED, {}, "form"),
        ({"adaptive": {"policy": "cosine"}}, {}, "task"),
        ("auto", {"head_init": "task"}, "task"),
        ("plain", {"head_init": "form"}, "form"),
    ],
)
def test_heads_of_one_form_start_alike_with_auto_unless_the_file_says_otherwise(sharing, model, expected):
    assert of(sharing, {"qqp": {}, "mrpc": {}}, model=model).head_init() == expected


def test_an_auxiliary_task_is_another_task():
    assert of("auto", {"sst2": {}, "qqp": {"auxiliary": True}}).sharing.adaptive.policy == "validated"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"rounds": {"mode": "async"}},
            "sharing: auto: needs `rounds.mode: sync`, got 'async': tasks' updates of one round are mixed; or set "
            "`sharing: plain`",
        ),
        (
            {"training": {"control_variates": True, "optimizer": "sgd"}},
            "training.control_variates: needs `sharing: plain`: control variates correct the updates of a component's "
            "own clients",
        ),
    ],
)
def test_what_auto_does_not_go_with_is_told_the_word_that_does(sections, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        of("auto", **sections)
    of("plain", **sections)


def test_a_run_is_not_taken_up_in_another_mode():
    assert contradictions(of("auto"), of("plain")) == [
        "sharing.mode: the run has 'auto', got 'plain'",
        "sharing.adaptive.policy: the run has 'validated', got None",
    ]
    assert contradictions(of("plain"), of("auto"))[0] == "sharing.mode: the run has 'plain', got 'auto'"
    assert contradictions(of("auto"), of({"mode": "auto", "adaptive": {"patience": 9}})) == [
        "sharing.adaptive.patience: the run has 3, got 9"
    ]


def test_a_run_is_taken_up_with_the_keys_that_its_word_stands_for():
    assert contradictions(of("auto"), of(VALIDATED)) == contradictions(of(VALIDATED), of("auto")) == []
