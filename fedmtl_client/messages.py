"""Converts the contract's messages to a client into values."""

from __future__ import annotations

from collections.abc import Mapping

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_client.slices import ServerBase, Slice
from fedmtl_client.transport import EventKind, Outcome, Receipt, RoundEvent
from fedmtl_core.errors import InvalidRequestError, MalformedStreamError
from fedmtl_core.identifiers import quoted
from fedmtl_core.model.scopes import is_stack
from fedmtl_core.wire.chunks import Chunk, read_message
from fedmtl_core.wire.controls import without_controls
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.messages import PURPOSE_FROM_PROTO, plan_from_proto
from fedmtl_core.wire.variant_messages import MAX_VARIANTS

_EVENT_KINDS: Mapping[pb.RoundEventKind, EventKind] = {
    pb.ROUND_EVENT_KIND_WAITING: "waiting",
    pb.ROUND_EVENT_KIND_OPENED: "opened",
    pb.ROUND_EVENT_KIND_CLOSING: "closing",
    pb.ROUND_EVENT_KIND_COMMITTED: "committed",
    pb.ROUND_EVENT_KIND_FINISHED: "finished",
    pb.ROUND_EVENT_KIND_FAILED: "failed",
}
_OUTCOMES: Mapping[pb.Outcome, Outcome] = {pb.OUTCOME_ACCEPTED: "accepted", pb.OUTCOME_DUPLICATE: "duplicate"}


def event_from_proto(message: pb.WatchRoundsResponse) -> RoundEvent:
    """Convert an event of the run, without a round's report."""
    return RoundEvent(
        kind=_EVENT_KINDS.get(message.kind, "unknown"),
        run_id=message.run_id,
        round=message.round,
        num_rounds=message.num_rounds,
        purpose=PURPOSE_FROM_PROTO.get(message.purpose, "train"),
        in_cohort=message.in_cohort,
        reported=message.reported,
        oldest_base_round=message.oldest_base_round,
        task=message.task,
        waiting_for=message.waiting_for,
    )


def receipt_from_proto(message: pb.PushUpdateResponse) -> Receipt:
    """Convert the acknowledgement of an update."""
    return Receipt(_OUTCOMES.get(message.outcome, "unknown"), message.round, message.num_bytes)


def slice_header(opening: bytes, variant: str = "") -> pb.SliceHeader:
    """Return the header in the first message of a slice's stream.

    Args:
        opening: the message.
        variant: the requested variant; empty for the slice itself.

    Raises:
        MalformedStreamError: the message has no header, or its header is of another variant.
    """
    message = read_message(opening, pb.GetSliceResponse)
    if isinstance(message, Chunk) or message.WhichOneof("part") != "header":
        raise MalformedStreamError("expected a header as the first message of the slice's stream")
    if message.header.variant != variant:
        expected, got = (
            f"the variant {quoted(name)}" if name else "the slice" for name in (variant, message.header.variant)
        )
        raise MalformedStreamError(f"expected {expected}, but the server sends {got}")
    return message.header


def server_base_from(header: pb.SliceHeader) -> ServerBase:
    """Return the server's base as the header of its stream describes it.

    Raises:
        MalformedStreamError: the header doesn't have one digest for each tensor.
    """
    names = [spec.name for component in header.components for spec in component.tensors]
    if len(names) != len(header.base_tensor_digests):
        raise MalformedStreamError(
            f"base_tensor_digests: expected {len(names)} digests, got {len(header.base_tensor_digests)}"
        )
    tensors = dict(zip(names, header.base_tensor_digests, strict=True))
    return ServerBase(header.base_digest, tensors, header.total_bytes)


def slice_from(header: pb.SliceHeader, task: str, components: Mapping[str, Component], bytes_received: int) -> Slice:
    """Return the slice of a complete download.

    Args:
        header: the header of the slice's stream.
        task: the requested task; empty for all tasks.
        components: by scope, including control variates.
        bytes_received: encoded bytes received for the slice.

    Raises:
        InvalidRequestError: a value of the training plan is out of range.
    """
    model, controls = without_controls({scope: one for scope, one in components.items() if not is_stack(scope)})
    plan = plan_from_proto(header.plan)
    if plan.schedule_first_round > header.round:
        raise InvalidRequestError(
            f"plan.schedule_first_round: expected at most the slice's round {header.round}, got "
            f"{plan.schedule_first_round}",
            field="plan.schedule_first_round",
        )
    return Slice(
        run_id=header.run_id,
        round=header.round,
        task=task,
        purpose=PURPOSE_FROM_PROTO[header.purpose],
        plan=plan,
        components=model,
        controls=controls,
        control_since=header.control_since,
        variants={one.name: max(one.start_margin, 0.0) for one in header.variants[:MAX_VARIANTS]},
        bytes_received=bytes_received,
        base_digest=header.base_digest,
        stacks={scope: one for scope, one in components.items() if is_stack(scope)},
        stack_base_digest=header.stack_base_digest,
        read_only=tuple(one.scope for one in header.components if one.read_only and one.scope in model),
    )
