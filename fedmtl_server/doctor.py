"""Checks the requirements of a server before it starts: address, certificates, clients, folder, database and model."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from fedmtl_core.addresses import is_loopback, join_address
from fedmtl_core.config import Config, sharing_in_words
from fedmtl_core.identifiers import name_some
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.doctor import Finding, fail, ok, warn
from fedmtl_server import model_doctor

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


# These addresses may appear in a configuration. This module does not listen on them.
_EVERYWHERE = ("0.0.0.0", "::")  # nosec B104
_USE_TLS = "set security.tls.certificate and security.tls.key"


def examine(config: Config, run_dir: Path | None = None) -> list[Finding]:
    """Check everything that a server with this configuration needs.

    Args:
        config: the server's configuration.
        run_dir: the run folder; a new one in `server.runs_dir` if None.
    """
    place = run_dir or config.server.runs_dir
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "address": lambda: address(config),
        "tls": lambda: certificates(config),
        "clients": lambda: clients(config),
        "tasks": lambda: tasks(config),
        "plug-ins": lambda: plug_ins(config),
        "sharing": lambda: sharing_mode(config),
        "run folder": lambda: doctor.writable("run folder", place),
        "database": lambda: database(config, run_dir),
        "trackers": lambda: trackers(config),
    }
    found = [finding for name, check in checks.items() for finding in doctor.findings(name, check)]
    found += (of_model := doctor.findings("model", lambda: doctor.model(config)))
    if doctor.has_failed(one for one in of_model if one.check == "model"):  # the other checks need the model
        return found
    found += doctor.findings("tokenizer", lambda: clients_tokenizer(config))
    if config.model.adapters is not None:
        found += (of_adapters := doctor.findings("adapters", lambda: model_doctor.adapters(config)))
        if doctor.has_failed(of_adapters):
            return found
    found += (of_sharing := doctor.findings("sharing", lambda: model_doctor.sharing(config)))
    if doctor.has_failed(of_sharing):
        return found
    if config.model.from_run is not None:
        found += doctor.findings("from_run", lambda: model_doctor.starting_run(config, run_dir))
    found += doctor.findings("disk", lambda: model_doctor.disk(config, place))
    return found


def address(config: Config) -> Iterator[Finding]:
    """Check that the configuration permits serving on the address, and that the port is free."""
    from fedmtl_server.access.tls import require_safe

    require_safe(config)
    host, port = config.server.host, config.server.port
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: a port just closed is free
            listener.bind(place)
            listener.listen(1)
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: f"port {port} is in use by another process",
            errno.EADDRNOTAVAIL: f"{host} is not an address of this machine",
            errno.EACCES: f"this user has no permission to use port {port}",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        yield fail(
            "address",
            f"can't listen on {join_address(host, port)}: {reason}",
            "choose another address with server.host or another port with server.port",
        )
        return
    free = "any free port" if port == 0 else f"port {port} is free"
    if not is_loopback(host) and config.security.insecure:
        yield warn(
            "address", f"{host}: {free}; with security.insecure, others can read all traffic on the network", _USE_TLS
        )
    else:
        yield ok("address", f"{host}: {free}")


def certificates(config: Config) -> Iterator[Finding]:
    """Check that the files of `security.tls` are valid, and that the certificate names the server's address."""
    from fedmtl_core.runtime import pem
    from fedmtl_server.access.tls import is_readable_by_others, read

    tls, host = config.security.tls, config.server.host
    if tls.certificate is None or tls.key is None:
        if is_loopback(host):
            yield ok("tls", "off: the server listens on this machine only")
        else:
            yield warn("tls", "off: others can read all traffic on the network", _USE_TLS)
        return
    loaded = read(tls.certificate, tls.key, tls.client_ca)
    yield from doctor.expiry("tls", tls.certificate, loaded.certificate)
    yield from names(host, loaded.certificate)
    if is_readable_by_others(tls.key):
        yield warn("tls", f"other users of this machine can read {tls.key}", f"chmod 600 {tls.key}")
    if tls.client_ca and loaded.client_ca:
        pem.require_valid_now("security.tls.client_ca", tls.client_ca, loaded.client_ca)
        yield from doctor.expiry("tls", tls.client_ca, loaded.client_ca)


def names(host: str, certificate: Certificate) -> Iterator[Finding]:
    """Check which hosts a certificate names. Clients trust the server only under these names."""
    from cryptography.x509 import ExtensionNotFound

    from fedmtl_server.access.certs import hosts_of

    try:
        named = hosts_of(certificate)
    except ExtensionNotFound:
        named = []
    if not named:
        yield fail(
            "tls",
            "the certificate names no host, so no client will trust it",
            "issue a certificate with the server's name",
        )
    elif host in _EVERYWHERE and all(is_loopback(name) for name in named):
        yield warn(
            "tls",
            f"the certificate names only this machine: {', '.join(named)}",
            "issue a certificate with the name that clients use: fedmtl-server certs init DIR --host NAME",
        )
    elif host in _EVERYWHERE or host in named:
        yield ok("tls", f"clients can connect to the server as {', '.join(named)}")
    else:
        yield warn(
            "tls",
            f"the certificate names {', '.join(named)}, but not the server's address {host}",
            "give clients one of the certificate's names as --server",
        )


def clients(config: Config) -> Iterator[Finding]:
    """Check whether authentication is on, and whether each task has a registered client."""
    from fedmtl_server.access.clients import ClientRegistry, database_of
    from fedmtl_server.access.tls import is_authenticating
    from fedmtl_server.storage.database import Database

    place, advice = database_of(config), "fedmtl-server clients add NAME --task TASK"
    if not is_authenticating(config):
        found = "authentication is off: any client that reaches the server is admitted"
        if config.security.tls.certificate is not None and config.security.authentication is None:
            yield warn("clients", f"{found}, although TLS is on", "set security.authentication to true or false")
        else:
            level = ok if is_loopback(config.server.host) else warn
            yield level("clients", found)
        return
    if (file := _file_of(place)) and not file.is_file():
        yield warn("clients", f"{file} does not exist, so no client is registered yet", advice)
        return
    schema, newest = Database.schema_of(place)
    if schema != newest:  # opening the registry would migrate it
        yield warn("clients", f"{_name_of(place)} has no client registry, or one of another schema version", advice)
        return
    with closing(ClientRegistry.open(place, create=False)) as registry:
        live = [one for one in registry.records() if one.revoked_at_unix_ms is None]
    certified = [one.name for one in live if one.proof == "certificate"]
    if certified and config.security.tls.client_ca is None:
        yield warn(
            "clients",
            f"the server reads no client certificates, so {name_some(certified)} can't connect",
            "set security.tls.client_ca",
        )
    unserved = [task for task in config.tasks if not any(one.tasks is None or task in one.tasks for one in live)]
    found = f"{len(live)} active in {_name_of(place)}"
    if unserved:
        yield warn("clients", f"{found}; no client has {', '.join(unserved)}", advice)
    else:
        yield ok("clients", found)


def tasks(config: Config) -> Iterator[Finding]:
    """Check that there are tasks, and report the number of clients that a round needs."""
    if not config.tasks:
        yield fail("tasks", "the configuration has no tasks", "add at least one, for example `tasks: {sst2: {}}`")
        return
    if not config.tasks.keys() - config.auxiliary_tasks():
        yield fail(
            "tasks", "all tasks are auxiliary, so no round ever opens", "add at least one task that isn't auxiliary"
        )
        return
    needed = ", ".join(
        f"{name} {'0 (auxiliary)' if task.auxiliary else task.min_clients}" for name, task in config.tasks.items()
    )
    yield ok("tasks", f"clients needed per round: {needed}")


def plug_ins(config: Config) -> Iterator[Finding]:
    """Check that the classes of the user that the server's settings name can be loaded and created."""
    from fedmtl_core.plugins import is_reference
    from fedmtl_server.aggregation_rules import AggregationRules
    from fedmtl_server.rounds.task_selection import make_selection

    AggregationRules.of(config)
    make_selection(config.rounds.task_selection)
    section, policy = config.aggregation, config.sharing.adaptive.policy
    names = [section.rule, section.task_weighting, config.server_optimizer.name, config.rounds.task_selection, policy]
    yield ok("plug-ins", ", ".join(name for name in names if name and is_reference(name)) or "none for the server")


def trackers(config: Config) -> Iterator[Finding]:
    """Check that the configured trackers are installed and accept their settings. This makes no connections."""
    from fedmtl_server.monitoring.trackers import trackers_for

    if names := [one.name for one in trackers_for(config)]:
        yield ok("trackers", f"rounds are reported to {', '.join(names)}")


def clients_tokenizer(config: Config) -> Iterator[Finding]:
    """Check the tokenizer that clients use by default. The clients' machines need it; the server does not."""
    from fedmtl_core.errors import ModelUnavailableError

    source = config.model.client_model or config.model.server_model
    try:
        yield from doctor.tokenizer(source, config.task_specs())
    except ModelUnavailableError as error:
        yield warn(
            "tokenizer", str(error), "clients need it on their machines, or their own model in model.client_model there"
        )


def sharing_mode(config: Config) -> Iterator[Finding]:
    """Report what the configuration's sharing does, and what the other modes would do."""
    words = sharing_in_words(config)
    yield ok("sharing", "; ".join([f"{words.pop('mode')}: {words.pop('meaning')}", *words.values()]))


def database(config: Config, run_dir: Path | None = None) -> Iterator[Finding]:
    """Check that the run's history is reachable and has the current schema. The history is not migrated."""
    from fedmtl_server.storage.database import Database
    from fedmtl_server.storage.paths import HISTORY_FILE, RUN_FILE

    url = config.store.url
    place: str | Path = url or (run_dir or config.server.runs_dir) / HISTORY_FILE
    if url is None and run_dir and (run_dir / RUN_FILE).is_file() and not (run_dir / HISTORY_FILE).is_file():
        yield fail("database", f"{run_dir / HISTORY_FILE} is missing, although {run_dir} has a run", "restore the file")
        return
    if url is None and not (run_dir and (run_dir / HISTORY_FILE).is_file()):
        yield ok("database", "SQLite in the run folder, created when the run starts")
        return
    if (file := _file_of(place)) and not file.exists():
        yield from doctor.writable("database", file.parent)
        return
    schema, newest = Database.schema_of(place)
    if schema is None:
        yield ok("database", f"{_name_of(place)} is reachable, and has no history yet")
    elif schema != newest:
        yield warn(
            "database",
            f"{_name_of(place)} has schema {schema}",
            f"no action needed: the server migrates it to schema {newest} when it starts",
        )
    else:
        yield ok("database", f"{_name_of(place)} has the newest schema, {schema}")


def _file_of(database: str | Path) -> Path | None:
    """Return the file of an SQLite database; None for another database."""
    if isinstance(database, Path):
        return database
    path = database.removeprefix("sqlite:///")
    return Path(path) if path != database else None


def _name_of(database: str | Path) -> str:
    from fedmtl_server.storage.engines import without_password

    return str(database) if isinstance(database, Path) else without_password(database)
