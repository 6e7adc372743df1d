"""`fedmtl-client doctor`: checks everything that a client needs, without joining the run."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmtl_client.client import (
    listed,
    named_once,
    own_model,
    section_of,
    tasks_of,
    with_own_credentials,
)
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
from fedmtl_core.config import WHOLE, parse_shard
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.cli import EXIT_FAILURE, new_app
from fedmtl_core.runtime.help_text import reflowed

doctor_app = new_app()


@doctor_app.command("doctor")
@reflowed
def examine(
    client_id: ClientId,
    task: TaskNames = None,
    server: ServerAddress = None,
    config: ConfigFile = None,
    shard: Shard = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check everything that a client with these options needs, and explain how to fix each problem.

    It doesn't join the run. The exit code is 1 if the client would fail.
    """
    logs.configure(level="critical")  # the findings are the output
    connection = Connection(tls_ca, tls_certificate, tls_key, token_file, insecure)
    overrides = [*(set_ or []), *connection.overrides()]
    if not as_json:
        typer.echo("checking what a client needs; this takes some seconds", err=True)
    found = doctor.findings("environment", doctor.environment)
    try:
        settled = with_options_first(configuration.load(config, overrides), client_id, overrides)
        given = named_once(task or ())
        mine = listed(settled, client_id, given, config)
        settled = with_own_credentials(settled, mine)
        sections = {name: section_of(settled, name, config) for name in tasks_of(settled, given, mine)}
        sources = [(section.spec(name), section.data) for name, section in sections.items()]
    except ConfigError as error:
        found.append(doctor.fail("configuration", str(error)))
    else:
        found.append(doctor.ok("configuration", str(config or "the defaults")))
        from fedmtl_client.doctor import examine as examine_client

        found += examine_client(
            settled,
            client_id=client_id,
            sources=sources,
            shard=parse_shard(shard or (mine.shard if mine else WHOLE)),
            model=own_model(settled),
            server=server or settled.client.server,
        )
    doctor.tell(found, as_json=as_json)
    if doctor.has_failed(found):
        raise typer.Exit(EXIT_FAILURE)
