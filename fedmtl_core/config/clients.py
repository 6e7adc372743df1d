"""Client settings: the sections `client` and `wire`, and the entries of `clients`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedmtl_core.config.section import (
    CLIENT_AND_LAUNCHER,
    EVERY_PROGRAM,
    SERVER_AND_CLIENT,
    UINT32,
    Section,
    require_each_once,
    require_identified,
)
from fedmtl_core.wire.formats import DEFAULT_DENSITY, ENCODINGS, Compression, Encoding

WHOLE = "1/1"
"""The shard that contains all rows."""

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""The address of a server that was started without a host and a port."""

ClientSelection = Literal["server", "round_robin", "random"]


class ClientConfig(Section):
    """A client's behavior on its own machine."""

    read_by = ("client",)

    tasks: list[str] | None = Field(
        None,
        description="Names of the tasks that the client has rows for. The option `--task` and the client's entry in "
        "`clients` take precedence; one of the three is required.",
    )
    selection: Annotated[ClientSelection, CLIENT_AND_LAUNCHER] = Field(
        "server",
        description="Choice of the round's task for a client with several tasks: `server` leaves it to "
        "`rounds.task_selection`, `round_robin` takes the client's tasks in turn, and `random` draws one.",
    )
    reconnect_s: float = Field(
        300.0, ge=0, description="Seconds for which a client keeps trying to reach an unavailable server."
    )
    num_threads: int | None = Field(
        None, ge=1, description="Number of threads that PyTorch uses in the client. If not given, PyTorch chooses."
    )
    server: str = Field(
        DEFAULT_ADDRESS,
        description="Address of the server as `HOST:PORT`. The option `--server` takes precedence.",
    )
    state_dir: Path | None = Field(
        None,
        description="Folder in which a client keeps its local parameters (`sharing`) across restarts. If not given, "
        "they are kept in memory only.",
    )
    fetch_base: bool = Field(
        False,
        description="Whether the client downloads the base of `model.adapters` from the server once, instead of "
        "loading the encoder's weights itself. Otherwise it compares its weights with the server's before the first "
        "round.",
    )
    token_file: Annotated[Path | None, CLIENT_AND_LAUNCHER] = Field(
        None,
        description="File with the client's token. If not given, the token comes from the environment variable "
        "FEDMTL_TOKEN.",
    )
    tls_ca: Annotated[Path | None, CLIENT_AND_LAUNCHER] = Field(
        None,
        description="CA of the server's certificate, a PEM file that turns TLS on. If not given, the client connects "
        "without TLS.",
    )
    tls_certificate: Annotated[Path | None, CLIENT_AND_LAUNCHER] = Field(
        None,
        description="Client certificate for mutual TLS, a PEM file; requires `client.tls_key` and `client.tls_ca`. If "
        "not given, the client presents no certificate.",
    )
    tls_key: Annotated[Path | None, CLIENT_AND_LAUNCHER] = Field(
        None,
        description="Private key of the client's certificate, a PEM file; required with `client.tls_certificate`.",
    )

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: list[str] | None) -> list[str] | None:
        return None if tasks is None else require_each_once(tasks)

    @field_validator("server")
    @classmethod
    def _valid_address(cls, server: str) -> str:
        return parse_address(server)


class WireConfig(Section):
    """Encodings of tensors on the network, which each client chooses for itself. docs/traffic.md compares them."""

    read_by = ("client",)

    upload: Encoding = Field(
        "float32",
        description=f"Encoding of the updates that a client sends: {', '.join(ENCODINGS)}. Only `float32` is exact.",
    )
    download: Encoding = Field(
        "float32",
        description=f"Encoding of the slices that a client receives: {', '.join(ENCODINGS)}. Only `float32` is exact.",
    )
    compression: Compression = Field(
        "none",
        description="Compression of uploaded and downloaded chunks: `none`, or `zstd` for the chunks that get smaller.",
    )
    topk_density: Annotated[float, SERVER_AND_CLIENT] = Field(
        DEFAULT_DENSITY,
        gt=0,
        le=0.5,
        description="Share of the elements that the encoding `topk` keeps, at most 0.5. A client's value applies to "
        "its uploads, the server's value to downloads.",
    )


class PartitionConfig(Section):
    """Parts of a task's training rows with different label distributions. Without it the parts are alike."""

    read_by = ("client",)

    dirichlet: float = Field(
        gt=0,
        description="Concentration, above 0, of the Dirichlet distribution that draws the label distribution of each "
        "part in `shard` (Hsu et al. 2019): the smaller, the fewer labels a part has. It applies to training rows "
        "only; a regression's scores count as five labels, by quintile.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=UINT32,
        description="Seed of the partition into parts. All clients of a task need the same seed for disjoint parts.",
    )


class LocalClient(Section):
    """One client. `fedmtl-local` starts it, and `fedmtl-client` with this id takes its own settings from the entry."""

    read_by = ("client", "launcher")

    client_id: Annotated[str, EVERY_PROGRAM] = Field(
        description="Id of the client, unique in the run: 1 to 64 letters, digits, `.`, `_` or `-`."
    )
    task: str | None = Field(
        None, description="Name of the task that the client has rows for; either `task` or `tasks` is required."
    )
    tasks: list[str] | None = Field(
        None,
        description="Names of the tasks that the client has rows for; either `task` or `tasks` is required. The client "
        "works on one of the tasks in each round.",
    )
    shard: str = Field(
        WHOLE,
        description="Rows that the client uses, as `K/N`: the K-th of N disjoint parts of each task's rows.",
    )
    partition: PartitionConfig | None = None
    config: Path | None = Field(
        None,
        description="Configuration file of this client, with its data and credentials. `fedmtl-local` starts the "
        "client with this file. If not given, the launcher's file applies.",
    )
    token_file: Path | None = Field(
        None, description="File with this client's token. If not given, `client.token_file` applies."
    )
    tls_certificate: Path | None = Field(
        None, description="Certificate of this client, a PEM file. If not given, `client.tls_certificate` applies."
    )
    tls_key: Path | None = Field(
        None,
        description="Private key of this client's certificate, a PEM file. If not given, `client.tls_key` applies.",
    )

    @field_validator("client_id")
    @classmethod
    def _identifier(cls, client_id: str) -> str:
        return require_identified(client_id)

    @field_validator("shard")
    @classmethod
    def _valid_shard(cls, shard: str) -> str:
        parse_shard(shard)
        return shard

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: list[str] | None) -> list[str] | None:
        return None if tasks is None else require_each_once(tasks)

    @model_validator(mode="after")
    def _has_a_task(self) -> LocalClient:
        if (self.task is None) == (self.tasks is None):
            raise ValueError(
                "expected `task`, or `tasks` for several, got " + ("neither" if self.task is None else "both")
            )
        for key, is_given in (("shard", self.shard != WHOLE), ("partition", self.partition is not None)):
            if self.config is not None and is_given:
                raise ValueError(f"`{key}` belongs in the client's own file, which `config` names: {self.config}")
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """The client's tasks, in the file's order."""
        return tuple(self.tasks) if self.tasks is not None else (self.task or "",)


def require_one_partition(task: str, clients: Sequence[LocalClient]) -> None:
    """Check that a task's clients cut their shards from the same partition, so that no two clients share rows.

    Raises:
        ValueError: two clients of the task differ in `partition` or in the N of `shard: K/N`.
    """
    if not any(client.partition for client in clients):
        return
    first = clients[0]
    for client in clients[1:]:
        if (client.partition, parse_shard(client.shard)[1]) != (first.partition, parse_shard(first.shard)[1]):
            raise ValueError(
                f"clients: all clients of {task!r} need the same `partition` and the same N in `shard: K/N`, or their "
                f"rows would overlap; {first.client_id!r} and {client.client_id!r} differ"
            )


def parse_shard(text: str) -> tuple[int, int]:
    """Return `K/N` as `(K, N)`, with 1 <= K <= N.

    Raises:
        ValueError: the text isn't such a shard.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"expected K/N with 1 <= K <= N, such as 1/2, got {text!r}")
    return int(match[1]), int(match[2])


def parse_address(text: str) -> str:
    """Return `HOST:PORT`, unchanged.

    Raises:
        ValueError: the text isn't an address with a port from 1 to 65535.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})", text)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise ValueError(f"expected HOST:PORT, such as 127.0.0.1:50051, got {text!r}")
    return text
