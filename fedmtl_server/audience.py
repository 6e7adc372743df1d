"""The watchers of a run, the events sent to them, and the clients not yet notified of the end of the run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

from fedmtl_core.errors import RequestError
from fedmtl_core.logs import get_logger
from fedmtl_server.events import EventKind, RoundEvent, Watcher, Watchers
from fedmtl_server.rounds.deadlines import deadline_for
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rounds.transitions import Phase
from fedmtl_server.rounds.waiting import awaits, waiting_for

_KIND_IN = {
    Phase.WAITING: EventKind.WAITING,
    Phase.OPEN: EventKind.OPENED,
    Phase.AGGREGATING: EventKind.CLOSING,
    Phase.FINISHED: EventKind.FINISHED,
}


class Audience:
    """The watchers of one run. A client counts as connected while a watcher has its client id.

    Args:
        engine: the state machine of the run's rounds.
        clock: a monotonic clock in seconds.
        on_change: called after a watcher has joined or left.
    """

    def __init__(self, engine: RoundEngine, clock: Callable[[], float], on_change: Callable[[], None]):
        self.engine = engine
        self._clock = clock
        self._on_change = on_change
        self._watchers = Watchers(on_leave=self._left)
        self._is_opening = False
        self._unnotified: dict[str, float] = {}
        self._announced_waiting: str | None = ""
        """The wait condition last announced to all watchers; None if the current one is still to be announced."""
        self._log = get_logger()

    def __len__(self) -> int:
        return len(self._watchers)

    async def watch(self, client_id: str, task: str, tasks: Sequence[str]) -> AsyncGenerator[RoundEvent, None]:
        """See `Federation.watch`."""
        watcher = Watcher(client_id, task, tuple(tasks))
        self._join(watcher)
        try:
            async with aclosing(watcher.events()) as events:
                async for event in events:
                    yield event
        finally:
            self._watchers.remove(watcher)

    def opening(self) -> None:
        """Note that the opened round is being written: a watcher that joins now gets the event with all others."""
        self._is_opening = True

    def publish(self, kind: EventKind, report: RoundReport | None = None) -> None:
        """Send an event to every watcher.

        Args:
            kind: the kind of event.
            report: the report of the round, if a round has ended.
        """
        self._is_opening = False
        self._announced_waiting = awaits(self.engine.view, self._clock()) if kind is EventKind.WAITING else ""
        for watcher in self._watchers:
            self._watchers.send(watcher, self._event(kind, watcher, report))

    def round_ended(self) -> None:
        """Note that a round has ended, so that the wait for the next round is announced once."""
        self._announced_waiting = None

    def announce_waiting(self, *, again: bool = False) -> None:
        """Send the wait condition to every watcher, if the run waits and the condition was not announced yet.

        Args:
            again: whether to announce a condition that has changed since, for example because clients joined.
        """
        if self.engine.phase is not Phase.WAITING:
            return
        announced = self._announced_waiting
        if announced is None or (again and announced != awaits(self.engine.view, self._clock())):
            self.publish(EventKind.WAITING)

    def end(self, error: RequestError) -> None:
        """End every watcher's stream with an error."""
        self._watchers.end(error)

    # Clients not yet notified of the end of the run.

    def expect(self, until: Mapping[str, float]) -> None:
        """Set the clients to notify of the end of the run, each with the time until which to wait if it is absent."""
        self._unnotified = dict(until)

    @property
    def is_notified(self) -> bool:
        """Whether every expected client was notified of the end of the run."""
        return not self._unnotified

    def patience(self) -> float | None:
        """Return how much longer to wait for clients that are not yet notified, in seconds; 0 or less to stop waiting.

        None means to wait without a limit, because one of these clients is connected. An absent client is waited for
        no longer than a round would wait for it.
        """
        if self._unnotified.keys() & self.engine.view.present.keys():
            return None
        return max(self._unnotified.values()) - self._clock()

    # Events.

    def _join(self, watcher: Watcher) -> None:
        self._watchers.add(watcher)
        if watcher.client_id:
            self.engine.join(watcher.client_id, watcher.task, self._clock(), watcher.tasks)
            self._log.info("client.joined", client_id=watcher.client_id, task=watcher.names)
        if not self._is_opening:
            self._watchers.send(watcher, self._event(_KIND_IN[self.engine.phase], watcher))
        self._on_change()

    def _left(self, watcher: Watcher) -> None:
        if watcher.client_id:
            self.engine.leave(watcher.client_id, self._clock())
            self._log.info("client.left", client_id=watcher.client_id, task=watcher.names)
        if self.engine.phase is Phase.FINISHED:
            self._unnotified.pop(watcher.client_id, None)
        self._on_change()

    def _event(self, kind: EventKind, watcher: Watcher, report: RoundReport | None = None) -> RoundEvent:
        round_, now = self.engine.view, self._clock()
        member = round_.members.get(watcher.client_id)
        if member is not None and member.task not in (watcher.tasks or (watcher.task,)):
            member = None  # the client returned with other tasks, and can join the next round
        return RoundEvent(
            kind=kind,
            round=round_.round,
            purpose=round_.purpose,
            cohort_size=len(round_.members),
            in_cohort=member is not None,
            task=member.task if member is not None else "",
            reported=member is not None and member.reported,
            oldest_base_round=round_.oldest_base_round,
            deadline_s=max(0.0, deadline_for(round_, watcher.client_id) - now) if kind is EventKind.OPENED else 0.0,
            waiting_for=waiting_for(round_, now) if kind is EventKind.WAITING else "",
            report=report,
        )
