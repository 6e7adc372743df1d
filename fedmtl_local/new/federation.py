"""A new federation: its tasks, its sites, and the files that describe both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmtl_client.client_file import NewTask, TaskFiles, client_file, client_lines, flow, task_lines
from fedmtl_client.reading.remote import is_url
from fedmtl_client.row_copies import split_copies
from fedmtl_core.addresses import host_of, is_loopback
from fedmtl_core.errors import ConfigError
from fedmtl_local.new.examined import ExaminedTask, Source
from fedmtl_local.new.quorums import min_clients

FEDERATION_FILE = "federation.yaml"

_TLS_COMMENTS = (
    "# security:",
    "#   tls:",
    "#     certificate: certs/server.pem  # it turns TLS on",
    "#     key: certs/server.key",
    "#     client_ca: certs/ca.pem  # the CA of the clients' certificates",
)


@dataclass(frozen=True)
class NewFederation:
    """What the files say."""

    tasks: Sequence[ExaminedTask]
    encoder: str
    learning_rate: float
    max_length: int
    num_rounds: int
    server: str
    """`HOST:PORT` that clients connect to."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site, in the order of the tasks."""
        return tuple(dict.fromkeys(site for task in self.tasks for one in task.sources for site in one.entry.sites))

    def tasks_of(self, site: str) -> tuple[str, ...]:
        """The tasks that a site has rows of."""
        return tuple(task.task.name for task in self.tasks for one in task.sources if site in one.entry.sites)

    @property
    def sites_of_several(self) -> tuple[str, ...]:
        """The sites with several tasks."""
        return tuple(site for site in self.sites if len(self.tasks_of(site)) > 1)

    def shard_of(self, site: str) -> str:
        """The part of its files that a site uses, `K/N`; empty for all rows.

        Raises:
            ConfigError: the site has two entries of one task, or would use different parts of two tasks.
        """
        if len(set(names := self.tasks_of(site))) < len(names):
            raise ConfigError(f"--task: the site {site!r} has two entries of one task; give them two sites")
        shards = {
            task.task.name: f"{one.entry.sites.index(site) + 1}/{len(one.entry.sites)}"
            for task in self.tasks
            for one in task.sources
            if site in one.entry.sites
        }
        if len(set(shards.values())) > 1:
            parts = ", ".join(f"{shard} of {task}" for task, shard in shards.items())
            raise ConfigError(f"--task: the site {site!r} would use {parts}; a site uses one part of all its files")
        shard = next(iter(shards.values()))
        return "" if shard == "1/1" else shard

    @property
    def has_split_rows(self) -> bool:
        """Whether evaluation rows are split off a file."""
        return any(one.validation is None for task in self.tasks for one in task.sources)


def files_of(new: NewFederation, folder: Path) -> Mapping[str, str]:
    """The configuration files and the files of split rows, by their paths within the folder.

    Args:
        new: the federation.
        folder: where the files will be; the paths in them are absolute.

    Raises:
        ConfigError: a site has two entries of one task, or uses different parts of two tasks.
        DataError: a file has too few rows to split evaluation rows off.
    """
    files = {FEDERATION_FILE: _federation_file(new, folder)}
    for site in new.sites:
        tasks = [
            (one.task, _files(one, source, folder))
            for one in new.tasks
            for source in one.sources
            if site in source.entry.sites
        ]
        files[client_path(site)] = client_file(site, new.server, tasks, shard=new.shard_of(site))
    for one in new.tasks:
        for source in one.sources:
            if source.validation is None:
                files.update(_split(one.task, source))
    return files


def client_path(site: str) -> str:
    """The path of a site's configuration file within the folder."""
    return f"clients/{site}.yaml"


def _federation_file(new: NewFederation, folder: Path) -> str:
    quorums = min_clients({site: new.tasks_of(site) for site in new.sites})
    lines = [
        "# Configuration of the server, and of fedmtl-local, which starts server and clients on one machine.",
        "# README.md has the commands. `clients` lists the clients with their files, which name their rows.",
        "model:",
        f"  server_model: {flow(new.encoder)}",
        "  pooling: mean",
        "training:",
        f"  num_rounds: {new.num_rounds}",
        "  local_epochs: 1",
        f"  learning_rate: {flow(new.learning_rate)}",
        f"  max_length: {new.max_length}  # tokens; longer texts are cut",
        "sharing: auto  # each task takes other tasks' updates where its clients' evaluations improve",
        "server:",
        f"  port: {new.server.rpartition(':')[2]}",
        *([] if is_loopback(host_of(new.server)) else _TLS_COMMENTS),
        "tasks:",
        *(line for one in new.tasks for line in [*task_lines(one.task), *_quorum(quorums[one.task.name])]),
        "clients:",
    ]
    for site in new.sites:
        lines += client_lines(site, new.tasks_of(site))
        lines.append(f"    config: {flow(str(folder / client_path(site)))}")
    return "\n".join(lines) + "\n"


def _quorum(number: int) -> list[str]:
    """The line with the number of clients that a round waits for; by default it waits for one."""
    why = "clients of this task that a round waits for" if number else "its clients train another task in some rounds"
    return [] if number == 1 else [f"    min_clients: {number}  # {why}"]


def _files(one: ExaminedTask, source: Source, folder: Path) -> TaskFiles:
    entry = source.entry
    if entry.validation is None:
        train, validation = (str(folder / path) for path in _split_paths(one.task, source))
    else:
        train, validation = _absolute(entry.train), _absolute(entry.validation)
    return TaskFiles(train, validation, drop_labels=one.drop_labels)


def _absolute(address: str) -> str:
    return address if is_url(address) else str(Path(address).absolute())


def _split_paths(task: NewTask, source: Source) -> tuple[str, str]:
    start = f"data/{source.entry.sites[0]}/{task.name}"
    return f"{start}-train.jsonl", f"{start}-validation.jsonl"


def _split(task: NewTask, source: Source) -> Iterator[tuple[str, str]]:
    """The files of an entry that has one file: rows to train on, and rows to evaluate on."""
    copies = split_copies(task, source.train, source.entry.train)
    yield from zip(_split_paths(task, source), copies, strict=True)
