"""The command line of the client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedmtl_client import credentials
from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.cli import LogFormat, settings_help
from fedmtl_core.config import WHOLE, Config, LocalClient, TaskConfig, parse_address, parse_shard
from fedmtl_core.errors import ConfigError, InvalidRequestError
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.tasks import PRESETS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _client_id(value: str) -> str:
    try:
        return require_identifier("client id", value)
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from None


def _shard(value: str | None) -> str | None:
    try:
        parse_shard(value or WHOLE)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return value


def _address(value: str) -> str:
    try:
        return parse_address(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command(epilog=settings_help())
def take_part(
    client_id: Annotated[
        str, typer.Option(help="This client's name; no other client may have it.", callback=_client_id)
    ],
    task: Annotated[str, typer.Option("--task", "--tasks", help="The task this client has data for.")],
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the server listens.", callback=_address)
    ] = "127.0.0.1:50051",
    config: Annotated[
        Path | None,
        typer.Option(help="The configuration, a YAML file: where this client's rows are.", show_default=False),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N", help="Use the K-th of N disjoint parts of the rows; clients[].shard.", callback=_shard
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; training.device.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="The CA of the server's certificate, PEM; with it, TLS is on; client.tls_ca.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="This client's certificate, for mutual TLS; client.tls_certificate.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key; client.tls_key.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with this client's token, or the variable FEDMTL_TOKEN; client.token_file."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Connect to other machines without TLS; security.insecure.")
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="How log lines look.")] = LogFormat.console,
) -> None:
    """Take part in a run with this machine's rows of one task, until the run is over.

    Without a configuration the rows are the GLUE task's on the model hub, and the rest is what the server plans. Where
    the configuration's `clients` have this client id, its shard, token and certificate there are taken; options win.
    """
    logs.configure(log_format.value)
    overrides = list(set_ or []) + ([f"training.device={device}"] if device is not None else [])
    named = {"training.device": "--device"} if device is not None else {}
    files = {"tls_ca": tls_ca, "tls_certificate": tls_certificate, "tls_key": tls_key, "token_file": token_file}
    overrides += [f"client.{key}={json.dumps(str(path))}" for key, path in files.items() if path is not None]
    overrides += ["security.insecure=true"] if insecure else []
    settled = configuration.load(config, overrides, named)
    mine = _listed(settled, client_id, task, config)
    settled = _with_own_credentials(settled, mine, overrides)
    shown = credentials.load(settled)
    shown.require_safe(server)
    section = _section(settled, task, config)

    import torch  # takes seconds to import; --help needn't wait for it

    from fedmtl_client.api import FederationApi
    from fedmtl_client.data import load_task_data
    from fedmtl_client.session import ClientSession, ClientSettings
    from fedmtl_client.trainer import choose_device

    if settled.client.num_threads:
        torch.set_num_threads(settled.client.num_threads)
    spec = section.spec(task)
    client_settings = ClientSettings(
        device=choose_device(settled.training.device),
        model=_own_model(settled),
        train_samples=section.train_samples or 0,
        val_samples=section.val_samples or 0,
        upload=settled.wire.upload,
        download=settled.wire.download,
        topk_density=settled.wire.topk_density,
    )
    data = load_task_data(spec, section.data, parse_shard(shard or (mine.shard if mine else WHOLE)))
    api = FederationApi(
        server,
        client_id=client_id,
        task=task,
        reconnect_s=settled.client.reconnect_s,
        compression=settled.wire.compression,
        credentials=shown,
        renew=credentials.Renewal(settled),
    )
    ClientSession(api, spec, data, client_settings).run()


def _section(config: Config, task: str, path: Path | None) -> TaskConfig:
    if task in config.tasks:
        return config.tasks[task]
    if path is not None:
        raise ConfigError(f"--task: {path} has the tasks {', '.join(config.tasks) or '(none)'}, got {task!r}")
    if task in PRESETS:
        return TaskConfig()
    raise ConfigError(
        f"--task: expected one of {', '.join(PRESETS)}, got {task!r}; "
        f"describe another task under `tasks` in a --config file"
    )


def _listed(config: Config, client_id: str, task: str, path: Path | None) -> LocalClient | None:
    """What a configuration's `clients` say of this client.

    Raises:
        ConfigError: that it has another task.
    """
    mine = next((client for client in config.clients if client.client_id == client_id), None)
    if mine is not None and mine.task != task:
        raise ConfigError(
            f"--task: in {path or 'the configuration'}, `clients` say that {client_id!r} has the task {mine.task!r}, "
            f"got {task!r}; change one of the two, or give another --client-id"
        )
    return mine


def _with_own_credentials(config: Config, mine: LocalClient | None, overrides: Sequence[str]) -> Config:
    """A configuration with the files that this client has for itself, unless the command line names others."""
    given = {override.partition("=")[0] for override in overrides}
    own = {} if mine is None else {key: getattr(mine, key) for key in ("token_file", "tls_certificate", "tls_key")}
    files = {key: path for key, path in own.items() if path is not None and f"client.{key}" not in given}
    return config.model_copy(update={"client": config.client.model_copy(update=files)})


def _own_model(config: Config) -> str | None:
    """The model this client's own configuration names, if it names one."""
    given = config.model.model_fields_set & {"server_model", "client_model"}
    return (config.model.client_model or config.model.server_model) if given else None
