"""Examines complete updates: all numbers must be finite, and the norms must be within the configured limits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.norms import are_ordinary, update_norms
from fedmtl_server.aggregation.stages.norms import NormScreening, require_within
from fedmtl_server.transfer.incoming import Transfer
from fedmtl_server.transfer.staging import StagingArea


@dataclass(frozen=True)
class NormReference:
    """The reference values for the norms of a client's update in a round."""

    base: Mapping[str, Component]
    """The components that the client received, by scope."""
    model_norms: Mapping[str, float]
    """The norms of the model's components by scope; empty if no update is compared with them."""
    refusal_bounds: Mapping[str, float]
    """The norm above which an update is refused in this round, by scope; only scopes with a bound."""
    limits: Mapping[str, float]
    """The norm above which an update is refused in any round, by scope; only scopes with a limit."""


class Examination:
    """Examines complete updates before they count.

    Args:
        norms: the treatment of updates with too large a norm.
        staging: the storage of the updates' bytes.
    """

    def __init__(self, norms: NormScreening, staging: StagingArea):
        self._norms = norms
        self._staging = staging

    async def measure(self, transfer: Transfer, reference: NormReference) -> None:
        """Check that every number of an update is finite, and record the update's norms if they are needed.

        For a float32 update, computing the norms does both in one pass.

        Raises:
            NonFiniteError, MalformedStreamError: see `StagedUpdate.require_valid`.
        """
        staged = transfer.staged
        if self._norms.measures and staged.is_float32:
            transfer.norms = await self._measured(transfer, reference)
        if not transfer.norms or not are_ordinary(transfer.norms):
            await asyncio.to_thread(staged.require_valid)
        if transfer.norms:
            return
        if reference.refusal_bounds or await self._may_exceed(transfer, reference):
            transfer.norms = await self._measured(transfer, reference)

    def require_within(self, transfer: Transfer, reference: NormReference) -> None:
        """Check that the norms of a measured update are within the limits.

        Raises:
            NormExceededError: the update moves the model too far.
        """
        if transfer.norms:
            require_within(transfer.norms, reference.refusal_bounds)
            require_within(transfer.norms, reference.limits, ": robustness.norms.model_factor times the model's own")

    async def _may_exceed(self, transfer: Transfer, reference: NormReference) -> bool:
        """Whether an update that was not measured could exceed a limit, by a bound that needs no decoding."""
        limits = reference.limits
        if not limits or not transfer.staged.parts:
            return False
        base = reference.model_norms if transfer.update.kind == "parameters" else {}
        largest = await asyncio.to_thread(transfer.staged.largest_norms)
        return any(not norm + base.get(scope, 0.0) <= limits.get(scope, math.inf) for scope, norm in largest.items())

    async def _measured(self, transfer: Transfer, reference: NormReference) -> Mapping[str, float]:
        kind, base = transfer.update.kind, reference.base
        return await self._staging.look(transfer.staged, lambda components: update_norms(kind, components, base))
