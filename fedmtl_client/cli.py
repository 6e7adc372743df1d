"""The command line of the client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedmtl_client.client import DEFAULT_ADDRESS, Client
from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.config import WHOLE, Config, parse_address, parse_shard
from fedmtl_core.errors import InvalidRequestError
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.runtime.cli import HelpConfig, LogFormat, LogLevel, new_app

app = new_app()


def identifier(value: str) -> str:
    """A client's name as an option."""
    try:
        return require_identifier("client id", value)
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from None


def shard_name(value: str | None) -> str | None:
    """`K/N` as an option."""
    try:
        parse_shard(value or WHOLE)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return value


def address(value: str) -> str:
    """`HOST:PORT` as an option."""
    try:
        return parse_address(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "--tasks",
        help="The task this client has data for; again for each further one. Without it, those that the configuration "
        "names for this client.",
        show_default=False,
    ),
]
"""A client's tasks as options."""


@app.command()
def take_part(
    client_id: Annotated[
        str, typer.Option(help="This client's name; no other client may have it.", callback=identifier)
    ],
    task: TaskNames = None,
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the server listens.", callback=address)
    ] = DEFAULT_ADDRESS,
    config: Annotated[
        Path | None,
        typer.Option(help="The configuration, a YAML file: where this client's rows are.", show_default=False),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N", help="Use the K-th of N disjoint parts of the rows; clients[].shard.", callback=shard_name
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
    log_level: Annotated[LogLevel, typer.Option(help="The least that is logged.")] = LogLevel.info,
    help_config: HelpConfig = False,
) -> None:
    """Take part in a run with this machine's rows of one task or several, until the run is over.

    Without a configuration the rows are the GLUE task's on the model hub, and the rest is what the server plans. Where
    the configuration's `clients` have this client id, what they say of its tasks, shard, partition, token and
    certificate is taken; options win. Every key of the configuration has a default: see --help-config.

    `fedmtl-client doctor` with the same options looks at what is needed, and takes no part.
    """
    logs.configure(log_format.value, log_level.value)
    overrides = list(set_ or []) + ([f"training.device={device}"] if device is not None else [])
    named = {"training.device": "--device"} if device is not None else {}
    files = {"tls_ca": tls_ca, "tls_certificate": tls_certificate, "tls_key": tls_key, "token_file": token_file}
    overrides += [f"client.{key}={json.dumps(str(path))}" for key, path in files.items() if path is not None]
    overrides += ["security.insecure=true"] if insecure else []
    settled = with_options_first(configuration.load(config, overrides, named), client_id, overrides)
    logs.get_logger().info("client.starting", client_id=client_id, server=server, config=str(config or "the defaults"))
    client = Client(
        settled, tasks=task or None, client_id=client_id, server=server, shard=shard, origin=config, progress_bar=True
    )
    try:
        client.run()
    except KeyboardInterrupt:
        typer.echo("stopped; the same command comes back to the run, which counts what was accepted", err=True)
        raise


def with_options_first(config: Config, client_id: str, overrides: Sequence[str]) -> Config:
    """A configuration whose `clients` don't name files for this client that the command line names too."""
    given = {override.partition("=")[0].removeprefix("client.") for override in overrides}
    own = dict.fromkeys(given & {"token_file", "tls_certificate", "tls_key"})
    listed = [client.model_copy(update=own) if client.client_id == client_id else client for client in config.clients]
    return config.model_copy(update={"clients": listed})
