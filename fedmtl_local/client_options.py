"""The command line with which the launcher starts one client."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedmtl_core import config as configuration
from fedmtl_core.config import Config, LocalClient
from fedmtl_core.errors import ConfigError

_READ_BY_CLIENTS = re.compile(
    r"(client|wire|tracing)\.|security\.insecure$|model\.(server_model|client_model|random_init)$"
    r"|training\.(device|trainer|trainer_options|seed)$"
)
"""The settings that a client reads from its own file, besides those of its tasks."""


def options_of(client: LocalClient, address: str, config_path: Path, overrides: Sequence[str]) -> list[str]:
    """The options of `fedmtl-client` for one client.

    Args:
        client: its entry in `clients`.
        address: the server's `HOST:PORT`.
        config_path: the launcher's configuration file.
        overrides: the launcher's overrides, `KEY=VALUE` each.
    """
    passed = overrides if client.config is None else list(_overrides_for(client, overrides))
    return [
        *("--config", str(client.config or config_path)),
        *(part for text in passed for part in ("--set", text)),
        *("--client-id", client.client_id),
        *(part for task in client.task_names for part in ("--task", task)),
        *(("--shard", client.shard) if client.config is None else ()),
        *("--server", address),
        *_own_credentials(client),
    ]


def require_own_files(config: Config, config_path: Path, overrides: Sequence[str]) -> None:
    """Check the configuration file of every client that has its own.

    Args:
        config: the launcher's configuration.
        config_path: its file.
        overrides: its overrides, `KEY=VALUE` each.

    Raises:
        ConfigError: a file can't be read, has an error, lacks one of the client's tasks, defines it in another way, or
            has the client started with yet another file.
    """
    for client in config.clients:
        if client.config is None:
            continue
        key = f"clients: config of {client.client_id!r}"
        if client.config.resolve() == config_path.resolve():
            raise ConfigError(f"{key}: {client.config} is the launcher's own file; leave `config` out")
        try:
            settled = configuration.load(client.config, list(_overrides_for(client, overrides)))
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
        if any(one.client_id == client.client_id and one.config is not None for one in settled.clients):
            raise ConfigError(f"{key}: {client.config} names yet another file for the client; remove `config` there")
        if lacking := [task for task in client.task_names if task not in settled.tasks]:
            has = ", ".join(settled.tasks) or "(none)"
            raise ConfigError(f"{key}: {client.config} has the tasks {has}, and lacks {lacking[0]!r}")
        try:
            for task in client.task_names:
                same = config.tasks[task].spec(task)
                settled.tasks[task].spec(task).require_same(same.kind, same.labels)
        except ConfigError as error:
            raise ConfigError(f"{key}: {client.config}: {error}") from None


def _overrides_for(client: LocalClient, overrides: Sequence[str]) -> Iterator[str]:
    """The overrides that a client with its own file reads: others may name tasks that its file doesn't have."""
    for override in overrides:
        key = override.partition("=")[0]
        if _READ_BY_CLIENTS.match(key) or key.startswith(tuple(f"tasks.{task}." for task in client.task_names)):
            yield override


def _own_credentials(client: LocalClient) -> list[str]:
    """The options for the credential files that are named in a client's entry."""
    files = {
        "--token-file": client.token_file,
        "--tls-certificate": client.tls_certificate,
        "--tls-key": client.tls_key,
    }
    return [part for option, path in files.items() if path is not None for part in (option, str(path))]
