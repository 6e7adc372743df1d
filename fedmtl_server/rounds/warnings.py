"""Warnings about the result of a round. Nothing is refused because of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedmtl_server.aggregation.values import Contribution

WarningKind = Literal["dominant_client", "large_update", "damaged_model"]

DOMINANT_SHARE = 0.9
"""The largest share of a component's average that one of several clients may have without a warning."""
LARGE_FACTOR = 1000.0
"""The largest norm of an update, relative to the model's own norm, without a warning."""


@dataclass(frozen=True)
class RoundWarning:
    """One warning about a round."""

    kind: WarningKind
    message: str
    """The warning as text."""
    scope: str = ""
    """The affected component; empty for the whole model."""
    client_ids: Sequence[str] = field(default_factory=list)


def warnings_of(
    contributions: Mapping[str, Sequence[Contribution]], model_norms: Mapping[str, float]
) -> list[RoundWarning]:
    """Return the warnings about a round's average.

    Args:
        contributions: by scope, the contributions to the component.
        model_norms: by scope, the norm of the model that the round began with; scopes with unknown norms are absent.
    """
    return [
        warning
        for scope, parts in contributions.items()
        for warning in (*_dominant(scope, parts), *_large(scope, parts, model_norms.get(scope)))
    ]


def damaged_model(round_: int, reasons: Mapping[str, str]) -> RoundWarning:
    """Return the warning that clients can't compute with the model that a round began with.

    Args:
        round_: the round.
        reasons: by client id, the client's explanation.
    """
    client_id, reason = next(iter(reasons.items()))
    return RoundWarning(
        "damaged_model",
        f"the model that round {round_} began with gives values that aren't finite, as client {client_id} says "
        f"({reason}); roll the run back with: fedmtl-server runs rollback RUN --to-round N",
        client_ids=list(reasons),
    )


def _dominant(scope: str, parts: Sequence[Contribution]) -> list[RoundWarning]:
    total = sum(part.weight for part in parts)
    if len(parts) < 2 or not total > 0:
        return []
    return [
        RoundWarning(
            "dominant_client",
            f"client {part.client_id} is {part.weight / total:.1%} of {scope}, shared by {len(parts)} clients",
            scope,
            [part.client_id],
        )
        for part in parts
        if part.weight > DOMINANT_SHARE * total
    ]


def _large(scope: str, parts: Sequence[Contribution], model_norm: float | None) -> list[RoundWarning]:
    if model_norm is None:
        return []
    return [
        RoundWarning(
            "large_update",
            f"the update of client {part.client_id} moved {scope} by an L2 norm of {part.counted_norm:.3g}, "
            f"{part.counted_norm / model_norm:.3g} times the model's own",
            scope,
            [part.client_id],
        )
        for part in parts
        if part.counted_norm is not None and part.counted_norm > LARGE_FACTOR * model_norm
    ]
