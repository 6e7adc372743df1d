"""The server's own types as contract messages, and update headers from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fedmtl.v1 import federation_pb2 as pb
from google.protobuf.message import DecodeError

from fedmtl_core.errors import (
    InvalidRequestError,
    LayoutMismatchError,
    LimitExceededError,
    MalformedStreamError,
    within,
)
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.formats import DELTA_ENCODINGS
from fedmtl_core.wire.layout import Layout, require_scopes
from fedmtl_core.wire.messages import (
    PURPOSE_TO_PROTO,
    UPDATE_KIND_FROM_PROTO,
    EncodedLayout,
    component_from_proto,
    compression_from_proto,
)
from fedmtl_server.events import EventKind, RoundEvent
from fedmtl_server.rounds.engine import Phase, UpdateClaim
from fedmtl_server.rounds.report import MetricReport, RoundReport
from fedmtl_server.rounds.warnings import RoundWarning, WarningKind
from fedmtl_server.rpc.evaluations import details_from_proto, metrics_from_proto
from fedmtl_server.status import Status

MAX_EXAMPLES = 2**53
"""Beyond this a weight is no longer exact as a float."""
_EVALUATIONS = ("received_metrics", "trained_metrics", "received_details", "trained_details")
LEAST_RATE = 1e-30
"""Of a sum of learning rates; smaller ones, and those beyond its inverse, lead out of float32."""

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


def claim_from_header(
    header: pb.UpdateHeader, spec: TaskSpec, max_examples: Mapping[str, int] = MappingProxyType({})
) -> UpdateClaim:
    """What an update's header says, its fields checked.

    Args:
        header: what came.
        spec: its task.
        max_examples: by task with a limit, the examples that an update counts as at most.

    Raises:
        InvalidRequestError: a field is missing or out of range.
        NonFiniteError: a metric isn't finite.
        LimitExceededError: there are too many metrics, or their names are too long.
    """
    kind = UPDATE_KIND_FROM_PROTO.get(header.kind)
    if kind is None:
        raise InvalidRequestError(f"kind: expected parameters, delta or metrics, got {header.kind}", field="kind")
    if not header.run_id:
        raise InvalidRequestError(
            "run_id: expected the run's id, as the slice's header has it, got none", field="run_id"
        )
    if kind != "metrics" and not 1 <= header.num_examples <= MAX_EXAMPLES:
        raise InvalidRequestError(
            f"num_examples: expected 1 to {MAX_EXAMPLES}, got {header.num_examples}", field="num_examples"
        )
    received = metrics_from_proto("received_metrics", header.received_metrics, spec)
    trained = metrics_from_proto("trained_metrics", header.trained_metrics, spec)
    has_details = header.HasField("received_details") or header.HasField("trained_details")
    if (received or trained or has_details) and not 1 <= header.num_eval_examples <= MAX_EXAMPLES:
        raise InvalidRequestError(
            f"num_eval_examples: expected 1 to {MAX_EXAMPLES} with metrics, got {header.num_eval_examples}",
            field="num_eval_examples",
        )
    if header.learning_rate_sum and not LEAST_RATE <= header.learning_rate_sum <= 1 / LEAST_RATE:  # NaN isn't either
        raise InvalidRequestError(
            f"learning_rate_sum: expected 0, or {LEAST_RATE:g} to {1 / LEAST_RATE:g}, got {header.learning_rate_sum}",
            field="learning_rate_sum",
        )
    said = header.num_examples if kind != "metrics" else 0
    num_examples = min(said, max_examples.get(header.task, said))
    return UpdateClaim(
        client_id=require_identifier("client_id", header.client_id),
        task=header.task,
        base_round=header.base_round,
        update_id=require_identifier("update_id", header.update_id),
        kind=kind,
        num_examples=num_examples,
        num_eval_examples=header.num_eval_examples,
        received_metrics=received,
        trained_metrics=trained,
        num_steps=header.num_steps if kind != "metrics" else 0,
        next_task=header.next_task,
        learning_rate_sum=header.learning_rate_sum,
        control_round=header.control_round,
        claimed_examples=said if said > num_examples else 0,
        received_details=details_from_proto(
            "received_details", header.received_details, received, header.num_eval_examples, spec
        ),
        trained_details=details_from_proto(
            "trained_details", header.trained_details, trained, header.num_eval_examples, spec
        ),
    )


def require_components(expected: Sequence[Layout], header: pb.UpdateHeader) -> list[EncodedLayout]:
    """Check that an update's table of contents is that of its client's slice, and how it travels.

    Raises:
        LayoutMismatchError: it isn't, or its sizes don't add up.
        InvalidRequestError: the encoding or the compression is unknown, or doesn't go with the update's kind.
    """
    compression_from_proto(header.compression)
    require_scopes([layout.scope for layout in expected], [component.scope for component in header.components])
    parts = []
    for number, (layout, component) in enumerate(zip(expected, header.components, strict=True)):
        with within(f"components[{number}]"):
            parts.append(_require_component(layout, component, header.kind))
    return parts


def _require_component(expected: Layout, component: pb.Component, kind: pb.UpdateKind) -> EncodedLayout:
    if len(component.tensors) > 2 * len(expected.tensors) + 10:  # don't look at a million of them
        raise LayoutMismatchError(
            f"{expected.scope}: expected {len(expected.tensors)} tensors, got {len(component.tensors)}",
            field="tensors",
            expected=len(expected.tensors),
            got=len(component.tensors),
        )
    part = component_from_proto(component)
    expected.require_same(part.layout)
    if part.encoding in DELTA_ENCODINGS and kind != pb.UPDATE_KIND_DELTA:
        raise InvalidRequestError(f"{expected.scope}: encoding: {part.encoding} is for deltas only", field="encoding")
    return part


def update_from_header(
    data: bytes,
    layouts_for: Callable[[str], Sequence[Layout]],
    spec_of: Callable[[str], TaskSpec],
    max_examples: Mapping[str, int] = MappingProxyType({}),
) -> tuple[UpdateClaim, list[EncodedLayout]]:
    """What the serialised header of a whole update says, from a file.

    Args:
        data: the header.
        layouts_for: the layouts of a task's slice.
        spec_of: what a task is.
        max_examples: see `claim_from_header`.

    Raises:
        RequestError: it isn't a header, or not one of this model's.
    """
    try:
        header = pb.UpdateHeader.FromString(data)
    except DecodeError as error:
        raise MalformedStreamError(f"expected an update's header: {error}") from None
    spec = spec_of(header.task)
    try:
        claim = claim_from_header(header, spec, max_examples)
    except (InvalidRequestError, LimitExceededError):  # acknowledged by a server that took any metrics: the rest counts
        for field in _EVALUATIONS:
            header.ClearField(field)
        claim = claim_from_header(header, spec, max_examples)
    for component in header.components:
        component.start_offset = 0  # however many streams it took to come, it is there whole
    return claim, require_components(() if claim.kind == "metrics" else layouts_for(claim.task), header)


def event_to_proto(event: RoundEvent, run_id: str, num_rounds: int) -> pb.WatchRoundsResponse:
    """An event without its report, which `report_to_proto` makes once for all watchers."""
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
        ),
        uptime_seconds=status.uptime_s,
        warnings=[_warning_to_proto(one) for one in status.warnings],
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
