"""A client of several tasks: what it is started with, what it chooses itself, and whole federations of such clients."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from fedmtl_client import Client, cli, data, doctor_cli
from fedmtl_client.schedule import TaskSchedule
from fedmtl_core import config as configuration
from fedmtl_core.errors import ConfigError
from fedmtl_core.model.modeling import TOY_MODEL
from fedmtl_core.runtime.tracing import OFF
from fedmtl_server import Server
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests import federations

TWO = {"sst2": {"data": {"builtin": "sst2"}}, "stsb": {"data": {"builtin": "stsb"}}}
CLIENTS = [
    {"client_id": "a", "tasks": ["sst2", "stsb"], "shard": "1/2"},
    {"client_id": "b", "task": "sst2", "shard": "2/2"},
]


def config(**sections):
    return configuration.resolve({"tasks": TWO, "clients": CLIENTS, **sections})


class TestWhichTasks:
    """Options come first, then the client's own entry in `clients`, then `client.tasks`."""

    def test_it_has_those_that_it_is_started_with(self):
        assert Client(config(), tasks=["stsb", "sst2"], client_id="c").tasks == ("stsb", "sst2")
        assert Client(config(), task="stsb", client_id="c").tasks == ("stsb",)
        assert Client(config(), task="stsb", client_id="a").tasks == ("stsb",)

    def test_it_has_those_that_the_configuration_lists_for_it(self):
        assert Client(config(), client_id="a").tasks == ("sst2", "stsb")
        assert Client(config(), client_id="b").tasks == ("sst2",)

    def test_it_has_those_of_its_own_configuration(self):
        mine = config(client={"tasks": ["stsb", "sst2"]})
        assert Client(mine, client_id="c").tasks == ("stsb", "sst2")
        assert Client(mine, client_id="b").tasks == ("sst2",)
        assert Client({"client": {"tasks": ["sst2", "qqp"]}}).tasks == ("sst2", "qqp")  # from the hub

    def test_its_name_is_that_of_the_only_client_listed_with_all_its_tasks(self):
        assert Client(config(), tasks=["stsb", "sst2"]).client_id == "a"
        assert Client(config(), task="stsb").client_id == "a"

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"task": "sst2"}, "client_id: required, since `clients` list several for 'sst2': a, b"),
            ({}, "client_id: required, since `clients` list several: a, b"),
            ({"client_id": "c"}, "task: required: name the task or tasks that this client has data for, with --task"),
            (
                {"client_id": "b", "tasks": ["sst2", "stsb"]},
                "'b' has the task 'sst2', got 'stsb'; change the entry or the task",
            ),
            ({"client_id": "c", "tasks": ["sst2", "sst2"]}, "task: expected each task once, got 'sst2' several times"),
            ({"client_id": "c", "tasks": ["sst2", "qqp"]}, "task: the configuration has the tasks sst2, stsb, got 'qq"),
            (
                {"client_id": "c", "task": "sst2", "tasks": ["stsb"]},
                "task: expected either `task`, or `tasks` for several tasks, go",
            ),
            (
                {"client_id": "c", "tasks": "sst2"},
                "tasks: expected a list of names, got 'sst2'; pass a single task as `task`",
            ),
        ],
    )
    def test_what_makes_no_sense_is_told(self, given, told):
        with pytest.raises(ConfigError, match=told.replace("(", r"\(")):
            Client(config(), **given)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"clients": [{"client_id": "a"}]}, "clients[0]: expected `task`, or `tasks` for several, got neither"),
        ({"clients": [{"client_id": "a", "task": "sst2", "tasks": ["stsb"]}]}, "got both"),
        ({"clients": [{"client_id": "a", "tasks": []}]}, "clients[0].tasks: expected the name of at least one task"),
        ({"clients": [{"client_id": "a", "tasks": ["sst2", "sst2"]}]}, "each task once, got 'sst2' twice"),
        ({"clients": [{"client_id": "a", "tasks": ["sst2", "qqp"]}]}, "'a' has the task 'qqp', which isn't in `tasks`"),
        ({"client": {"tasks": ["sst2", "sst2"]}}, "client.tasks: expected each task once"),
        ({"client": {"selection": "mine"}}, "client.selection: input should be 'server', 'round_robin' or 'random'"),
        ({"rounds": {"task_selection": "los"}}, "rounds.task_selection: did you mean 'loss'? expected round_robin, lo"),
    ],
)
def test_a_configuration_that_is_wrong_says_where(values, told):
    with pytest.raises(ConfigError) as raised:
        configuration.resolve({"tasks": TWO, **values})
    assert told in str(raised.value)


def test_the_command_takes_tasks_one_by_one_and_says_what_is_wrong_with_them(tmp_path, monkeypatch):
    loaded = []

    class Reached(Exception):
        """As far as it has to go."""

    def load(spec, *_):
        loaded.append(spec.name)
        if len(loaded) == 2:
            raise Reached

    monkeypatch.setattr(data, "load_task_data", load)
    path = tmp_path / "c.yaml"
    path.write_text("tasks: {sst2: {data: {builtin: sst2}}, stsb: {data: {builtin: stsb}}}")
    options = ["--client-id", "c", "--config", str(path)]
    result = CliRunner().invoke(cli.app, [*options, "--task", "stsb", "--task", "sst2"])
    assert (type(result.exception), loaded) == (Reached, ["stsb", "sst2"])

    for more, told in (
        ([], "task: required: name the task or tasks that this client has data for"),
        (["--task", "sst2", "--task", "sst2"], "task: expected each task once, got 'sst2' several times"),
        (["--task", "sst2", "--task", "sst3"], "has the tasks sst2, stsb, got 'sst3'"),
    ):
        result = CliRunner().invoke(cli.app, [*options, *more])
        assert isinstance(result.exception, ConfigError)
        assert told in str(result.exception)


def test_the_doctor_looks_at_the_rows_of_each_task(tmp_path):
    path = tmp_path / "c.yaml"
    rows = tmp_path / "rows.tsv"
    rows.write_text("sentence\tlabel\na\t1\nb\t2\n")
    path.write_text(
        f"tasks: {{sst2: {{data: {{train: {rows}, validation: {rows}}}}}, stsb: {{data: {{builtin: stsb}}}}}}"
    )
    options = ["--client-id", "c", "--config", str(path), "--server", "127.0.0.1:1", "--json"]
    found = CliRunner().invoke(doctor_cli.doctor_app, [*options, "--task", "sst2", "--task", "stsb"])
    assert found.exit_code == 1
    levels = Counter()
    for one in json.loads(found.stdout):
        levels[one["check"], one["level"]] += 1
    assert levels["sst2: train rows", "fail"] == levels["sst2: validation rows", "fail"] == 1
    assert levels["stsb: train rows", "ok"] == levels["stsb: validation rows", "ok"] == 1


class TestSchedule:
    def test_one_task_and_the_servers_choice_need_no_word(self):
        assert (TaskSchedule(("sst2",), "random").first, TaskSchedule(("sst2",), "random").after("sst2", 1)) == (
            "sst2",
            "",
        )
        both = TaskSchedule(("sst2", "stsb"))
        assert (both.first, both.after("sst2", 1)) == ("", "")

    def test_round_robin_goes_through_the_tasks_in_their_order_beginning_with_the_first(self):
        schedule = TaskSchedule(("stsb", "sst2", "qqp"), "round_robin")
        had = [schedule.first]
        for round_ in range(1, 5):
            had.append(schedule.after(had[-1], round_))
        assert had == ["stsb", "sst2", "qqp", "stsb", "sst2"]

    def test_random_is_the_same_for_the_same_seed_and_client_and_takes_each_task_about_as_often(self):
        tasks = ("sst2", "stsb")

        def drawn(seed, client_id):
            schedule = TaskSchedule(tasks, "random", seed, client_id)
            return [schedule.after("sst2", round_) for round_ in range(200)]

        assert drawn(1, "a") == drawn(1, "a")
        assert drawn(1, "a") != drawn(2, "a")
        assert drawn(1, "a") != drawn(1, "b")
        assert 70 <= Counter(drawn(1, "a"))["sst2"] <= 130  # 100 +- 4.2 standard deviations


def federation(tmp_path, selection="server", **sections):
    """Two clients of both tasks, three rounds; each client's tasks by round, and the updates in the history."""
    settled = configuration.resolve(
        {
            "model": {"server_model": TOY_MODEL},
            "training": {"num_rounds": 3, "local_epochs": 1},
            "rounds": {"rejoin_grace_s": 0.5},
            "server": {"port": 0},
            "client": {"selection": selection},
            "tasks": {task: {**section, "train_samples": 48, "val_samples": 20} for task, section in TWO.items()},
            "clients": [
                {"client_id": "a", "tasks": ["sst2", "stsb"], "shard": "1/2"},
                {"client_id": "b", "tasks": ["stsb", "sst2"], "shard": "2/2"},
            ],
            **sections,
        }
    )
    results, done = federations.run(settled, tmp_path / "run")
    history = History.open(tmp_path / "run" / HISTORY_FILE, create=False)
    try:
        updates = history.updates(history.runs()[0].run_id)
    finally:
        history.close()
    return results, {one.client_id: [work.task for work in one.rounds.values()] for one in done}, updates


def test_clients_of_two_tasks_change_task_as_the_server_plans_and_every_model_is_measured_on_both(tmp_path):
    results, had, updates = federation(tmp_path)
    assert had == {"a": ["sst2", "stsb", "sst2", "stsb"], "b": ["stsb", "sst2", "stsb", "sst2"]}
    assert {task: sorted(result.by_round) for task, result in results.items()} == {
        "sst2": [0, 1, 2, 3],
        "stsb": [0, 1, 2, 3],
    }
    assert {(one.round, one.client_id): one.task for one in updates if one.outcome == "counted"} == {
        (round_, client_id): task for client_id, tasks in had.items() for round_, task in enumerate(tasks, start=1)
    }


def test_clients_of_two_tasks_change_task_by_their_own_schedule(tmp_path):
    """Each begins with the first that it lists; both keep to it to the end, with lossy uploads too."""
    _, had, _ = federation(tmp_path, "round_robin", wire={"upload": "int8", "download": "int8"})
    assert had == {"a": ["sst2", "stsb", "sst2", "stsb"], "b": ["stsb", "sst2", "stsb", "sst2"]}


def test_asynchronous_rounds_take_clients_of_two_tasks(tmp_path):
    _, had, updates = federation(tmp_path, rounds={"mode": "async", "buffer_size": 1, "rejoin_grace_s": 0.5})
    trained = [(one.client_id, one.task) for one in updates if one.outcome == "counted" and one.kind == "delta"]
    assert len(trained) >= 3  # a round takes what comes before it is closed, which may be both clients' updates
    assert all(set(tasks) <= {"sst2", "stsb"} for tasks in had.values())


def states(tmp_path, **sections):
    """What a client that was given each of its two tasks once keeps of them."""
    settled = configuration.resolve(
        {
            "model": {"server_model": TOY_MODEL},
            "training": {"num_rounds": 2, "local_epochs": 1},
            "server": {"port": 0},
            "tasks": {
                task: {**section, "min_clients": 0, "train_samples": 32, "val_samples": 10}
                for task, section in TWO.items()
            },
            **sections,
        }
    )
    with Server(settled, tmp_path / "run") as server:
        session = Client(settled, tasks=["sst2", "stsb"], server=server.address)._session(OFF)
        session.run()
        server.wait()
    return [session._worker._states.state_of(task) for task in ("sst2", "stsb")]


def test_the_models_of_all_tasks_live_in_the_memory_of_one_encoder(tmp_path):
    first, second = (dict(state.model.named_parameters()) for state in states(tmp_path))
    shared = first.keys() & second.keys()
    assert len(shared) > 10
    assert all(first[name].data_ptr() == second[name].data_ptr() for name in shared)
    assert all("heads." in name for name in first.keys() ^ second.keys())


def test_what_a_lossy_upload_rounds_away_is_owed_by_its_task_alone(tmp_path):
    first, second = (state.feedback for state in states(tmp_path, wire={"upload": "int8"}))
    assert first._residuals.keys() == {"shared", "task:sst2"}
    assert second._residuals.keys() == {"shared", "task:stsb"}
    owed, other = (one._residuals["shared"].buffer for one in (first, second))
    assert owed.any()
    assert not owed.equal(other)
