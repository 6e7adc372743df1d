"""The answers that an open exchange has and needs, and the members that still have to answer. Functions of a
`RoundView`."""

from __future__ import annotations

from collections.abc import Mapping

from fedmtl_server.rounds.membership import Member
from fedmtl_server.rounds.view import RoundView


def has_enough(view: RoundView) -> bool:
    """Return whether the exchange can close, even if a member may still answer."""
    if view.is_asynchronous:
        return _num_counting(view, view.num_answers) >= view.rules.rounds.buffer_size
    return needed(view)[0] == 0


def needed(view: RoundView) -> tuple[int, int]:
    """Return how many answers the exchange still needs, and how many it needs in total.

    The buffer of an asynchronous round needs at most one answer per member whose task isn't auxiliary.
    """
    answers = view.num_answers
    if view.is_asynchronous:
        goal = min(view.rules.rounds.buffer_size, _num_counting(view, view.num_members))
        return max(0, goal - _num_counting(view, answers)), goal
    goals = _goals(view)
    return sum(max(0, goal - answers[task]) for task, goal in goals.items()), sum(goals.values())


def awaited(view: RoundView) -> list[Member]:
    """Return the members whose answers are still needed."""
    if view.is_asynchronous:
        return view.unreported
    answers, goals = view.num_answers, _goals(view)
    return [member for member in view.unreported if answers[member.task] < goals[member.task]]


def missing_quorum(view: RoundView) -> dict[str, int]:
    """Return, by task, how many answers the exchange lacks for a quorum that its members could have met."""
    members, answers = view.num_members, view.num_answers
    return {
        task: minimum - answers[task]
        for task, minimum in view.rules.min_clients.items()
        if answers[task] < minimum <= members.get(task, 0)
    }


def _goals(view: RoundView) -> Mapping[str, int]:
    """Return, by task, how many answers are enough."""
    return view.exchange.enough(view.rules, view.num_members)


def _num_counting(view: RoundView, by_task: Mapping[str, int]) -> int:
    """Return the sum of numbers by task, over the tasks that aren't auxiliary."""
    return sum(count for task, count in by_task.items() if task not in view.rules.auxiliary)
