"""Converts the server's own types to contract messages."""

from __future__ import annotations

from collections.abc import Mapping

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.wire.messages import PURPOSE_TO_PROTO
from fedmtl_server.events import EventKind, RoundEvent
from fedmtl_server.rounds.metric_reports import MetricReport
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rounds.transitions import Phase
from fedmtl_server.rounds.variant_reports import VariantReport
from fedmtl_server.rounds.warnings import RoundWarning, WarningKind
from fedmtl_server.status import Status

_EVENT_KIND = {
    EventKind.WAITING: pb.ROUND_EVENT_KIND_WAITING,
    EventKind.OPENED: pb.ROUND_EVENT_KIND_OPENED,
    EventKind.CLOSING: pb.ROUND_EVENT_KIND_CLOSING,
    EventKind.COMMITTED: pb.ROUND_EVENT_KIND_COMMITTED,
    EventKind.FAILED: pb.ROUND_EVENT_KIND_FAILED,
    EventKind.FINISHED: pb.ROUND_EVENT_KIND_FINISHED,
}
_WARNING_KIND: dict[WarningKind, pb.RoundWarningKind] = {
    "dominant_client": pb.ROUND_WARNING_KIND_DOMINANT_CLIENT,
    "large_update": pb.ROUND_WARNING_KIND_LARGE_UPDATE,
    "damaged_model": pb.ROUND_WARNING_KIND_DAMAGED_MODEL,
}
_PHASE = {
    Phase.WAITING: pb.PHASE_WAITING,
    Phase.OPEN: pb.PHASE_OPEN,
    Phase.AGGREGATING: pb.PHASE_AGGREGATING,
    Phase.FINISHED: pb.PHASE_FINISHED,
}


def event_to_proto(event: RoundEvent, run_id: str, num_rounds: int) -> pb.WatchRoundsResponse:
    """Return an event as a message, without its report, which `report_to_proto` converts once for all watchers."""
    return pb.WatchRoundsResponse(
        run_id=run_id,
        kind=_EVENT_KIND[event.kind],
        round=event.round,
        num_rounds=num_rounds,
        purpose=PURPOSE_TO_PROTO[event.purpose],
        in_cohort=event.in_cohort,
        task=event.task,
        reported=event.reported,
        deadline_seconds=event.deadline_s,
        waiting_for=event.waiting_for,
        cohort_size=event.cohort_size,
        oldest_base_round=event.oldest_base_round,
    )


def report_to_proto(report: RoundReport) -> pb.RoundReport:
    return pb.RoundReport(
        round=report.round,
        purpose=PURPOSE_TO_PROTO[report.purpose],
        opened_at_unix_ms=report.opened_at_unix_ms,
        duration_seconds=report.duration_s,
        components=[
            pb.ComponentReport(
                scope=component.scope,
                num_tensors=component.num_tensors,
                contributions=[
                    pb.Contribution(
                        client_id=part.client_id,
                        task=part.task,
                        num_examples=part.num_examples,
                        weight=part.weight,
                        staleness=part.staleness,
                        norm=part.norm,
                        clipped_to=part.clipped_to,
                        counted_examples=part.counted_examples,
                    )
                    for part in component.contributions
                ],
                scaling=component.scaling,
            )
            for component in report.components
        ],
        tasks=[
            pb.TaskReport(
                task=task.task,
                num_updates=task.num_updates,
                num_examples=task.num_examples,
                encoder_share=task.encoder_share,
                received_metrics=task.received_metrics,
                trained_metrics=task.trained_metrics,
                auxiliary_weight=task.auxiliary_weight,
                received_metric_reports=_metric_reports(task.received_reports),
                trained_metric_reports=_metric_reports(task.trained_reports),
                variants=[_variant_to_proto(one) for one in task.variants],
            )
            for task in report.tasks
        ],
        missing_clients=report.missing_clients,
        refused=[
            pb.RefusedUpdate(client_id=one.client_id, task=one.task, code=one.code, reason=one.reason)
            for one in report.refused
        ],
        num_refused=report.num_refused,
        bytes_received=report.bytes_received,
        bytes_sent=report.bytes_sent,
        unchanged_tasks=report.unchanged_tasks,
        aggregation_seconds=report.aggregation_s,
        failed=report.failed,
        discarded=[
            pb.DiscardedComponent(scope=one.scope, reason=one.reason, client_ids=one.contributors)
            for one in report.discarded
        ],
        warnings=[_warning_to_proto(one) for one in report.warnings],
    )


def _warning_to_proto(warning: RoundWarning) -> pb.RoundWarning:
    return pb.RoundWarning(
        kind=_WARNING_KIND[warning.kind],
        message=warning.message,
        scope=warning.scope,
        client_ids=warning.client_ids,
    )


def status_to_proto(status: Status) -> pb.GetStatusResponse:
    return pb.GetStatusResponse(
        run_id=status.run_id,
        phase=_PHASE[status.phase],
        round=status.round,
        num_rounds=status.num_rounds,
        waiting_for=status.waiting_for,
        tasks=[
            pb.TaskStatus(
                task=task.task,
                min_clients=task.min_clients,
                connected_clients=task.connected_clients,
                cohort_size=task.cohort_size,
                reported_clients=task.reported_clients,
                last_metrics=task.last_metrics,
                auxiliary=task.auxiliary,
            )
            for task in status.tasks
        ],
        clients=[
            pb.ClientStatus(
                client_id=client.client_id,
                task=client.task,
                connected=client.connected,
                in_cohort=client.in_cohort,
                reported=client.reported,
                tasks=client.tasks,
            )
            for client in status.clients
        ],
        last_report=report_to_proto(status.last_report) if status.last_report else None,
        model=pb.ModelSummary(
            base_model=status.model.base_model,
            shared_parameters=status.model.shared_parameters,
            head_parameters=status.model.head_parameters,
            total_parameters=status.model.total_parameters,
            scope_parameters=status.model.scope_parameters,
            frozen_parameters=status.model.frozen_parameters,
        ),
        uptime_seconds=status.uptime_s,
        warnings=[_warning_to_proto(one) for one in status.warnings],
    )


def _variant_to_proto(variant: VariantReport) -> pb.VariantReport:
    return pb.VariantReport(
        name=variant.name,
        num_clients=variant.num_clients,
        num_examples=variant.num_examples,
        num_diverged=variant.num_diverged,
        loss=variant.loss,
        loss_difference=variant.loss_difference,
        standard_error=variant.standard_error,
        metrics=variant.metrics,
        chosen=variant.chosen,
    )


def _metric_reports(reports: Mapping[str, MetricReport]) -> dict[str, pb.MetricReport]:
    return {
        name: pb.MetricReport(
            basis=pb.METRIC_BASIS_POOLED if one.is_pooled else pb.METRIC_BASIS_MEAN,
            num_clients=one.num_clients,
            num_eval_examples=one.num_eval_examples,
            num_undefined=one.num_undefined,
        )
        for name, one in reports.items()
    }
