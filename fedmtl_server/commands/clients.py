"""`fedmtl-server clients`: the registered clients."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmtl_core import config as configuration
from fedmtl_core.errors import ConfigError, UserError
from fedmtl_core.runtime.cli import new_app
from fedmtl_core.runtime.help_text import reflowed
from fedmtl_server.commands.printing import time_text

if TYPE_CHECKING:
    from fedmtl_server.access.clients import ClientRecord, ClientRegistry

clients_app = new_app("Add, list and revoke the clients that may connect to a server.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Id of the client.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(help="Configuration file of the server, which names its tasks and its database of clients."),
]
RunsDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the file clients.sqlite, the server's server.runs_dir. If not given, the folder runs."
    ),
]
Url = Annotated[str | None, typer.Option(help="Database of the clients, the server's store.url.")]


@clients_app.command()
@reflowed
def add(
    name: Name,
    task: Annotated[list[str] | None, typer.Option(help="Task that the client may train; repeatable.")] = None,
    all_tasks: Annotated[bool, typer.Option("--all-tasks", help="Allow the client every task.")] = False,
    observer: Annotated[
        bool, typer.Option("--observer", help="Allow the client to watch the run only, without any task.")
    ] = False,
    certificate: Annotated[
        bool, typer.Option("--certificate", help="The client has a certificate with this name, and gets no token.")
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option(help="New file for the token. If not given, the token is printed.")
    ] = None,
    config: ConfigFile = None,
    runs_dir: RunsDir = None,
    url: Url = None,
) -> None:
    """Add a client and print its token. The token isn't stored and can't be shown again.

    A running server accepts the client within a second, unless security.refresh_s is longer.
    """
    if sum((bool(task), all_tasks, observer)) != 1:
        raise UserError(
            "expected one of --task TASK (repeatable), --all-tasks and --observer: the client's permissions"
        )
    if certificate and token_file:
        raise UserError("--token-file: a client with --certificate has no token")
    _require_tasks(task or [], config)
    tasks = None if all_tasks else list(task or ())
    with _registry(config, runs_dir, url, create=True) as registry, _new_file(token_file) as write:
        token = registry.add(name, tasks, with_token=not certificate)
        if token:
            write(token)
        where = f"; its token is in {token_file}" if token_file else "; its token, shown only once:" if token else ""
        typer.echo(f"client {name} may train {_tasks_text(tasks)}{where}", err=True)
        if token and not token_file:
            typer.echo(token)


@clients_app.command("list")
def list_clients(
    config: ConfigFile = None,
    runs_dir: RunsDir = None,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all clients by name, including revoked clients."""
    with _registry(config, runs_dir, url) as registry:
        records = registry.records()
        where = registry.name
    if as_json:
        typer.echo(json.dumps([_facts(record) for record in records], indent=2))
    elif not records:
        typer.echo(f"There are no clients in {where}.")
    else:
        rows = [("client", "tasks", "proof", "added", "revoked")]
        rows += [
            (
                one.name,
                _tasks_text(one.tasks),
                one.proof,
                time_text(one.added_at_unix_ms),
                "" if one.revoked_at_unix_ms is None else time_text(one.revoked_at_unix_ms),
            )
            for one in records
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@clients_app.command()
def revoke(name: Name, config: ConfigFile = None, runs_dir: RunsDir = None, url: Url = None) -> None:
    """Revoke a client. A running server ends its calls within a second. Updates that have counted remain counted."""
    with _registry(config, runs_dir, url) as registry:
        was_in = registry.revoke(name)
    typer.echo(f"client {name} {'is revoked' if was_in else 'was already revoked'}", err=True)


@contextlib.contextmanager
def _registry(
    config: Path | None, runs_dir: Path | None, url: str | None, *, create: bool = False
) -> Iterator[ClientRegistry]:
    from fedmtl_server.access.clients import FILE_NAME, ClientRegistry, database_of

    if config and (runs_dir or url):
        raise UserError("--config names the database of clients; omit --runs-dir and --url")
    database = database_of(configuration.load(config)) if config else url or (runs_dir or Path("runs")) / FILE_NAME
    if isinstance(database, Path) and not create and not database.exists():
        raise UserError(f"{database}: no such file; name the database of clients with --config, --runs-dir or --url")
    with contextlib.closing(ClientRegistry.open(database, create=create)) as registry:
        yield registry


def _require_tasks(tasks: list[str], config: Path | None) -> None:
    if config is None:
        return
    known = configuration.load(config).tasks
    for task in tasks:
        if task not in known:
            raise ConfigError(f"--task: {config} has the tasks {', '.join(known) or '(none)'}, got {task!r}")


@contextlib.contextmanager
def _new_file(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes to a new file with mode 0600. The file is removed if anything fails."""
    if path is None:
        yield lambda text: None
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UserError(f"--token-file: can't create {path}: {error.strerror or error}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            yield lambda text: print(text, file=file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _tasks_text(tasks: tuple[str, ...] | list[str] | None) -> str:
    return "every task" if tasks is None else ", ".join(tasks) or "no task (observer)"


def _facts(record: ClientRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "tasks": None if record.tasks is None else list(record.tasks),
        "proof": record.proof,
        "added_at_unix_ms": record.added_at_unix_ms,
        "revoked_at_unix_ms": record.revoked_at_unix_ms,
    }
