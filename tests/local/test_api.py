"""FedMTL from Python: a server, its clients and a whole local federation, without a command line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedmtl_client import Client
from fedmtl_client.session import ClientResult
from fedmtl_core.errors import ConfigError, DataError, FedMTLError, RunStoppedError, StoreError
from fedmtl_local import run_local
from fedmtl_server import Server
from fedmtl_server.storage.folders import state_of


def config(num_rounds: int = 2, **sections: Any) -> dict[str, Any]:
    few = {"train_samples": 64, "val_samples": 32}
    return {
        "model": {"server_model": "builtin:toy"},
        "training": {"num_rounds": num_rounds, "local_epochs": 1, "max_length": 48},
        "rounds": {"rejoin_grace_s": 0.5},
        "server": {"port": 0},
        "tasks": {
            "sst2": {"min_clients": 2, "data": {"builtin": "sst2"}, **few},
            "stsb": {"data": {"builtin": "stsb"}, **few},
        },
        "clients": [
            {"client_id": "a", "task": "sst2", "shard": "1/2"},
            {"client_id": "b", "task": "sst2", "shard": "2/2"},
            {"client_id": "c", "task": "stsb"},
        ],
        **sections,
    }


def client(client_id: str, task: str, address: str) -> Client:
    return Client(config(), task=task, client_id=client_id, server=address)


def take_part(address: str) -> list[ClientResult]:
    """Three clients in threads of this process."""
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(client(client_id, task, address).run)
            for client_id, task in (("a", "sst2"), ("b", "sst2"), ("c", "stsb"))
        ]
        return [run.result(timeout=120) for run in runs]


def test_a_server_and_three_clients_run_in_one_process_and_return_what_they_came_to(tmp_path, capfd):
    with Server(config(), tmp_path / "run") as server:
        clients = take_part(server.address)
        results = server.wait()
    assert {task: sorted(result.by_round) for task, result in results.items()} == {"sst2": [0, 1, 2], "stsb": [0, 1, 2]}
    assert results["sst2"].metric == "accuracy"
    assert [(one.client_id, one.tasks, sorted(one.rounds)) for one in clients] == [
        ("a", ("sst2",), [1, 2, 3]),
        ("b", ("sst2",), [1, 2, 3]),
        ("c", ("stsb",), [1, 2, 3]),
    ]
    first, last = clients[2].rounds[1], clients[2].rounds[3]
    assert (first.purpose, first.num_examples, last.purpose, last.num_examples) == ("train", 64, "evaluate", 0)
    assert first.received_metrics["pearson"] == results["stsb"].by_round[0]
    assert first.bytes_sent > 100_000
    assert (tmp_path / "run" / "results.json").is_file()
    assert "fedmtl-server" not in {thread.name for thread in threading.enumerate()}
    captured = capfd.readouterr()
    assert captured.out == ""


async def test_a_server_runs_within_an_event_loop_of_the_callers(tmp_path):
    server = Server(config(1), tmp_path)
    server.start()
    clients = asyncio.create_task(asyncio.to_thread(take_part, server.address))
    await asyncio.sleep(0)
    results = await asyncio.to_thread(server.wait)
    server.join()
    assert sorted(results["stsb"].by_round) == [0, 1]
    assert len(await clients) == 3


async def test_run_blocks_in_a_notebooks_cell_though_a_loop_is_running(tmp_path):
    (tmp_path / "c.yaml").write_text("tasks: {}")
    server = Server(config(1), tmp_path / "run")
    waiting = threading.Thread(target=lambda: (server._started.result(), take_part(server.address)))
    waiting.start()
    results = server.run()
    waiting.join()
    assert sorted(results["sst2"].by_round) == [0, 1]


def test_a_server_that_is_stopped_before_its_run_is_over_says_so_and_the_run_is_taken_up(tmp_path):
    with Server(config(1), tmp_path) as server:
        assert server.address.startswith("127.0.0.1:")
        server.stop()
        with pytest.raises(RunStoppedError, match="was stopped before it was over"):
            server.wait()
    server.stop()  # once more does no harm
    with Server(config(1), tmp_path) as server:
        take_part(server.address)
        assert sorted(server.wait()["sst2"].by_round) == [0, 1]
    with pytest.raises(StoreError, match="is over"):
        Server(config(1), tmp_path).start()


def test_leaving_the_block_stops_a_server_whose_run_is_not_over(tmp_path):
    with Server(config(1), tmp_path) as server:
        pass
    assert not server._thread.is_alive()
    assert state_of(tmp_path, server._server._config) == "running"


def test_a_server_that_keeps_serving_hands_out_its_model_until_it_is_stopped(tmp_path):
    with Server(config(1), tmp_path, keep_serving=True) as server:
        take_part(server.address)
        server.wait()
        from fedmtl_client.api import FederationApi

        api = FederationApi(server.address, client_id="", task="", reconnect_s=5)
        assert api.get_status().round == 2
        api.close()


def test_a_server_that_cannot_start_says_why_where_it_was_started(tmp_path):
    with Server(config(), tmp_path / "1") as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(FedMTLError, match=rf"can't listen on 127\.0\.0\.1:{port}"):
            Server(config(server={"port": port}), tmp_path / "2").run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Server({"trainin": {}}), "the configuration: trainin: unknown key; did you mean 'training'"),
        (lambda: Server("no.yaml"), r"no\.yaml: can't read the configuration"),
        (lambda: Server([]), "expected a Config, a dictionary or a YAML file's path, got list"),
        (lambda: Server({}), "tasks: expected at least one task, got none"),
        (lambda: Client(config(), task="qqp"), "task: the configuration has the tasks sst2, stsb, got 'qqp'"),
        (lambda: Client(config(), task="sst2"), "client_id: required, since `clients` list several for 'sst2': a, b"),
        (lambda: Client(config(), task="sst2", client_id="c"), "'c' has the task 'stsb', got 'sst2'"),
        (lambda: Client(config(), task="stsb", server="here"), "server: expected HOST:PORT"),
        (lambda: Client(config(), task="stsb", shard="2/1"), "shard: expected K/N"),
        (lambda: Client(config(), task="stsb", client_id="a b"), "client_id: expected 1 to 64 letters"),
        (lambda: Client(task="sst3"), "task: expected one of sst2, qqp"),
        (lambda: run_local(config(clients=[])), "clients: expected at least one client to start, got none"),
    ],
)
def test_a_mistake_is_a_config_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_client_takes_the_name_that_the_configuration_has_for_its_task():
    assert Client(config(), task="stsb").client_id == "c"
    made_up = Client(config(clients=[]), task="stsb").client_id
    assert made_up.startswith("stsb-")
    assert made_up != Client(config(clients=[]), task="stsb").client_id


def test_a_client_without_its_rows_raises(tmp_path):
    tasks = {"sst2": {"data": {"train": "no.tsv", "validation": "no.tsv"}}}
    with pytest.raises(DataError, match=r"tasks\.sst2\.data\.train: there is no file 'no\.tsv'"):
        Client(config(tasks=tasks, clients=[]), task="sst2").run()


@pytest.mark.long
@pytest.mark.e2e
def test_a_local_federation_runs_from_dictionaries(tmp_path, capfd):
    results = run_local(config(1, server={"runs_dir": str(tmp_path)}))
    assert {task: sorted(result.by_round) for task, result in results.items()} == {"sst2": [0, 1], "stsb": [0, 1]}
    (run_dir,) = tmp_path.iterdir()
    assert (run_dir / "logs" / "client-a.log").is_file()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_importing_the_packages_imports_no_pytorch():
    code = (
        "import sys, fedmtl_server, fedmtl_client, fedmtl_local\n"
        "from fedmtl_client import Client\n"
        "assert 'torch' not in sys.modules and 'fedmtl_server.server' not in sys.modules\n"
        "from fedmtl_server import Server\n"
        "assert 'torch' in sys.modules\n"
        "import fedmtl_server as s\n"
        "try: s.Serve\n"
        "except AttributeError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert result.stdout == "module 'fedmtl_server' has no attribute 'Serve'\n"


GUIDE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.long
@pytest.mark.e2e
async def test_the_guide_runs_as_it_is_printed_where_a_loop_is_running(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = [part.split("```")[0] for part in GUIDE.read_text(encoding="utf-8").split("```python\n")[1:]]
    assert len(cells) == 3
    scope: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, str(GUIDE), "exec"), scope)
    printed = capsys.readouterr().out
    assert printed.startswith("accuracy {0: 0.")
    assert "trainin: unknown key; did you mean 'training'?" in printed
    assert len(list((tmp_path / "runs").iterdir())) == 2
