"""The text of a client's configuration file, and of a task's section in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class NewTask:
    """A task as its section describes it."""

    name: str
    type: str
    text_columns: tuple[str, ...]
    label_column: str | None
    """None where rows have no label."""
    labels: tuple[str, ...]
    """In the order of their numbers; empty where the type has no classes."""
    metrics: tuple[str, ...]
    """The main one first; empty for the type's default."""
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class TaskFiles:
    """The files with one site's rows of a task."""

    train: str
    validation: str
    drop_labels: tuple[str, ...] = ()
    """The cells that stand for no label; their rows are left out."""


CREDENTIALS = {
    "tls_ca": ("ca.pem", "the CA of the server's certificate; it turns TLS on"),
    "tls_certificate": ("client.pem", "this client's certificate, for mutual TLS"),
    "tls_key": ("client.key", "the certificate's private key"),
    "token_file": ("client.token", "the token that `fedmtl-server clients add` gave for this client"),
}
"""The keys of a client's credentials, with an example and a meaning each."""


def client_file(
    client_id: str,
    server: str,
    tasks: Sequence[tuple[NewTask, TaskFiles]],
    *,
    shard: str = "",
    credentials: Mapping[str, Path] | None = None,
    insecure: bool = False,
    metrics_note: str = "",
) -> str:
    """A client's configuration file.

    Args:
        client_id: the client's name.
        server: `HOST:PORT`.
        tasks: its tasks, and where their rows are on the client's machine.
        shard: `K/N` if it uses a part of the rows.
        credentials: by key of `CREDENTIALS`; keys that aren't given are written as comments.
        insecure: whether it may connect to another machine without TLS.
        metrics_note: a comment on the metrics of each task.
    """
    given = credentials or {}
    names = [task.name for task, _ in tasks]
    lines = [
        f"# Configuration of the client {client_id}: its server, its tasks and its rows.",
        f"#   fedmtl-client doctor --config FILE --client-id {client_id}",
        f"#   fedmtl-client --config FILE --client-id {client_id}",
        "client:",
        f"  server: {flow(server)}",
        *(f"  {key}: {flow(str(given[key]))}" for key in CREDENTIALS if key in given),
        *(f"  # {key}: {example}  # {why}" for key, (example, why) in CREDENTIALS.items() if key not in given),
        *(["security:", "  insecure: true  # connect to another machine without TLS"] if insecure else []),
        "tasks:",
    ]
    for task, files in tasks:
        lines += [*task_lines(task, metrics_note), "    data:"]
        lines += [f"      train: {flow(files.train)}", f"      validation: {flow(files.validation)}"]
        if files.drop_labels:
            lines.append(f"      drop_labels: {flow(list(files.drop_labels))}  # leave out rows without a label")
    lines += ["clients:", *client_lines(client_id, names), *([f"    shard: {shard}"] if shard else [])]
    return "\n".join(lines) + "\n"


def client_lines(client_id: str, tasks: Sequence[str]) -> list[str]:
    """A client's entry in `clients`."""
    has = f"task: {flow(tasks[0])}" if len(tasks) == 1 else f"tasks: {flow(list(tasks))}"
    return [f"  - client_id: {flow(client_id)}", f"    {has}"]


def task_lines(task: NewTask, metrics_note: str = "") -> list[str]:
    """A task's section without its `data`, the same for the server and for clients."""
    lines = [f"  {flow(task.name)}:", f"    type: {flow(task.type)}"]
    if task.labels:
        lines.append(f"    labels: {flow(list(task.labels))}  # in the order of the head's outputs")
    lines.append(f"    text_columns: {flow(list(task.text_columns))}")
    if task.label_column is not None:
        lines.append(f"    label_column: {flow(task.label_column)}")
    if task.value_range is not None:
        lines.append(f"    value_range: {flow([_short(number) for number in task.value_range])}")
    if task.metrics:
        lines.append(f"    metrics: {flow(list(task.metrics))}" + (f"  # {metrics_note}" if metrics_note else ""))
    return lines


def flow(value: object) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _short(number: float) -> float | int:
    return int(number) if number.is_integer() else number
