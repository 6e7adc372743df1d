"""Which of its tasks a client has next, where it says so itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fedmtl_core.config import ClientSelection


@dataclass(frozen=True)
class TaskSchedule:
    """A client's own choice of its tasks, or none.

    The server holds to it: the client counts for the quorum of the task that it has chosen, and of no other.
    """

    tasks: Sequence[str]
    """All that it has data for; at least one."""
    selection: ClientSelection = "server"
    """`server` for no choice of its own, `round_robin` for one after the other, `random` for any with equal chance."""
    seed: int = 0
    client_id: str = ""

    @property
    def first(self) -> str:
        """The choice to begin with; empty if it is the server's."""
        if len(self.tasks) == 1 or self.selection == "round_robin":
            return self.tasks[0]
        return "" if self.selection == "server" else self._drawn(0)

    def after(self, task: str, round_: int) -> str:
        """The choice that follows a round.

        Args:
            task: the client's in that round; one of its tasks.
            round_: the round's number.

        Returns:
            A task; empty if it is the server's choice, or there is none.
        """
        if len(self.tasks) == 1 or self.selection == "server":
            return ""
        if self.selection == "round_robin":
            return self.tasks[(self.tasks.index(task) + 1) % len(self.tasks)]
        return self._drawn(round_)

    def _drawn(self, round_: int) -> str:
        return random.Random(f"{self.seed}/{self.client_id}/{round_}/task").choice(self.tasks)
