"""Options shared by the client's commands, and the settings that they override."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fedmtl_core.config import WHOLE, Config, parse_address, parse_shard
from fedmtl_core.errors import InvalidRequestError
from fedmtl_core.identifiers import require_identifier


def identifier(value: str) -> str:
    """Check a client id given as an option."""
    try:
        return require_identifier("client id", value)
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from None


def shard_name(value: str | None) -> str | None:
    """Check a `K/N` given as an option."""
    try:
        parse_shard(value or WHOLE)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return value


def address(value: str | None) -> str | None:
    """Check a `HOST:PORT` given as an option."""
    try:
        return None if value is None else parse_address(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


ClientId = Annotated[str, typer.Option(help="Id of this client, unique in the run.", callback=identifier)]
TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "--tasks",
        help="Task that this client has rows for; repeatable. If not given, the tasks that the configuration names for "
        "this client.",
        show_default=False,
    ),
]
ServerAddress = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Address of the server. Overrides client.server.", callback=address),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(help="Configuration file (YAML), which names this client's rows.", show_default=False),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="K/N",
        help="Use the K-th of N disjoint parts of the rows. Overrides clients[].shard.",
        callback=shard_name,
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(help="CA of the server's certificate (PEM file); turns TLS on. Overrides client.tls_ca."),
]
TlsCertificate = Annotated[
    Path | None, typer.Option(help="Client certificate for mutual TLS (PEM file). Overrides client.tls_certificate.")
]
TlsKey = Annotated[
    Path | None, typer.Option(help="Private key of the client certificate (PEM file). Overrides client.tls_key.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with this client's token. Overrides client.token_file and the variable FEDMTL_TOKEN."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow connections to other machines without TLS. Sets security.insecure.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
]


@dataclass(frozen=True)
class Connection:
    """The client's credentials and trusted CA, as given by options."""

    tls_ca: Path | None
    tls_certificate: Path | None
    tls_key: Path | None
    token_file: Path | None
    insecure: bool

    def overrides(self) -> list[str]:
        """Return the given options as `KEY=VALUE`."""
        files = {
            "tls_ca": self.tls_ca,
            "tls_certificate": self.tls_certificate,
            "tls_key": self.tls_key,
            "token_file": self.token_file,
        }
        given = [f"client.{key}={json.dumps(str(path))}" for key, path in files.items() if path is not None]
        return [*given, "security.insecure=true"] if self.insecure else given


def with_options_first(config: Config, client_id: str, overrides: Sequence[str]) -> Config:
    """Return a configuration in which command-line credential files override those of the client's `clients` entry."""
    given = {override.partition("=")[0].removeprefix("client.") for override in overrides}
    own = dict.fromkeys(given & {"token_file", "tls_certificate", "tls_key"})
    listed = [client.model_copy(update=own) if client.client_id == client_id else client for client in config.clients]
    return config.model_copy(update={"clients": listed})
