"""The client's own choice of its next task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fedmtl_core.config import ClientSelection


@dataclass(frozen=True)
class TaskSchedule:
    """The order in which a client chooses its tasks; with `selection: server` it leaves the choice to the server.

    The server respects the choice: the client counts for the quorum of the chosen task only.
    """

    tasks: Sequence[str]
    """All tasks that the client has data for; at least one."""
    selection: ClientSelection = "server"
    """`server` for the server's choice, `round_robin` for one task after the other, `random` for a uniform draw."""
    seed: int = 0
    client_id: str = ""

    @property
    def first(self) -> str:
        """The first task; empty if the server is to choose."""
        if len(self.tasks) == 1 or self.selection == "round_robin":
            return self.tasks[0]
        return "" if self.selection == "server" else self._drawn(0)

    def after(self, task: str, round_: int) -> str:
        """Return the task after a round.

        Args:
            task: the client's task in that round, one of its tasks.
            round_: the round's number.

        Returns:
            A task; empty if the server is to choose, or the client has only one task.
        """
        if len(self.tasks) == 1 or self.selection == "server":
            return ""
        if self.selection == "round_robin":
            return self.tasks[(self.tasks.index(task) + 1) % len(self.tasks)]
        return self._drawn(round_)

    def _drawn(self, round_: int) -> str:
        return random.Random(f"{self.seed}/{self.client_id}/{round_}/task").choice(self.tasks)
