"""Runs one scenario as processes on this machine: a server, its clients, and the gates that control their training."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from tools.same_bits import gate
from tools.same_bits.processes import Child, FederationError, Nursery
from tools.same_bits.scenario import Scenario, Turn

LIMIT_S = 600.0
"""The maximum duration of a federation in seconds. It is many times the usual one, because the machine may be busy."""
_GATE = "same_bits_gate"
_JOINED, _SENT = "run.joined", "update.sent"
"""The events that clients log when they have joined, and when an update counts."""


class Federation:
    """One federation.

    Args:
        scenario: the scenario to run.
        nursery: starts the processes of the revision.
        folder: the folder for all output; it is created.
    """

    def __init__(self, scenario: Scenario, nursery: Nursery, folder: Path):
        self.run_dir = folder / "run"
        self._scenario = scenario
        self._nursery = nursery
        self._folder = folder
        self._gates = folder / "gates"
        self._config = folder / "config.yaml"
        self._servers: list[Child] = []
        self._clients: dict[str, Child] = {}
        self._give_up = time.monotonic() + LIMIT_S

    def run(self) -> None:
        """Run the federation to its end, and stop all its processes.

        Raises:
            FederationError: a process failed or took too long; the message has the last lines of the logs.
        """
        self._gates.mkdir(parents=True)
        self._config.write_text(yaml.safe_dump(self._scenario.configuration()), encoding="utf-8")
        shutil.copy(gate.__file__, self._folder / f"{_GATE}.py")
        for turn in self._scenario.steps:
            if turn is not None:
                self._gate(turn, "shut").touch()
        try:
            self._serve("--config", str(self._config), "--port", "0")
            for name in self._scenario.clients:
                self._join(name)
            for turn in self._scenario.steps:
                if turn is None:
                    self._kill()
                else:
                    self._give(turn)
            self._until(self._is_over, "all had ended", may_be_over=True)
            self._require_unbroken()
            if unbroken := [name for name in self._scenario.failing if not self._clients[name].exit_code]:
                raise FederationError(f"{', '.join(unbroken)}: expected to end with an error, ended without one")
        finally:
            for child in self._children:
                child.kill()

    @property
    def _children(self) -> list[Child]:
        return [*self._servers, *self._clients.values()]

    def _serve(self, *options: str) -> None:
        """Start a server, and wait until it listens."""
        arguments = (*options, "--run-dir", str(self.run_dir))
        self._servers.append(self._nursery.start("server", "fedmtl_server", arguments, self._folder, {}))
        self._until(lambda: self._address() is not None, "the server listened")

    def _address(self) -> str | None:
        """Return the address of the last server; None until it has written its address.

        The file may still have the address of an earlier server, so the process id is compared.
        """
        try:
            announced = json.loads((self.run_dir / "server.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return str(announced["address"]) if announced["pid"] == self._servers[-1].pid else None

    def _join(self, name: str) -> None:
        """Start a client, and wait until it has joined."""
        own = dict(self._scenario.own.get(name, {}))
        if self._scenario.script:
            own["training.trainer"] = f"{_GATE}:Gated"
        overrides = [part for key, value in own.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        arguments = ["--config", str(self._config), "--client-id", name, "--server", self._address() or "", *overrides]
        environment = {"SAME_BITS_GATES": str(self._gates), "SAME_BITS_CLIENT": name}
        self._clients[name] = self._nursery.start(name, "fedmtl_client", arguments, self._folder, environment)
        self._until(lambda: self._clients[name].count(_JOINED) > 0, f"client {name} had joined")

    def _kill(self) -> None:
        """Kill the server and start another one in its place."""
        port = (self._address() or "").rpartition(":")[2]
        self._servers.pop().kill()
        self._serve("--config", str(self._config), "--port", port)

    def _give(self, turn: Turn) -> None:
        """Wait until a client is about to train. If the turn trains, open its gate and wait until its update counts."""
        self._until(self._gate(turn, "reached").exists, f"{turn} was about to train")
        if turn.trains:
            client = self._clients[turn.client]
            before = client.count(_SENT)
            self._gate(turn, "open").touch()
            self._until(lambda: client.count(_SENT) > before, f"the update of {turn} counted")

    def _gate(self, turn: Turn, state: str) -> Path:
        return self._gates / f"{turn.client}-{turn.round}.{state}"

    def _is_over(self) -> bool:
        return all(child.exit_code is not None for child in self._children)

    def _require_unbroken(self) -> None:
        """Check that no process has failed unexpectedly.

        Raises:
            FederationError: a process has failed; the message has the last lines of its log.
        """
        failing = self._scenario.failing
        if failed := [child for child in self._children if child.exit_code and child.name not in failing]:
            raise FederationError("\n".join(child.tail() for child in failed))

    def _until(self, condition: Callable[[], bool], what: str, *, may_be_over: bool = False) -> None:
        """Wait for a condition.

        Raises:
            FederationError: a process failed unexpectedly, the run was over, or the wait took too long.
        """
        while not condition():
            self._require_unbroken()
            if not may_be_over and self._servers[-1].exit_code is not None and not condition():
                raise FederationError(f"the run was over before {what}\n{self._servers[-1].tail()}")
            if time.monotonic() > self._give_up:
                tails = "\n".join(child.tail() for child in self._children)
                raise FederationError(f"timed out after {LIMIT_S:.0f} s, before {what}\n{tails}")
            time.sleep(0.05)
