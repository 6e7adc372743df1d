"""The number of clients of each task that a round of a new federation waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def min_clients(sites: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return `min_clients` by task, so that a round can open and every task of every site is trained.

    A client with several tasks trains one of them in each round, in turn. Clients with one task all count. Of n clients
    with the same k tasks, each task always has n // k. A task without a certain client waits for none.

    Args:
        sites: the tasks of each site.
    """
    numbers = {task: 0 for tasks in sites.values() for task in tasks}
    for tasks, count in Counter(frozenset(tasks) for tasks in sites.values()).items():
        for task in tasks:
            numbers[task] += count // len(tasks)
    return numbers
