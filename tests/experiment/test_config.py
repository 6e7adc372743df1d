"""An experiment's file."""

from pathlib import Path

import pytest

from fedmtl_core.errors import ConfigError
from fedmtl_experiment.cells import differences, inputs, plan, settings_of
from fedmtl_experiment.config import flattened, load, merged, nested
from tests.experiment.support import TOY, experiment, write

CONFIGS = Path(__file__).parents[2] / "configs"


def test_dotted_keys_and_sections_are_the_same():
    assert nested({"training.seed": 1, "training": {"num_rounds": 2}}) == {"training": {"seed": 1, "num_rounds": 2}}
    assert flattened({"a": {"b": {"c": 1}, "d": 2}}) == {"a.b.c": 1, "a.d": 2}


def test_the_later_settings_win_key_by_key_and_the_first_stay_as_they_were():
    first = {"training": {"num_rounds": 1, "per_device_train_batch_size": 4}}
    assert merged(first, {"training.num_rounds": 2}, {"training": {"max_length": 9}}) == {
        "training": {"num_rounds": 2, "per_device_train_batch_size": 4, "max_length": 9}
    }
    assert first == {"training": {"num_rounds": 1, "per_device_train_batch_size": 4}}


def test_a_word_in_place_of_the_sharing_replaces_it_and_later_keys_add_to_it():
    layers = {"sharing": {"layers": {"1": "task"}}}
    assert merged(layers, {"sharing": "auto"}) == {"sharing": "auto"}
    assert merged({"sharing": "auto"}, {"sharing.adaptive.patience": 1}) == {
        "sharing": {"mode": "auto", "adaptive": {"patience": 1}}
    }
    assert merged({"sharing": "plain"}, layers) == {"sharing": {"mode": "plain", "layers": {"1": "task"}}}


def test_a_methods_settings_win_over_the_settings_the_encoders_and_the_common_ones(tmp_path):
    loaded = experiment(
        tmp_path,
        common={
            "training.per_device_train_batch_size": 1,
            "training.num_rounds": 1,
            "training.max_length": 8,
            "model.pooling": "cls",
        },
        encoders={"toy": {"training.num_rounds": 2, "training.max_length": 9, "model.pooling": "mean"}},
        settings={"tiny": {"tasks": {"sst2": {}}, "set": {"training.max_length": 10, "model.pooling": "cls"}}},
        methods={"mtl": {"base": "mtl", "set": {"model.pooling": "mean"}}},
    )
    flat = flattened(settings_of(loaded, plan(loaded)[1]))
    keys = (
        "training.per_device_train_batch_size",
        "training.num_rounds",
        "training.max_length",
        "model.pooling",
        "training.seed",
    )
    assert [flat[key] for key in keys] == [1, 2, 10, "mean", 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, r"experiment\.yaml:\d+: seed: unknown key; did you mean 'seeds'\? Allowed: results_dir, seeds"),
        ({"seeds": [1, 1]}, r"seeds: expected different integers of at least 0, got \[1, 1\]"),
        ({"seeds": []}, r"seeds: list should have at least 1 item"),
        ({"methods": {"a": {"base": "fedavg"}}}, r"methods\.a\.base: input should be 'local', 'standard', 'mtl' or"),
        (
            {"methods": {"a": {"base": "mtl", "only": ["tiny/toy/1", "tiny/mtl/1"]}}},
            r"methods\.a\.only: 'tiny/mtl/1' matches nothing; a pattern is for SETTING/ENCODER/SEED, such as t",
        ),
        ({"methods": {"a b": {"base": "mtl"}}}, r"methods: a name.*'a b'"),
        (
            {"settings": {"s": {"tasks": {"sst2": {"trainrows": 3}}}}},
            r"settings\.s\.tasks\.sst2\.trainrows: unknown key; did you mean 'train_rows'",
        ),
        (
            {"settings": {"s": {"tasks": {"sst2": {}}, "partition": {"alpha": 1, "dirichlet": 1}}}},
            r"settings\.s\.partition\.alpha: unknown key; Allowed: dirichlet",
        ),
        ({"settings": {"s": {"tasks": {"cola": {}}}}}, r"settings\.s\.tasks: expected some of sst2, stsb, got 'cola'"),
        (
            {"settings": {"s": {"tasks": {"sst2": {}}, "methods": ["mlt"]}}},
            r"settings\.s\.methods: expected some of local, standard, mtl, central, got 'mlt'",
        ),
        ({"tasks": {"sst2": {"train_samples": 3}}}, r"tasks\.sst2\.train_samples: the experiment sets it"),
        ({"common": {"training.seed": 3}}, r"common: training\.seed can't be set here"),
        (
            {"methods": {"a": {"base": "mtl", "set": {"early_stopping": {"patience": 1}}}}},
            r"methods\.a\.set: early_stopping\.patience can't be set here",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_is_allowed(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, **changes))


def test_what_is_missing_is_named(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("seeds: [1]\n")
    with pytest.raises(ConfigError, match=r"empty\.yaml: results_dir: required, but not given"):
        load(path)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: can't read the configuration"):
        load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("name", "cells"), [("experiment.yaml", 403), ("experiment-small.yaml", 9)])
def test_the_projects_own_files_are_right(name, cells):
    assert len(plan(load(CONFIGS / name))) == cells


def test_the_small_experiments_cells_are_cells_of_the_large_one():
    small, large = load(CONFIGS / "experiment-small.yaml"), load(CONFIGS / "experiment.yaml")
    for cell in plan(small):
        assert differences(inputs(small, cell), inputs(large, cell)) == [], cell.id


def test_the_toy_experiment_is_one_that_loads(tmp_path):
    assert list(experiment(tmp_path).methods) == list(TOY["methods"])
