"""Defines a scenario: a federation's configuration, its clients, and the order of their updates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]
"""Configuration values by dotted key."""

BASE: Settings = {
    "model.server_model": "builtin:toy",
    "training.num_rounds": 2,
    "training.local_epochs": 1,
    "training.learning_rate": 2e-3,
    "training.per_device_train_batch_size": 16,
    "training.max_length": 32,
    "training.device": "cpu",
    "rounds.quorum_timeout_s": 3600,
    "rounds.rejoin_grace_s": 3600,
    "server.port": 0,
    "store.keep_checkpoints": 1000,
    "client.num_threads": 1,
    "client.state_dir": "state",
}
"""The settings of all scenarios."""
TASK: Settings = {"train_samples": 64, "val_samples": 32}
"""The settings of all tasks."""


@dataclass(frozen=True)
class Turn:
    """A step of a script for one client."""

    client: str
    round: int
    trains: bool
    """Whether the client trains in this step; otherwise the script only waits until it is about to train."""

    @classmethod
    def of(cls, step: str) -> Turn:
        """Parse a step of a script: `a1` or `a1?`."""
        found = re.fullmatch(r"([a-z]+)([0-9]+)(\??)", step)
        if not found:
            raise ValueError(f"expected a step such as a1, a1? or kill, got {step!r}")
        return cls(found[1], int(found[2]), trains=not found[3])

    def __str__(self) -> str:
        return f"client {self.client} in round {self.round}"


@dataclass(frozen=True)
class Scenario:
    """One federation."""

    name: str
    settings: Settings
    """The settings in addition to `BASE`, or different from it."""
    clients: Mapping[str, str | tuple[str, ...]]
    """The task or tasks of each client by name. Clients join in this order, so that the last one opens the first round
    where quorums are smaller than the tasks' clients."""
    partition: Mapping[str, Any] | None = None
    """The partition of a task's rows among its clients."""
    own: Mapping[str, Settings] = field(default_factory=dict)
    """The settings that differ for single clients, by client."""
    script: str = ""
    """The order of updates. `a1` lets client a train for round 1, and waits until its update counts. `a1?` waits until
    client a is about to train for round 1. `kill` kills the server, and starts another one that resumes the run. In
    rounds without a step, a client trains at once."""
    failing: frozenset[str] = frozenset()
    """The clients that must end with an error."""
    same_as: str = ""
    """The scenario that must have the same checkpoints."""
    needs: tuple[str, ...] = ()
    """The keys that older revisions may not have, as docs/reference/configuration.md writes them."""

    @property
    def tasks(self) -> dict[str, list[str]]:
        """The clients of each task."""
        of_client = {client: (names,) if isinstance(names, str) else names for client, names in self.clients.items()}
        tasks = dict.fromkeys(task for names in of_client.values() for task in names)
        return {task: [client for client, names in of_client.items() if task in names] for task in tasks}

    @property
    def steps(self) -> list[Turn | None]:
        """The steps of the script; None stands for `kill`."""
        return [None if step == "kill" else Turn.of(step) for step in self.script.split()]

    def configuration(self) -> dict[str, Any]:
        """Return the content of the configuration file."""
        settings: dict[str, Any] = {}
        for task, clients in self.tasks.items():
            own = {**TASK, "data.builtin": task, "min_clients": len(clients)}
            settings |= {f"tasks.{task}.{key}": value for key, value in own.items()}
        whole = nested({**BASE, **settings, **self.settings})
        for task in whole["tasks"].values():
            if "auxiliary" in task:
                del task["min_clients"]  # no round needs its clients
        return whole | {"clients": [self._client(client, names) for client, names in self.clients.items()]}

    def _client(self, client: str, names: str | tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(names, str):
            return {"client_id": client, "tasks": list(names)}
        mates = [mate for mate, others in self.clients.items() if others == names]
        values = {"client_id": client, "task": names, "shard": f"{mates.index(client) + 1}/{len(mates)}"}
        return values | ({"partition": dict(self.partition)} if self.partition else {})


def nested(settings: Settings) -> dict[str, Any]:
    """Return settings by dotted key as nested sections."""
    sections: dict[str, Any] = {}
    for key, value in settings.items():
        *path, name = key.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[name] = value
    return sections
