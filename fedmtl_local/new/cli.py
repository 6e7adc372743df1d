"""`fedmtl-local new`: write the files of a new federation."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from fedmtl_client.task_options import LabelColumn, TextColumns, by_task
from fedmtl_core import logs
from fedmtl_core.config import DEFAULT_ADDRESS, parse_address
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.cli import EXIT_FAILURE, new_app
from fedmtl_core.runtime.doctor import Finding, Level
from fedmtl_core.runtime.help_text import reflowed
from fedmtl_local.new import options
from fedmtl_local.new.asked import asked_entries
from fedmtl_local.new.dry_run import local_tokenizer
from fedmtl_local.new.encoder import find_encoder, learning_rate, propose_max_length
from fedmtl_local.new.entries import parse_entry
from fedmtl_local.new.examined import examine, read_source
from fedmtl_local.new.federation import FEDERATION_FILE, NewFederation, client_path
from fedmtl_local.new.questions import Questions
from fedmtl_local.new.readme import README_FILE, alternating
from fedmtl_local.new.writing import require_usable, write

new_federation_app = new_app()


@new_federation_app.command("new")
@reflowed
def create(
    folder: options.Folder,
    task: options.Tasks = None,
    text_columns: TextColumns = None,
    label_column: LabelColumn = None,
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
    chosen = find_encoder(questions, encoder)
    question = "Address that clients connect to"
    address = questions.find(question, parse_address, option="--server", given=server, proposed=DEFAULT_ADDRESS)
    typer.echo("reading rows and encoder; it takes some seconds", err=True)
    tokenizer = local_tokenizer(chosen)
    length = max_length or propose_max_length(tasks, chosen, tokenizer)
    planned = NewFederation(tasks, chosen, learning_rate(chosen), length, rounds, address)
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
