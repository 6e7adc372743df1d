"""All updates of a component again when its round closes, a block of elements at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.values import ScreenedUpdate
from fedmtl_server.aggregation.wide import counted_values


class UpdateBlocks(Protocol):
    """Where the updates of a round lie until it is over."""

    def read(self, client_id: str, scope: str, run: int, start: int, stop: int) -> Tensor:
        """Some elements of a component of an update, decoded: parameters or a delta, as they were sent.

        Args:
            client_id: whose update.
            scope: the component's.
            run: the number of the flat vector in the component's layout (`Layout.runs`).
            start: its first element to read.
            stop: the element after the last one to read.

        Returns:
            `(stop - start,)`, in the run's dtype; not to be written to.

        Raises:
            StoreError: an update that isn't in memory can't be read.
        """


@dataclass(frozen=True)
class BlockReader:
    """The updates of one component, in the order in which they were accumulated.

    What is read takes the memory of a block for each update that is kept, however large the component is.
    """

    scope: str
    updates: Sequence[ScreenedUpdate]
    """Without their tensors."""
    base: Component | None
    """The model's component; None if it has none, and no update is relative to it."""
    source: UpdateBlocks

    def read(self, number: int, run: int, start: int, stop: int) -> Tensor:
        """Some elements of an update as a mean takes them: parameters, clipped and discounted.

        Args:
            number: the update's place among `updates`.
            run: the number of the flat vector in the component's layout (`Layout.runs`).
            start: its first element to read.
            stop: the element after the last one to read.

        Returns:
            `(stop - start,)`, float32 (float64 for float64); not to be written to.

        Raises:
            StoreError: an update that isn't in memory can't be read.
        """
        update, scope = self.updates[number], self.scope
        sent = self.source.read(update.client_id, scope, run, start, stop)
        origin = self.base_values(run, start, stop) if update.needs_base_in(scope) else None
        return counted_values(sent, origin, update.scale_in(scope), update.kind == "delta")

    def base_values(self, run: int, start: int, stop: int) -> Tensor | None:
        """The model's values of some elements, `(stop - start,)`, in the run's dtype; not to be written to."""
        return None if self.base is None else self.base.runs()[run][start:stop]
