"""The grid of an experiment: its cells, their federations and configurations. Nothing here runs or reads rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from fedmtl_core.errors import ConfigError
from fedmtl_experiment import plugin_code
from fedmtl_experiment.config import Experiment, RowCounts, flattened, merged

_TIMEOUTS: Mapping[str, object] = {
    "rounds": {
        "deadline_s": 7200.0,
        "quorum_timeout_s": 7200.0,
        "rejoin_grace_s": 600.0,
        "on_missing_quorum": "fail",
    },
    "limits": {"upload_s": 7200.0},
}
"""Timeouts long enough that a slow machine never excludes a client."""


@dataclass(frozen=True, order=True)
class Cell:
    """One measurement: a setting, an encoder, a method and a seed."""

    setting: str
    encoder: str
    method: str
    seed: int

    @property
    def id(self) -> str:
        """The cell as `SETTING/ENCODER/METHOD/SEED`."""
        return f"{self.setting}/{self.encoder}/{self.method}/{self.seed}"


@dataclass(frozen=True)
class Client:
    """One client. Its id, from which its seeds derive, is the same in every method."""

    client_id: str
    tasks: tuple[str, ...]
    """The client's own task first; further tasks only for a method with `several: true`."""
    shard: str
    """The client's part of its tasks' rows, as `PART/PARTS`."""

    @property
    def task(self) -> str:
        """The client's own task."""
        return self.tasks[0]


@dataclass(frozen=True)
class Federation:
    """A server and its clients: one run."""

    name: str
    clients: tuple[Client, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of all clients, each once."""
        return tuple(dict.fromkeys(task for client in self.clients for task in client.tasks))


def plan(experiment: Experiment, only: Sequence[str] = ()) -> list[Cell]:
    """Return the cells ordered by seed, so that early results cover every method.

    Args:
        experiment: the grid.
        only: patterns of cell ids such as `mission/*/mtl/1`; all cells if empty.

    Raises:
        ConfigError: a pattern matches no cell.
    """
    cells = [
        Cell(place.setting, place.encoder, method, place.seed)
        for place in experiment.places()
        for method in (experiment.settings[place.setting].methods or experiment.methods)
        if experiment.methods[method].is_for(place)
    ]
    for pattern in only:
        if not any(fnmatchcase(cell.id, pattern) for cell in cells):
            raise ConfigError(
                f"--only: no cell matches {pattern!r}; a cell is SETTING/ENCODER/METHOD/SEED, such as {cells[0].id}"
            )
    return [cell for cell in cells if not only or any(fnmatchcase(cell.id, pattern) for pattern in only)]


def multi_task_federation(experiment: Experiment, cell: Cell) -> Federation:
    """Return the federation of all of a cell's tasks and clients, with auxiliary ones."""
    method, setting = experiment.methods[cell.method], experiment.settings[cell.setting]
    clients = _clients(setting.tasks)
    if method.several:
        clients = _with_all_tasks(clients, tuple(setting.tasks))
    return Federation("all", clients + _clients(method.auxiliary))


def _with_all_tasks(clients: Sequence[Client], tasks: Sequence[str]) -> tuple[Client, ...]:
    """Return the clients with a part of every task's rows each.

    Task rotation and parts both follow the order of the client ids, so that clients with the same task in a round
    train on different rows.
    """
    num_parts = len(clients) // len(tasks)
    places = {client_id: place for place, client_id in enumerate(sorted(client.client_id for client in clients))}
    return tuple(
        replace(
            one,
            tasks=tuple(dict.fromkeys([one.task, *tasks])),
            shard=f"{places[one.client_id] // len(tasks) % num_parts + 1}/{num_parts}",
        )
        for one in clients
    )


def _clients(tasks: Mapping[str, RowCounts]) -> tuple[Client, ...]:
    return tuple(
        Client(f"{task}_{number}", (task,), f"{number}/{rows.clients}")
        for task, rows in tasks.items()
        for number in range(1, rows.clients + 1)
    )


def federations(experiment: Experiment, cell: Cell) -> list[Federation]:
    """Return the federations that a cell runs; none for centralized training."""
    clients = _clients(experiment.settings[cell.setting].tasks)
    match experiment.methods[cell.method].base:
        case "local":
            return [Federation(client.client_id, (client,)) for client in clients]
        case "standard":
            tasks = dict.fromkeys(client.task for client in clients)
            return [Federation(task, tuple(one for one in clients if one.task == task)) for task in tasks]
        case "mtl":
            return [multi_task_federation(experiment, cell)]
        case "central":
            return []


def settings_of(experiment: Experiment, cell: Cell) -> dict[str, object]:
    """Return a cell's FedMTL settings as sections, without tasks and clients; the method's settings take precedence."""
    return merged(
        _TIMEOUTS,
        experiment.common,
        experiment.encoders[cell.encoder],
        experiment.settings[cell.setting].set,
        experiment.methods[cell.method].set,
        {"training.seed": cell.seed},
    )


def run_values(
    experiment: Experiment, cell: Cell, federation: Federation, data: Path, run_dir: Path
) -> dict[str, object]:
    """Return the complete FedMTL configuration of a run.

    Args:
        experiment: the experiment.
        cell: the cell.
        federation: the federation to run.
        data: the folder of the prepared rows, with `TASK-train.jsonl` and `TASK-validation.jsonl`.
        run_dir: the folder of the run.
    """
    setting, method = experiment.settings[cell.setting], experiment.methods[cell.method]
    partition, rows = setting.partition, {**setting.tasks, **method.auxiliary}
    skew = {"partition": {"dirichlet": partition.dirichlet, "seed": cell.seed % 2**32}} if partition else {}
    tasks = {
        task: experiment.tasks[task].model_dump(mode="json", exclude_none=True, exclude={"data", "min_clients"})
        | {"data": {split: str(data / f"{task}-{split}.jsonl") for split in ("train", "validation")}}
        | _quorum(experiment, federation, task)
        | rows[task].model_dump(include={"local_epochs"}, exclude_none=True)
        for task in federation.tasks
    }
    clients = [
        {"client_id": client.client_id, "shard": client.shard}
        | ({} if experiment.tasks[client.task].auxiliary else skew)
        | ({"task": client.task} if len(client.tasks) == 1 else {"tasks": list(client.tasks)})
        for client in federation.clients
    ]
    server = {"server": {"runs_dir": str(run_dir.parent), "port": 0}}
    return merged(settings_of(experiment, cell), server) | {"tasks": tasks, "clients": clients}


def _quorum(experiment: Experiment, federation: Federation, task: str) -> dict[str, int]:
    """Return `min_clients` for all of a task's clients; nothing for an auxiliary task, which has no quorum."""
    if experiment.tasks[task].auxiliary:
        return {}
    return {"min_clients": sum(client.task == task for client in federation.clients)}


def inputs(experiment: Experiment, cell: Cell) -> dict[str, object]:
    """Return everything that a cell's result depends on, by dotted key. Equal inputs make a stored result valid.

    `code.MODULE` is the digest of a plug-in that the settings name; see `plugin_code.digests`.
    """
    setting, method = experiment.settings[cell.setting], experiment.methods[cell.method]
    tasks = {
        task: experiment.tasks[task].model_dump(mode="json", exclude_defaults=True)
        | rows.model_dump(mode="json", exclude_none=True)
        for task, rows in {**setting.tasks, **method.auxiliary}.items()
    }
    values = flattened(
        {
            "base": method.base,
            **({"several": True} if method.several else {}),
            **({"auxiliary_rows": "without the evaluated texts"} if method.auxiliary else {}),
            "set": settings_of(experiment, cell),
            "tasks": tasks,
            "validation_rows": setting.validation_rows,
            "report_rows": setting.report_rows,
            "dirichlet": setting.partition.dirichlet if setting.partition else None,
            **({"held_back_rows": setting.held_back_rows} if setting.held_back_rows else {}),
        }
    )
    return values | {f"code.{module}": digest for module, digest in plugin_code.digests(values).items()}


def differences(stored: Mapping[str, object], planned: Mapping[str, object]) -> list[str]:
    """Describe the differences between stored and planned inputs, one string for each key."""
    return [
        f"{key}: the file has {stored.get(key)!r}, the configuration {planned.get(key)!r}"
        for key in dict.fromkeys([*stored, *planned])
        if stored.get(key) != planned.get(key)
    ]


def shard_sizes(num_rows: int, clients: int) -> list[int]:
    """Return the number of rows of each of a task's clients; `partition` doesn't change it."""
    return [len(range(number, num_rows, clients)) for number in range(clients)]


def steps_per_round(num_rows: int, clients: int, batch_size: int, local_epochs: int) -> int:
    """Return the optimizer steps that all clients of a task take together in a round."""
    return local_epochs * sum(-(-size // batch_size) for size in shard_sizes(num_rows, clients))
