"""Layouts and training plans as contract messages, and back. What comes in is checked before it is believed."""

from __future__ import annotations

from dataclasses import asdict, fields

import torch
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import InvalidRequestError, LayoutMismatchError
from fedmtl_core.layout import Layout, TensorSpec
from fedmtl_core.plan import Pooling, Purpose, TrainingPlan, UpdateKind

_DTYPE_TO_PROTO = {
    torch.float32: pb.ELEMENT_TYPE_FLOAT32,
    torch.float16: pb.ELEMENT_TYPE_FLOAT16,
    torch.bfloat16: pb.ELEMENT_TYPE_BFLOAT16,
    torch.float64: pb.ELEMENT_TYPE_FLOAT64,
}
_DTYPE_FROM_PROTO = {proto: dtype for dtype, proto in _DTYPE_TO_PROTO.items()}

MAX_RANK, MAX_SIZE = 16, 2**40
"""No tensor has more dimensions, none of them is larger."""

UPDATE_KIND_TO_PROTO: dict[UpdateKind, pb.UpdateKind] = {
    "parameters": pb.UPDATE_KIND_PARAMETERS,
    "delta": pb.UPDATE_KIND_DELTA,
    "metrics": pb.UPDATE_KIND_METRICS,
}
UPDATE_KIND_FROM_PROTO = {proto: kind for kind, proto in UPDATE_KIND_TO_PROTO.items()}

_POOLING_TO_PROTO: dict[Pooling, pb.Pooling] = {"cls": pb.POOLING_CLS, "mean": pb.POOLING_MEAN}
_POOLING_FROM_PROTO = {proto: pooling for pooling, proto in _POOLING_TO_PROTO.items()}

PURPOSE_TO_PROTO: dict[Purpose, pb.RoundPurpose] = {
    "train": pb.ROUND_PURPOSE_TRAIN,
    "evaluate": pb.ROUND_PURPOSE_EVALUATE,
}
PURPOSE_FROM_PROTO = {proto: purpose for purpose, proto in PURPOSE_TO_PROTO.items()}


def component_to_proto(layout: Layout, digest: bytes = b"", start_offset: int = 0) -> pb.Component:
    """A component's table of contents as a message."""
    return pb.Component(
        scope=layout.scope,
        tensors=[
            pb.TensorSpec(name=spec.name, dtype=_DTYPE_TO_PROTO[spec.dtype], shape=spec.shape, offset=spec.offset)
            for spec in layout.tensors
        ],
        num_bytes=layout.num_bytes,
        digest=digest,
        start_offset=start_offset,
    )


def layout_from_proto(message: pb.Component) -> Layout:
    """The layout a message describes. No memory is taken for it, whatever sizes it claims.

    Raises:
        LayoutMismatchError: an element type is unknown, or the sizes don't add up.
    """
    specs = []
    for tensor in message.tensors:
        dtype = _DTYPE_FROM_PROTO.get(tensor.dtype)
        if dtype is None:
            raise LayoutMismatchError(f"{message.scope}: {tensor.name}: unknown element type {tensor.dtype}")
        if len(tensor.shape) > MAX_RANK or any(size > MAX_SIZE for size in tensor.shape):
            raise LayoutMismatchError(
                f"{message.scope}: {tensor.name}: expected at most {MAX_RANK} dimensions of at most {MAX_SIZE}"
            )
        specs.append(TensorSpec(tensor.name, dtype, tuple(tensor.shape), tensor.offset))
    layout = Layout(message.scope, tuple(specs))
    if layout.num_bytes != message.num_bytes:
        raise LayoutMismatchError(
            f"{message.scope}: num_bytes is {message.num_bytes}, but the last tensor ends at byte {layout.num_bytes}"
        )
    return layout


def plan_to_proto(plan: TrainingPlan) -> pb.TrainingPlan:
    """A training plan as a message."""
    values = asdict(plan)
    return pb.TrainingPlan(
        update_kind=UPDATE_KIND_TO_PROTO[values.pop("update")],
        pooling=_POOLING_TO_PROTO[values.pop("pooling")],
        **values,
    )


def plan_from_proto(message: pb.TrainingPlan) -> TrainingPlan:
    """The training plan a message describes.

    Raises:
        InvalidRequestError: a value is out of range.
    """
    update = UPDATE_KIND_FROM_PROTO.get(message.update_kind)
    if update is None:
        raise InvalidRequestError(f"plan.update_kind: unknown value {message.update_kind}")
    pooling = _POOLING_FROM_PROTO.get(message.pooling)
    if pooling is None:
        raise InvalidRequestError(f"plan.pooling: unknown value {message.pooling}")
    for name in ("local_epochs", "batch_size", "max_length", "num_rounds"):
        if getattr(message, name) < 1:
            raise InvalidRequestError(f"plan.{name}: expected at least 1, got {getattr(message, name)}")
    names = [field.name for field in fields(TrainingPlan) if field.name not in ("update", "pooling")]
    return TrainingPlan(update=update, pooling=pooling, **{name: getattr(message, name) for name in names})
