"""Options that the client's commands have in common, and the configuration that they amount to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedmtl_core.config import WHOLE, Config, parse_address, parse_shard
from fedmtl_core.errors import InvalidRequestError
from fedmtl_core.identifiers import require_identifier


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
TlsCa = Annotated[
    Path | None, typer.Option(help="The CA of the server's certificate, PEM; with it, TLS is on; client.tls_ca.")
]
TlsCertificate = Annotated[
    Path | None, typer.Option(help="This client's certificate, for mutual TLS; client.tls_certificate.")
]
TlsKey = Annotated[Path | None, typer.Option(help="Its private key; client.tls_key.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with this client's token, or the variable FEDMTL_TOKEN; client.token_file.")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Connect to other machines without TLS; security.insecure.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key.")
]


def overrides_of(given: Iterable[str], files: Mapping[str, Path | None], insecure: bool) -> list[str]:
    """The options of a command line as overrides of configuration keys, `KEY=VALUE`.

    Args:
        given: those of `--set`.
        files: by key of the section `client`, the files that options name.
        insecure: whether the client may connect to other machines without TLS.
    """
    named = [f"client.{key}={json.dumps(str(path))}" for key, path in files.items() if path is not None]
    return [*given, *named, *(["security.insecure=true"] if insecure else [])]


def with_options_first(config: Config, client_id: str, overrides: Sequence[str]) -> Config:
    """A configuration whose `clients` don't name files for this client that the command line names too."""
    given = {override.partition("=")[0].removeprefix("client.") for override in overrides}
    own = dict.fromkeys(given & {"token_file", "tls_certificate", "tls_key"})
    listed = [client.model_copy(update=own) if client.client_id == client_id else client for client in config.clients]
    return config.model_copy(update={"clients": listed})
