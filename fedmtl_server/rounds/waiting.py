"""The wait condition of a run as text. Functions of a `RoundView`."""

from __future__ import annotations

from fedmtl_core.identifiers import name_some
from fedmtl_server.rounds import completion, deadlines, opening
from fedmtl_server.rounds.transitions import Phase
from fedmtl_server.rounds.view import RoundView


def waiting_for(view: RoundView, now: float) -> str:
    """Return the wait condition and the time left: `1 more qqp client, 40 s left`. Empty if the run doesn't wait."""
    text, until = _wait_condition(view, now)
    return f"{text}, {max(0, until - now):.0f} s left" if text and until is not None else text


def awaits(view: RoundView, now: float) -> str:
    """Return the wait condition without the time left."""
    return _wait_condition(view, now)[0]


def _wait_condition(view: RoundView, now: float) -> tuple[str, float | None]:
    """Return the wait condition and the time until which the run waits; None if it waits indefinitely."""
    if view.phase is Phase.WAITING and view.arrivals.are_awaited(view.clients, now):
        missing = view.arrivals.missing(view.clients)
        return f"{len(missing)} of the configured clients: {name_some(missing)}", view.arrivals.until
    if view.phase is Phase.WAITING:
        return opening.lacking_text(view), opening.opens_at(view)
    if view.phase is Phase.OPEN and (awaited := completion.awaited(view)):
        needed, goal = completion.needed(view)
        names = name_some([f"{member.client_id} ({member.task})" for member in awaited])
        return f"{needed} of {goal} updates: {names}", deadlines.closes_at(view)
    return "", None
