"""The results of a round's variants in the round's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedmtl_core.json_types import JsonObject
from fedmtl_core.tasks.paired import PairedLoss
from fedmtl_server.aggregation.variants import Variant, VariantResult
from fedmtl_server.rounds.metric_reports import MetricReport, metric_reports, values_of


@dataclass(frozen=True)
class VariantReport:
    """The result of one variant of a task's model in one round."""

    name: str
    num_clients: int
    """Clients with a finite loss."""
    num_examples: int
    """Evaluation rows of these clients."""
    num_diverged: int
    """Clients for which the variant's loss or outputs aren't finite; if there are any, it is infinitely worse."""
    loss: float | None
    """Mean calibrated loss of the variant over all rows; None if no client has a finite one."""
    loss_difference: float | None
    """Mean over all rows of the variant's calibrated loss minus the model's; None if no client has a finite one."""
    standard_error: float | None
    """The standard error of `loss_difference`; None if it is unknown."""
    chosen: bool
    """Whether the task's model has the variant's values after the round."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The task's metrics of the variant. Metrics without a value are absent."""
    metric_reports: Mapping[str, MetricReport] = field(default_factory=dict)
    """By name, how each metric was computed, including undefined metrics."""
    lowered_metrics: Sequence[str] = ()
    """The metrics that are lower than the model's, or undefined, over the clients that report them for both."""
    clients: Mapping[str, PairedLoss | None] = field(default_factory=dict)
    """By client id, its part of the result; None if the variant diverged."""

    @classmethod
    def from_dict(cls, values: JsonObject) -> VariantReport:
        """Return the report that `asdict` was made of."""
        reports = {name: MetricReport(**one) for name, one in values["metric_reports"].items()}
        clients = {client: None if one is None else PairedLoss(**one) for client, one in values["clients"].items()}
        return cls(**{**values, "metric_reports": reports, "clients": clients})


def variant_reports(results: Sequence[VariantResult], chosen: Variant | None) -> list[VariantReport]:
    """Return the reports of a task's variants.

    Args:
        results: the results of the variants that the round offered for the task.
        chosen: the variant whose values the task's model has after the round, offered or not; None if there is none.
    """
    if chosen is not None and chosen.name not in [one.name for one in results]:
        results = [*results, VariantResult(chosen.name)]
    return [_variant_report(one, is_chosen=chosen is not None and one.name == chosen.name) for one in results]


def _variant_report(result: VariantResult, *, is_chosen: bool) -> VariantReport:
    paired, metrics = result.paired, result.metrics
    return VariantReport(
        name=result.name,
        num_clients=len(result.clients) - result.num_diverged,
        num_examples=paired.num_examples if paired else 0,
        num_diverged=result.num_diverged,
        loss=paired.loss if paired else None,
        loss_difference=paired.difference if paired else None,
        standard_error=paired.standard_error if paired else None,
        chosen=is_chosen,
        metrics=values_of(metrics),
        metric_reports=metric_reports(metrics),
        lowered_metrics=[name for name in metrics if result.lowers(name)],
        clients={client_id: one.paired for client_id, one in result.clients.items()},
    )
