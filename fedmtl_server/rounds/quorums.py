"""Decides whether clients with several tasks can give every task its quorum, and which clients must change task for it.

The clients of each task are a flow: a client with several tasks can be moved from one task to another. All functions
are pure, and the same arguments give the same result.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedmtl_core.identifiers import name_some


@dataclass(frozen=True)
class _Edge:
    """The cheapest way to give one task a client more and another task a client less."""

    cost: int
    """The change in the number of clients with another task than the wanted one, per moved client: -1, 0 or 1."""
    movers: Sequence[str]
    """The clients that can be moved at that cost."""


def lacking(eligible: Mapping[str, Sequence[str]], needs: Mapping[str, int]) -> dict[str, int]:
    """Return how many clients each task lacks for its quorum under the best choice of the clients' tasks.

    Args:
        eligible: by client, the tasks it can take; at least one.
        needs: by task, its quorum.

    Returns:
        The missing clients by task, above 0, in the order of `needs`. Their sum is the smallest possible. If several
        tasks could be the one that lacks a client, the order of tasks and clients decides.
    """
    have = Counter(_filling_most(eligible, needs).values())
    return {task: needed - have[task] for task, needed in needs.items() if have[task] < needed}


def lacking_text(
    eligible: Mapping[str, Sequence[str]], tasks: Mapping[str, Sequence[str]], needs: Mapping[str, int]
) -> str:
    """Describe the clients that tasks lack: `1 more qqp client (x has it too, but is needed for sst2)`.

    Args:
        eligible: by client, the tasks it can take.
        tasks: by client, all tasks that it has rows for; more than the eligible ones if it has chosen one of them.
        needs: by task, its quorum.

    Returns:
        The description; empty if no client is missing.
    """
    chosen = _filling_most(eligible, needs)
    texts = []
    for task, number in lacking(eligible, needs).items():
        others = [
            f"{client_id} has it too, but {'is needed for' if task in eligible[client_id] else 'has chosen'} {now}"
            for client_id, now in chosen.items()
            if task in tasks[client_id] and now != task
        ]
        why = f" ({name_some(others)})" if others else ""
        texts.append(f"{number} more {task} client{'s' if number > 1 else ''}{why}")
    return ", ".join(texts)


def _filling_most(eligible: Mapping[str, Sequence[str]], needs: Mapping[str, int]) -> dict[str, str]:
    """Choose a task for each client, so that as many places of quorums as possible are filled."""
    tasks = spread(eligible, needs)
    if any(len(mine) > 1 for mine in eligible.values()):
        tasks = meet(eligible, tasks, needs)
    return tasks


def spread(eligible: Mapping[str, Sequence[str]], needs: Mapping[str, int]) -> dict[str, str]:
    """Choose for each client the one of its tasks that lacks most clients so far, or has the fewest beyond its quorum.

    Clients with one task come first, and the others follow in their order. Among equal tasks, the client's first one
    is chosen.
    """
    chosen = {client_id: tasks[0] for client_id, tasks in eligible.items() if len(tasks) == 1}
    have = Counter(chosen.values())
    for client_id, tasks in eligible.items():
        if client_id not in chosen:
            task = max(tasks, key=lambda one: needs.get(one, 0) - have[one])
            chosen[client_id] = task
            have[task] += 1
    return chosen


def meet(
    eligible: Mapping[str, Sequence[str]],
    wanted: Mapping[str, str],
    needs: Mapping[str, int],
    order: Iterable[str] | None = None,
) -> dict[str, str]:
    """Change the tasks of as few clients as possible, so that as many places of quorums as possible are filled.

    Starting from the wanted tasks, clients are moved along a cheapest path from a task with a client to spare to a task
    that lacks one (successive shortest paths). The nodes of a path are tasks, which are few.

    Args:
        eligible: by client, the tasks it can take.
        wanted: by client, one of its tasks, which it keeps unless a quorum needs the client elsewhere.
        needs: by task, its quorum.
        order: the order of the clients: if several could be moved, the first ones are. The order of `eligible` if None.

    Returns:
        The task by client, in the order of `wanted`.
    """
    chosen, in_order = dict(wanted), list(eligible if order is None else order)
    while path := _cheapest_path(eligible, chosen, wanted, needs, in_order):
        tasks, edges = path
        have = Counter(chosen.values())
        spare = have[tasks[0]] - needs.get(tasks[0], 0)
        lack = needs[tasks[-1]] - have[tasks[-1]]
        count = min(spare, lack, *(len(edge.movers) for edge in edges))
        for edge, task in zip(edges, tasks[1:], strict=True):
            chosen |= dict.fromkeys(edge.movers[:count], task)
    return chosen


def _cheapest_path(
    eligible: Mapping[str, Sequence[str]],
    chosen: Mapping[str, str],
    wanted: Mapping[str, str],
    needs: Mapping[str, int],
    order: Sequence[str],
) -> tuple[list[str], list[_Edge]] | None:
    """Find a path from a task with a client to spare to a task that lacks one: its tasks, and the moves between
    them."""
    have = Counter(chosen.values())
    if all(have[task] >= needed for task, needed in needs.items()):
        return None
    edges = _edges(eligible, chosen, wanted, order)
    distance: dict[str, int] = {task: 0 for task in sorted(have) if have[task] > needs.get(task, 0)}
    before: dict[str, str] = {}
    for _ in range(len(have.keys() | needs.keys())):  # Bellman-Ford: edges may have negative costs, cycles can't
        for (source, target), edge in edges.items():
            if source in distance and distance[source] + edge.cost < distance.get(target, len(chosen) + 1):
                distance[target] = distance[source] + edge.cost
                before[target] = source
    reached = [task for task, needed in needs.items() if have[task] < needed and task in distance]
    if not reached:
        return None
    path = [min(reached, key=lambda task: distance[task])]
    while path[0] in before:
        path.insert(0, before[path[0]])
    return path, [edges[pair] for pair in pairwise(path)]


def _edges(
    eligible: Mapping[str, Sequence[str]], chosen: Mapping[str, str], wanted: Mapping[str, str], order: Sequence[str]
) -> dict[tuple[str, str], _Edge]:
    movers: dict[tuple[str, str], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for client_id in order:
        task, preferred = chosen[client_id], wanted[client_id]
        for other in eligible[client_id]:
            if other != task:
                movers[task, other][(other != preferred) - (task != preferred)].append(client_id)
    return {pair: _Edge(min(by_cost), by_cost[min(by_cost)]) for pair, by_cost in sorted(movers.items())}
