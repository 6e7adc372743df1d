"""Who is asked to take part in a round: all who are there, a random part of them, or more than are needed."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from fedmtl_core.config import CohortSelection


@dataclass(frozen=True)
class CohortRule:
    """How a cohort is chosen, each task's part by itself, so that every head gets its updates.

    * `all`: every connected client.
    * `fraction`: a random share of each task's clients, as FedAvg's C (McMahan et al. 2017, arXiv:1602.05629).
    * `over_select`: `size + extra` random clients of each task; the task has enough when `size` of them have reported
      (Bonawitz et al. 2019, arXiv:1902.01046, section 2.2).
    """

    select: CohortSelection = "all"
    fraction: float = 1.0
    size: int = 1
    extra: int = 0
    seed: int = 0

    def choose(
        self, present: Mapping[str, str], round_: int, min_clients: Mapping[str, int], attempt: int = 0
    ) -> dict[str, str]:
        """The cohort of a round. The same clients, seed, round and attempt give the same cohort.

        Args:
            present: task by client id, of the connected clients.
            round_: the round's number.
            min_clients: by task, how many are chosen at least, if so many are there.
            attempt: how often the round was abandoned before. Others are drawn then: nobody of those reported.

        Returns:
            Task by client id, in the order of client ids.
        """
        if self.select == "all":
            return dict(sorted(present.items()))
        chosen: dict[str, str] = {}
        for task in sorted(set(present.values())):
            there = sorted(client_id for client_id, other in present.items() if other == task)
            share = Fraction(str(self.fraction)) * len(there)  # in floats 0.07 of 100 is more than 7
            wanted = math.ceil(share) if self.select == "fraction" else self.size + self.extra
            count = min(len(there), max(wanted, min_clients.get(task, 0)))
            picked = random.Random(f"{self.seed}/{round_}/{task}/{attempt}").sample(there, count)
            chosen |= dict.fromkeys(picked, task)
        return dict(sorted(chosen.items()))

    def goal(self, num_members: int, min_clients: int) -> int:
        """How many reports of a task are enough to close a round.

        Args:
            num_members: the task's part of the cohort.
            min_clients: the task's quorum.
        """
        return min(num_members, max(self.size, min_clients)) if self.select == "over_select" else num_members
