"""A run's updates, rounds and metrics as rows of plain values."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from fedmtl_server.commands.run_facts import round_summary

if TYPE_CHECKING:
    from fedmtl_server.storage.records import RoundRecord, UpdateRecord


def flat_update(update: UpdateRecord) -> dict[str, object]:
    """Return an update as a row, with a column for each metric."""
    row = asdict(update)
    received, trained = row.pop("received_metrics"), row.pop("trained_metrics")
    return row | _prefixed("received.", received) | _prefixed("trained.", trained)


def flat_round(record: RoundRecord, updates: Sequence[UpdateRecord]) -> dict[str, object]:
    """Return a round as a row, with columns for each task."""
    summary = round_summary(record, updates)
    report = record.report
    row = {
        name: summary[name]
        for name in ("round", "purpose", "outcome", "opened_at_unix_ms", "ended_at_unix_ms", "num_counted")
    }
    row |= {"cohort_size": len(record.cohort), "num_refused": summary["num_refused"]}
    row["missing_clients"] = " ".join(record.missing_clients)
    row["discarded"] = " ".join(one["scope"] for one in (report.get("discarded") or () if report else ()))
    measures = ("duration_s", "aggregation_s", "bytes_received", "bytes_sent")
    row |= {name: report.get(name) if report else None for name in measures}
    for task in report.get("tasks", ()) if report else ():
        here: dict[str, object] = {
            "num_updates": task["num_updates"],
            "num_examples": task["num_examples"],
            "encoder_share": task["encoder_share"],
        }
        if (weight := task.get("auxiliary_weight")) is not None:
            here["auxiliary_weight"] = weight
        here |= _prefixed("received.", task["received_metrics"]) | _prefixed("trained.", task["trained_metrics"])
        row |= _prefixed(f"{task['task']}.", here)
    return row | _prefixed("checkpoint.", record.checkpoint or {})


def _prefixed(prefix: str, values: Mapping[str, object]) -> dict[str, object]:
    return {prefix + name: value for name, value in values.items()}


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return CSV with the columns of all rows; a cell is empty if its row lacks the column."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
