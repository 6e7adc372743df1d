"""Converts the settings of adapters to the contract's messages and back."""

from __future__ import annotations

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import InvalidRequestError
from fedmtl_core.tasks.adapters import AdapterKind, AdapterSettings

_KIND_TO_PROTO: dict[AdapterKind, pb.AdapterKind] = {
    "lora": pb.ADAPTER_KIND_LORA,
    "rslora": pb.ADAPTER_KIND_RSLORA,
    "dora": pb.ADAPTER_KIND_DORA,
}
_KIND_FROM_PROTO = {proto: kind for kind, proto in _KIND_TO_PROTO.items()}


def adapters_to_proto(adapters: AdapterSettings) -> pb.Adapters:
    """Return the settings of adapters as a message."""
    return pb.Adapters(
        kind=_KIND_TO_PROTO[adapters.kind],
        rank=adapters.rank,
        alpha=adapters.alpha,
        targets=adapters.targets,
        dropout=adapters.dropout,
        a_is_frozen=adapters.a_is_frozen,
        seed=adapters.seed,
        is_stacked=adapters.is_stacked,
    )


def adapters_from_proto(message: pb.Adapters) -> AdapterSettings:
    """Return the settings of adapters that a message describes.

    Raises:
        InvalidRequestError: a value is out of range.
    """
    kind = _KIND_FROM_PROTO.get(message.kind)
    if kind is None:
        raise _invalid("kind", f"unknown value {message.kind}")
    if message.rank < 1:
        raise _invalid("rank", f"expected at least 1, got {message.rank}")
    if not 0 < message.alpha < float("inf"):
        raise _invalid("alpha", f"expected a finite number above 0, got {message.alpha}")
    if not 0 <= message.dropout < 1:
        raise _invalid("dropout", f"expected a number from 0 to below 1, got {message.dropout}")
    return AdapterSettings(
        rank=message.rank,
        alpha=message.alpha,
        kind=kind,
        targets=tuple(message.targets),
        dropout=message.dropout,
        a_is_frozen=message.a_is_frozen,
        seed=message.seed,
        is_stacked=message.is_stacked,
    )


def _invalid(name: str, what: str) -> InvalidRequestError:
    field = f"plan.adapters.{name}"
    return InvalidRequestError(f"{field}: {what}", field=field)
