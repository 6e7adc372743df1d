"""The time at which a waiting round opens, and its clients. Functions of a `RoundView`."""

from __future__ import annotations

from fedmtl_server.rounds import quorums
from fedmtl_server.rounds.cohorts import choose_cohort
from fedmtl_server.rounds.task_selection import RoundRobin, choose_tasks
from fedmtl_server.rounds.view import RoundView


def may_open(view: RoundView, now: float) -> bool:
    """Return whether the round opens now."""
    if view.arrivals.are_awaited(view.clients, now):
        return False
    until = opens_at(view)
    if until is not None and now >= until:
        return True  # after training, a run without connected clients ends without a final evaluation
    return has_counting_client(view) and not lacking(view)


def opens_at(view: RoundView) -> float | None:
    """Return the time at which the round opens without a quorum; None for never. The first round waits indefinitely."""
    if view.round > 1 and (has_counting_client(view) or view.purpose == "evaluate"):
        return view.waiting_since + view.rules.rounds.quorum_timeout_s
    return None


def has_counting_client(view: RoundView) -> bool:
    """Return whether at least one connected client has a task that isn't auxiliary."""
    auxiliary = view.rules.auxiliary
    return any(task not in auxiliary for client in view.clients.values() for task in client.tasks)


def lacking(view: RoundView) -> dict[str, int]:
    """Return, by task, how many clients the quorum still needs, for the tasks that the round waits for."""
    return quorums.lacking(_eligible_tasks(view), _quorum(view))


def lacking_text(view: RoundView) -> str:
    """Describe what the quorum still needs; empty for nothing."""
    tasks = {client_id: client.tasks for client_id, client in view.clients.items()}
    if text := quorums.lacking_text(_eligible_tasks(view), tasks, _quorum(view)):
        return text
    if has_counting_client(view):
        return ""
    return "a client of a task that isn't auxiliary" if view.rules.auxiliary else "a client"


def choose_members(view: RoundView) -> dict[str, str]:
    """Return the task by client id of the round's cohort, in the order of client ids."""
    chosen = _choose_tasks(view)
    if view.purpose == "train" and not view.is_asynchronous:
        rules = view.rules
        return choose_cohort(rules.rounds, chosen, view.round, rules.min_clients, rules.seed, view.num_abandoned)
    return chosen


def _choose_tasks(view: RoundView) -> dict[str, str]:
    """Choose the task of each connected client. All tasks evaluate the final model equally."""
    rules = view.rules
    selection = rules.selection if view.purpose == "train" else RoundRobin()
    eligible = _eligible_tasks(view)
    chosen = choose_tasks(selection, eligible, view.round, rules.min_clients, view.losses, rules.seed)
    if rules.auxiliary.issuperset(chosen.values()):  # a round can't have only auxiliary tasks
        for client_id, tasks in sorted(eligible.items()):
            if others := [task for task in tasks if task not in rules.auxiliary]:
                return chosen | {client_id: others[0]}
    return chosen


def _quorum(view: RoundView) -> dict[str, int]:
    """Return the quorum by task, for the tasks that the round waits for."""
    return {task: number for task, number in view.rules.min_clients.items() if task not in view.not_waited_for}


def _eligible_tasks(view: RoundView) -> dict[str, tuple[str, ...]]:
    """Return, by connected client, the tasks that it may be given."""
    return {client_id: client.eligible_tasks for client_id, client in view.clients.items()}
