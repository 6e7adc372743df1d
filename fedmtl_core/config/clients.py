"""Clients: what is all of theirs, and what is one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from fedmtl_core.config.section import UINT32, Section, require_each_once, require_identified
from fedmtl_core.wire.formats import DEFAULT_DENSITY, ENCODINGS, Compression, Encoding

WHOLE = "1/1"
"""The shard that is all rows."""

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""The address of a server that was started without a host and a port."""

ClientSelection = Literal["server", "round_robin", "random"]


class ClientConfig(Section):
    """How a client behaves on its own machine."""

    tasks: list[str] | None = Field(
        None, description="The tasks it has rows for, where neither `--task` nor its entry in `clients` says"
    )
    selection: ClientSelection = Field(
        "server",
        description="With several tasks, who says which it has in a round: the `server` (`rounds.task_selection`), or "
        "the client itself, one after the other (`round_robin`) or at `random`",
    )
    server: str = Field(
        DEFAULT_ADDRESS, description="`HOST:PORT` of the server that the client connects to; `--server` overrides it"
    )
    reconnect_s: float = Field(300.0, ge=0, description="How long to try to reach a server that is away")
    num_threads: int | None = Field(None, ge=1, description="Threads PyTorch may use; its own choice if not given")
    state_dir: Path | None = Field(
        None,
        description="Folder for the parameters that a client keeps for itself (`sharing`), so that they outlast it; in "
        "memory alone if not given",
    )
    token_file: Path | None = Field(
        None, description="File with this client's token; the environment variable FEDMTL_TOKEN if not given"
    )
    tls_ca: Path | None = Field(None, description="The CA of the server's certificate, a PEM file; with it, TLS is on")
    tls_certificate: Path | None = Field(None, description="This client's certificate, for mutual TLS")
    tls_key: Path | None = Field(None, description="Its private key")

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: list[str] | None) -> list[str] | None:
        return None if tasks is None else require_each_once(tasks)

    @field_validator("server")
    @classmethod
    def _valid_address(cls, server: str) -> str:
        return parse_address(server)


class WireConfig(Section):
    """How tensors travel; a client's own choice, uploads and downloads apart. docs/wire.md has the encodings."""

    upload: Encoding = Field("float32", description=f"Encoding of updates: {', '.join(ENCODINGS)}")
    download: Encoding = Field("float32", description="Encoding of slices, likewise")
    compression: Compression = Field("none", description="`none`, or `zstd` for the chunks that it shrinks")
    topk_density: float = Field(
        DEFAULT_DENSITY,
        gt=0,
        le=0.5,
        description="Share of the elements that `topk` keeps, in what this side sends",
    )


class PartitionConfig(Section):
    """How the parts of a task's training rows differ in their labels, instead of not at all."""

    dirichlet: float = Field(
        gt=0,
        description="`shard` then takes parts of unequal label distributions, drawn from a Dirichlet distribution of "
        "this concentration (Hsu et al. 2019): the smaller, the fewer labels a part has. For training rows only; "
        "values count by the fifth of the rows that they lie in",
    )
    seed: int = Field(0, ge=0, le=UINT32, description="Its seed; a task's clients need the same for disjoint parts")


class LocalClient(Section):
    """One client: `fedmtl-local` starts it, and `fedmtl-client` with its id takes from here what isn't the others'."""

    client_id: str = Field(description="Its name")
    task: str | None = Field(None, description="Its task")
    tasks: list[str] | None = Field(None, description="Instead, if it has rows for several: its tasks")
    shard: str = Field(WHOLE, description="`K/N`: the K-th of N disjoint parts of the task's rows")
    partition: PartitionConfig | None = None
    config: Path | None = Field(
        None,
        description="The client's own configuration file, with its `data` and credentials. `fedmtl-local` starts the "
        "client with this file instead of the launcher's, and `fedmtl-client` asks for it",
    )
    token_file: Path | None = Field(None, description="Its token, instead of `client.token_file`")
    tls_certificate: Path | None = Field(None, description="Its certificate, instead of `client.tls_certificate`")
    tls_key: Path | None = Field(None, description="Its key, instead of `client.tls_key`")

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
        """Its tasks, one or several, in the file's order."""
        return tuple(self.tasks) if self.tasks is not None else (self.task or "",)


def require_one_partition(task: str, clients: Sequence[LocalClient]) -> None:
    """Check that a task's clients take their shards of the same parts, without which they'd share rows unawares."""
    if not any(client.partition for client in clients):
        return
    first = clients[0]
    for client in clients[1:]:
        if (client.partition, parse_shard(client.shard)[1]) != (first.partition, parse_shard(first.shard)[1]):
            raise ValueError(
                f"clients: those of {task!r} need the same `partition` and the same N in `shard: K/N`, or their rows "
                f"would overlap; {first.client_id!r} and {client.client_id!r} differ"
            )


def parse_shard(text: str) -> tuple[int, int]:
    """`K/N` as `(K, N)`, with 1 <= K <= N.

    Raises:
        ValueError: it is anything else.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"expected K/N with 1 <= K <= N, such as 1/2, got {text!r}")
    return int(match[1]), int(match[2])


def parse_address(text: str) -> str:
    """`HOST:PORT`, as it is.

    Raises:
        ValueError: it is anything else.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})", text)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise ValueError(f"expected HOST:PORT, such as 127.0.0.1:50051, got {text!r}")
    return text
