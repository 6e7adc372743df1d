"""The command line `fedmtl-client`."""

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
from fedmtl_core.runtime.help_text import reflowed

app = new_app()


@app.command()
@reflowed
def take_part(
    client_id: ClientId,
    task: TaskNames = None,
    server: ServerAddress = None,
    config: ConfigFile = None,
    shard: Shard = None,
    device: Annotated[
        str | None, typer.Option(help="PyTorch device: auto, cpu, cuda, cuda:N or mps. Overrides training.device.")
    ] = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    set_: Overrides = None,
    log_format: Annotated[LogFormat, typer.Option(help="Format of log lines.")] = LogFormat.console,
    log_level: Annotated[LogLevel, typer.Option(help="Lowest level to log.")] = LogLevel.info,
    help_config: HelpConfig = False,
) -> None:
    """Train one or more tasks on this machine's rows, round by round, until the run is over.

    Without --config, a GLUE task's rows come from the Hugging Face Hub, and the server's plan sets everything else.
    If `clients` in the configuration lists this client id, its tasks, shard, partition, token and certificate apply.
    Options take precedence over the configuration, but --task must agree with that entry.

    --help-config lists all configuration keys. `fedmtl-client doctor` with the same options checks everything that the
    client needs, without joining the run. `fedmtl-client init` writes a client's configuration
    file for the tasks of a running server.
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
        typer.echo("stopped; repeat the command to rejoin the run, where accepted updates still count", err=True)
        raise
