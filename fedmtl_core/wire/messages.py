"""Converts layouts, encodings and training plans to contract messages and back, and checks received messages."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import InvalidRequestError, LayoutMismatchError, within
from fedmtl_core.identifiers import require_identifier, shown
from fedmtl_core.tasks.plan import LocalOptimizer, Pooling, Purpose, TrainingPlan, UpdateKind
from fedmtl_core.wire.adapter_messages import adapters_from_proto, adapters_to_proto
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import require_encoded_size
from fedmtl_core.wire.formats import Compression, Encoding
from fedmtl_core.wire.layout import Layout, TensorSpec

_DTYPE_TO_PROTO = {
    torch.float32: pb.ELEMENT_TYPE_FLOAT32,
    torch.float16: pb.ELEMENT_TYPE_FLOAT16,
    torch.bfloat16: pb.ELEMENT_TYPE_BFLOAT16,
    torch.float64: pb.ELEMENT_TYPE_FLOAT64,
}
_DTYPE_FROM_PROTO = {proto: dtype for dtype, proto in _DTYPE_TO_PROTO.items()}

MAX_RANK, MAX_SIZE = 16, 2**40
"""The maximum number of dimensions of a tensor, and the maximum size of a dimension."""

UPDATE_KIND_TO_PROTO: dict[UpdateKind, pb.UpdateKind] = {
    "parameters": pb.UPDATE_KIND_PARAMETERS,
    "delta": pb.UPDATE_KIND_DELTA,
    "metrics": pb.UPDATE_KIND_METRICS,
}
UPDATE_KIND_FROM_PROTO = {proto: kind for kind, proto in UPDATE_KIND_TO_PROTO.items()}

_POOLING_TO_PROTO: dict[Pooling, pb.Pooling] = {
    "cls": pb.POOLING_CLS,
    "mean": pb.POOLING_MEAN,
    "last": pb.POOLING_LAST,
}
_POOLING_FROM_PROTO = {proto: pooling for pooling, proto in _POOLING_TO_PROTO.items()}

_OPTIMIZER_TO_PROTO: dict[LocalOptimizer, pb.LocalOptimizer] = {
    "adamw": pb.LOCAL_OPTIMIZER_ADAMW,
    "sgd": pb.LOCAL_OPTIMIZER_SGD,
}
_OPTIMIZER_FROM_PROTO = {proto: optimizer for optimizer, proto in _OPTIMIZER_TO_PROTO.items()}

_TASK_TYPE_TO_PROTO: dict[str | None, pb.TaskType] = {
    None: pb.TASK_TYPE_UNSPECIFIED,
    "classification": pb.TASK_TYPE_CLASSIFICATION,
    "regression": pb.TASK_TYPE_REGRESSION,
    "masked_lm": pb.TASK_TYPE_MASKED_LM,
}
_TASK_TYPE_FROM_PROTO = {proto: type_ for type_, proto in _TASK_TYPE_TO_PROTO.items()}

_TRANSLATED = ("update", "pooling", "task_type", "labels", "optimizer", "local", "adapters")
"""The fields of a plan that have another form in the message."""

PURPOSE_TO_PROTO: dict[Purpose, pb.RoundPurpose] = {
    "train": pb.ROUND_PURPOSE_TRAIN,
    "evaluate": pb.ROUND_PURPOSE_EVALUATE,
}
PURPOSE_FROM_PROTO = {proto: purpose for purpose, proto in PURPOSE_TO_PROTO.items()}


_ENCODING_TO_PROTO: dict[Encoding, pb.Encoding] = {
    "float32": pb.ENCODING_FLOAT32,
    "float16": pb.ENCODING_FLOAT16,
    "bfloat16": pb.ENCODING_BFLOAT16,
    "int8": pb.ENCODING_INT8,
    "topk": pb.ENCODING_TOPK,
}
_ENCODING_FROM_PROTO = {proto: encoding for encoding, proto in _ENCODING_TO_PROTO.items()}

_COMPRESSION_TO_PROTO: dict[Compression, pb.Compression] = {
    "none": pb.COMPRESSION_UNSPECIFIED,
    "zstd": pb.COMPRESSION_ZSTD,
}
_COMPRESSION_FROM_PROTO = {proto: compression for compression, proto in _COMPRESSION_TO_PROTO.items()}


def component_to_proto(
    part: EncodedLayout, digest: bytes = b"", base_digest: bytes = b"", *, read_only: bool = False
) -> pb.Component:
    """Return a component's table of contents and encoding as a message."""
    return pb.Component(
        scope=part.scope,
        tensors=[
            pb.TensorSpec(name=spec.name, dtype=_DTYPE_TO_PROTO[spec.dtype], shape=spec.shape, offset=spec.offset)
            for spec in part.layout.tensors
        ],
        num_bytes=part.layout.num_bytes,
        digest=digest,
        start_offset=part.start,
        encoding=_ENCODING_TO_PROTO[part.encoding],
        encoded_bytes=part.num_bytes,
        base_digest=base_digest,
        read_only=read_only,
    )


def component_from_proto(message: pb.Component) -> EncodedLayout:
    """Return a component's layout and encoding from a message.

    Raises:
        LayoutMismatchError: the sizes don't add up.
        InvalidRequestError: the encoding is unknown, or `start_offset` is past the end.
    """
    layout = layout_from_proto(message)
    encoding = encoding_from_proto(message.encoding, f"{shown(message.scope)}: encoding")
    left_out = message.encoding == pb.ENCODING_UNSPECIFIED and message.encoded_bytes == 0
    num_bytes = layout.num_bytes if left_out else message.encoded_bytes
    with within("encoded_bytes"):
        require_encoded_size(layout, encoding, num_bytes)
    if message.start_offset > num_bytes:
        raise InvalidRequestError(
            f"{shown(message.scope)}: start_offset: expected at most {num_bytes}, got {message.start_offset}",
            field="start_offset",
        )
    return EncodedLayout(layout, encoding, num_bytes, message.start_offset)


def encoding_to_proto(encoding: Encoding) -> pb.Encoding:
    return _ENCODING_TO_PROTO[encoding]


def encoding_from_proto(value: pb.Encoding, name: str = "encoding") -> Encoding:
    """Return the encoding in a message's field `encoding`; `float32` if the field is unset.

    Raises:
        InvalidRequestError: the encoding is unknown.
    """
    encoding = _ENCODING_FROM_PROTO.get(value or pb.ENCODING_FLOAT32)
    if encoding is None:
        raise InvalidRequestError(
            f"{name}: expected one of {', '.join(_ENCODING_TO_PROTO)}, got {value}", field="encoding"
        )
    return encoding


def compression_to_proto(compression: Compression) -> pb.Compression:
    return _COMPRESSION_TO_PROTO[compression]


def compression_from_proto(value: pb.Compression) -> Compression:
    """Return the compression that a message asks for.

    Raises:
        InvalidRequestError: the compression is unknown.
    """
    compression = _COMPRESSION_FROM_PROTO.get(value)
    if compression is None:
        raise InvalidRequestError(
            f"compression: expected one of {', '.join(_COMPRESSION_TO_PROTO)}, got {value}", field="compression"
        )
    return compression


def layout_from_proto(message: pb.Component) -> Layout:
    """Return the layout that a message describes. This allocates no memory for the sizes in the message.

    Raises:
        LayoutMismatchError: an element type is unknown, or the sizes don't add up.
    """
    specs = []
    for number, tensor in enumerate(message.tensors):
        where = f"{shown(message.scope)}: {shown(tensor.name)}"
        dtype = _DTYPE_FROM_PROTO.get(tensor.dtype)
        if dtype is None:
            raise LayoutMismatchError(f"{where}: unknown element type {tensor.dtype}", field=f"tensors[{number}].dtype")
        if len(tensor.shape) > MAX_RANK or any(size > MAX_SIZE for size in tensor.shape):
            raise LayoutMismatchError(
                f"{where}: expected at most {MAX_RANK} dimensions of at most {MAX_SIZE}",
                field=f"tensors[{number}].shape",
            )
        specs.append(TensorSpec(tensor.name, dtype, tuple(tensor.shape), tensor.offset))
    layout = Layout(message.scope, tuple(specs))
    if layout.num_bytes != message.num_bytes:
        raise LayoutMismatchError(
            f"{shown(message.scope)}: num_bytes is {message.num_bytes}, but the last tensor ends at byte "
            f"{layout.num_bytes}",
            field="num_bytes",
            expected=layout.num_bytes,
            got=message.num_bytes,
        )
    return layout


def plan_to_proto(plan: TrainingPlan) -> pb.TrainingPlan:
    """Return a training plan as a message."""
    values = asdict(plan)
    del values["adapters"]
    return pb.TrainingPlan(
        update_kind=UPDATE_KIND_TO_PROTO[values.pop("update")],
        pooling=_POOLING_TO_PROTO[values.pop("pooling")],
        optimizer=_OPTIMIZER_TO_PROTO[values.pop("optimizer")],
        **_kind_to_proto(values.pop("task_type")),
        adapters=None if plan.adapters is None else adapters_to_proto(plan.adapters),
        **values,
    )


def plan_from_proto(message: pb.TrainingPlan) -> TrainingPlan:
    """Return the training plan that a message describes.

    Raises:
        InvalidRequestError: a value is out of range.
    """
    update = UPDATE_KIND_FROM_PROTO.get(message.update_kind)
    if update is None:
        raise InvalidRequestError(f"plan.update_kind: unknown value {message.update_kind}", field="plan.update_kind")
    pooling = _POOLING_FROM_PROTO.get(message.pooling)
    if pooling is None:
        raise InvalidRequestError(f"plan.pooling: unknown value {message.pooling}", field="plan.pooling")
    optimizer = _OPTIMIZER_FROM_PROTO.get(message.optimizer or pb.LOCAL_OPTIMIZER_ADAMW)
    if optimizer is None:
        raise InvalidRequestError(f"plan.optimizer: unknown value {message.optimizer}", field="plan.optimizer")
    for name in ("local_epochs", "batch_size", "max_length", "num_rounds"):
        if getattr(message, name) < 1:
            raise InvalidRequestError(f"plan.{name}: expected at least 1, got {getattr(message, name)}")
    if bool(message.schedule_first_round) != bool(message.schedule_num_rounds):
        raise InvalidRequestError(
            "plan.schedule_num_rounds: expected it together with schedule_first_round, got "
            f"{message.schedule_num_rounds} and {message.schedule_first_round}",
            field="plan.schedule_num_rounds",
        )
    unchanged = (field.name for field in fields(TrainingPlan) if field.name not in _TRANSLATED)
    return TrainingPlan(
        update=update,
        pooling=pooling,
        task_type=_kind_from_proto(message),
        labels=tuple(message.labels),
        optimizer=optimizer,
        local=tuple(message.local),
        adapters=adapters_from_proto(message.adapters) if message.HasField("adapters") else None,
        **{name: getattr(message, name) for name in unchanged},
    )


def _kind_to_proto(kind: str | None) -> dict[str, Any]:
    if kind in _TASK_TYPE_TO_PROTO:
        return {"task_type": _TASK_TYPE_TO_PROTO[kind]}
    return {"task_type": pb.TASK_TYPE_CUSTOM, "task_kind": kind}


def _kind_from_proto(message: pb.TrainingPlan) -> str | None:
    if message.task_type == pb.TASK_TYPE_CUSTOM:
        return require_identifier("plan.task_kind", message.task_kind)
    if message.task_type not in _TASK_TYPE_FROM_PROTO:
        raise InvalidRequestError(f"plan.task_type: unknown value {message.task_type}", field="plan.task_type")
    return _TASK_TYPE_FROM_PROTO[message.task_type]
