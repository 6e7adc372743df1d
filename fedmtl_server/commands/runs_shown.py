"""The display of a run by `fedmtl-server runs show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from fedmtl_core.identifiers import name_task
from fedmtl_server.commands.printing import Table, bytes_text, print_facts, print_json, time_text
from fedmtl_server.commands.run_facts import (
    adapters_text,
    auxiliary_tasks,
    encoder_text,
    main_metrics,
    round_summary,
    shown_config,
    summary,
    tasks_text,
    updates_by_round,
    why_early,
)
from fedmtl_server.storage.runs import Place

if TYPE_CHECKING:
    from fedmtl_server.storage.records import RoundRecord, UpdateRecord
    from fedmtl_server.storage.stored_reports import StoredTask


def show_run(place: Place, rounds: Sequence[RoundRecord], updates: Sequence[UpdateRecord], as_json: bool) -> None:
    """Print a run and its rounds."""
    run = place.run
    done = sum(one.outcome == "committed" and one.purpose == "train" and one.round > 0 for one in rounds)
    by_round = updates_by_round(rounds, updates)
    if as_json:
        run_facts = summary(place, done) | {"started_from": place.started_from, "config": shown_config(run)}
        print_json({"run": run_facts, "rounds": [round_summary(one, by_round[one.round]) for one in rounds]})
        return
    finished = f", finished {time_text(run.finished_at_unix_ms)}" if run.finished_at_unix_ms is not None else ""
    print_facts(
        run=run.run_id,
        state=f"{place.state}, {done} of {run.num_rounds} rounds{why_early(place)}",
        created=time_text(run.created_at_unix_ms) + finished,
        model=run.base_model + _started_from(place),
        **({"adapters": text} if (text := adapters_text(run)) else {}),
        tasks=tasks_text(run),
        folder=place.folder,
    )
    if len(rounds) < 2:
        typer.echo("No round has opened yet.")
        return
    main = main_metrics(run)
    columns = ["round", "outcome", "opened", "seconds", "counted", "refused", "missing", "in", "out"]
    table = Table(
        f"Each task's metric of the model that the round began with, and the task's share of {encoder_text(run)}",
        *columns,
        *(f"{name_task(task, auxiliary=task in auxiliary_tasks(run))}\n{main.get(task, '')}" for task in run.tasks),
    )
    for one in rounds[1:]:
        facts = round_summary(one, by_round[one.round])
        report = one.report
        tasks = {task["task"]: task for task in report.get("tasks", ())} if report else {}
        table.add(
            f"{one.round}{' (evaluation)' if one.purpose == 'evaluate' else ''}",
            _outcome_text(one),
            time_text(one.opened_at_unix_ms),
            f"{report['duration_s']:.1f}" if report else "-",
            f"{facts['num_counted']} of {len(one.cohort)}",
            facts["num_refused"],
            len(report["missing_clients"]) if report else "-",
            bytes_text(report["bytes_received"]) if report else "-",
            bytes_text(report["bytes_sent"]) if report else "-",
            *(_metric_and_share(main.get(task), tasks.get(task)) for task in run.tasks),
        )
    table.show()


def _started_from(place: Place) -> str:
    """Return the text about the run that a run's model started from; empty if it didn't start from one."""
    started = place.started_from
    if started is None:
        return ""
    text = f", from round {started['round']} of run {started['run_id']}"
    heads = [f"{kind} of {', '.join(started[key])}" for kind, key in _HEADS.items() if started[key]]
    means = [f"{scope} is the mean of the encoders of {', '.join(of)}" for scope, of in started["averaged"].items()]
    return "; ".join([text, *heads, *means])


_HEADS = {"heads": "heads", "new heads": "new_heads"}
"""By kind of head in words, its key in `read_started_from`."""


def _outcome_text(record: RoundRecord) -> str:
    """Return a round's outcome and its number of discarded components."""
    text = record.outcome.replace("_", " ")
    num_discarded = len(record.report.get("discarded") or ()) if record.report else 0
    return text + (f", {num_discarded} component{'s' * (num_discarded > 1)} discarded" if num_discarded else "")


def _metric_and_share(name: str | None, task: StoredTask | None) -> str:
    """Return a task's main metric in a round (its first if the main one is unknown) and its share of the encoder."""
    if task is None:
        return "-"
    values = task.get("received_metrics", {})
    value = values.get(name) if name else next(iter(values.values()), None)
    share = task.get("encoder_share", 0.0)
    missing = "undefined" if name in task.get("received_reports", {}) else "-"
    return (missing if value is None else f"{value:.3f}") + (f" {share:.0%}" if share else "")
