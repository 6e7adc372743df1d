"""Reads all updates of a component again when the round closes, one block of elements at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.values import ScreenedUpdate
from fedmtl_server.aggregation.wide import counted_values


class UpdateBlocks(Protocol):
    """The stored updates of a round."""

    def read(self, client_id: str, scope: str, run: int, start: int, stop: int) -> Tensor:
        """Read and decode some elements of an update's component: parameters or a delta, as they were sent.

        Args:
            client_id: the client that sent the update.
            scope: the component's scope.
            run: the number of the flat vector in the component's layout (`Layout.runs`).
            start: its first element to read.
            stop: the element after the last one to read.

        Returns:
            `(stop - start,)`, in the run's dtype; callers must not write to it.

        Raises:
            StoreError: an update that isn't in memory can't be read.
        """


@dataclass(frozen=True)
class BlockReader:
    """Reads the updates of one component, in the order in which they were accumulated.

    Callers that keep the blocks of all updates need one block of memory per update, however large the component is.
    """

    scope: str
    updates: Sequence[ScreenedUpdate]
    """The updates without their tensors."""
    base: Component | None
    """The model's component; None if the model doesn't have it, and no update is relative to it."""
    source: UpdateBlocks

    def read(self, number: int, run: int, start: int, stop: int) -> Tensor:
        """Read some elements of an update as parameters, with clipping and discount applied.

        Args:
            number: the update's index in `updates`.
            run: the number of the flat vector in the component's layout (`Layout.runs`).
            start: its first element to read.
            stop: the element after the last one to read.

        Returns:
            `(stop - start,)`, float32 (float64 for float64); callers must not write to it.

        Raises:
            StoreError: an update that isn't in memory can't be read.
        """
        update, scope = self.updates[number], self.scope
        sent = self.source.read(update.client_id, scope, run, start, stop)
        origin = self.base_values(run, start, stop) if update.needs_base_in(scope) else None
        return counted_values(sent, origin, update.scale_in(scope), update.kind == "delta")

    def base_values(self, run: int, start: int, stop: int) -> Tensor | None:
        """Return the model's values of some elements, `(stop - start,)`, in the run's dtype, for reading only."""
        return None if self.base is None else self.base.runs()[run][start:stop]
