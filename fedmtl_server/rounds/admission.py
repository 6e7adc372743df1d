"""Checks of updates: which answers may count in a round. Functions of a `RoundView`."""

from __future__ import annotations

from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_core.identifiers import quoted
from fedmtl_server.rounds.exchanges import Answer
from fedmtl_server.rounds.membership import Member
from fedmtl_server.rounds.transitions import Phase
from fedmtl_server.rounds.view import RoundView


def counted_in(view: RoundView, answer: Answer) -> int | None:
    """Return the round in which exactly this answer already counts; None if it doesn't."""
    member = _member(view, answer.client_id)
    if member is not None and member.has_answered:
        return view.round if any(one.update_id == answer.update_id for one in member.answers) else None
    update_id, round_ = view.counted.get(answer.client_id, ("", 0))
    return round_ if update_id == answer.update_id else None


def check(view: RoundView, answer: Answer) -> None:
    """Check that an answer may count in the exchange in progress, or in an asynchronous run in the next round.

    Raises:
        StaleRoundError: it belongs to another round, its client isn't in the cohort or has answered, or this answer or
            a later one of the same client already counts.
        InvalidRequestError: its task or kind isn't the expected one, or it prefers a task that its client doesn't have.
    """
    _check_preference(view, answer)
    if view.is_asynchronous and view.phase in (Phase.WAITING, Phase.AGGREGATING):
        _check_base(view, answer)
        _check_kind(view, answer)
        return
    require_open(view, answer)
    _check_base(view, answer)
    member = _require_member(view, answer)
    if answer.task not in _tasks_of(view, member):
        raise InvalidRequestError(
            f"task: client {answer.client_id!r} takes part in round {view.round} as {member.task!r}, "
            f"got {answer.task!r}",
            field="task",
        )
    _check_kind(view, answer)
    if member.reported:
        raise StaleRoundError(
            f"another update of client {answer.client_id!r} already counts in round {view.round}; wait for the next",
            round=view.round,
        )


def require_open(view: RoundView, answer: Answer) -> None:
    """Check that the round is open.

    Raises:
        StaleRoundError: the round isn't open.
    """
    if view.phase is not Phase.OPEN:
        raise _stale(view, answer)


def _stale(view: RoundView, answer: Answer) -> StaleRoundError:
    return StaleRoundError(
        f"the update is for round {answer.base_round}, but the run is at round {view.round} ({view.phase.value})",
        round=view.round,
        got=answer.base_round,
    )


def _member(view: RoundView, client_id: str) -> Member | None:
    """Return a member of the cohort, even if it dropped out."""
    return view.members.get(client_id) or view.dropped.get(client_id)


def _require_member(view: RoundView, answer: Answer) -> Member:
    if member := view.members.get(answer.client_id):
        return member
    if answer.client_id in view.dropped:
        raise StaleRoundError(
            f"client {answer.client_id!r} has not answered in every earlier exchange of round {view.round}",
            round=view.round,
        )
    if view.is_asynchronous:  # its watch broke, but its upload continues
        return Member(answer.client_id, answer.task)
    raise StaleRoundError(f"client {answer.client_id!r} is not in the cohort of round {view.round}", round=view.round)


def _tasks_of(view: RoundView, member: Member) -> tuple[str, ...]:
    """Return the tasks that a member's answer may be for: an asynchronous member may have started with another task."""
    client = view.clients.get(member.client_id) if view.is_asynchronous else None
    return client.tasks if client else (member.task,)


def _check_preference(view: RoundView, answer: Answer) -> None:
    client = view.clients.get(answer.client_id)
    if answer.next_task and client and answer.next_task not in client.tasks:
        raise InvalidRequestError(
            f"next_task: expected one of the tasks that client {answer.client_id!r} watches with, "
            f"{', '.join(client.tasks)}, got {quoted(answer.next_task)}",
            field="next_task",
        )


def _check_base(view: RoundView, answer: Answer) -> None:
    if not view.oldest_base_round <= answer.base_round <= view.round:
        raise _stale(view, answer)
    # A client that has been counted starts again from that round's model or a later one. An answer that started earlier
    # has been counted already or is outdated, so only the last answer of each client needs to be stored.
    last_round = _last_counted_round(view, answer.client_id)
    if counted_in(view, answer) is not None or answer.base_round < last_round:
        raise StaleRoundError(
            f"the update for round {answer.base_round} of client {answer.client_id!r}, or a later one, already "
            f"counts in round {last_round}",
            round=view.round,
            got=answer.base_round,
        )


def _last_counted_round(view: RoundView, client_id: str) -> int:
    """Return the last round in which an answer of a client counts; 0 for none."""
    member = _member(view, client_id)
    if member is not None and member.has_answered:
        return view.round
    return view.counted.get(client_id, ("", 0))[1]


def _check_kind(view: RoundView, answer: Answer) -> None:
    exchange = view.exchange
    if answer.kind not in exchange.kinds:
        raise InvalidRequestError(
            f"kind: round {view.round} expects {exchange.expects}, got {answer.kind}", field="kind", round=view.round
        )
    if view.is_asynchronous and answer.kind != "delta":
        raise InvalidRequestError(f"kind: an asynchronous run expects a delta, got {answer.kind}", field="kind")
