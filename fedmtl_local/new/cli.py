"""`fedmtl-local new`: write the files of a new federation."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from fedmtl_client import proposals
from fedmtl_client.task_options import by_task
from fedmtl_core import logs
from fedmtl_core.config import DEFAULT_ADDRESS, parse_address
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.cli import EXIT_FAILURE, new_app
from fedmtl_core.runtime.doctor import Finding, Level
from fedmtl_local.new import options
from fedmtl_local.new.asked import asked_entries
from fedmtl_local.new.dry_run import local_tokenizer, most_positions
from fedmtl_local.new.entries import parse_entry
from fedmtl_local.new.examined import ExaminedTask, examine, read_source
from fedmtl_local.new.federation import FEDERATION_FILE, NewFederation, client_path
from fedmtl_local.new.questions import Questions
from fedmtl_local.new.readme import README_FILE, alternating
from fedmtl_local.new.writing import require_usable, write

new_federation_app = new_app()

_LEARNING_RATES = {options.PACKAGED_ENCODER: 2e-4, options.HUB_ENCODER: 2e-4, "builtin:toy": 2e-3}
_OTHER_LEARNING_RATE = 5e-5
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_CHARACTERS_PER_TOKEN = 3
"""An estimate for texts whose tokenizer isn't on this machine, rather low."""
_MOST_TOKENIZED = 1_000
_NO_LIMIT = 10**6
"""Tokenizers without a longest input name a larger number."""


@new_federation_app.command("new")
def create(
    folder: options.Folder,
    task: options.Tasks = None,
    text_columns: options.TextColumns = None,
    label_column: options.LabelColumn = None,
    type_: options.Types = None,
    labels: options.Labels = None,
    metrics: options.Metrics = None,
    encoder: options.Encoder = None,
    max_length: options.MaxLength = None,
    rounds: options.Rounds = 10,
    server: options.Server = None,
    yes: options.Yes = False,
) -> None:
    """Write the files of a new federation: the server's file, a file for each site, and a README of the commands.

    The command reads the rows and proposes the text columns, the label column, the type, the labels, the metrics and
    the longest input. At a terminal it asks about each of them; options answer in advance. A dry run then checks the
    rows with the files. DIR must be new or empty, and stays so if anything fails.

    Example: fedmtl-local new support --task tickets@desk=train.csv,dev.csv --task duplicates@archive=pairs.jsonl
    """
    logs.configure(level="critical")
    require_usable(folder)
    questions = Questions(asks=not yes and _is_terminal())
    sources = [read_source(one) for one in [parse_entry(text) for text in task or ()] or asked_entries(questions)]
    names = tuple(dict.fromkeys(source.entry.task for source in sources))
    given = {
        "--text-columns": by_task("--text-columns", text_columns or (), names),
        "--label-column": by_task("--label-column", label_column or (), names),
        "--type": by_task("--type", type_ or (), names),
        "--labels": by_task("--labels", labels or (), names),
        "--metrics": by_task("--metrics", metrics or (), names),
    }
    tasks = [
        examine(
            name,
            [source for source in sources if source.entry.task == name],
            {option: values[name] for option, values in given.items() if name in values},
            questions,
        )
        for name in names
    ]
    chosen = questions.find(
        "Encoder",
        _encoder,
        option="--encoder",
        given=encoder,
        proposed=_default_encoder(),
        check=local_tokenizer if questions.asks else lambda encoder: None,
    )
    question = "Address that clients connect to"
    address = questions.find(question, parse_address, option="--server", given=server, proposed=DEFAULT_ADDRESS)
    typer.echo("reading rows and encoder; it takes some seconds", err=True)
    tokenizer = local_tokenizer(chosen)
    rate = _LEARNING_RATES.get(chosen, _OTHER_LEARNING_RATE)
    planned = NewFederation(tasks, chosen, rate, max_length or _max_length(tasks, chosen, tokenizer), rounds, address)
    if not write(planned, folder.absolute(), tokenizer, _tell):
        advice = "Fix the rows, or set other values with options: see `fedmtl-local new --help`"
        typer.echo(f"the dry run failed; nothing was written. {advice}", err=True)
        raise typer.Exit(EXIT_FAILURE)
    _show_end(planned, folder, is_tokenized=tokenizer is not None)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _tell(found: Sequence[Finding]) -> None:
    """Show the number of rows of each check, the findings before it, and whatever isn't as it should be."""
    told: set[str] = set()
    shown: list[Finding] = []
    for one in found:
        if one.level is not Level.ok or one.check not in told:
            shown.append(one)
        if "using the columns" in one.found or one.check == "encoder":
            told.add(one.check)
    doctor.tell(shown, as_json=False)


def _encoder(text: str) -> str:
    """An encoder's name, such that the server finds it from any folder."""
    if ":" in text or text.startswith(("/", ".", "~")):
        return str(Path(text).absolute()) if ":" not in text and Path(text).is_dir() else text
    if text and Path(text).is_dir():
        return str(Path(text).absolute())
    if not _HUB_NAME.fullmatch(text):
        raise ValueError(
            f"expected a folder, python:PACKAGE/FOLDER, a name on the model hub or builtin:toy, got {text!r}"
        )
    return text


def _default_encoder() -> str:
    package = options.PACKAGED_ENCODER.removeprefix("python:").partition("/")[0]
    return options.PACKAGED_ENCODER if find_spec(package) is not None else options.HUB_ENCODER


def _max_length(tasks: Sequence[ExaminedTask], encoder: str, tokenizer: Any | None) -> int:
    """The longest input in tokens that is proposed for the rows of all tasks."""
    lengths: list[int] = []
    for one in tasks:
        rows = [
            row
            for source in one.sources
            for _, table in source.tables
            for row in zip(*(map(str, table.columns[column]) for column in one.task.text_columns), strict=True)
        ]
        sample = rows[:: max(1, len(rows) // _MOST_TOKENIZED)]
        if tokenizer is None:
            lengths += [sum(len(text) // _CHARACTERS_PER_TOKEN + 2 for text in row) for row in sample]
        else:
            encoded = tokenizer(*(list(column) for column in zip(*sample, strict=True)))
            lengths += [len(ids) for ids in encoded["input_ids"]]
    limits = [] if tokenizer is None else [tokenizer.model_max_length, most_positions(encoder)]
    known = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
    return proposals.propose_max_length(lengths, min(known, default=None))


def _show_end(planned: NewFederation, folder: Path, *, is_tokenized: bool) -> None:
    for one in planned.tasks:
        task = one.task
        label = f", label {task.label_column}" if task.label_column else ""
        names = f" ({', '.join(task.labels)})" if task.labels else ""
        typer.echo(f"{task.name}: {task.type}, text {' and '.join(task.text_columns)}{label}{names}")
    if planned.sites_of_several:
        typer.echo(alternating(planned))
    written = [FEDERATION_FILE, *map(client_path, planned.sites), README_FILE]
    written += ["data/ (copies of rows)"] if planned.has_split_rows else []
    typer.echo(f"wrote {', '.join(str(folder / name) for name in written)}")
    not_checked = "ports and the encoder's weights"
    if not is_tokenized:
        not_checked = f"ports, and the encoder {planned.encoder} with its tokenizer, which the first start downloads"
    tokens = ", and the tokens of the first rows" if is_tokenized else ""
    typer.echo(f"checked: files, columns, every label{tokens}; not checked: {not_checked}")
    typer.echo(f"next: cd {shlex.quote(str(folder))} && fedmtl-local --config {FEDERATION_FILE}")
