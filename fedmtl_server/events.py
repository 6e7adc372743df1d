"""The events of a run, the watchers that receive them, and the listeners within the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from fedmtl_core.errors import ClientReplacedError, LimitExceededError, RequestError
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.updates import Update
from fedmtl_server.rounds.report import RefusedUpdate, RoundReport

MAX_UNREAD_EVENTS = 256
"""The maximum number of unread events; a watcher with more is dropped."""


class EventKind(Enum):
    """The kind of a run's event."""

    WAITING = "waiting"
    OPENED = "opened"
    CLOSING = "closing"
    COMMITTED = "committed"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True)
class RoundEvent:
    """One event, as sent to one watcher."""

    kind: EventKind
    round: int
    purpose: Purpose
    cohort_size: int = 0
    in_cohort: bool = False
    task: str = ""
    """The watcher's task in the round; empty if the watcher is not in the round's cohort."""
    reported: bool = False
    oldest_base_round: int = 0
    deadline_s: float = 0.0
    waiting_for: str = ""
    report: RoundReport | None = None


class Listener:
    """Observes a run. Its methods are called at once on the run's event loop; they must be fast and raise nothing."""

    def update_counted(self, update: Update) -> None:
        """Observe an update that counts in the round in progress. Called in the asyncio task of the upload call."""

    def update_refused(self, refusal: RefusedUpdate) -> None:
        """Observe a refused update."""

    def round_closing(self) -> None:
        """Observe that the round in progress accepts no more updates and is being aggregated."""

    def round_ended(self, report: RoundReport) -> None:
        """Observe that a round was committed or has failed."""


@dataclass(eq=False)
class Watcher:
    """One open stream of events."""

    client_id: str
    """The id of the watching client; empty for an observer."""
    task: str
    """The client's only task, or its preferred task among `tasks`; empty to let the server choose."""
    tasks: Sequence[str] = ()
    """All tasks that the client has data for, if there are several."""
    _queue: asyncio.Queue[RoundEvent | RequestError] = field(default_factory=asyncio.Queue)

    @property
    def names(self) -> str:
        """The client's tasks as text."""
        return ", ".join(self.tasks) or self.task

    async def events(self) -> AsyncGenerator[RoundEvent, None]:
        """Yield the events that are sent, until an error is sent, which is raised."""
        while True:
            item = await self._queue.get()
            if isinstance(item, RequestError):
                raise item
            yield item


class Watchers:
    """The current watchers. A client id has at most one watcher; a new watcher replaces it.

    Args:
        on_leave: called with a watcher that left without being replaced.
    """

    def __init__(self, on_leave: Callable[[Watcher], None]):
        self._on_leave = on_leave
        self._current: dict[Watcher, None] = {}
        self._by_client: dict[str, Watcher] = {}

    def __len__(self) -> int:
        return len(self._current)

    def __iter__(self) -> Iterator[Watcher]:
        return iter(list(self._current))  # a copy: sending may drop a watcher

    def add(self, watcher: Watcher) -> None:
        """Add a watcher. An earlier watcher of the same client is ended."""
        before = self._by_client.get(watcher.client_id) if watcher.client_id else None
        if before is not None:
            del self._current[before]
            before._queue.put_nowait(
                ClientReplacedError(
                    f"another process has connected as client {watcher.client_id!r} and replaced this one; give each "
                    "client its own --client-id"
                )
            )
        self._current[watcher] = None
        if watcher.client_id:
            self._by_client[watcher.client_id] = watcher

    def remove(self, watcher: Watcher) -> None:
        """Remove a watcher. Removing it again, or after its replacement, has no effect."""
        if watcher not in self._current:
            return
        del self._current[watcher]
        if watcher.client_id:
            del self._by_client[watcher.client_id]
        self._on_leave(watcher)

    def send(self, watcher: Watcher, event: RoundEvent) -> None:
        """Send one event to a watcher. A watcher that does not read its events is dropped."""
        watcher._queue.put_nowait(event)
        if watcher._queue.qsize() > MAX_UNREAD_EVENTS:
            watcher._queue.put_nowait(
                LimitExceededError(
                    f"the watcher left more than {MAX_UNREAD_EVENTS} events unread; call WatchRounds again",
                    retry_after_s=1.0,
                )
            )
            self.remove(watcher)

    def end(self, error: RequestError) -> None:
        """End every watcher's stream with an error."""
        for watcher in self._current:
            watcher._queue.put_nowait(error)
