"""The times at which an open exchange closes, and the step that closes it. Functions of a `RoundView`."""

from __future__ import annotations

from fedmtl_server.rounds import completion, opening
from fedmtl_server.rounds.membership import Member
from fedmtl_server.rounds.transitions import Phase, Step
from fedmtl_server.rounds.view import RoundView


def deadline(view: RoundView) -> float:
    """Return the time at which the open exchange closes, unless an upload is in progress."""
    return max((_deadline_of(view, task) for task in view.tasks), default=_deadline_of(view, ""))


def deadline_for(view: RoundView, client_id: str) -> float:
    """Return the time until which the open exchange waits for a client."""
    member = view.members.get(client_id)
    return _deadline_of(view, member.task) if member else deadline(view)


def closes_at(view: RoundView) -> float:
    """Return the time at which the open exchange closes, or is extended, if nothing more arrives."""
    if _insists(view) and completion.missing_quorum(view):
        moments = [deadline(view), *(_moves_until(view, member) for member in view.unreported)]
    else:
        due = {task: _deadline_of(view, task) for task in view.tasks}
        moments = [_awaited_until(view, member, due[member.task]) for member in completion.awaited(view)]
    return max(moments, default=view.exchange_opened_at)


def may_close(view: RoundView, now: float) -> bool:
    """Return whether the open exchange closes, or is extended, now."""
    return completion.has_enough(view) or now >= closes_at(view)


def closing_step(view: RoundView) -> Step:
    """Return the step with which an open exchange closes, once it is time to close."""
    if view.purpose == "train" and not completion.has_enough(view) and completion.missing_quorum(view):
        if _insists(view) and view.num_extensions < view.rules.rounds.max_extensions:
            return Step.EXTENDED
        if view.rules.rounds.on_missing_quorum == "fail":
            return Step.FAILED
    if view.purpose == "train" and not any(member.reported for member in view.members.values()):
        return Step.ABANDONED
    is_last = view.exchange_index + 1 == len(view.exchanges)
    return Step.CLOSED if is_last else Step.NEXT_EXCHANGE


def next_wakeup(view: RoundView, now: float) -> float | None:
    """Return the seconds until a step may be due without any other event; None for never."""
    moment = None
    if view.phase is Phase.WAITING:
        is_awaiting = view.arrivals.are_awaited(view.clients, now)
        moment = view.arrivals.until if is_awaiting else opening.opens_at(view)
    if view.phase is Phase.OPEN:
        moment = closes_at(view)
    return moment - now if moment is not None and moment > now else None


def _insists(view: RoundView) -> bool:
    """Return whether the exchange waits for a missing quorum until the last deadline, and for members that left."""
    extends = view.rules.rounds.on_missing_quorum == "extend"
    return extends and view.purpose == "train" and not view.is_asynchronous


def _deadline_of(view: RoundView, task: str) -> float:
    length_s = view.exchange.deadline_length_s(view.rules, task)
    return view.exchange_opened_at + length_s * (1 + view.num_extensions)


def _last_deadline_of(view: RoundView, task: str) -> float:
    """Return the time until which a task's clients are waited for at most, even if an upload is in progress."""
    return _deadline_of(view, task) + view.exchange.deadline_length_s(view.rules, task)


def _awaited_until(view: RoundView, member: Member, due: float) -> float:
    """Return the time until which a member is waited for: until it is absent or late without an upload in progress.

    Args:
        view: the round.
        member: one of its members.
        due: the deadline of the member's task.
    """
    if member.expected_until is not None:
        due = min(due, member.expected_until)
    return max(due, _moves_until(view, member))


def _moves_until(view: RoundView, member: Member) -> float:
    """Return the time until which a member's upload counts as in progress if it receives nothing more."""
    if member.last_progress is None:
        return view.exchange_opened_at
    timeout_s = view.rules.rounds.transfer_timeout_s
    return min(member.last_progress + timeout_s, _last_deadline_of(view, member.task))
