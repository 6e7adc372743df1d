"""Where the server listens, what it keeps, and whom it serves with how much."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from fedmtl_core.addresses import without_brackets
from fedmtl_core.config.section import Section

Durability = Literal["memory", "process", "power"]
Readers = Literal["owner", "group", "all"]

_CHUNK_BYTES = 2 * 2**20  # the most data in a chunk, as the contract says


class ServerConfig(Section):
    """Where the server listens and what it keeps."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 for any free one")
    runs_dir: Path = Field(Path("runs"), description="Each run gets a folder of its own in here")
    staging_memory_mb: int = Field(
        64,
        ge=0,
        description="Updates are staged in this many MiB of memory, two of them in any case; others wait, or lie in "
        "files in the run's folder",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of `/metrics` for Prometheus, 0 for any free one; no such port if not given",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address that `/metrics` listens on. It is plain HTTP, and asks nobody who they are"
    )

    @field_validator("host", "metrics_host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        return without_brackets(host)


class StoreConfig(Section):
    """What survives."""

    url: str | None = Field(
        None,
        description="Database of the run's history, such as `postgresql+psycopg://user@host/name`, its password best "
        "in `PGPASSWORD` or `~/.pgpass`; if not given, SQLite in the run's folder",
    )
    durability: Durability = Field(
        "power",
        description="What acknowledged updates and commits survive: the end of the `process`, a cut of `power`, or "
        "with `memory` neither: updates stay in memory, and the disk follows a round later",
    )
    readable_by: Readers = Field(
        "owner",
        description="Users of the machine who may read a new run's folder: its `owner` (mode 0700), the `group` too "
        "(0750), or `all` (0755). A folder that exists keeps its mode",
    )
    keep_checkpoints: int = Field(3, ge=1, description="Checkpoints kept, newest first, besides each task's best")


class TlsConfig(Section):
    """The server's side of TLS; a client's is in the section `client`. All files are PEM."""

    certificate: Path | None = Field(
        None, description="The server's certificate, followed by those between it and its CA; with `key`, TLS is on"
    )
    key: Path | None = Field(None, description="Its private key. Renewed files are taken up without a restart")
    client_ca: Path | None = Field(
        None, description="The CA of the clients' certificates; with it, nobody connects without one (mutual TLS)"
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
    """Who may take part. docs/security.md says what it protects from."""

    tls: TlsConfig = TlsConfig()
    authentication: bool | None = Field(
        None,
        description="Whether callers must be clients that `fedmtl-server clients` knows; if not given, they must with "
        "`tls.client_ca` and on any address but loopback, unless `insecure`",
    )
    insecure: bool = Field(
        False, description="Serve, or connect to, other addresses than loopback without TLS; `--insecure`"
    )
    refresh_s: float = Field(
        1.0, gt=0, le=60, description="How often the server looks for clients that were added or revoked"
    )
    open_health: bool = Field(True, description="Whether gRPC's health check answers callers that nobody knows")
    open_reflection: bool = Field(False, description="Whether gRPC's reflection does")


class LimitsConfig(Section):
    """What callers may have. docs/security.md says what becomes of those who want more."""

    message_bytes: int = Field(
        _CHUNK_BYTES + 128 * 1024,
        ge=_CHUNK_BYTES + 64 * 1024,
        lt=2**31,
        description="The largest message the server takes; it has to hold a chunk",
    )
    window_bytes: int = Field(
        65_536,
        ge=65_536,
        lt=2**31,
        description="What the server takes of a call that it doesn't read yet; more is faster over long distances",
    )
    request_bytes: int = Field(2**20, ge=1024, description="The largest request, or header of an update")
    metadata_bytes: int = Field(8192, ge=1024, lt=2**31, description="The most a call's gRPC metadata may take")
    connections: int = Field(2048, ge=1, lt=2**31, description="Connections in all; further ones are closed at once")
    handshake_s: float = Field(10.0, gt=0, le=86_400, description="A connection has so long to begin as gRPC's do")
    connection_idle_s: float = Field(
        300.0, gt=0, le=86_400, description="A connection without a call is closed after so long"
    )
    streams_per_connection: int = Field(
        100, ge=4, lt=2**31, description="Calls at once on one connection; a client's further ones wait on its own side"
    )
    requests_per_s: float = Field(20.0, gt=0, description="Calls a second for each client")
    request_burst: int = Field(200, ge=1, description="Calls at once, after a quiet time")
    refusals: int = Field(
        100, ge=1, description="Refusals after which a connection is closed; they are forgotten at `requests_per_s`"
    )
    request_s: float = Field(10.0, gt=0, description="A call's request, or an update's header, comes within so long")
    half_open_calls: int = Field(32, ge=1, description="Calls in all whose request isn't there yet")
    uploads: int = Field(1024, ge=1, description="Uploads at once in all")
    uploads_per_client: int = Field(4, ge=1, description="Uploads at once for each client")
    upload_s: float = Field(1200.0, gt=0, description="The longest one upload may take")
    downloads: int = Field(
        64, ge=1, description="Downloads at once in all; others wait. One takes 2 MiB while its client is slow"
    )
    downloads_per_client: int = Field(4, ge=1, description="Downloads at once for each client")
    stall_s: float = Field(
        2.0, gt=0, description="A download that nobody reads for so long gives way to one that waits"
    )
    watches: int = Field(4096, ge=1, description="Clients' event streams at once in all")
    watches_per_client: int = Field(4, ge=1, description="Event streams at once for each client, or observer")
    observers: int = Field(64, ge=1, description="Event streams of observers at once in all")
    other_calls: int = Field(64, ge=1, description="Other calls at once in all")

    @model_validator(mode="after")
    def _fits(self) -> LimitsConfig:
        if self.request_bytes > self.message_bytes:
            raise ValueError(f"`request_bytes` can't be more than `message_bytes` ({self.message_bytes})")
        return self
