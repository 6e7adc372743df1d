"""The run's events, the watchers they go to, and the listeners within the server."""

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
"""A watcher that leaves more events than this unread is no longer watching."""


class EventKind(Enum):
    """What happened to the run."""

    WAITING = "waiting"
    OPENED = "opened"
    CLOSING = "closing"
    COMMITTED = "committed"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True)
class RoundEvent:
    """One event, as one watcher gets it."""

    kind: EventKind
    round: int
    purpose: Purpose
    cohort_size: int = 0
    in_cohort: bool = False
    task: str = ""
    """That the watcher has in the round; empty if it isn't in its cohort."""
    reported: bool = False
    oldest_base_round: int = 0
    deadline_s: float = 0.0
    waiting_for: str = ""
    report: RoundReport | None = None


class Listener:
    """Told of what happens in a run, at once and on its event loop: what it does is quick, and raises nothing."""

    def update_counted(self, update: Update) -> None:
        """An update counts in the round in progress; told in the task of the call that brought it."""

    def update_refused(self, refusal: RefusedUpdate) -> None:
        """An update doesn't count."""

    def round_closing(self) -> None:
        """The round in progress has what it gets, and is averaged."""

    def round_ended(self, report: RoundReport) -> None:
        """A round was committed, or given up."""


@dataclass(eq=False)
class Watcher:
    """One open stream of events."""

    client_id: str
    """Empty for an observer."""
    task: str
    """Its only one, or the one that it has chosen of `tasks`; empty if it leaves that to the server."""
    tasks: Sequence[str] = ()
    """If it has data for several, all of them."""
    _queue: asyncio.Queue[RoundEvent | RequestError] = field(default_factory=asyncio.Queue)

    @property
    def names(self) -> str:
        """Its tasks, for people."""
        return ", ".join(self.tasks) or self.task

    async def events(self) -> AsyncGenerator[RoundEvent, None]:
        """What was sent, until an error was."""
        while True:
            item = await self._queue.get()
            if isinstance(item, RequestError):
                raise item
            yield item


class Watchers:
    """Who watches. A client id has one watcher; a new one takes its place.

    Args:
        on_leave: told of a watcher that no longer watches, and isn't replaced by one of the same client.
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
        """Begin to send events; another watcher of the same client ends."""
        before = self._by_client.get(watcher.client_id) if watcher.client_id else None
        if before is not None:
            del self._current[before]
            before._queue.put_nowait(
                ClientReplacedError(
                    f"another process watches as client {watcher.client_id!r}: it has taken this one's place. Is "
                    "another one running under that name? Each client needs a --client-id of its own"
                )
            )
        self._current[watcher] = None
        if watcher.client_id:
            self._by_client[watcher.client_id] = watcher

    def remove(self, watcher: Watcher) -> None:
        """Stop sending events. More than once, or after a replacement, does nothing."""
        if watcher not in self._current:
            return
        del self._current[watcher]
        if watcher.client_id:
            del self._by_client[watcher.client_id]
        self._on_leave(watcher)

    def send(self, watcher: Watcher, event: RoundEvent) -> None:
        """Send one event; a watcher that doesn't read its events is dropped."""
        watcher._queue.put_nowait(event)
        if watcher._queue.qsize() > MAX_UNREAD_EVENTS:
            watcher._queue.put_nowait(
                LimitExceededError(f"{MAX_UNREAD_EVENTS} events are unread; watch again", retry_after_s=1.0)
            )
            self.remove(watcher)

    def end(self, error: RequestError) -> None:
        """End every stream with an error."""
        for watcher in self._current:
            watcher._queue.put_nowait(error)
