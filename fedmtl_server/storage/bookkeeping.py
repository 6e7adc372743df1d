"""The records of a round: statistics while it is open, then its report and its rows in the history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import task_scope
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.values import Aggregate
from fedmtl_server.rounds.report import RefusedUpdate, RoundReport, component_reports, task_reports
from fedmtl_server.rounds.view import RoundView
from fedmtl_server.rounds.warnings import RoundWarning, damaged_model, warnings_of
from fedmtl_server.storage.records import UpdateRecord

MAX_REFUSALS_REPORTED = 100


@dataclass
class RoundStats:
    """The statistics of an open round."""

    opened_at_unix_ms: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    refused: list[RefusedUpdate] = field(default_factory=list)
    """The first refused updates, at most `MAX_REFUSALS_REPORTED`."""
    num_refused: int = 0
    """The number of all refused updates."""
    damaged: dict[str, str] = field(default_factory=dict)
    """By client id, the client's report that the model it received gives values that aren't finite."""

    def warnings(self, round_: int) -> list[RoundWarning]:
        """Return the warnings about the round so far."""
        return [damaged_model(round_, self.damaged)] if self.damaged else []

    def note_refusal(self, refusal: RefusedUpdate) -> None:
        """Count a refused update."""
        self.num_refused += 1
        if len(self.refused) < MAX_REFUSALS_REPORTED:
            self.refused.append(refusal)


def round_report(
    stats: RoundStats,
    closed: RoundView,
    aggregate: Aggregate,
    scopes: Mapping[str, Sequence[str]],
    factors: Mapping[str, float],
    *,
    stages: Mapping[str, JsonObject],
    model_norms: Mapping[str, float],
    duration_s: float,
    aggregation_s: float,
    failed: bool,
) -> RoundReport:
    """Return the report of a round that has closed.

    Args:
        stats: what was counted while the round was open.
        closed: the round.
        aggregate: the result of its aggregation.
        scopes: by task, the scopes of the task's slice.
        factors: by auxiliary task, the weight of one of its examples in the encoder.
        stages: by stage of the aggregation, its state after the round.
        model_norms: by scope, the norm of the model that the round began with; empty if norms aren't measured.
        duration_s: from the round's opening to now, in seconds.
        aggregation_s: the part of `duration_s` that the aggregation took.
        failed: whether the round failed.
    """
    members = closed.cohort.values()
    return RoundReport(
        round=closed.round,
        purpose=closed.purpose,
        opened_at_unix_ms=stats.opened_at_unix_ms,
        duration_s=duration_s,
        components=component_reports(aggregate),
        tasks=task_reports(scopes, members, aggregate, closed.round, factors),
        missing_clients=[member.client_id for member in members if not member.reported],
        refused=list(stats.refused),
        num_refused=stats.num_refused,
        bytes_received=stats.bytes_received,
        bytes_sent=stats.bytes_sent,
        unchanged_tasks=[task for task in scopes if task_scope(task) in {*scopes[task]} - aggregate.components.keys()],
        aggregation_s=aggregation_s,
        failed=failed,
        stages=stages,
        moved=aggregate.moved,
        moved_by=aggregate.moved_by,
        discarded=list(aggregate.discarded),
        warnings=[*stats.warnings(closed.round), *warnings_of(aggregate.contributions, model_norms)],
    )


def update_records(report: RoundReport, reported: Iterable[Update]) -> list[UpdateRecord]:
    """Return the history's records of all updates of a round, acknowledged and refused.

    Args:
        report: the report of the round.
        reported: the acknowledged updates.
    """
    acknowledged = [
        UpdateRecord(
            round=report.round,
            client_id=update.client_id,
            task=update.task,
            base_round=update.base_round,
            update_id=update.update_id,
            kind=update.kind,
            num_examples=update.claimed_examples or update.num_examples,
            num_bytes=update.num_bytes,
            received_metrics=update.received.metrics,
            trained_metrics=update.trained.metrics,
            outcome="discarded" if report.failed else "counted",
            reason="the round lacked its quorum" if report.failed else "",
        )
        for update in reported
    ]
    refused = [
        UpdateRecord(
            round=report.round,
            client_id=one.client_id,
            task=one.task,
            base_round=one.base_round,
            update_id=one.update_id,
            kind=one.kind,
            num_examples=one.num_examples,
            num_bytes=0,
            received_metrics={},
            trained_metrics={},
            outcome="refused",
            code=one.code,
            reason=one.reason,
        )
        for one in report.refused
    ]
    return acknowledged + refused
