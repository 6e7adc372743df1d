"""`fedmtl-server runs`: what runs there are and what became of them, read from their histories."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmtl_core.errors import ConfigError, StoreError, UserError
from fedmtl_core.identifiers import name_task
from fedmtl_core.scopes import SHARED, group_of, task_of
from fedmtl_core.sharing import blocks_text
from fedmtl_server.lock import FILE_NAME as _LOCK
from fedmtl_server.lock import is_held

if TYPE_CHECKING:
    from rich.text import Text

    from fedmtl_server.history import History, MetricRecord, RoundRecord, RunRecord, UpdateRecord

runs_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="List, show, export and remove runs.",
)

_HISTORY = "history.sqlite"
_BEGINNING = "beginning.json"
_ID_FILES = ("run.json", _BEGINNING, "server.json")
"""Say whose folder it is."""
_LONG = ("last metrics", "became", "received model", "trained models", "reason")
"""Columns that take several lines where a table is too wide."""
_LEAST = 24
"""Width that these keep."""
_WIDTH = 160
"""Columns of a table that isn't for a terminal."""

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id or the beginning of it, or its folder's path or name.")
]
RunsDir = Annotated[Path, typer.Option(help="The folder of the runs' folders; server.runs_dir.")]
Url = Annotated[str | None, typer.Option(help="The database that holds the runs, instead of --runs-dir; store.url.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class What(StrEnum):
    """What there is to export."""

    updates = "updates"
    rounds = "rounds"
    metrics = "metrics"


class Format(StrEnum):
    """How it is written."""

    csv = "csv"
    json = "json"


@dataclass(frozen=True)
class Place:
    """A run, and where it is."""

    database: str | Path
    run: RunRecord
    folder: Path
    num_others: int
    """How many other runs its database holds."""
    last_training_round: int | None = None
    """After which its training ended."""

    @property
    def state(self) -> str:
        """`finished`, `running`, or where no server has it: `stopped`, or `never began` and can't be taken up."""
        if self.run.state == "finished":
            return "finished"
        if is_held(self.folder):
            return "running"
        return "never began" if (self.folder / _BEGINNING).is_file() else "stopped"

    @property
    def stopped_early(self) -> bool:
        """Whether its training ended before its last round: no watched metric got better (`early_stopping`)."""
        return self.last_training_round is not None and self.last_training_round < self.run.num_rounds


@runs_app.command("list")
def list_runs(runs_dir: RunsDir = Path("runs"), url: Url = None, as_json: Json = False) -> None:
    """List the runs, the newest first, with the last metrics of their models."""
    rows = []
    for place in _places(_databases(runs_dir, url)):
        with _opened(place.database) as history:
            run_id = place.run.run_id
            rows.append((place, history.num_committed(run_id), _last_metrics(place.run, history.metrics(run_id))))
    if as_json:
        _print_json([_summary(place, done) | {"metrics": metrics} for place, done, metrics in rows])
    elif not rows:
        typer.echo(f"There are no runs in {_where(runs_dir, url)}.")
    else:
        table = _Table("", "run", "created", "state", "tasks", "rounds", "last metrics", "folder")
        for place, done, metrics in rows:
            run = place.run
            shown = ", ".join(f"{task} {one['metric']} {one['value']:.3f}" for task, one in metrics.items())
            rounds = f"{done}/{run.num_rounds}"
            tasks = _tasks_text(run)
            state = place.state + (" (early stopping)" if place.stopped_early else "")
            table.add(run.run_id[:8], _time(run.created_at_unix_ms), state, tasks, rounds, shown, place.folder)
        table.show()


@runs_app.command()
def show(
    run: RunName,
    round_: Annotated[int | None, typer.Option("--round", help="This round alone, and all of it.")] = None,
    runs_dir: RunsDir = Path("runs"),
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show a run and its rounds, or one round's whole report."""
    place = find_run(run, runs_dir, url)
    run_id = place.run.run_id
    with _opened(place.database) as history:
        rounds, updates = history.rounds(run_id), history.updates(run_id)
    if round_ is None:
        _show_run(place, rounds, updates, as_json)
        return
    record = next((one for one in rounds if one.round == round_), None)
    if record is None:
        numbers = f"rounds 0 to {rounds[-1].round}" if rounds else "no rounds"
        raise UserError(f"--round: run {run_id} has {numbers}, got {round_}")
    _show_round(record, _updates_by_round([record], updates)[round_], as_json)


@runs_app.command()
def export(
    run: RunName,
    what: Annotated[What, typer.Option(help="What to write, one row for each.")],
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.csv,
    output: Annotated[Path | None, typer.Option(help="The file to write; standard output if not given.")] = None,
    runs_dir: RunsDir = Path("runs"),
    url: Url = None,
) -> None:
    """Write a run's updates, rounds or metrics as CSV or JSON."""
    place = find_run(run, runs_dir, url)
    run_id = place.run.run_id
    records: Sequence[UpdateRecord | RoundRecord | MetricRecord]
    with _opened(place.database) as history:
        if what is What.updates:
            updates = records = history.updates(run_id)
            flat = [_flat_update(one) for one in updates]
        elif what is What.rounds:
            rounds = records = history.rounds(run_id)
            by_round = _updates_by_round(rounds, history.updates(run_id))
            flat = [_flat_round(one, by_round[one.round]) for one in rounds]
        else:
            records = history.metrics(run_id)
            flat = [asdict(one) for one in records]
    if format_ is Format.json:
        text = _json_text([{"run_id": run_id} | asdict(one) for one in records])
    else:
        text = _csv_text([{"run_id": run_id} | row for row in flat])
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output: can't write {output}: {error.strerror or error}") from None
    typer.echo(f"{len(records)} {what.value} written to {output}", err=True)


@runs_app.command()
def prune(
    keep: Annotated[int | None, typer.Option(min=0, help="Keep this many of the newest runs.")] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Only runs that began more than this many days ago.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them, instead of saying what would be removed.")] = False,
    runs_dir: RunsDir = Path("runs"),
    url: Url = None,
) -> None:
    """Remove old runs that no server has: their folders, and what the database knows of them."""
    if keep is None and older_than is None:
        raise UserError("say which runs may go: --keep N for all but the newest, --older-than DAYS, or both")
    old = _places(_databases(runs_dir, url))[keep or 0 :]
    if older_than is not None:
        latest_ms = time.time() * 1000 - older_than * 86_400_000
        old = [place for place in old if place.run.created_at_unix_ms < latest_ms]
    if not old:
        typer.echo(f"There is nothing to remove in {_where(runs_dir, url)}.")
    removed = 0
    for place in old:
        title = f"run {place.run.run_id[:8]} of {_time(place.run.created_at_unix_ms)} ({place.state}), {place.folder}"
        if reason := _why_not(place):
            typer.echo(f"left alone: {title}: {reason}")
            continue
        removed += 1
        size = _bytes(_size(place.folder))
        if yes:
            _remove(place)
        typer.echo(f"{'removed' if yes else 'would remove'}: {title}, {size}")
    if removed and not yes:
        typer.echo("Nothing was removed; --yes does it.")


# Which runs there are.


def _databases(runs_dir: Path, url: str | None) -> list[str | Path]:
    if url is not None:
        return [url]
    if not runs_dir.is_dir():
        raise UserError(f"{runs_dir}: there is no such folder; say where the runs are with --runs-dir or --url")
    return sorted(runs_dir.glob(f"*/{_HISTORY}"))


def _where(runs_dir: Path, url: str | None) -> str:
    return str(runs_dir) if url is None else "the database"


@contextlib.contextmanager
def _opened(database: str | Path) -> Iterator[History]:
    from fedmtl_server.history import History

    with contextlib.closing(History.open(database, create=False)) as history:
        yield history


def _places(databases: Iterable[str | Path]) -> list[Place]:
    """The runs of some databases, the newest first. A file that can't be read is a warning: others may be."""
    places, unreadable = _read(databases)
    for error in unreadable.values():
        typer.echo(f"warning: {error}", err=True)
    return places


def _read(databases: Iterable[str | Path]) -> tuple[list[Place], dict[Path, StoreError]]:
    """The runs of some databases, the newest first, and what is wrong with the files that can't be read."""
    places, unreadable = [], {}
    for database in databases:
        try:
            with _opened(database) as history:
                runs = history.runs()
                last = {run.run_id: history.last_training_round(run.run_id) for run in runs}
        except StoreError as error:
            if isinstance(database, str):
                raise
            unreadable[database] = error
            continue
        for run in runs:
            folder = database.parent if isinstance(database, Path) else Path(run.run_dir)
            places.append(Place(database, run, folder, len(runs) - 1, last[run.run_id]))
    return sorted(places, key=lambda place: place.run.created_at_unix_ms, reverse=True), unreadable


def find_run(name: str, runs_dir: Path, url: str | None) -> Place:
    """The run that a person means.

    Raises:
        UserError: it is none, or could be several.
        StoreError: its history can't be read.
    """
    here = Path(name) / _HISTORY
    places, unreadable = _read([here] if url is None and here.is_file() else _databases(runs_dir, url))
    rules: tuple[Callable[[Place], bool], ...] = (
        lambda place: place.run.run_id == name,
        lambda place: place.folder.name == name or place.folder.resolve() == Path(name).resolve(),
        lambda place: place.run.run_id.startswith(name),
    )
    for rule in rules:
        found = [place for place in places if name and rule(place)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"RUN: {name!r} could be any of {_named(found)}")
    for path, error in unreadable.items():
        if path == here or path.parent.name == name:
            raise error
    there = f"there are {_named(places)}" if places else "there are no runs"
    if unreadable:
        there = f"{there} that can be read; {'; '.join(map(str, unreadable.values()))}"
    raise UserError(f"RUN: no run {name!r} in {_where(runs_dir, url)}; {there}")


def _named(places: Sequence[Place]) -> str:
    return ", ".join(f"{place.run.run_id} ({place.folder.name})" for place in places)


# A run.


def _show_run(place: Place, rounds: Sequence[RoundRecord], updates: Sequence[UpdateRecord], as_json: bool) -> None:
    run = place.run
    done = sum(one.outcome == "committed" and one.purpose == "train" and one.round > 0 for one in rounds)
    by_round = _updates_by_round(rounds, updates)
    if as_json:
        run_facts = _summary(place, done) | {"config": _shown_config(run)}
        _print_json({"run": run_facts, "rounds": [_round_facts(one, by_round[one.round]) for one in rounds]})
        return
    finished = f", finished {_time(run.finished_at_unix_ms)}" if run.finished_at_unix_ms is not None else ""
    _print_facts(
        run=run.run_id,
        state=f"{place.state}, {done} of {run.num_rounds} rounds{_why_early(place)}",
        created=_time(run.created_at_unix_ms) + finished,
        model=run.base_model,
        tasks=_tasks_text(run),
        folder=place.folder,
    )
    if len(rounds) < 2:
        typer.echo("No round has opened yet.")
        return
    main = _main_metrics(run)
    columns = ["round", "outcome", "opened", "seconds", "counted", "refused", "missing", "in", "out"]
    table = _Table(
        "Metrics are of the model that the round began with; beside them, each task's share of the encoder",
        *columns,
        *(f"{name_task(task, auxiliary=task in _auxiliary(run))}\n{main.get(task, '')}" for task in run.tasks),
    )
    for one in rounds[1:]:
        facts = _round_facts(one, by_round[one.round])
        report = one.report or {}
        tasks = {task["task"]: task for task in report.get("tasks", ())}
        table.add(
            f"{one.round}{' (evaluation)' if one.purpose == 'evaluate' else ''}",
            one.outcome.replace("_", " "),
            _time(one.opened_at_unix_ms),
            f"{report['duration_s']:.1f}" if report else "-",
            f"{facts['num_counted']} of {len(one.cohort)}",
            facts["num_refused"],
            len(report["missing_clients"]) if report else "-",
            _bytes(report["bytes_received"]) if report else "-",
            _bytes(report["bytes_sent"]) if report else "-",
            *(_metric_and_share(main.get(task), tasks.get(task, {})) for task in run.tasks),
        )
    table.show()


def _why_early(place: Place) -> str:
    """Why a run's training ended before its last round, if it did."""
    if not place.stopped_early:
        return ""
    patience = (place.run.config.get("early_stopping") or {}).get("patience")
    return f": early stopping after round {place.last_training_round}, no better for {patience} rounds"


def _metric_and_share(name: str | None, task: Mapping[str, Any]) -> str:
    """A task's main metric in one round, its first where the main one isn't known; and its share of the encoder."""
    values = task.get("received_metrics", {})
    value = values.get(name) if name else next(iter(values.values()), None)
    share = task.get("encoder_share", 0.0)
    return ("-" if value is None else f"{value:.3f}") + (f" {share:.0%}" if share else "")


def _auxiliary(run: RunRecord) -> set[str]:
    """The run's auxiliary tasks."""
    return {task for task, section in (run.config.get("tasks") or {}).items() if section.get("auxiliary")}


def _tasks_text(run: RunRecord) -> str:
    return ", ".join(name_task(task, auxiliary=task in _auxiliary(run)) for task in run.tasks)


def _main_metrics(run: RunRecord) -> dict[str, str]:
    """Main metric by task, as the run's configuration has it."""
    from fedmtl_core.config import Config

    try:
        config = Config.model_validate(_given(run.config))
        return {spec.name: spec.main_metric for spec in config.task_specs()}
    except (ValueError, ConfigError):  # another FedMTL's
        return {}


def _shown_config(run: RunRecord) -> dict[str, Any]:
    """A run's configuration, without a password that is in it."""
    from fedmtl_server.history import without_password

    store = run.config.get("store") or {}
    if not store.get("url"):
        return dict(run.config)
    return {**run.config, "store": {**store, "url": without_password(store["url"])}}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the keys that it leaves open."""
    return {
        key: _given(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def _last_metrics(run: RunRecord, metrics: Sequence[MetricRecord]) -> dict[str, dict[str, Any]]:
    """By task, the main metric of the newest model that the task's clients measured."""
    main, last = _main_metrics(run), {}
    for task in run.tasks:
        mine = [one for one in metrics if one.task == task and one.name == main.get(task, one.name)]
        newest = max(mine, key=lambda one: one.round, default=None)
        if newest is not None:
            last[task] = {"metric": newest.name, "value": newest.value, "round": newest.round}
    return last


def _summary(place: Place, rounds_done: int) -> dict[str, Any]:
    run = place.run
    return {
        "run_id": run.run_id,
        "state": place.state,
        "created_at_unix_ms": run.created_at_unix_ms,
        "finished_at_unix_ms": run.finished_at_unix_ms,
        "base_model": run.base_model,
        "tasks": list(run.tasks),
        "auxiliary_tasks": [task for task in run.tasks if task in _auxiliary(run)],
        "rounds_done": rounds_done,
        "num_rounds": run.num_rounds,
        "stopped_early": place.stopped_early,
        "folder": str(place.folder),
    }


# A round.


def _updates_by_round(records: Sequence[RoundRecord], updates: Iterable[UpdateRecord]) -> dict[int, list[UpdateRecord]]:
    """Each round's updates, without those of an earlier play of it that was rolled back."""
    by_round: dict[int, list[UpdateRecord]] = {record.round: [] for record in records}
    rolled_back = {record.round for record in records if record.outcome == "rolled_back"}
    for one in updates:
        if one.round in by_round and (one.outcome != "rolled_back" or one.round in rolled_back):
            by_round[one.round].append(one)
    return by_round


def _round_facts(record: RoundRecord, updates: Sequence[UpdateRecord]) -> dict[str, Any]:
    outcomes = Counter(one.outcome for one in updates)
    num_refused = record.report["num_refused"] if record.report else outcomes["refused"]
    return asdict(record) | {"num_counted": outcomes["counted"], "num_refused": num_refused}


def _show_round(record: RoundRecord, updates: Sequence[UpdateRecord], as_json: bool) -> None:
    if as_json:
        _print_json({"round": _round_facts(record, updates), "updates": [asdict(one) for one in updates]})
        return
    report = record.report
    seconds = f", {report['duration_s']:.1f} s" if report else ""
    _print_facts(
        run=record.run_id,
        round=f"{record.round}, to {record.purpose}" if record.round else "0, the model before the first round",
        outcome=record.outcome.replace("_", " "),
        opened=_time(record.opened_at_unix_ms) + seconds,
        cohort=", ".join(f"{client} ({task})" for client, task in record.cohort.items()) or "nobody",
    )
    if report is None:
        if record.round:
            typer.echo("It has no report: it hasn't ended.")
        return
    _print_facts(
        bytes=f"{_bytes(report['bytes_received'])} in, {_bytes(report['bytes_sent'])} out",
        missing=", ".join(report["missing_clients"]) or "nobody",
        unchanged=", ".join(f"head {task}" for task in report["unchanged_tasks"]) or "no head",
        **_moves(report),
    )
    _tasks_table(report).show()
    _updates_table(report, updates).show()
    _refusals_table(report).show()


def _moves(report: Mapping[str, Any]) -> dict[str, str]:
    """Which layers moved, from whom to whom; older reports don't say."""
    moved = report.get("moved") or {}
    texts = (f"{part}: {blocks_text(old)} to {blocks_text(report['sharing'][part])}" for part, old in moved.items())
    return {"moved": "; ".join(texts)} if moved else {}


def _tasks_table(report: Mapping[str, Any]) -> _Table:
    table = _Table("Tasks", "task", "updates", "examples", "encoder share", "received model", "trained models")
    for task in report["tasks"]:
        metrics = (_metrics_text(task["received_metrics"]), _metrics_text(task["trained_metrics"]))
        share = f"{task['encoder_share']:.1%}"
        weight = task.get("auxiliary_weight")  # older reports don't say
        name = task["task"] if weight is None else f"{task['task']} (auxiliary, {weight:.3g} an example)"
        table.add(name, task["num_updates"], task["num_examples"], share, *metrics)
    return table


def _updates_table(report: Mapping[str, Any], updates: Sequence[UpdateRecord]) -> _Table:
    """Who sent what became of it, and with what weight it counts in which component."""
    weights: dict[str, dict[str, float]] = {}
    for component in report["components"]:
        for part in component["contributions"]:
            weights.setdefault(part["client_id"], {})[component["scope"]] = part["weight"]
    norms = {part["client_id"]: _norm_text(part) for part in _encoder_parts(report)}
    of_the_encoder = ("weight in the encoder", "norm there")
    has_groups = any(group_of(component["scope"]) for component in report["components"])
    elsewhere = "in its groups and heads" if has_groups else "in its heads"
    table = _Table("Updates", "client", "task", "became", "examples", "began in", *of_the_encoder, elsewhere, "bytes")
    for one in (one for one in updates if one.outcome != "refused"):
        mine = dict(weights.get(one.client_id, {}))
        encoder = f"{mine.pop(SHARED):.3f}" if SHARED in mine else "-"
        heads = ", ".join(f"{task_of(scope) or group_of(scope)} {weight:.3f}" for scope, weight in mine.items()) or "-"
        became = one.outcome.replace("_", " ") + (f": {one.reason or one.code}" if one.reason or one.code else "")
        base = f"round {one.base_round}"
        norm = norms.get(one.client_id, "-")
        table.add(one.client_id, one.task, became, one.num_examples, base, encoder, norm, heads, _bytes(one.num_bytes))
    return table


def _encoder_parts(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    encoder = (component for component in report["components"] if component["scope"] == SHARED)
    return [part for component in encoder for part in component["contributions"]]


def _norm_text(part: Mapping[str, Any]) -> str:
    """How far a client moved a component; older reports don't say."""
    norm, clipped_to = part.get("norm"), part.get("clipped_to")
    return "-" if norm is None else f"{norm:.3g}" + ("" if clipped_to is None else f", clipped to {clipped_to:.3g}")


def _refusals_table(report: Mapping[str, Any]) -> _Table:
    refused, total = report["refused"], report["num_refused"]
    title = "Refused" if total == len(refused) else f"Refused, the first {len(refused)} of {total}"
    table = _Table(title, "client", "task", "code", "reason")
    for one in refused:
        table.add(one["client_id"], one["task"], one["code"], one["reason"])
    return table


def _metrics_text(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()) or "-"


# What is exported.


def _flat_update(update: UpdateRecord) -> dict[str, Any]:
    row = asdict(update)
    received, trained = row.pop("received_metrics"), row.pop("trained_metrics")
    return row | _prefixed("received.", received) | _prefixed("trained.", trained)


def _flat_round(record: RoundRecord, updates: Sequence[UpdateRecord]) -> dict[str, Any]:
    facts = _round_facts(record, updates)
    report = record.report or {}
    row = {
        name: facts[name]
        for name in ("round", "purpose", "outcome", "opened_at_unix_ms", "ended_at_unix_ms", "num_counted")
    }
    row |= {"cohort_size": len(record.cohort), "num_refused": facts["num_refused"]}
    row["missing_clients"] = " ".join(report.get("missing_clients", ()))
    row |= {name: report.get(name) for name in ("duration_s", "aggregation_s", "bytes_received", "bytes_sent")}
    for task in report.get("tasks", ()):
        here = {name: task[name] for name in ("num_updates", "num_examples", "encoder_share")}
        if task.get("auxiliary_weight") is not None:
            here["auxiliary_weight"] = task["auxiliary_weight"]
        here |= _prefixed("received.", task["received_metrics"]) | _prefixed("trained.", task["trained_metrics"])
        row |= _prefixed(f"{task['task']}.", here)
    return row | _prefixed("checkpoint.", record.checkpoint or {})


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}


def _csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the columns of all of them; nothing where a row has none."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json_text(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _print_json(value: object) -> None:
    typer.echo(_json_text(value), nl=False)


# What is removed.


def _why_not(place: Place) -> str | None:
    """Why a run can't be removed, or None if it can."""
    folder = place.folder
    if is_held(folder):
        return "a server has it"
    if folder.is_symlink():
        return "its folder is a link to another"
    if not folder.exists():
        if isinstance(place.database, Path):
            return "its folder is gone"
        return None if place.run.state == "finished" else "its folder isn't here: a server elsewhere may have it"
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        return "its folder holds the folder you are in"
    if isinstance(place.database, Path) and place.num_others:
        return f"its database holds {place.num_others} more runs"
    if not _holds(folder, place):
        return "its folder doesn't hold this run"
    return None


def _holds(folder: Path, place: Place) -> bool:
    """Whether a folder is the run's, by the files in it: links prove nothing."""
    ids = []
    for name in _ID_FILES:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            try:
                ids.append(json.loads(path.read_text(encoding="utf-8"))["run_id"])
            except (OSError, ValueError, KeyError, TypeError):
                return False
    by_history = place.database == folder / _HISTORY and not (folder / _HISTORY).is_symlink()
    return all(run_id == place.run.run_id for run_id in ids) and (bool(ids) or by_history)


def _remove(place: Place) -> None:
    """Remove a run, such that a removal that was cut short can be taken up again."""
    from filelock import FileLock, Timeout

    folder = place.folder
    try:
        if folder.exists():
            with FileLock(folder / _LOCK, blocking=False):
                _empty(folder)
            folder.rmdir()
        if isinstance(place.database, str):
            with _opened(place.database) as history:
                history.delete_run(place.run.run_id)
    except Timeout:
        raise StoreError(f"{folder}: a server has just taken the run up") from None
    except OSError as error:
        raise StoreError(f"can't remove {error.filename or folder}: {error.strerror or error}") from error


def _empty(folder: Path) -> None:
    """Remove all that is in a folder: what says whose it is last, and links but not what they lead to."""
    last = [folder / name for name in (f"{_HISTORY}-wal", f"{_HISTORY}-shm", _HISTORY, *_ID_FILES, _LOCK)]
    for path in [*(path for path in folder.iterdir() if path not in last), *last]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, those that links lead to not among them."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size


# How it looks.


class _Table:
    """A table for people, as wide as the terminal; of cells that may hold anything."""

    def __init__(self, title: str, *columns: str):
        self._title = title
        self._columns = columns
        self._rows: list[list[Text]] = []

    def add(self, *cells: object) -> None:
        self._rows.append([_text(cell) for cell in cells])

    def show(self) -> None:
        """Print it; if it has no rows, that."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        if not self._rows:
            typer.echo(f"{self._title}: none.")
            return
        table = Table(title=self._title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        widths = [self._width(number) for number in range(len(self._columns))]
        for column, width in zip(self._columns, widths, strict=True):
            table.add_column(column, min_width=width, no_wrap=column not in _LONG)
        for row in self._rows:
            table.add_row(*row)
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _WIDTH
        console.width = max(console.width, sum(widths) + 3 * len(widths))  # nothing is cut off
        console.print(table)

    def _width(self, number: int) -> int:
        """What a column needs: all of its cells, or where they are long some of it."""
        from rich.cells import cell_len

        name = self._columns[number]
        longest = max(cell_len(line) for line in [*name.split("\n"), *(row[number].plain for row in self._rows)])
        return min(longest, _LEAST) if name in _LONG else longest


def _print_facts(**facts: object) -> None:
    for name, value in facts.items():
        typer.echo(f"{name:<10} {_printable(value)}")


def _text(value: object) -> Text:
    from rich.text import Text

    return Text(_printable(value))


def _printable(value: object) -> str:
    """Text as a terminal may see it: no control characters, which a client may have sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def _time(unix_ms: int) -> str:
    """Local time to the second."""
    return datetime.fromtimestamp(unix_ms / 1000).isoformat(" ", "seconds")


def _bytes(num_bytes: int) -> str:
    from rich.filesize import decimal

    return decimal(num_bytes)
