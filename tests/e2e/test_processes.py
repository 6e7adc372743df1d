"""Real server and client processes: whole runs, kills, interruptions."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from safetensors import safe_open

from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE

pytestmark = pytest.mark.e2e

CONFIG = """
model: {server_model: "builtin:toy"}
training: {num_rounds: 3, local_epochs: 1, learning_rate: 1e-3, max_length: 48}
rounds: {deadline_s: 60, quorum_timeout_s: 2, rejoin_grace_s: 2}
tasks:
  sst2: {train_samples: 200, val_samples: 50, data: {builtin: sst2}}
  qqp: {train_samples: 200, val_samples: 50, data: {builtin: qqp}}
  stsb: {train_samples: 200, val_samples: 50, data: {builtin: stsb}}
"""
TASKS = ("sst2", "qqp", "stsb")


class Federation:
    """A server process and client processes, started by hand as a user would in several terminals."""

    def __init__(
        self,
        folder: Path,
        stack: contextlib.ExitStack,
        *set_: str,
        keep_serving: bool = False,
        config: str = CONFIG,
    ):
        self.folder = folder
        self.run_dir = folder / "run"
        self._stack = stack
        self.config = folder / "config.yaml"
        self.config.write_text(config)
        self._overrides = [part for text in set_ for part in ("--set", text)]
        options = ["--port", "0", "--run-dir", str(self.run_dir)] + (["--keep-serving"] if keep_serving else [])
        self.server = self.start("server", "fedmtl_server", *options)
        self.address = self._await_address()

    def start(self, name: str, module: str, *options: str) -> subprocess.Popen[str]:
        log = self._stack.enter_context((self.folder / f"{name}.log").open("w"))
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--config", str(self.config), *self._overrides, *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def client(self, task: str, *options: str) -> subprocess.Popen[str]:
        client_id = f"{task}_client"
        return self.start(
            client_id, "fedmtl_client", "--client-id", client_id, "--tasks", task, "--server", self.address, *options
        )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def reports(self) -> list[Mapping[str, Any]]:
        """Of the rounds that have ended, in their order."""
        run_id = json.loads((self.run_dir / "run.json").read_text())["run_id"]
        with contextlib.closing(History.open(self.run_dir / HISTORY_FILE, create=False)) as history:
            return [one.report for one in history.rounds(run_id) if one.report is not None]

    def until(self, phase: pb.Phase, round_: int, timeout_s: float = 90) -> pb.GetStatusResponse:
        """Wait until the run is that far."""
        with grpc.insecure_channel(self.address) as channel:
            events = pb_grpc.FederatedMtlServiceStub(channel).WatchRounds(pb.WatchRoundsRequest(), timeout=timeout_s)
            wanted = {pb.PHASE_OPEN: pb.ROUND_EVENT_KIND_OPENED, pb.PHASE_WAITING: pb.ROUND_EVENT_KIND_WAITING}[phase]
            for event in events:
                if event.kind == wanted and event.round >= round_:
                    break
            return pb_grpc.FederatedMtlServiceStub(channel).GetStatus(pb.GetStatusRequest())

    def _await_address(self) -> str:
        give_up = time.monotonic() + 90
        while not (self.run_dir / "server.json").exists():
            assert self.server.poll() is None, self.log("server")
            assert time.monotonic() < give_up, "the server doesn't start"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(0.05)
        return str(json.loads((self.run_dir / "server.json").read_text())["address"])


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_three_clients_and_a_server_finish_three_rounds(tmp_path, stack):
    run = Federation(tmp_path, stack)
    clients = [run.client(task) for task in TASKS]
    assert run.server.wait(120) == 0, run.log("server")
    assert [client.wait(30) for client in clients] == [0, 0, 0], run.log("sst2_client")

    results = json.loads((run.run_dir / "results.json").read_text())
    assert list(results) == list(TASKS)
    assert all(list(result["by_round"]) == ["0", "1", "2", "3"] for result in results.values())
    assert (run.run_dir / "metrics.png").stat().st_size > 10_000
    assert "builtin:toy" in (run.run_dir / "config.yaml").read_text()
    with safe_open(run.run_dir / "checkpoints" / "round-0003.safetensors", "pt") as checkpoint:
        assert {"encoder.pooler.dense.weight", "heads.stsb.bias"} <= set(checkpoint.keys())
    reports = run.reports()
    assert [report["round"] for report in reports] == [1, 2, 3, 4]
    assert [len(component["contributions"]) for component in reports[0]["components"]] == [3, 1, 1, 1]

    log = run.log("server")
    for fact in ("Round 3/3", "shared_parameters=", "component.averaged", "tensors=39 clients=3", "bytes_in="):
        assert fact in log
    assert "Traceback" not in log + "".join(run.log(f"{task}_client") for task in TASKS)


@pytest.mark.long
def test_a_client_killed_in_mid_round_does_not_keep_the_run_from_its_end(tmp_path, stack):
    run = Federation(tmp_path, stack)
    clients = {task: run.client(task) for task in TASKS}
    run.until(pb.PHASE_OPEN, 2)
    clients["qqp"].kill()
    assert run.server.wait(120) == 0, run.log("server")
    assert clients["sst2"].wait(30) == clients["stsb"].wait(30) == 0

    reports = run.reports()
    assert [report["round"] for report in reports] == [1, 2, 3, 4]
    assert reports[0]["missing_clients"] == []
    assert reports[2]["unchanged_tasks"] == ["qqp"]
    assert "1 more qqp client" in run.log("server") or reports[1]["missing_clients"] == ["qqp_client"]


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_server_told_to_stop_leaves_its_last_commit_on_disk_and_no_traceback(number, code, tmp_path, stack):
    run = Federation(tmp_path, stack, "training.num_rounds=50", "client.reconnect_s=1")
    clients = [run.client(task) for task in TASKS]
    run.until(pb.PHASE_OPEN, 2)
    run.server.send_signal(number)
    assert run.server.wait(30) == code
    checkpoints = sorted(path.name for path in (run.run_dir / "checkpoints").glob("*.safetensors"))
    last = run.reports()[-1]["round"]
    assert last >= 1
    assert f"round-{last:04}.safetensors" in checkpoints
    log = run.log("server")
    assert f"before the run was over; resume it with: fedmtl-server --resume {run.run_dir}" in log
    assert "Traceback" not in log
    for client in clients:
        assert client.wait(60) == 1  # the server stayed away
        assert "Traceback" not in run.log("sst2_client")
    assert "error: " in run.log("sst2_client")


@pytest.mark.long
def test_a_client_interrupted_leaves_in_order_and_another_can_take_its_place(tmp_path, stack):
    run = Federation(tmp_path, stack, "rounds.quorum_timeout_s=60")
    clients = {task: run.client(task) for task in TASKS}
    run.until(pb.PHASE_OPEN, 1)
    clients["sst2"].send_signal(signal.SIGINT)
    assert clients["sst2"].wait(30) == 130
    assert "Traceback" not in run.log("sst2_client")
    again = run.client("sst2")
    assert run.server.wait(120) == 0, run.log("server")
    assert again.wait(30) == 0


@pytest.mark.long
def test_a_server_kept_serving_still_gives_the_final_model(tmp_path, stack):
    run = Federation(tmp_path, stack, "training.num_rounds=1", keep_serving=True)
    clients = [run.client(task) for task in TASKS]
    assert [client.wait(120) for client in clients] == [0, 0, 0]
    assert run.server.poll() is None
    with grpc.insecure_channel(run.address) as channel:
        stub = pb_grpc.FederatedMtlServiceStub(channel)
        assert stub.GetStatus(pb.GetStatusRequest()).phase == pb.PHASE_FINISHED
        header = next(iter(stub.GetSlice(pb.GetSliceRequest(all_tasks=True)))).header
        assert [component.scope for component in header.components] == ["shared", *(f"task:{task}" for task in TASKS)]
    late = run.client("sst2")
    assert late.wait(60) == 0  # the run is over: nothing to do
    run.server.send_signal(signal.SIGTERM)
    assert run.server.wait(30) == 0


@pytest.mark.long
def test_deltas_and_parameters_train_to_the_same_results_within_rounding(tmp_path, stack):
    results = []
    for update in ("parameters", "delta"):
        (tmp_path / update).mkdir()
        run = Federation(tmp_path / update, stack, f"training.update={update}", "training.num_rounds=1")
        clients = [run.client(task) for task in TASKS]
        assert run.server.wait(120) == 0, run.log("server")
        assert [client.wait(30) for client in clients] == [0, 0, 0]
        with safe_open(run.run_dir / "checkpoints" / "round-0001.safetensors", "pt") as checkpoint:
            results.append(checkpoint.get_tensor("encoder.pooler.dense.weight"))
    assert (results[0] - results[1]).abs().max() < 1e-6


@pytest.mark.long
def test_a_run_of_two_stages_is_killed_between_them_and_a_second_run_starts_from_its_model(tmp_path, stack):
    """All tasks together for a round, then each for itself with a learning rate of its own; then another federation."""
    stages = (
        "sharing.schedule=[{after_round: 1, layers: {embeddings: task, 0-1: task, pooler: task}, num_rounds: 2,"
        " restart_schedule: true, learning_rate: 2e-3}]"
    )
    path = tmp_path / "first"
    path.mkdir()
    waits = ("rounds.quorum_timeout_s=60", "rounds.rejoin_grace_s=60")
    run = Federation(path, stack, stages, *waits, config=CONFIG.replace("num_rounds: 3, ", ""))
    clients = [run.client(task) for task in TASKS]
    run.until(pb.PHASE_OPEN, 2)
    run.server.kill()
    run.server.wait(30)
    (run.run_dir / "server.json").unlink()
    port = run.address.rpartition(":")[2]
    run.server = run.start("again", "fedmtl_server", "--port", port, "--resume", str(run.run_dir))
    assert run.server.wait(120) == 0, run.log("again")
    assert [client.wait(30) for client in clients] == [0, 0, 0], run.log("sst2_client")
    reports = run.reports()
    assert [report["round"] for report in reports] == [1, 2, 3, 4]
    assert [sorted(report["moved"]) for report in reports] == [["0", "1", "embeddings", "pooler"], [], [], []]
    assert set(reports[0]["moved_by"].values()) == {"sharing.schedule[0]"}
    assert [one["scope"] for one in reports[1]["components"]] == [f"task:{task}" for task in TASKS]
    for task in TASKS:  # of a task's own model, what is received is what its only client trained in the round before
        trained, received = (
            next(one[key]["loss"] for one in reports[number]["tasks"] if one["task"] == task)
            for number, key in ((1, "trained_metrics"), (2, "received_metrics"))
        )
        assert received == pytest.approx(trained, rel=1e-5)

    whole = "sharing.layers={embeddings: task, 0-1: task, pooler: task}"
    other = tmp_path / "second"
    other.mkdir()
    second = Federation(other, stack, whole, f"model.from_run={run.run_dir}@last", "training.num_rounds=1")
    clients = [second.client(task) for task in TASKS]
    assert second.server.wait(120) == 0, second.log("server")
    assert [client.wait(30) for client in clients] == [0, 0, 0]
    final = {one["task"]: one["received_metrics"]["loss"] for one in reports[-1]["tasks"]}
    first = {one["task"]: one["received_metrics"]["loss"] for one in second.reports()[0]["tasks"]}
    assert first == pytest.approx(final, rel=1e-5)
    assert "model.taken" in second.log("server")
    assert "encoder.averaged" not in second.log("server")
