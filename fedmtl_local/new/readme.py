"""The README of a new federation: its commands and its settings."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path

from fedmtl_core.addresses import host_of, is_loopback
from fedmtl_local.new.federation import FEDERATION_FILE, NewFederation, client_path

README_FILE = "README.md"

_WITHOUT_CREDENTIALS = ", and at `credentials` until its file names them (see below)"

_ENCODERS = (
    "Another encoder is a folder, `python:PACKAGE/FOLDER` for a folder in an installed package, or a name on the model "
    "hub, which is downloaded when the server starts. Clients take the architecture and the tokenizer from the same "
    "place. `builtin:toy` knows the words of FedMTL's demo alone. `model.pooling: mean` suits most encoders; causal "
    "models need `last`."
)

_SHARING = (
    "With `sharing: auto`, each task has its own encoder, and takes other tasks' updates where its clients' "
    "evaluations improve. `sharing: plain` averages one encoder over all tasks. "
    "A federation of one task is the same with both."
)


def readme(new: NewFederation, folder: Path) -> str:
    """The page, for a folder's final place."""
    first = new.tasks[0].task.name
    here = is_loopback(host_of(new.server))
    blocks = [
        f"# {folder.name}",
        _text("Written by `fedmtl-local new`. Run the commands in this folder:"),
        _console(f"cd {shlex.quote(str(folder))}"),
        *_overview(new),
        "## Check",
        _text(
            "`doctor` checks versions, configuration, rows and the encoder, and starts nothing. While no server runs, "
            f"a client's `doctor` reports a failure at `server`{'' if here else _WITHOUT_CREDENTIALS}."
        ),
        _console(f"fedmtl-server doctor --config {FEDERATION_FILE}", *(_client("doctor ", site) for site in new.sites)),
        "## Run everything on this machine",
        _console(f"fedmtl-local --config {FEDERATION_FILE} --run-dir runs/first"),
        "## Run server and clients separately",
        *_separately(new),
        "## Resume a run",
        _text(
            "A run that was stopped before its end can be resumed: with the first command if `fedmtl-local` started "
            "it, with the second if `fedmtl-server` did."
        ),
        _console(f"fedmtl-local --config {FEDERATION_FILE} --run-dir runs/first", "fedmtl-server --resume runs/second"),
        "## Export the model",
        _console(f"fedmtl-server export --task {first} {first}-model --run-dir runs/first"),
        "## Settings",
        _text(f"The encoder is `{new.encoder}` (`model.server_model`). {_ENCODERS}"),
        _text(_SHARING),
        _text(
            f"The run has {new.num_rounds} rounds (`training.num_rounds`). In each round a client trains one epoch. "
            f"Texts are cut at {new.max_length} tokens (`training.max_length`). "
            "`fedmtl-server --help-config` lists every key. Settings that a client reads (`client`, `wire`, "
            "`training.device`) belong in its own file."
        ),
    ]
    return "\n\n".join(blocks) + "\n"


def _overview(new: NewFederation) -> list[str]:
    tasks = ["| task | type | text | label | metrics |", "| --- | --- | --- | --- | --- |"]
    for one in new.tasks:
        task = one.task
        label = f"`{task.label_column}`" if task.label_column else "none"
        label += f": {', '.join(task.labels)}" if task.labels else ""
        texts = ", ".join(f"`{column}`" for column in task.text_columns)
        tasks.append(f"| {task.name} | {task.type} | {texts} | {label} | {', '.join(task.metrics)} |")
    files = ["| file | what it is |", "| --- | --- |"]
    files.append(f"| `{FEDERATION_FILE}` | configuration of the server and of `fedmtl-local` |")
    files += [
        f"| `{client_path(site)}` | configuration of the client {site}, which has {', '.join(new.tasks_of(site))} |"
        for site in new.sites
    ]
    notes = [
        "Labels are in the order of the outputs of the task's head. The order must be the same in all files. Paths in "
        "the files are absolute: the commands also work in other folders, with the full paths of the files."
    ]
    if new.has_split_rows:
        notes.append(
            "`data` has copies of rows. About a fifth of the rows of each task that had one file became evaluation "
            "rows. Rows with the same text are either all training rows or all evaluation rows."
        )
    return ["\n".join(tasks), "\n".join(files), *map(_text, notes)]


def _separately(new: NewFederation) -> list[str]:
    here = is_loopback(host_of(new.server))
    host = "" if here else " --host 0.0.0.0"
    return [
        *([] if here else _credentials(new)),
        _console(
            f"fedmtl-server --config {FEDERATION_FILE} --run-dir runs/second{host}",
            *(_client("", site) for site in new.sites),
        ),
        _text(
            f"Clients connect to {new.server} (`client.server`). {_waiting(new)} A site on another machine needs its "
            "file in `clients`, with the paths of its rows there."
        ),
    ]


def _credentials(new: NewFederation) -> list[str]:
    """What server and clients need before they connect between machines."""
    certs = " ".join(["fedmtl-server certs init certs", *(f"--client {site}" for site in new.sites)])
    commands = [f"{certs} --host {host_of(new.server)}"]
    for site in new.sites:
        tasks = " ".join(f"--task {task}" for task in new.tasks_of(site))
        commands.append(f"fedmtl-server clients add {site} --config {FEDERATION_FILE} {tasks} --certificate")
    return [
        _text(
            "Connections between machines need TLS, and the server only admits clients that it knows. These commands "
            "make certificates for trials and add the clients:"
        ),
        _console(*commands),
        _text(
            f"Then uncomment `security.tls` in `{FEDERATION_FILE}`. In each client's file, uncomment `tls_ca` "
            "(`certs/ca.pem`), `tls_certificate` (`certs/clients/SITE.pem`) and `tls_key` (`certs/clients/SITE.key`). "
            "FedMTL's docs/security.md describes these files, and tokens instead of certificates."
        ),
    ]


def _waiting(new: NewFederation) -> str:
    """Say how many clients a round waits for."""
    if not new.sites_of_several:
        return "A round waits for all sites of a task (`min_clients`)."
    return (
        f"{alternating(new)} A round waits for `min_clients` clients of each task, at least those that train no other "
        "task."
    )


def alternating(new: NewFederation) -> str:
    """Say which sites train their tasks in turn; empty if none does."""
    sites = new.sites_of_several
    if not sites:
        return ""
    has = f"The site {sites[0]} has" if len(sites) == 1 else f"The sites {', '.join(sites)} have"
    return f"{has} several tasks: a client trains one task per round, in turn."


def _client(command: str, site: str) -> str:
    return f"fedmtl-client {command}--config {client_path(site)} --client-id {site}"


def _console(*commands: str) -> str:
    return "\n".join(["```console", *(f"$ {command}" for command in commands), "```"])


def _text(text: str) -> str:
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)
