"""The types of a round's report as the history stores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

from fedmtl_core.json_types import JsonObject


class StoredMetric(TypedDict):
    """`fedmtl_server.rounds.metric_reports.MetricReport`."""

    is_pooled: bool
    num_clients: int
    num_eval_examples: int
    num_undefined: int


class StoredVariant(TypedDict):
    """The displayed part of `fedmtl_server.rounds.variant_reports.VariantReport`."""

    name: str
    num_clients: int
    num_examples: int
    num_diverged: int
    loss: float | None
    loss_difference: float | None
    standard_error: float | None
    chosen: bool
    metrics: Mapping[str, float]
    metric_reports: Mapping[str, StoredMetric]
    lowered_metrics: NotRequired[Sequence[str]]
    clients: Mapping[str, Mapping[str, Any] | None]


class StoredTask(TypedDict):
    """`fedmtl_server.rounds.report.TaskReport`. Reports of older versions lack the fields that aren't required."""

    task: str
    num_updates: int
    num_examples: int
    encoder_share: float
    received_metrics: Mapping[str, float]
    trained_metrics: Mapping[str, float]
    auxiliary_weight: NotRequired[float | None]
    received_reports: NotRequired[Mapping[str, StoredMetric]]
    trained_reports: NotRequired[Mapping[str, StoredMetric]]
    variants: NotRequired[Sequence[StoredVariant]]


class StoredContribution(TypedDict):
    """`fedmtl_server.aggregation.values.Contribution`. Older reports lack the fields that aren't required."""

    client_id: str
    task: str
    num_examples: int
    weight: float
    norm: NotRequired[float | None]
    clipped_to: NotRequired[float | None]
    counted_examples: NotRequired[float | None]


class StoredComponent(TypedDict):
    """`fedmtl_server.rounds.report.ComponentReport`. Older reports lack the field that isn't required."""

    scope: str
    num_tensors: int
    contributions: Sequence[StoredContribution]
    scaling: NotRequired[Mapping[str, float]]


class StoredRefusal(TypedDict):
    """`fedmtl_server.rounds.report.RefusedUpdate`, without the fields that describe the update."""

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
    """The displayed part of `fedmtl_server.rounds.warnings.RoundWarning`."""

    message: str


class StoredReport(TypedDict):
    """The fields of `RoundReport.to_dict()` that are read from the history. Reports of older versions lack the fields
    that aren't required."""

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
    stages: NotRequired[Mapping[str, JsonObject]]
    moved: NotRequired[Mapping[str, Sequence[Sequence[str]]] | None]
    moved_by: NotRequired[Mapping[str, str]]
    discarded: NotRequired[Sequence[StoredDiscard] | None]
    warnings: NotRequired[Sequence[StoredWarning]]


def stored_report(values: Mapping[str, object]) -> StoredReport:
    """Return `RoundReport.to_dict()` with its type, unchecked: this server or an earlier one made it."""
    return cast("StoredReport", values)
