"""What a scenario is: a federation's configuration, its clients, and in which order their updates come."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]
"""Values by dotted key of the configuration."""

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
"""What all scenarios have in common."""
TASK: Settings = {"train_samples": 64, "val_samples": 32}
"""What the tasks do."""


@dataclass(frozen=True)
class Turn:
    """A client's place in a script."""

    client: str
    round: int
    trains: bool
    """Whether it trains then; else it is only waited for."""

    @classmethod
    def of(cls, step: str) -> Turn:
        """As a script has it: `a1` or `a1?`."""
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
    """What is different from `BASE`."""
    clients: Mapping[str, str | tuple[str, ...]]
    """By name, each one's task or tasks. They come in this order, so that the last one opens the first round where
    quorums are smaller than the tasks' clients."""
    partition: Mapping[str, Any] | None = None
    """How the rows of a task's clients differ."""
    own: Mapping[str, Settings] = field(default_factory=dict)
    """By client, what is different for it alone."""
    script: str = ""
    """In which order updates come: `a1` has client a train for round 1, and waits until its update counts; `a1?` waits
    until it is about to train; `kill` kills the server and has another one take up the run. In rounds that aren't named
    here a client trains at once."""
    failing: frozenset[str] = frozenset()
    """The clients that end with an error, as they should."""
    same_as: str = ""
    """The scenario of the same checkpoints."""
    needs: tuple[str, ...] = ()
    """Keys that older revisions don't have, as docs/reference/configuration.md writes them."""

    @property
    def tasks(self) -> dict[str, list[str]]:
        """By task, its clients."""
        of_client = {client: (names,) if isinstance(names, str) else names for client, names in self.clients.items()}
        tasks = dict.fromkeys(task for names in of_client.values() for task in names)
        return {task: [client for client, names in of_client.items() if task in names] for task in tasks}

    @property
    def steps(self) -> list[Turn | None]:
        """Of the script; None kills the server."""
        return [None if step == "kill" else Turn.of(step) for step in self.script.split()]

    def configuration(self) -> dict[str, Any]:
        """What a configuration file has."""
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
    """The sections that values by dotted key are in."""
    sections: dict[str, Any] = {}
    for key, value in settings.items():
        *path, name = key.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[name] = value
    return sections
