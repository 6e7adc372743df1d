"""When a waiting round opens, and with which clients. Functions of a `RoundView`."""

from __future__ import annotations

from fedmtl_server.rounds import quorums
from fedmtl_server.rounds.cohorts import choose_cohort
from fedmtl_server.rounds.task_selection import RoundRobin, choose_tasks
from fedmtl_server.rounds.view import RoundView


def may_open(view: RoundView, now: float) -> bool:
    """Whether the round opens now."""
    if view.arrivals.are_awaited(view.clients, now):
        return False
    until = opens_at(view)
    if until is not None and now >= until:
        return True  # a run whose training is done ends with nobody connected, without a last evaluation
    return has_counting_client(view) and not lacking(view)


def opens_at(view: RoundView) -> float | None:
    """When the round opens without a quorum; None for never. The first round waits for its quorum without end."""
    if view.round > 1 and (has_counting_client(view) or view.purpose == "evaluate"):
        return view.waiting_since + view.rules.rounds.quorum_timeout_s
    return None


def has_counting_client(view: RoundView) -> bool:
    """Whether at least one connected client has a task that isn't auxiliary."""
    auxiliary = view.rules.auxiliary
    return any(task not in auxiliary for client in view.clients.values() for task in client.tasks)


def lacking(view: RoundView) -> dict[str, int]:
    """By task, how many clients the quorum still needs, of the tasks that are waited for."""
    return quorums.lacking(_eligible_tasks(view), _quorum(view))


def lacking_text(view: RoundView) -> str:
    """What the quorum still needs, in words; empty for nothing."""
    tasks = {client_id: client.tasks for client_id, client in view.clients.items()}
    if text := quorums.lacking_text(_eligible_tasks(view), tasks, _quorum(view)):
        return text
    if has_counting_client(view):
        return ""
    return "a client of a task that isn't auxiliary" if view.rules.auxiliary else "a client"


def choose_members(view: RoundView) -> dict[str, str]:
    """Task by client id, of the round's cohort, in the order of client ids."""
    chosen = _choose_tasks(view)
    if view.purpose == "train" and not view.is_asynchronous:
        rules = view.rules
        return choose_cohort(rules.rounds, chosen, view.round, rules.min_clients, rules.seed, view.num_abandoned)
    return chosen


def _choose_tasks(view: RoundView) -> dict[str, str]:
    """The task of each connected client. The final model is measured on all tasks alike."""
    rules = view.rules
    selection = rules.selection if view.purpose == "train" else RoundRobin()
    eligible = _eligible_tasks(view)
    chosen = choose_tasks(selection, eligible, view.round, rules.min_clients, view.losses, rules.seed)
    if rules.auxiliary.issuperset(chosen.values()):  # no round has auxiliary tasks only
        for client_id, tasks in sorted(eligible.items()):
            if others := [task for task in tasks if task not in rules.auxiliary]:
                return chosen | {client_id: others[0]}
    return chosen


def _quorum(view: RoundView) -> dict[str, int]:
    """The quorum by task, of the tasks that are waited for."""
    return {task: number for task, number in view.rules.min_clients.items() if task not in view.not_waited_for}


def _eligible_tasks(view: RoundView) -> dict[str, tuple[str, ...]]:
    """By connected client, the tasks that it may be given."""
    return {client_id: client.eligible_tasks for client_id, client in view.clients.items()}
