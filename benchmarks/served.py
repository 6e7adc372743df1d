"""FedMTL's server as a user starts it, and its benchmark clients."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml
from fedmtl.v1 import federation_pb2 as pb
from transformers import BertConfig

from benchmarks.processes import START_S, Worker, together
from fedmtl_client.api import FederationApi
from fedmtl_core.errors import UnavailableError

START_TIMEOUT_S = 120.0

SMALL = BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
"""BERT-tiny, with 17.5 MB of parameters."""
LARGE = BertConfig()
"""BERT-base, with 438 MB of parameters."""


class Served:
    """One server process, its clients, and an observer of its rounds.

    Args:
        folder: folder for temporary files.
        model: architecture of the encoder.
        tasks: the task of each client.
        settings: configuration keys that differ from the defaults, by section. Keys of `model` add to those of the
            architecture, or replace them.
        per_process: number of clients in a process. If it is not 1, clients have no model, and upload what they
            downloaded.
    """

    def __init__(
        self,
        folder: Path,
        model: BertConfig,
        tasks: Sequence[str],
        settings: dict[str, object] | None = None,
        per_process: int = 1,
    ):
        folder.mkdir(parents=True)
        model.save_pretrained(folder / "model")
        settings = dict(settings or {})
        of_model = settings.pop("model", {})
        assert isinstance(of_model, dict)
        config = {
            "model": {"server_model": str(folder / "model"), "random_init": True, **of_model},
            "training": {"num_rounds": 1_000_000},
            "rounds": {"deadline_s": 600, "rejoin_grace_s": 60},
            # These figures measure transfers. The costs of syncing every update to disk, and of measuring how far it
            # moves the model, are separate figures.
            "store": {"durability": "memory"},
            "robustness": {"norms": {"action": "none"}},
            "tasks": {task: {"min_clients": tasks.count(task)} for task in dict.fromkeys(tasks)},
            **settings,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self._log = (folder / "server.log").open("wb")
        options = {"config": folder / "config.yaml", "run-dir": folder / "run", "port": 0, "log-format": "json"}
        command = [f"--{name}={value}" for name, value in options.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedmtl_server", *command], stdout=self._log, stderr=self._log
        )
        self.clients: list[Worker] = []
        try:
            self._address = self._await_address(folder / "run" / "server.json")
            self._api = FederationApi(self._address, client_id="", task="")
            self._open = threading.Condition()
            self._opened: dict[int, float] = {}
            self._reports: dict[int, pb.RoundReport] = {}
            threading.Thread(target=self._watch, daemon=True).start()
            self._start_clients(folder, tasks, per_process)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    @property
    def address(self) -> str:
        return self._address

    @property
    def payload_bytes(self) -> int:
        """Bytes of one client's slice."""
        status = self._api.get_status().model
        return 4 * (status.shared_parameters + max(status.head_parameters.values()))

    def time(self, command: str) -> float:
        """Return the seconds that all clients together take for a command."""
        return together(self.clients, command)

    def time_round(self) -> float:
        """Return the seconds from the clients' start in an open round until the next round is open."""
        round_ = self.await_round()
        began = time.monotonic() + START_S
        together(self.clients, "round")
        with self._open:
            self._open.wait_for(lambda: round_ + 1 in self._opened)
            return self._opened[round_ + 1] - began

    def await_report(self, round_: int) -> pb.RoundReport:
        with self._open:
            self._open.wait_for(lambda: round_ in self._reports)
            return self._reports.pop(round_)

    def await_round(self) -> int:
        """Wait until all clients know of an open round, and return its number."""
        together(self.clients, "await_round")
        with self._open:
            return max(self._opened)

    def stop(self) -> None:
        if hasattr(self, "_api"):
            self._api.close()
        for client in self.clients:
            client.stop()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _start_clients(self, folder: Path, tasks: Sequence[str], per_process: int) -> None:
        model = str(folder / "model") if per_process == 1 else "-"
        for first in range(0, len(tasks), per_process):
            names = ",".join(tasks[first : first + per_process])
            log = folder / f"client-{first}.log"
            self.clients.append(Worker("benchmarks.client", self._address, names, str(first), model, log=log))
        for client in self.clients:
            client.await_hello()

    def _await_address(self, announcement: Path) -> str:
        give_up = time.monotonic() + START_TIMEOUT_S
        while not announcement.exists():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"the server didn't start; see {self._log.name}")
            time.sleep(0.05)
        return str(json.loads(announcement.read_text())["address"])

    def _watch(self) -> None:
        with suppress(UnavailableError):  # it was stopped
            for event in self._api.observe():
                with self._open:
                    if event.kind == pb.ROUND_EVENT_KIND_OPENED:
                        self._opened[event.round] = time.monotonic()
                    elif event.kind == pb.ROUND_EVENT_KIND_COMMITTED:
                        self._reports[event.round] = event.report
                    self._open.notify_all()
