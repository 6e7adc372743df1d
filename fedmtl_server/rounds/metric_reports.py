"""A task's metrics in a round's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedmtl_core.tasks.evaluation import TaskMetric


@dataclass(frozen=True)
class MetricReport:
    """The clients and rows that a task's metric was computed over."""

    is_pooled: bool
    """Whether the metric is computed over all rows together; otherwise it is the clients' mean, weighted by rows."""
    num_clients: int
    """Clients that the metric was computed over."""
    num_eval_examples: int
    """Evaluation rows of these clients."""
    num_undefined: int
    """Clients for which the metric is undefined."""


def values_of(metrics: Mapping[str, TaskMetric]) -> dict[str, float]:
    """Return the values of the metrics that have one."""
    return {name: one.value for name, one in metrics.items() if one.value is not None}


def metric_reports(metrics: Mapping[str, TaskMetric]) -> dict[str, MetricReport]:
    """Return how metrics were computed, by name, including undefined metrics."""
    return {
        name: MetricReport(one.is_pooled, one.num_clients, one.num_examples, one.num_undefined)
        for name, one in metrics.items()
    }
