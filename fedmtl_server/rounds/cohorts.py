"""The cohort of a round: all connected clients, a random part of them, or more clients than are needed."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from fractions import Fraction

from fedmtl_core.config import RoundsConfig


def choose_cohort(
    rounds: RoundsConfig,
    present: Mapping[str, str],
    round_: int,
    min_clients: Mapping[str, int],
    seed: int,
    attempt: int = 0,
) -> dict[str, str]:
    """Choose the cohort of a round. Each task's part is chosen separately, so that every head gets updates.

    * `all`: every connected client.
    * `fraction`: a random share of each task's clients, like FedAvg's C (McMahan et al. 2017, arXiv:1602.05629).
    * `over_select`: `cohort_size + cohort_extra` random clients of each task; see `num_enough`.

    The same clients, seed, round and attempt give the same cohort.

    Args:
        rounds: its keys that begin with `cohort` select the rule.
        present: task by client id, of the connected clients.
        round_: the round's number.
        min_clients: by task, the minimum number chosen, if so many clients are connected.
        seed: the seed of the random draws.
        attempt: how often the round was abandoned. Each attempt draws other clients, because none of the earlier
            cohort answered.

    Returns:
        Task by client id, in the order of client ids.
    """
    if rounds.cohort == "all":
        return dict(sorted(present.items()))
    chosen: dict[str, str] = {}
    for task in sorted(set(present.values())):
        there = sorted(client_id for client_id, other in present.items() if other == task)
        share = Fraction(str(rounds.cohort_fraction)) * len(there)  # in floats 0.07 of 100 is more than 7
        wanted = math.ceil(share) if rounds.cohort == "fraction" else rounds.cohort_size + rounds.cohort_extra
        count = min(len(there), max(wanted, min_clients.get(task, 0)))
        picked = random.Random(f"{seed}/{round_}/{task}/{attempt}").sample(there, count)
        chosen |= dict.fromkeys(picked, task)
    return dict(sorted(chosen.items()))


def num_enough(rounds: RoundsConfig, num_members: int, min_clients: int) -> int:
    """Return the number of a task's updates that is enough to close a round: all of them; with `over_select`,
    `cohort_size` (Bonawitz et al. 2019, arXiv:1902.01046, section 2.2), but at least the quorum.

    Args:
        rounds: its key `cohort` is the rule that was used.
        num_members: the size of the task's part of the cohort.
        min_clients: the task's quorum.
    """
    if rounds.cohort != "over_select":
        return num_members
    return min(num_members, max(rounds.cohort_size, min_clients))
