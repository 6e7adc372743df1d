"""The layouts that clients' updates must have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.layout import Layout
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.ranks import Ranks
from fedmtl_server.model import MTLServerModel


@dataclass(frozen=True)
class UpdateLayouts:
    """The layouts of updates: those of the trained components in their clients' slices."""

    model: MTLServerModel
    """The server's model."""
    ranks: Ranks
    """The ranks of the clients' adapters."""

    def spec_of(self, task: str) -> TaskSpec:
        """Return the specification of a task; see `MTLServerModel.spec_of`."""
        return self.model.spec_of(task)

    def layouts_of(self, update: Update) -> Sequence[Layout]:
        """Return the layouts of an update's components, in their order.

        Raises:
            UnknownTaskError: the run has no task of the update's name.
        """
        return self.ranks.layouts_of(update.client_id, self.model.layouts_for(update.task, update.base_round))
