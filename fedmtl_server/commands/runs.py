"""`fedmtl-server runs`: lists and shows runs, read from their histories."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmtl_core.errors import UserError
from fedmtl_core.runtime.cli import new_app
from fedmtl_core.runtime.help_text import reflowed
from fedmtl_server.commands.last_metrics import last_metrics, last_metrics_text
from fedmtl_server.commands.printing import Table, bytes_text, json_text, print_json, time_text
from fedmtl_server.commands.round_shown import show_round
from fedmtl_server.commands.run_facts import summary, tasks_text, updates_by_round
from fedmtl_server.commands.runs_exported import csv_text, flat_round, flat_update
from fedmtl_server.commands.runs_shown import show_run
from fedmtl_server.commands.sharing_shown import show_sharing
from fedmtl_server.storage.missing import lacks_history, missing_history
from fedmtl_server.storage.paths import RUN_FILE
from fedmtl_server.storage.rollback import roll_back
from fedmtl_server.storage.runs import (
    Place,
    databases_of,
    find_run,
    num_bytes_in,
    opened,
    read_runs,
    remove_run,
    where_text,
    why_not_removed,
)

if TYPE_CHECKING:
    from fedmtl_server.storage.records import MetricRecord, RoundRecord, UpdateRecord

runs_app = new_app("List, show, export, roll back and remove runs.")

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of the run or a prefix of the id, or the path or name of its folder.")
]
RunsDir = Annotated[Path, typer.Option(help="Folder that contains the runs' folders, the server's server.runs_dir.")]
Url = Annotated[str | None, typer.Option(help="Database of the runs, the server's store.url; replaces --runs-dir.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class What(StrEnum):
    """The kind of records to export."""

    updates = "updates"
    rounds = "rounds"
    metrics = "metrics"


class Format(StrEnum):
    """The format of an export."""

    csv = "csv"
    json = "json"


@runs_app.command("list")
def list_runs(runs_dir: RunsDir = Path("runs"), url: Url = None, as_json: Json = False) -> None:
    """List the runs, newest first, with the latest metrics of their models."""
    for folder in sorted(path.parent for path in runs_dir.glob(f"*/{RUN_FILE}")) if url is None else ():
        if lacks_history(folder):
            typer.echo(f"warning: {missing_history(folder)}", err=True)
    rows = []
    for place in _places(databases_of(runs_dir, url)):
        with opened(place.database) as history:
            run_id = place.run.run_id
            rows.append((place, history.num_committed(run_id), last_metrics(place.run, history.metrics(run_id))))
    if as_json:
        print_json(
            [
                summary(place, done) | {"metrics": {task: asdict(one) for task, one in metrics.items()}}
                for place, done, metrics in rows
            ]
        )
    elif not rows:
        typer.echo(f"There are no runs in {where_text(runs_dir, url)}.")
    else:
        columns = ("run", "created", "state", "tasks", "rounds", "last metrics", "folder")
        table = Table("", *columns, wrapped=["last metrics"])
        for place, done, metrics in rows:
            run = place.run
            shown = last_metrics_text(metrics)
            rounds = f"{done}/{run.num_rounds}"
            tasks = tasks_text(run)
            state = place.state + (" (early stopping)" if place.stopped_early else "")
            table.add(run.run_id[:8], time_text(run.created_at_unix_ms), state, tasks, rounds, shown, place.folder)
        table.show()


@runs_app.command()
def show(
    run: RunName,
    round_: Annotated[int | None, typer.Option("--round", help="Show the whole report of this round only.")] = None,
    sharing: Annotated[
        bool, typer.Option("--sharing", help="Show which tasks share which layers and updates, and why.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show a run and its rounds, the whole report of one round, or the sharing of the run."""
    if sharing and round_ is not None:
        raise UserError(f"--sharing: expected no --round, because all rounds are shown, got --round {round_}")
    place = find_run(run, runs_dir, url)
    run_id = place.run.run_id
    with opened(place.database) as history:
        rounds, updates = history.rounds(run_id), history.updates(run_id)
    if sharing:
        show_sharing(place, rounds, as_json)
        return
    if round_ is None:
        show_run(place, rounds, updates, as_json)
        return
    record = next((one for one in rounds if one.round == round_), None)
    if record is None:
        numbers = f"rounds 0 to {rounds[-1].round}" if rounds else "no rounds"
        raise UserError(f"--round: run {run_id} has {numbers}, got {round_}")
    show_round(record, updates_by_round([record], updates)[round_], as_json)


@runs_app.command()
def export(
    run: RunName,
    what: Annotated[What, typer.Option(help="Records to write, one row each.")],
    format_: Annotated[Format, typer.Option("--format", help="Format of the records.")] = Format.csv,
    output: Annotated[Path | None, typer.Option(help="File to write. If not given, the records are printed.")] = None,
    runs_dir: RunsDir = Path("runs"),
    url: Url = None,
) -> None:
    """Write a run's updates, rounds or metrics as CSV or JSON."""
    place = find_run(run, runs_dir, url)
    run_id = place.run.run_id
    records: Sequence[UpdateRecord | RoundRecord | MetricRecord]
    with opened(place.database) as history:
        if what is What.updates:
            updates = records = history.updates(run_id)
            flat = [flat_update(one) for one in updates]
        elif what is What.rounds:
            rounds = records = history.rounds(run_id)
            by_round = updates_by_round(rounds, history.updates(run_id))
            flat = [flat_round(one, by_round[one.round]) for one in rounds]
        else:
            records = history.metrics(run_id)
            flat = [asdict(one) for one in records]
    if format_ is Format.json:
        text = json_text([{"run_id": run_id} | asdict(one) for one in records])
    else:
        text = csv_text([{"run_id": run_id} | row for row in flat])
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output: can't write {output}: {error.strerror or error}") from None
    typer.echo(f"{len(records)} {what.value} written to {output}", err=True)


@runs_app.command()
@reflowed
def rollback(
    run: RunName,
    to_round: Annotated[
        int, typer.Option(min=0, metavar="N", help="Round whose model becomes current again; 0 is the initial model.")
    ],
    runs_dir: RunsDir = Path("runs"),
    url: Url = None,
) -> None:
    """Roll a run back to an earlier round whose checkpoint is kept. No server may be serving the run.

    Model, optimizer state, control variates and shared layers return to their values after that round. A server that
    resumes the run repeats the later rounds.
    """
    place = find_run(run, runs_dir, url)
    rounds = roll_back(place, to_round)
    typer.echo(
        f"run {place.run.run_id} is at round {to_round} again; taken back: round{'s' * (len(rounds) > 1)} "
        f"{', '.join(map(str, rounds))}. Resume it with: fedmtl-server --resume {place.folder}"
    )


@runs_app.command()
def prune(
    keep: Annotated[int | None, typer.Option(min=0, help="Number of newest runs to keep.")] = None,
    older_than: Annotated[
        float | None,
        typer.Option(min=0, metavar="DAYS", help="Remove only runs that began more than this many days ago."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove the runs. Without it, the runs that would be removed are listed.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    url: Url = None,
) -> None:
    """Remove the folders and database records of old runs that no server is serving."""
    if keep is None and older_than is None:
        raise UserError("expected --keep N (removes all but the N newest runs), --older-than DAYS, or both")
    old = _places(databases_of(runs_dir, url))[keep or 0 :]
    if older_than is not None:
        latest_ms = time.time() * 1000 - older_than * 86_400_000
        old = [place for place in old if place.run.created_at_unix_ms < latest_ms]
    if not old:
        typer.echo(f"There is nothing to remove in {where_text(runs_dir, url)}.")
    removed = 0
    for place in old:
        run = place.run
        title = f"run {run.run_id[:8]} of {time_text(run.created_at_unix_ms)} ({place.state}), {place.folder}"
        if reason := why_not_removed(place):
            typer.echo(f"kept: {title}: {reason}")
            continue
        removed += 1
        size = bytes_text(num_bytes_in(place.folder))
        if yes:
            remove_run(place)
        typer.echo(f"{'removed' if yes else 'would remove'}: {title}, {size}")
    if removed and not yes:
        typer.echo("Nothing was removed. Add --yes to remove these runs.")


def _places(databases: Iterable[str | Path]) -> list[Place]:
    """Return the runs of some databases, newest first, with a warning for each file that can't be read."""
    places, unreadable = read_runs(databases)
    for error in unreadable.values():
        typer.echo(f"warning: {error}", err=True)
    return places
