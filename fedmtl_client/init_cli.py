"""`fedmtl-client init`: ask a server for its tasks, and write a client's configuration file."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedmtl_client.client import named_once
from fedmtl_client.client_file import client_file
from fedmtl_client.init_sections import section
from fedmtl_client.options import (
    Connection,
    Insecure,
    ServerAddress,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TokenFile,
    identifier,
)
from fedmtl_client.server_tasks import ServerTask, tasks_of_server
from fedmtl_client.task_options import LabelColumn, TextColumns, by_task
from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, InvalidRequestError
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.cli import EXIT_FAILURE, new_app
from fedmtl_core.runtime.doctor import Finding
from fedmtl_core.runtime.help_text import reflowed

init_app = new_app()

_DOCTOR = "fedmtl-client doctor --config"
_AFTER_THE_RUN = "start a new run of the server, then "
_METRICS_NOTE = "the server's metrics must be among them"

_File = Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.", show_default=False)]
_ClientId = Annotated[
    str | None,
    typer.Option(help="This client's name; the name of FILE without its ending if not given.", show_default=False),
]
_Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="A task that this client has rows for. Repeat the option for several tasks. Without it, every task that "
        "the server lets this client have.",
        show_default=False,
    ),
]
_Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="[TASK=]TRAIN[,VALIDATION]",
        help="The files of training and evaluation rows. Columns are proposed from the first. Without VALIDATION, "
        "about a fifth of the rows is split off, into files beside FILE.",
        show_default=False,
    ),
]


@init_app.command("init")
@reflowed
def init(
    file: _File,
    server: ServerAddress = None,
    client_id: _ClientId = None,
    task: _Tasks = None,
    data: _Data = None,
    text_columns: TextColumns = None,
    label_column: LabelColumn = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Ask a running server for its tasks, and write a client's configuration file.

    The file has the server's address, the tasks with their types and labels, and where the rows are. With --data, the
    command proposes the columns and compares the labels of the rows with the server's. Otherwise the paths and columns
    in the file are placeholders. The exit code is 1 if labels don't match.

    Example: fedmtl-client init --server 127.0.0.1:50051 --task tickets --data train.csv,dev.csv desk.yaml
    """
    logs.configure(level="critical")
    if file.exists() and not force:
        raise ConfigError(f"FILE: {file} exists; overwrite it with --force, or name another file")
    name = _client_id(file) if client_id is None else identifier(client_id)
    overrides = Connection(tls_ca, tls_certificate, tls_key, token_file, insecure).overrides()
    settled = configuration.load(None, overrides)
    address = server or settled.client.server
    typer.echo(f"asking {address} for its tasks; it takes some seconds", err=True)
    tasks, is_over = _ask(settled, address, name, named_once(task or ()))
    names = [one.name for one in tasks]
    given = by_task("--data", data or (), names)
    texts = by_task("--text-columns", text_columns or (), names)
    labels = by_task("--label-column", label_column or (), names)
    sections = [
        section(one, file, given.get(one.name), texts.get(one.name), labels.get(one.name), overwrites=force)
        for one in tasks
    ]
    credentials = {"tls_ca": tls_ca, "tls_certificate": tls_certificate, "tls_key": tls_key, "token_file": token_file}
    known = {key: path.absolute() for key, path in credentials.items() if path is not None}
    text = client_file(
        name,
        address,
        [(one.task, one.files) for one in sections],
        credentials=known,
        insecure=insecure,
        metrics_note=_METRICS_NOTE,
    )
    _write(file, text, [copy for one in sections for copy in one.copies.items()], tasks)
    found = _compare(file, [one.name for one in tasks if one.name in given and one.is_built_in])
    if found:
        doctor.tell(found, as_json=False)
    _show_end([file, *(path for one in sections for path in one.copies)], tasks, given)
    if doctor.has_failed(found):
        typer.echo("next: fix what failed, or name other columns, and repeat this command with --force")
        raise typer.Exit(EXIT_FAILURE)
    typer.echo(f"next: {_AFTER_THE_RUN if is_over else ''}{_DOCTOR} {shlex.quote(str(file))} --client-id {name}")


def _client_id(file: Path) -> str:
    """The client's name if none is given: that of its file."""
    try:
        return require_identifier("client id", file.stem)
    except InvalidRequestError as error:
        raise ConfigError(f"FILE: {error}; name the client with --client-id") from None


def _ask(config: Config, address: str, client_id: str, wanted: Sequence[str]) -> tuple[list[ServerTask], bool]:
    """The server's tasks for this client, and whether its run is over."""
    from fedmtl.v1 import federation_pb2 as pb

    from fedmtl_client import credentials
    from fedmtl_client.api import ConnectionSettings, FederationApi

    connection = ConnectionSettings(credentials.load(config))
    with closing(FederationApi(address, client_id=client_id, task="", reconnect_s=0, connection=connection)) as api:
        tasks, denied = tasks_of_server(api, wanted)
        is_over = api.get_status().phase == pb.PHASE_FINISHED
    typer.echo(f"{address} has {', '.join(map(str, tasks))}")
    if denied:
        typer.echo(f"{address} doesn't let {client_id} have {', '.join(denied)}")
    if is_over:
        typer.echo(f"the run of {address} is over: no client can join it")
    return tasks, is_over


def _write(file: Path, text: str, copies: Sequence[tuple[Path, str]], tasks: Sequence[ServerTask]) -> None:
    """Write the file and copies of rows, if the file can be loaded."""
    if all(task.is_built_in for task in tasks):
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / file.name
            draft.write_text(text, encoding="utf-8")
            configuration.load(draft)
    file.parent.mkdir(parents=True, exist_ok=True)
    for path, content in (*copies, (file, text)):
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            scratch.touch(0o666 if path == file else 0o600)  # only the owner may read copies of rows
            scratch.write_text(content, encoding="utf-8")
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def _compare(file: Path, tasks: Sequence[str]) -> list[Finding]:
    """Compare the rows with the server's labels, by the written file."""
    from fedmtl_client.data import Survey
    from fedmtl_client.doctor import rows
    from fedmtl_client.overlap import shared_texts

    found: list[Finding] = []
    config = configuration.load(file) if tasks else None
    for name in tasks:
        assert config is not None
        entry, surveys = config.tasks[name], dict[str, Survey]()
        for split in ("train", "validation"):
            check = f"{name}: {split} rows"
            look = partial(rows, entry.spec(name), entry.data, split, (1, 1), check, surveys)
            found += doctor.findings(check, look)
        if len(surveys) == 2:
            train, validation = (one.texts for one in surveys.values())
            found += shared_texts(train, validation, check)
    return found


def _show_end(written: Sequence[Path], tasks: Sequence[ServerTask], given: Mapping[str, str]) -> None:
    typer.echo(f"wrote {', '.join(map(str, written))}")
    for task in tasks:
        if task.name not in given:
            typer.echo(f"edit tasks.{task.name}: text_columns, label_column and data are placeholders")
        if not task.is_built_in:
            typer.echo(f"edit tasks.{task.name}.type: module:Name of the class {task.type!r}")
