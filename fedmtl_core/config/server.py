"""Server settings: listening address, storage, security and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedmtl_core.addresses import without_brackets
from fedmtl_core.config.section import EVERY_PROGRAM, SERVER_AND_LAUNCHER, Section

Durability = Literal["memory", "process", "power"]
Readers = Literal["owner", "group", "all"]

_CHUNK_BYTES = 2 * 2**20  # the contract's limit for the data of one chunk


class ServerConfig(Section):
    """The server's addresses, folder of runs, and memory for updates."""

    read_by = ("server",)

    host: str = Field("127.0.0.1", description="Address or host name on which the server listens.")
    port: int = Field(
        50051, ge=0, le=65535, description="Port on which the server listens, 0 to 65535; 0 chooses any free port."
    )
    runs_dir: Annotated[Path, SERVER_AND_LAUNCHER] = Field(
        Path("runs"), description="Folder in which each run gets a folder of its own."
    )
    staging_memory_mb: int = Field(
        64,
        ge=0,
        description="Memory for staged updates in MiB; two updates are held in memory whatever the limit. Further "
        "updates wait, or are staged in files in the run's folder.",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the Prometheus endpoint `/metrics`; 0 chooses any free port. If not given, the server has "
        "no such endpoint.",
    )
    metrics_host: str = Field(
        "127.0.0.1",
        description="Address on which the endpoint `/metrics` listens, over plain HTTP and without authentication.",
    )

    @field_validator("host", "metrics_host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        return without_brackets(host)


class StoreConfig(Section):
    """Storage of the run's history and checkpoints, and the failures that they survive."""

    read_by = ("server",)

    url: Annotated[str | None, SERVER_AND_LAUNCHER] = Field(
        None,
        description="Database of the run's history and of the known clients, such as "
        "`postgresql+psycopg://user@host/name`; the password is best given in `PGPASSWORD` or `~/.pgpass`. If not "
        "given, SQLite files in the run's folder and in `server.runs_dir`.",
    )
    durability: Durability = Field(
        "power",
        description="Failures that acknowledged updates and commits survive: `process` (the server process ends), "
        "`power` (a power cut, too) or `memory` (neither). With `memory`, updates stay in memory and commits reach the "
        "disk a round later.",
    )
    readable_by: Annotated[Readers, SERVER_AND_LAUNCHER] = Field(
        "owner",
        description="Users of the machine who may read a new run's folder: the `owner` (mode 0700), the `group` too "
        "(0750), or `all` (0755). An existing folder keeps its mode.",
    )
    keep_checkpoints: int = Field(
        3, ge=1, description="Number of newest checkpoints to keep, in addition to each task's best checkpoint."
    )


class TlsConfig(Section):
    """The server's side of TLS; the section `client` has the clients' side. All files are PEM."""

    read_by = ("server",)

    certificate: Path | None = Field(
        None,
        description="Server certificate, a PEM file, followed by the certificates between it and its CA. Together with "
        "`security.tls.key` it turns TLS on. If not given, the server listens without TLS.",
    )
    key: Path | None = Field(
        None,
        description="Private key of the server's certificate, a PEM file; required with `security.tls.certificate`. "
        "The server loads renewed files without a restart.",
    )
    client_ca: Path | None = Field(
        None,
        description="CA of the clients' certificates, a PEM file. With it, the server refuses connections without a "
        "client certificate (mutual TLS). If not given, no client certificate is needed.",
    )

    @model_validator(mode="after")
    def _pair(self) -> TlsConfig:
        if bool(self.certificate) != bool(self.key):
            raise ValueError(
                "`certificate` and `key` go together, got only " + ("a certificate" if self.certificate else "a key")
            )
        if self.client_ca and not self.certificate:
            raise ValueError("`client_ca` needs the server's own `certificate` and `key`")
        return self


class SecurityConfig(Section):
    """TLS and authentication. docs/security.md describes the threats that they cover."""

    read_by = ("server",)

    tls: TlsConfig = TlsConfig()
    authentication: bool | None = Field(
        None,
        description="Whether callers must be clients that `fedmtl-server clients` has added. If not given, "
        "authentication is required with `security.tls.client_ca`, and on any address but loopback unless "
        "`security.insecure` is true.",
    )
    insecure: Annotated[bool, EVERY_PROGRAM] = Field(
        False,
        description="Whether a server may listen, and a client connect, on addresses other than loopback without TLS; "
        "the same as the option `--insecure`.",
    )
    refresh_s: float = Field(
        1.0,
        gt=0,
        le=60,
        description="Seconds between the server's checks for added and revoked clients, at most 60.",
    )
    open_health: bool = Field(True, description="Whether gRPC's health check answers unauthenticated callers.")
    open_reflection: bool = Field(False, description="Whether gRPC server reflection answers unauthenticated callers.")


class LimitsConfig(Section):
    """Resources that callers may use. docs/security.md describes the server's reaction to callers beyond a limit."""

    read_by = ("server",)

    message_bytes: int = Field(
        _CHUNK_BYTES + 128 * 1024,
        ge=_CHUNK_BYTES + 64 * 1024,
        lt=2**31,
        description="Largest gRPC message in bytes that the server accepts; at least a chunk of 2 MiB plus 64 KiB.",
    )
    window_bytes: int = Field(
        65_536,
        ge=65_536,
        lt=2**31,
        description="Bytes of a call that the server accepts before it reads them, at least 65,536. Larger windows "
        "speed up transfers over long distances.",
    )
    request_bytes: int = Field(
        2**20,
        ge=1024,
        description="Largest size in bytes of a request or of an update's header, at most `limits.message_bytes`.",
    )
    metadata_bytes: int = Field(
        8192, ge=1024, lt=2**31, description="Largest total size in bytes of a call's gRPC metadata, at least 1024."
    )
    connections: int = Field(
        2048, ge=1, lt=2**31, description="Largest number of open connections; further connections are closed at once."
    )
    handshake_s: float = Field(
        10.0,
        gt=0,
        le=86_400,
        description="Seconds within which a new connection must complete the gRPC handshake.",
    )
    connection_idle_s: float = Field(
        300.0, gt=0, le=86_400, description="Seconds after which a connection without a call is closed."
    )
    streams_per_connection: int = Field(
        100,
        ge=4,
        lt=2**31,
        description="Largest number of concurrent calls on one connection, at least 4; further calls wait in the "
        "client.",
    )
    requests_per_s: float = Field(
        20.0, gt=0, description="Calls per second that the server accepts from each client in the long run."
    )
    request_burst: int = Field(
        200, ge=1, description="Largest number of calls that a client may make at once after a quiet period."
    )
    refusals: int = Field(
        100,
        ge=1,
        description="Number of refused calls after which a connection is closed; refusals expire at the rate "
        "`limits.requests_per_s`.",
    )
    request_s: float = Field(
        10.0, gt=0, description="Seconds within which a call's request, or an update's header, must arrive."
    )
    half_open_calls: int = Field(
        32, ge=1, description="Largest number of calls, over all clients, whose request hasn't arrived yet."
    )
    uploads: int = Field(1024, ge=1, description="Largest number of concurrent uploads over all clients.")
    uploads_per_client: int = Field(4, ge=1, description="Largest number of concurrent uploads of one client.")
    upload_s: float = Field(1200.0, gt=0, description="Longest duration of one upload in seconds.")
    downloads: int = Field(
        64,
        ge=1,
        description="Largest number of concurrent downloads over all clients; further downloads wait. A download to a "
        "slow client takes 2 MiB of memory.",
    )
    downloads_per_client: int = Field(4, ge=1, description="Largest number of concurrent downloads of one client.")
    stall_s: float = Field(
        2.0,
        gt=0,
        description="Seconds after which a download that its client doesn't read yields to a waiting download.",
    )
    watches: int = Field(4096, ge=1, description="Largest number of concurrent event streams over all clients.")
    watches_per_client: int = Field(
        4, ge=1, description="Largest number of concurrent event streams of one client or observer."
    )
    observers: int = Field(64, ge=1, description="Largest number of concurrent event streams over all observers.")
    other_calls: int = Field(
        64, ge=1, description="Largest number of concurrent calls other than uploads, downloads and event streams."
    )

    @model_validator(mode="after")
    def _fits(self) -> LimitsConfig:
        if self.request_bytes > self.message_bytes:
            raise ValueError(f"`request_bytes` can't be more than `message_bytes` ({self.message_bytes})")
        return self
