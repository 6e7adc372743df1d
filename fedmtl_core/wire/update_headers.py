"""Converts an update to the header of its upload and back, and checks every field.

A number for a single stage of the aggregation needs a field in the contract and one line of `EXTRA_FIELDS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.evaluation_messages import details_from_proto, details_to_proto, metrics_from_proto
from fedmtl_core.wire.formats import DELTA_ENCODINGS
from fedmtl_core.wire.layout import Layout, require_scopes
from fedmtl_core.wire.messages import (
    UPDATE_KIND_FROM_PROTO,
    UPDATE_KIND_TO_PROTO,
    component_from_proto,
    component_to_proto,
    compression_from_proto,
    compression_to_proto,
)
from fedmtl_core.wire.updates import Update
from fedmtl_core.wire.variant_messages import variant_to_proto, variants_from_proto

MAX_EXAMPLES = 2**53
"""The largest number of examples; larger numbers are not exact as a float."""

_EVALUATIONS = ("received_metrics", "trained_metrics", "received_details", "trained_details", "variants")


@dataclass(frozen=True)
class ExtraField:
    """A field of the header with a number for one stage of the aggregation."""

    stage: str
    name: str
    """The name of the field, and of the number in the stage's extras."""
    least: float = 0.0
    most: float = math.inf
    """The bounds `least` and `most` of the number; 0 is always allowed and means that there is no number."""


EXTRA_FIELDS = (
    ExtraField("normalization", "num_steps"),
    # Sums of learning rates beyond these bounds overflow or underflow float32.
    ExtraField("control_variates", "learning_rate_sum", 1e-30, 1e30),
    ExtraField("control_variates", "control_round"),
)


def update_to_header(update: Update) -> pb.UpdateHeader:
    """Return an update's header, with components that start at byte 0."""
    header = pb.UpdateHeader(
        run_id=update.run_id,
        client_id=update.client_id,
        task=update.task,
        base_round=update.base_round,
        update_id=update.update_id,
        kind=UPDATE_KIND_TO_PROTO[update.kind],
        num_examples=update.claimed_examples or update.num_examples,
        components=[component_to_proto(one) for one in update.components],
        compression=compression_to_proto(update.compression),
        received_metrics=dict(update.received),
        trained_metrics=dict(update.trained),
        num_eval_examples=update.received.num_examples or update.trained.num_examples,
        next_task=update.next_task,
        variants=[variant_to_proto(one) for one in update.variants],
    )
    for field, evaluation in (("received_details", update.received), ("trained_details", update.trained)):
        if evaluation.says_anything or evaluation.num_examples:  # a custom trainer may measure nothing
            getattr(header, field).CopyFrom(details_to_proto(evaluation))
    for extra in EXTRA_FIELDS:
        if number := update.extra_of(extra.stage, extra.name):
            setattr(header, extra.name, number)
    return header


def update_from_header(header: pb.UpdateHeader, spec: TaskSpec) -> Update:
    """Return the update of a header, without its components, and check the fields.

    `components_from_header` checks the components.

    Args:
        header: the received header.
        spec: the update's task.

    Raises:
        InvalidRequestError: a field is missing or out of range.
        NonFiniteError: a metric isn't finite.
        LimitExceededError: there are too many metrics or variants, or their names are too long.
    """
    kind = UPDATE_KIND_FROM_PROTO.get(header.kind)
    if kind is None:
        raise InvalidRequestError(f"kind: expected parameters, delta or metrics, got {header.kind}", field="kind")
    if not header.run_id:
        raise InvalidRequestError("run_id: expected the run's id from the slice's header, got none", field="run_id")
    if kind != "metrics" and not 1 <= header.num_examples <= MAX_EXAMPLES:
        raise InvalidRequestError(
            f"num_examples: expected 1 to {MAX_EXAMPLES}, got {header.num_examples}", field="num_examples"
        )
    received, trained = _evaluations(header, spec)
    extras = _extras(header)
    return Update(
        run_id=header.run_id,
        client_id=require_identifier("client_id", header.client_id),
        task=header.task,
        base_round=header.base_round,
        update_id=require_identifier("update_id", header.update_id),
        kind=kind,
        num_examples=header.num_examples if kind != "metrics" else 0,
        received=received,
        trained=trained,
        next_task=header.next_task,
        variants=variants_from_proto(header.variants, header.num_eval_examples, spec),
        extras=extras if kind != "metrics" else {},
    )


def _evaluations(header: pb.UpdateHeader, spec: TaskSpec) -> tuple[Evaluation, Evaluation]:
    """Return the evaluations of the received model and of the client's own model."""
    received = metrics_from_proto("received_metrics", header.received_metrics, spec)
    trained = metrics_from_proto("trained_metrics", header.trained_metrics, spec)
    size = header.num_eval_examples
    has_details = header.HasField("received_details") or header.HasField("trained_details")
    if (received or trained or has_details or header.variants) and not 1 <= size <= MAX_EXAMPLES:
        raise InvalidRequestError(
            f"num_eval_examples: expected 1 to {MAX_EXAMPLES} with metrics, got {size}", field="num_eval_examples"
        )
    received_details = details_from_proto("received_details", header.received_details, received, size, spec)
    trained_details = details_from_proto("trained_details", header.trained_details, trained, size, spec)
    return (
        Evaluation.with_details(received, size, received_details),
        Evaluation.with_details(trained, size, trained_details),
    )


def _extras(header: pb.UpdateHeader) -> dict[str, dict[str, float]]:
    extras: dict[str, dict[str, float]] = {}
    for extra in EXTRA_FIELDS:
        number = getattr(header, extra.name)
        if number and not extra.least <= number <= extra.most:  # NaN fails this check too
            raise InvalidRequestError(
                f"{extra.name}: expected 0, or {extra.least:g} to {extra.most:g}, got {number}", field=extra.name
            )
        if number:
            extras.setdefault(extra.stage, {})[extra.name] = number
    return extras


def components_from_header(header: pb.UpdateHeader, expected: Sequence[Layout]) -> tuple[EncodedLayout, ...]:
    """Return an update's components in their encodings, from the byte at which this upload starts.

    Args:
        header: the received header.
        expected: the layouts of the client's slice.

    Raises:
        LayoutMismatchError: the components are not those of the slice, or their sizes don't add up.
        InvalidRequestError: the encoding or the compression is unknown, or is not allowed for the update's kind.
    """
    compression_from_proto(header.compression)
    require_scopes([layout.scope for layout in expected], [component.scope for component in header.components])
    parts = []
    for number, (layout, component) in enumerate(zip(expected, header.components, strict=True)):
        with within(f"components[{number}]"):
            parts.append(_component(layout, component, header.kind))
    return tuple(parts)


def _component(expected: Layout, component: pb.Component, kind: pb.UpdateKind) -> EncodedLayout:
    if len(component.tensors) > 2 * len(expected.tensors) + 10:  # so that a million tensors are not compared
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
    return replace(part, layout=expected)


def with_components(update: Update, header: pb.UpdateHeader, parts: Sequence[EncodedLayout]) -> Update:
    """Return an update with all bytes of its components, whatever byte this upload starts at, and its compression."""
    components = tuple(replace(part, start=0) for part in parts)
    return replace(update, components=components, compression=compression_from_proto(header.compression))


def update_from_bytes(
    data: bytes, layouts_of: Callable[[Update], Sequence[Layout]], spec_of: Callable[[str], TaskSpec]
) -> Update:
    """Return a complete update from the serialized header in its file.

    Args:
        data: the serialized header.
        layouts_of: returns the layouts of an update's components.
        spec_of: returns a task by its name.

    Raises:
        RequestError: the bytes are not a header, or the header is not for this model.
    """
    try:
        header = pb.UpdateHeader.FromString(data)
    except DecodeError as error:
        raise MalformedStreamError(f"expected an update's header: {error}") from None
    spec = spec_of(header.task)
    try:
        update = update_from_header(header, spec)
    except (
        InvalidRequestError,
        LimitExceededError,
    ):  # an older server accepted any metrics: the rest counts
        for field in _EVALUATIONS:
            header.ClearField(field)
        update = update_from_header(header, spec)
    for component in header.components:
        component.start_offset = 0  # the file has the whole component, even if it took several uploads
    expected = () if update.kind == "metrics" else layouts_of(update)
    return with_components(update, header, components_from_header(header, expected))
