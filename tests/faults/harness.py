"""Servers and clients as processes that can be killed, what they leave behind, and what it has to be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import torch
import yaml
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from safetensors.torch import load_file
from torch import Tensor

from fedmtl_core import config as configuration
from fedmtl_server.server import Server
from tests.faults.clients import num_examples, run_clients, trained

ROOT = Path(__file__).parents[2]
COHORT = {
    "sst2-0": "sst2",
    "sst2-1": "sst2",
    "qqp-0": "qqp",
    "qqp-1": "qqp",
    "stsb-0": "stsb",
    "stsb-1": "stsb",
}
"""Task by client id."""
NUM_ROUNDS = 10
"""Of training, before the evaluation of the final model."""

_ENCODER = {
    "model_type": "bert",
    "vocab_size": 8192,
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 256,
}
"""4.8 MB: three chunks."""


def write_config(folder: Path, sections: Mapping[str, object] | None = None) -> Path:
    """Write down a run that waits for every client, however long it takes: which model it comes to is certain.

    Args:
        folder: for the configuration and the encoder.
        sections: of the configuration, besides.
    """
    (folder / "encoder").mkdir(parents=True)
    (folder / "encoder" / "config.json").write_text(json.dumps(_ENCODER))
    tasks = Counter(COHORT.values())
    config = {
        "model": {"server_model": str(folder / "encoder"), "random_init": True},
        "training": {"num_rounds": NUM_ROUNDS},
        "rounds": {"deadline_s": 3600, "quorum_timeout_s": 3600, "rejoin_grace_s": 3600},
        "store": {"keep_checkpoints": NUM_ROUNDS},
        "tasks": {task: {"min_clients": number} for task, number in tasks.items()},
        **(sections or {}),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def wait_until(condition: Callable[[], bool], *, within_s: float, or_else: Callable[[], str] = lambda: "") -> None:
    """Wait for what no event tells of.

    Raises:
        TimeoutError: it takes too long; with what `or_else` says.
    """
    give_up = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(or_else())
        time.sleep(0.002)


class Process:
    """A Python process that can be killed and started again with the same command.

    Args:
        log: the file that what it says is appended to.
        arguments: after `python -m`.
    """

    def __init__(self, log: Path, *arguments: str):
        self._log = log
        self._command = [sys.executable, "-m", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL, and the end of it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def wait(self, timeout_s: float) -> int:
        """The exit code."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(self.log()) from None

    def log(self) -> str:
        """The end of what it has said."""
        return self._log.read_text(errors="replace")[-20_000:]


class ServerProcess(Process):
    """A server that always listens on the same port and keeps its run in the same folder."""

    def __init__(self, folder: Path, config: Path):
        self.run_dir = folder / "run"
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        options = {"config": config, "run-dir": self.run_dir, "port": port}
        super().__init__(
            folder / "server.log", "fedmtl_server", *(f"--{key}={value}" for key, value in options.items())
        )

    @property
    def is_serving(self) -> bool:
        """Whether it has said where it listens, since it was started last."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.run_dir / "server.json").read_text())["pid"] == self.pid
        return False

    def await_serving(self, within_s: float = 60.0) -> None:
        wait_until(lambda: self.is_serving or self.has_ended, within_s=within_s, or_else=self.log)
        assert not self.has_ended, self.log()


class ClientProcess(Process):
    """Deterministic clients, in one process."""

    def __init__(
        self, folder: Path, name: str, address: str, cohort: Mapping[str, str], *, seed: int = 0, pace: str = ""
    ):
        self.ledger = folder / f"{name}.ledger"
        members = ",".join(f"{client_id}:{task}" for client_id, task in cohort.items())
        arguments = ["tests.faults.clients", address, str(self.ledger), str(seed), members, *([pace] if pace else [])]
        super().__init__(folder / f"{name}.log", *arguments)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# What a run leaves behind.


@dataclass(frozen=True)
class Acknowledged:
    """One line of a ledger."""

    client_id: str
    update_id: str
    round: int
    outcome: str


def read_ledgers(paths: Iterable[Path]) -> list[Acknowledged]:
    """The lines of ledgers; a last one that was cut short says nothing."""
    lines = [line for path in paths for line in path.read_text().splitlines(keepends=True)]
    return [Acknowledged(**json.loads(line)) for line in lines if line.endswith("\n")]


@dataclass(frozen=True)
class Accounts:
    """A run's acknowledged updates, held against its history."""

    acknowledged: int
    lost: Sequence[Acknowledged]
    """Acknowledged, but counted in no committed round, or in another than the client was told."""
    double_counted: Sequence[str]
    """Update ids that are counted more than once, and `CLIENT in round N` where a client is."""
    committed: Mapping[int, int]
    """By round, how often it was committed."""
    unfinished: Sequence[tuple[int, str]]
    """Rounds that ended otherwise, with their outcome."""

    def require_exact(self, num_rounds: int) -> None:
        """Check that nothing was lost, nothing counted twice, and every round committed once."""
        assert not self.lost
        assert not self.double_counted
        assert self.committed == dict.fromkeys(range(num_rounds + 2), 1)  # 0: the initial model
        assert not self.unfinished


def accounts(run_dir: Path, ledgers: Iterable[Path]) -> Accounts:
    """Hold what clients were told against what a run's history says."""
    with contextlib.closing(sqlite3.connect(run_dir / "history.sqlite")) as database:
        rounds = database.execute("SELECT run_id, round, outcome FROM rounds").fetchall()
        updates = database.execute("SELECT run_id, round, client_id, update_id, outcome FROM updates").fetchall()
    committed = Counter((run_id, round_) for run_id, round_, outcome in rounds if outcome == "committed")
    counted = defaultdict(list)
    members: Counter[tuple[str, int]] = Counter()
    for run_id, round_, client_id, update_id, outcome in updates:
        if outcome == "counted" and (run_id, round_) in committed:
            counted[update_id].append((client_id, round_))
            members[client_id, round_] += 1
    told = read_ledgers(ledgers)
    return Accounts(
        acknowledged=len(told),
        lost=[one for one in told if (one.client_id, one.round) not in counted[one.update_id]],
        double_counted=[
            *(update_id for update_id, places in counted.items() if len(places) > 1),
            *(f"{client_id} in round {round_}" for (client_id, round_), times in members.items() if times > 1),
        ],
        committed=dict(sorted(Counter(round_ for _, round_ in committed.elements()).items())),
        unfinished=[(round_, outcome) for _, round_, outcome in rounds if outcome != "committed"],
    )


def checkpoint(run_dir: Path, round_: int) -> dict[str, Tensor]:
    """The model after a round, by name."""
    return load_file(run_dir / "checkpoints" / f"round-{round_:04}.safetensors")


def require_same_bits(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that two models are the same, to the last bit."""
    assert got.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not _same_bits(got[name], tensor)]
    assert not different, f"{len(different)} of {len(expected)} tensors differ: {', '.join(different[:3])}, …"


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


# What a run has to come to.


@dataclass(frozen=True)
class Undisturbed:
    """A run to which nothing happened."""

    initial: Mapping[str, Tensor]
    run_dir: Path

    def after(self, round_: int) -> dict[str, Tensor]:
        """The model after a round, by name."""
        return checkpoint(self.run_dir, round_)


@asynccontextmanager
async def served(
    folder: Path, num_rounds: int = NUM_ROUNDS, sections: Mapping[str, object] | None = None
) -> AsyncIterator[Server]:
    """The same run as the server processes', or its first rounds, in this process; it is over in the end."""
    config = configuration.load(write_config(folder, sections), ["server.port=0", f"training.num_rounds={num_rounds}"])
    server = Server(config, folder / "run")
    await server.start()
    run = asyncio.create_task(server.run())
    try:
        yield server
        async with asyncio.timeout(30):
            await run
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await server.stop("the test is over")


async def run_undisturbed(folder: Path, sections: Mapping[str, object] | None = None) -> Undisturbed:
    """One server, its clients, and nothing in between."""
    async with served(folder, sections=sections) as server:
        initial = await asyncio.to_thread(download, server.address)
        async with asyncio.timeout(60):
            await asyncio.to_thread(run_clients, server.address, folder / "ledger", COHORT)
    return Undisturbed(initial, folder / "run")


def download(address: str) -> dict[str, Tensor]:
    """The whole model, all float32, by the contract alone."""
    with grpc.insecure_channel(address) as channel:
        stream = pb_grpc.FederatedMtlServiceStub(channel).GetSlice(pb.GetSliceRequest(all_tasks=True), timeout=60)
        header = next(stream).header
        parts = {component.scope: bytearray() for component in header.components}
        for message in stream:
            parts[message.chunk.scope] += message.chunk.data
    tensors = {}
    for component in header.components:
        assert len(parts[component.scope]) == component.num_bytes
        for spec in component.tensors:
            assert spec.dtype == pb.ELEMENT_TYPE_FLOAT32
            flat = torch.frombuffer(parts[component.scope], dtype=torch.float32)[spec.offset // 4 :]
            tensors[spec.name] = flat[: torch.Size(spec.shape).numel()].reshape(list(spec.shape)).clone()
    return tensors


def undisturbed_model(initial: Mapping[str, Tensor], num_rounds: int) -> dict[str, Tensor]:
    """What rounds of the deterministic clients come to, by the definition of the average and in float64.

    A head is averaged over its own task's clients, everything else over all of them, weighted by `num_examples`.

    Args:
        initial: float32 by name.
        num_rounds: of training.
    """
    model = dict(initial)
    for round_ in range(1, num_rounds + 1):
        model = {name: _mean(name, tensor, round_).float() for name, tensor in model.items()}
    return model


def _mean(name: str, tensor: Tensor, round_: int) -> Tensor:
    senders = [client_id for client_id, task in COHORT.items() if not name.startswith("heads.") or _is_head(name, task)]
    weighted = [num_examples(client_id) * trained(client_id, round_, name, tensor).double() for client_id in senders]
    return sum(weighted, torch.zeros_like(tensor, dtype=torch.float64)) / sum(map(num_examples, senders))


def _is_head(name: str, task: str) -> bool:
    return name.startswith(f"heads.{task}.")
