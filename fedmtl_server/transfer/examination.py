"""Whether an update that is whole may count: its numbers are numbers, and it moves the model no further than it may."""

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
    """What the norms of a round's updates are held against."""

    base: Mapping[str, Component]
    """The model's components by scope."""
    model_norms: Mapping[str, float]
    """Their norms; empty where no update is compared with them."""
    refusal_bounds: Mapping[str, float]
    """By scope, the norm beyond which an update is refused in this round, where there is one."""
    limits: Mapping[str, float]
    """By scope, the norm beyond which an update is refused in any round, where there is one."""


class Examination:
    """Examines updates that are whole, before they count.

    Args:
        norms: what is done with updates that move the model too far.
        staging: where their bytes are.
    """

    def __init__(self, norms: NormScreening, staging: StagingArea):
        self._norms = norms
        self._staging = staging

    async def measure(self, transfer: Transfer, reference: NormReference) -> None:
        """Check that every number of an update is one, and note its norms where they are needed.

        The norms tell both in one pass where it came as float32.

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
        """Check that an update, once measured, moves the model no further than it may.

        Raises:
            NormExceededError: it moves it too far.
        """
        if transfer.norms:
            require_within(transfer.norms, reference.refusal_bounds)
            require_within(transfer.norms, reference.limits, ": robustness.norms.model_factor times the model's own")

    async def _may_exceed(self, transfer: Transfer, reference: NormReference) -> bool:
        """Whether an update that wasn't measured could be beyond a limit, as far as it can be told without decoding."""
        limits = reference.limits
        if not limits or not transfer.staged.parts:
            return False
        base = reference.model_norms if transfer.update.kind == "parameters" else {}
        largest = await asyncio.to_thread(transfer.staged.largest_norms)
        return any(not norm + base.get(scope, 0.0) <= limits.get(scope, math.inf) for scope, norm in largest.items())

    async def _measured(self, transfer: Transfer, reference: NormReference) -> Mapping[str, float]:
        kind, base = transfer.update.kind, reference.base
        return await self._staging.look(transfer.staged, lambda components: update_norms(kind, components, base))
