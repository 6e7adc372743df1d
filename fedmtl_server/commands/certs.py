"""`fedmtl-server certs`: certificates for trials, in a folder.

DIR/
  ca.pem, ca.key                 the CA; keep its signing key off the server
  server.pem, server.key         for security.tls.certificate and security.tls.key
  clients/NAME.pem, NAME.key     for --tls-certificate and --tls-key
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmtl_core.errors import ConfigError, StoreError, UserError
from fedmtl_core.runtime.cli import new_app
from fedmtl_core.runtime.help_text import reflowed

if TYPE_CHECKING:
    from fedmtl_server.access.certs import KeyPair

certs_app = new_app("Create a CA and certificates for a server and clients, for trials.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the certificates.")]
Clients = Annotated[
    list[str] | None, typer.Option("--client", metavar="NAME", help="Client that gets a certificate; repeatable.")
]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="Host name or IP address of the server, in addition to localhost; repeatable."),
]
Days = Annotated[float, typer.Option(min=0.001, help="Validity of server and client certificates in days.")]
CA_DAYS = 3650.0


@certs_app.command()
def init(folder: Folder, client: Clients = None, host: Hosts = None, days: Days = 365) -> None:
    """Create a CA and certificates for the server and each client. A folder that contains a CA is left unchanged."""
    from fedmtl_server.access.certs import make_authority, make_client, make_server

    if (folder / "ca.pem").exists() or (folder / "ca.key").exists():
        raise UserError(f"{folder} already contains a CA; renew or add certificates with `fedmtl-server certs issue`")
    authority = make_authority("FedMTL trial CA", days=max(days, CA_DAYS))
    pairs = {"server": make_server(authority, host or [], days=days)}
    pairs |= {f"clients/{name}": make_client(authority, name, days=days) for name in client or ()}
    _write(folder / "ca", authority)
    for name, pair in pairs.items():
        _write(folder / name, pair)
    _tell(folder, list(pairs))


@certs_app.command()
@reflowed
def issue(
    folder: Folder,
    client: Clients = None,
    server: Annotated[
        bool, typer.Option("--server", help="Renew the server's certificate, for its hosts and those of --host.")
    ] = False,
    host: Hosts = None,
    days: Days = 365,
) -> None:
    """Create more certificates with the folder's CA, or renew existing certificates with new keys.

    A running server loads its renewed certificate without a restart.
    """
    from fedmtl_server.access.certs import make_client, make_server

    if host and not server:
        raise UserError("--host: requires --server")
    if not server and not client:
        raise UserError("expected --client NAME (repeatable) or --server")
    authority = _authority(folder)
    pairs = {}
    if server:
        pairs["server"] = make_server(authority, [*_hosts(folder), *(host or ())], days=days)
    pairs |= {f"clients/{name}": make_client(authority, name, days=days) for name in client or ()}
    for name, pair in pairs.items():
        _write(folder / name, pair)
    _tell(folder, list(pairs))


def _authority(folder: Path) -> KeyPair:
    from fedmtl_server.access.certs import KeyPair

    try:
        certificate, key = (folder / "ca.pem").read_bytes(), (folder / "ca.key").read_bytes()
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; create a CA with `fedmtl-server certs init`") from None
    try:
        return KeyPair.from_pem(certificate, key)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'ca.pem'}: {error}") from None


def _hosts(folder: Path) -> list[str]:
    from fedmtl_core.runtime import pem
    from fedmtl_server.access.certs import hosts_of

    path = folder / "server.pem"
    return hosts_of(pem.read_certificates("DIR", path)[1]) if path.exists() else []


def _write(stem: Path, pair: KeyPair) -> None:
    """Write the key, then the certificate, each atomically; a running server waits until the two match."""
    try:
        stem.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(stem.with_name(stem.name + ".key"), pair.key_pem, 0o600)
        _replace(stem.with_name(stem.name + ".pem"), pair.certificate_pem, 0o644)
    except OSError as error:
        raise StoreError(f"can't write {error.filename or stem}: {error.strerror or error}") from None


def _replace(path: Path, data: bytes, mode: int) -> None:
    scratch = path.with_name(path.name + ".tmp")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    scratch.replace(path)


def _tell(folder: Path, names: list[str]) -> None:
    for name in names:
        typer.echo(f"{folder / name}.pem, {folder / name}.key")
    typer.echo(f"signed by the CA {folder / 'ca.pem'}; keep {folder / 'ca.key'} secret", err=True)
