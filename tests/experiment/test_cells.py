"""The grid of cells, and what each is made of."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.config import validated
from fedmtl_core.errors import ConfigError
from fedmtl_experiment.cells import (
    Cell,
    differences,
    federations,
    inputs,
    plan,
    run_values,
    shard_sizes,
    steps_per_round,
)
from fedmtl_server.rounds.task_selection import RoundRobin, choose_tasks
from tests.experiment.support import TOY, experiment

SKEWED = {"tiny": {**TOY["settings"]["tiny"], "partition": {"dirichlet": 0.5}}}


def test_a_seeds_cells_come_before_the_next_seeds(tmp_path):
    cells = plan(experiment(tmp_path))
    assert [cell.id for cell in cells[:5]] == [
        "tiny/toy/local/1",
        "tiny/toy/standard/1",
        "tiny/toy/mtl/1",
        "tiny/toy/central/1",
        "tiny/toy/local/2",
    ]
    assert len(cells) == 8


def test_a_setting_may_have_some_of_the_methods_and_encoders(tmp_path):
    settings = {"one": {"tasks": {"sst2": {}}, "methods": ["mtl"]}, **TOY["settings"]}
    cells = plan(experiment(tmp_path, settings=settings))
    assert [cell.method for cell in cells if cell.setting == "one"] == ["mtl", "mtl"]


def test_a_method_may_be_computed_in_some_places_and_with_some_seeds_only(tmp_path):
    methods = {"mtl": {"base": "mtl"}, "mtl_once": {"base": "mtl", "only": ["two/toy/2", "tiny/*"]}}
    settings = {"two": {"tasks": {"sst2": {}}}, **TOY["settings"]}
    cells = plan(experiment(tmp_path, settings=settings, methods=methods))
    assert [cell.id for cell in cells if cell.method == "mtl_once"] == [
        "tiny/toy/mtl_once/1",
        "two/toy/mtl_once/2",
        "tiny/toy/mtl_once/2",
    ]


def test_patterns_choose_cells_in_the_plans_order_and_one_that_fits_none_is_an_error(tmp_path):
    loaded = experiment(tmp_path)
    assert [cell.id for cell in plan(loaded, ["*/mtl/2", "tiny/toy/local/*"])] == [
        "tiny/toy/local/1",
        "tiny/toy/local/2",
        "tiny/toy/mtl/2",
    ]
    with pytest.raises(ConfigError, match=r"no cell matches 'mtl'; a cell is SETTING/.*such as tiny/toy/local/1"):
        plan(loaded, ["mtl"])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("local", [["sst2_1"], ["sst2_2"], ["stsb_1"]]),
        ("standard", [["sst2_1", "sst2_2"], ["stsb_1"]]),
        ("mtl", [["sst2_1", "sst2_2", "stsb_1"]]),
        ("central", []),
    ],
)
def test_methods_differ_in_who_shares_a_server_and_in_nothing_else(method, expected, tmp_path):
    loaded = experiment(tmp_path, settings=SKEWED)
    cell = Cell("tiny", "toy", method, 2)
    found = federations(loaded, cell)
    assert [[client.client_id for client in one.clients] for one in found] == expected
    everybody = run_values(
        loaded,
        Cell("tiny", "toy", "mtl", 2),
        federations(loaded, Cell("tiny", "toy", "mtl", 2))[0],
        Path("d"),
        Path("r"),
    )
    for federation in found:
        values = run_values(loaded, cell, federation, Path("d"), Path("r"))
        config = validated(values, "test")
        assert config.training == validated(everybody, "test").training
        assert config.training.seed == 2
        for client in config.clients:
            assert client in validated(everybody, "test").clients
            assert client.partition is not None
            assert (client.partition.dirichlet, client.partition.seed) == (0.5, 2)
        for task, section in config.tasks.items():
            assert section.min_clients == sum(client.task == task for client in config.clients)
            assert section.data is not None
            assert section.data.train == f"d/{task}-train.jsonl"


def test_a_cells_inputs_are_all_that_its_result_depends_on(tmp_path):
    loaded, cell = experiment(tmp_path), Cell("tiny", "toy", "mtl", 1)
    before = inputs(loaded, cell)
    assert inputs(experiment(tmp_path, results_dir="elsewhere", seeds=[1, 5]), cell) == before
    changes = {
        "set.training.num_rounds": {"common": {"training": {**TOY["common"]["training"], "num_rounds": 3}}},
        "set.rounds.max_extensions": {"methods": {"mtl": {"base": "mtl", "set": {"rounds.max_extensions": 2}}}},
        "dirichlet": {"settings": SKEWED},
        "held_back_rows": {"settings": {"tiny": {**TOY["settings"]["tiny"], "held_back_rows": 30}}},
        "tasks.sst2.train_rows": {
            "settings": {"tiny": {**TOY["settings"]["tiny"], "tasks": {"sst2": {"train_rows": 9}, "stsb": {}}}}
        },
    }
    for key, change in changes.items():
        problems = differences(before, inputs(experiment(tmp_path, **change), cell))
        assert any(problem.startswith(f"{key}: the file has") for problem in problems)
    assert differences(before, inputs(loaded, Cell("tiny", "toy", "mtl", 2))) == [
        "set.training.seed: the file has 1, the configuration 2"
    ]


def test_a_settings_task_may_take_other_passes_over_its_rows(tmp_path):
    few = {"sst2": {"train_rows": 9, "local_epochs": 5}, "stsb": {}}
    loaded = experiment(tmp_path, settings={"tiny": {**TOY["settings"]["tiny"], "tasks": few}})
    cell = Cell("tiny", "toy", "mtl", 1)
    (federation,) = federations(loaded, cell)
    config = validated(run_values(loaded, cell, federation, Path("d"), Path("r")), "test")
    assert {task: config.plan(task).local_epochs for task in few} == {"sst2": 5, "stsb": 1}
    assert inputs(loaded, cell)["tasks.sst2.local_epochs"] == 5


@given(st.integers(1, 500), st.integers(1, 20))
def test_shards_make_up_the_whole_and_are_of_one_size(rows, clients):
    sizes = shard_sizes(rows, clients)
    assert (sum(sizes), len(sizes)) == (rows, clients)
    assert max(sizes) - min(sizes) <= 1


def test_steps_are_those_of_all_clients_together():
    # 101 rows are 51 and 50: 4 batches of 16 each, in each of 3 epochs.
    assert steps_per_round(101, clients=2, batch_size=16, local_epochs=3) == 24


WORDS = {"type": "masked_lm", "text_columns": ["sentence"], "auxiliary": True, "data": {"builtin": "sst2"}}


def test_a_method_may_bring_auxiliary_tasks_along_which_no_round_needs(tmp_path):
    methods = {**TOY["methods"], "words": {"base": "mtl", "auxiliary": {"words": {"train_rows": 30, "clients": 1}}}}
    loaded = experiment(tmp_path, methods=methods, tasks={**TOY["tasks"], "words": WORDS})
    cell, plain = Cell("tiny", "toy", "words", 1), Cell("tiny", "toy", "mtl", 1)
    (federation,) = federations(loaded, cell)
    assert [client.client_id for client in federation.clients] == ["sst2_1", "sst2_2", "stsb_1", "words_1"]
    config = validated(run_values(loaded, cell, federation, Path("d"), Path("r")), "test")
    assert config.auxiliary_tasks() == {"words"}
    assert config.tasks["words"].data.train == "d/words-train.jsonl"
    assert {"tasks.words.train_rows": 30}.items() <= inputs(loaded, cell).items()
    assert not any("words" in key for key in inputs(loaded, plain))


def test_of_clients_of_several_tasks_those_that_have_one_at_a_time_have_different_rows_of_it(tmp_path):
    methods = {**TOY["methods"], "several": {"base": "mtl", "several": True}}
    tasks = {name: {"train_rows": 60, "clients": 3} for name in ("sst2", "stsb", "qqp")}
    loaded = experiment(
        tmp_path,
        methods=methods,
        tasks={**TOY["tasks"], "qqp": {"data": {"builtin": "qqp"}}},
        settings={"tiny": {**TOY["settings"]["tiny"], "tasks": tasks}},
    )
    cell, plain = Cell("tiny", "toy", "several", 1), Cell("tiny", "toy", "mtl", 1)
    (federation,) = federations(loaded, cell)
    config = validated(run_values(loaded, cell, federation, Path("d"), Path("r")), "test")
    assert {task: section.min_clients for task, section in config.tasks.items()} == dict.fromkeys(tasks, 3)
    shards = {one.client_id: one.shard for one in config.clients}
    for round_ in range(1, 4):
        eligible = {one.client_id: one.task_names for one in config.clients}
        chosen = choose_tasks(RoundRobin(), eligible, round_, dict.fromkeys(tasks, 3), {}, 1)
        for task in tasks:
            assert sorted(shards[one] for one, its in chosen.items() if its == task) == ["1/3", "2/3", "3/3"]
    assert differences(inputs(loaded, plain), inputs(loaded, cell)) == [
        "several: the file has None, the configuration True"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": {"local": {"base": "local", "several": True}}},
            r"methods\.local: `several` is for `base: mtl`, got 'local'",
        ),
        (
            {"methods": {"mtl": {"base": "mtl", "several": True}}},
            r"methods\.mtl\.several: all tasks of 'tiny' need the same number of clients",
        ),
        (
            {"methods": {"mtl": {"base": "mtl", "auxiliary": {"stsb": {}}}}},
            r"methods\.mtl\.auxiliary: tasks\.stsb\.auxiliary is not set",
        ),
        (
            {"methods": {"mtl": {"base": "mtl", "auxiliary": {"words": {}}}}},
            r"methods\.mtl\.auxiliary: expected some of sst2, stsb, got 'words'",
        ),
        (
            {"tasks": {**TOY["tasks"], "sst2": {"auxiliary": True}}},
            r"settings\.tiny\.tasks: 'sst2' is auxiliary; a method may add it",
        ),
    ],
)
def test_what_a_method_cannot_have_is_told(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        experiment(tmp_path, **changes)
