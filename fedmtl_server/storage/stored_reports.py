"""What a round's report in the history holds, for those who read it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict, cast


class StoredMetric(TypedDict):
    """`fedmtl_server.rounds.report.MetricReport`."""

    is_pooled: bool
    num_clients: int
    num_eval_examples: int
    num_undefined: int


class StoredTask(TypedDict):
    """`fedmtl_server.rounds.report.TaskReport`. Reports of older versions lack what isn't required."""

    task: str
    num_updates: int
    num_examples: int
    encoder_share: float
    received_metrics: Mapping[str, float]
    trained_metrics: Mapping[str, float]
    auxiliary_weight: NotRequired[float | None]
    received_reports: NotRequired[Mapping[str, StoredMetric]]
    trained_reports: NotRequired[Mapping[str, StoredMetric]]


class StoredContribution(TypedDict):
    """`fedmtl_server.aggregation.values.Contribution`. Reports of older versions lack what isn't required."""

    client_id: str
    task: str
    num_examples: int
    weight: float
    norm: NotRequired[float | None]
    clipped_to: NotRequired[float | None]
    counted_examples: NotRequired[float | None]


class StoredComponent(TypedDict):
    """`fedmtl_server.rounds.report.ComponentReport`."""

    scope: str
    num_tensors: int
    contributions: Sequence[StoredContribution]


class StoredRefusal(TypedDict):
    """`fedmtl_server.rounds.report.RefusedUpdate`, without what the update said of itself."""

    client_id: str
    task: str
    code: str
    reason: str


class StoredDiscard(TypedDict):
    """`fedmtl_server.aggregation.values.DiscardedComponent`."""

    scope: str
    reason: str
    contributors: Sequence[str]


class StoredWarning(TypedDict):
    """`fedmtl_server.rounds.warnings.RoundWarning`, as far as people are shown it."""

    message: str


class StoredReport(TypedDict):
    """`RoundReport.to_dict()`, as far as it is read from the history. Reports of older versions lack what isn't
    required."""

    round: int
    duration_s: float
    components: Sequence[StoredComponent]
    tasks: Sequence[StoredTask]
    missing_clients: Sequence[str]
    refused: Sequence[StoredRefusal]
    num_refused: int
    bytes_received: int
    bytes_sent: int
    unchanged_tasks: Sequence[str]
    failed: bool
    aggregation_s: NotRequired[float]
    sharing: NotRequired[Mapping[str, Sequence[Sequence[str]]]]
    moved: NotRequired[Mapping[str, Sequence[Sequence[str]]] | None]
    discarded: NotRequired[Sequence[StoredDiscard] | None]
    warnings: NotRequired[Sequence[StoredWarning]]


def stored_report(values: Mapping[str, object]) -> StoredReport:
    """`RoundReport.to_dict()` by its type. It isn't checked: a server made it, this one or an earlier one."""
    return cast("StoredReport", values)
