"""The records of the history: runs, rounds, updates and metrics, and their rows in the tables of `schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

from fedmtl_core.json_types import JsonObject
from fedmtl_core.tasks.plan import Purpose
from fedmtl_server.storage.stored_reports import StoredReport, StoredTask

if TYPE_CHECKING:
    import sqlalchemy as sa

RunState = Literal["running", "finished"]
RoundOutcome = Literal["open", "committed", "failed", "rolled_back"]
UpdateOutcome = Literal["counted", "discarded", "refused", "rolled_back"]


@dataclass(frozen=True)
class RunRecord:
    """One run."""

    run_id: str
    created_at_unix_ms: int
    run_dir: str
    base_model: str
    tasks: tuple[str, ...]
    num_rounds: int
    """The number of training rounds that are planned."""
    config: JsonObject
    """The configuration in use, without passwords."""
    state: RunState = "running"
    finished_at_unix_ms: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run is over."""
        return self.state == "finished"

    @classmethod
    def from_row(cls, row: sa.RowMapping) -> RunRecord:
        """Return the record in a row of `RUNS`."""
        return cls(**{**row, "tasks": tuple(row["tasks"])})

    def to_row(self) -> dict[str, object]:
        """Return the row of `RUNS`."""
        return _columns(self)


@dataclass(frozen=True)
class RoundRecord:
    """One round of a run. Round 0 is the model before the first training round."""

    run_id: str
    round: int
    purpose: Purpose
    outcome: RoundOutcome
    opened_at_unix_ms: int
    ended_at_unix_ms: int | None = None
    cohort: Mapping[str, str] = field(default_factory=dict)
    """Task by client id, in the order in which updates are aggregated."""
    report: StoredReport | None = None
    """`RoundReport.to_dict()`; None until the round has ended, and for round 0."""
    checkpoint: Mapping[str, str] | None = None
    """SHA-256 in hexadecimal by scope, of the model that the round made; None if it made none."""

    @property
    def has_ended(self) -> bool:
        """Whether it was committed or failed, and has not been rolled back since."""
        return self.outcome in ("committed", "failed")

    @property
    def has_model(self) -> bool:
        """Whether it committed a model of its own."""
        return self.outcome == "committed" and self.checkpoint is not None

    @property
    def missing_clients(self) -> Sequence[str]:
        """`RoundReport.missing_clients`; empty until the round has ended."""
        return self.report.get("missing_clients", ()) if self.report else ()

    @property
    def sharing(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """`RoundReport.sharing`; empty if no layer has moved, and in the reports of versions without moving layers."""
        return (self.report.get("sharing") if self.report else None) or {}

    @classmethod
    def from_row(cls, row: sa.RowMapping) -> RoundRecord:
        """Return the record in a row of `ROUNDS`."""
        return cls(**row)

    def to_row(self) -> dict[str, object]:
        """Return the row of `ROUNDS`."""
        return _columns(self)

    def metrics(self) -> list[MetricRecord]:
        """Return the metrics that the round's clients measured on the received model, made in the round before.

        If an evaluation round changed the model, they are followed by the metrics of the changed model: for each task
        those of its chosen variant, or of the received model if no variant was chosen for it.
        """
        tasks = self.report.get("tasks", ()) if self.report else ()
        received = [
            MetricRecord(self.round - 1, task["task"], storable(name), value, _num_clients(task, name))
            for task in tasks
            for name, value in task["received_metrics"].items()
        ]
        chosen = {task["task"]: one for task in tasks for one in task.get("variants", ()) if one["chosen"]}
        if self.purpose != "evaluate" or not chosen:
            return received
        kept = [replace(one, round=self.round) for one in received if one.task not in chosen]
        changed = [
            MetricRecord(self.round, task, storable(name), value, one["metric_reports"][name]["num_clients"])
            for task, one in chosen.items()
            for name, value in one["metrics"].items()
        ]
        return [*received, *kept, *changed]


@dataclass(frozen=True)
class UpdateRecord:
    """One update and its outcome."""

    round: int
    """The round in which it counted, or was discarded or refused."""
    client_id: str
    task: str
    base_round: int
    update_id: str
    kind: str
    num_examples: int
    num_bytes: int
    received_metrics: Mapping[str, float]
    trained_metrics: Mapping[str, float]
    outcome: UpdateOutcome
    code: str = ""
    """Code and `reason` of a refused or discarded update; empty for others."""
    reason: str = ""

    @classmethod
    def from_row(cls, row: sa.RowMapping) -> UpdateRecord:
        """Return the record in a row of `UPDATES`."""
        values = {one.name: row[one.name] for one in fields(cls)}
        return cls(**values | {"code": row["code"] or "", "reason": row["reason"] or ""})

    def to_row(self, run_id: str) -> dict[str, object]:
        """Return the row of `UPDATES` for an update of this run."""
        row = {name: storable(value) if isinstance(value, str) else value for name, value in _columns(self).items()}
        return row | {"run_id": run_id, "code": row["code"] or None, "reason": row["reason"] or None}


@dataclass(frozen=True)
class MetricRecord:
    """One metric of one model, measured by the clients of one task."""

    round: int
    """The round whose model was measured; 0 is the model before the first training round."""
    task: str
    name: str
    value: float
    num_clients: int

    @classmethod
    def from_row(cls, row: sa.RowMapping) -> MetricRecord:
        """Return the record in a row of `METRICS`."""
        return cls(**{one.name: row[one.name] for one in fields(cls)})

    def to_row(self, run_id: str) -> dict[str, object]:
        """Return the row of `METRICS` for a metric of this run."""
        return _columns(self) | {"run_id": run_id}


def storable(text: str) -> str:
    """Return text that every database accepts: PostgreSQL rejects NUL, and a refused client may have sent anything."""
    return text.replace("\0", "\\x00")


def _num_clients(task: StoredTask, name: str) -> int:
    """Return the number of clients that measured a metric; all that sent an update, if the report doesn't say."""
    report = task.get("received_reports", {}).get(name)
    return int(report["num_clients"] if report else task["num_updates"])


def _columns(record: RunRecord | RoundRecord | UpdateRecord | MetricRecord) -> dict[str, object]:
    return {one.name: getattr(record, one.name) for one in fields(record)}
