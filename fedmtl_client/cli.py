"""The command line of the client."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmtl_client.client import Client
from fedmtl_client.options import (
    ClientId,
    ConfigFile,
    Connection,
    Insecure,
    Overrides,
    ServerAddress,
    Shard,
    TaskNames,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TokenFile,
    with_options_first,
)
from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.runtime.cli import HelpConfig, LogFormat, LogLevel, new_app

app = new_app()


@app.command()
def take_part(
    client_id: ClientId,
    task: TaskNames = None,
    server: ServerAddress = None,
    config: ConfigFile = None,
    shard: Shard = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; training.device.")] = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    set_: Overrides = None,
    log_format: Annotated[LogFormat, typer.Option(help="How log lines look.")] = LogFormat.console,
    log_level: Annotated[LogLevel, typer.Option(help="The least that is logged.")] = LogLevel.info,
    help_config: HelpConfig = False,
) -> None:
    """Take part in a run with this machine's rows of one task or several, until the run is over.

    Without a configuration the rows are the GLUE task's on the model hub, and the rest is what the server plans. Where
    the configuration's `clients` have this client id, what they say of its tasks, shard, partition, token and
    certificate is taken; options win. Every key of the configuration has a default: see --help-config.

    `fedmtl-client doctor` with the same options looks at what is needed, and takes no part. `fedmtl-client init` writes
    a client's configuration for a server's tasks.
    """
    logs.configure(log_format.value, log_level.value)
    overrides = list(set_ or []) + ([f"training.device={device}"] if device is not None else [])
    named = {"training.device": "--device"} if device is not None else {}
    overrides += Connection(tls_ca, tls_certificate, tls_key, token_file, insecure).overrides()
    settled = with_options_first(configuration.load(config, overrides, named), client_id, overrides)
    address = server or settled.client.server
    logs.get_logger().info("client.starting", client_id=client_id, server=address, config=str(config or "the defaults"))
    client = Client(
        settled, tasks=task or None, client_id=client_id, server=address, shard=shard, origin=config, progress_bar=True
    )
    try:
        client.run()
    except KeyboardInterrupt:
        typer.echo("stopped; the same command comes back to the run, which counts what was accepted", err=True)
        raise
