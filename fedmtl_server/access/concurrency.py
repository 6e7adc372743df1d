"""Limits the number of concurrent calls of one kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fedmtl_core.errors import LimitExceededError
from fedmtl_server.access.rates import RETRY_S
from fedmtl_server.access.semaphores import FairSemaphore, Permit, Quota


class ConcurrencyLimiter:
    """Grants the permits of one kind of call to calls that run as tasks.

    Args:
        what: the name of the calls in messages.
        semaphore: the permits.
        clock: seconds, monotonic.
        per_client: the maximum number of permits of one client; None for no maximum.
    """

    def __init__(self, what: str, semaphore: FairSemaphore, clock: Callable[[], float], per_client: int | None = None):
        self._what = what
        self._semaphore = semaphore
        self._clock = clock
        self._quota = None if per_client is None else Quota(what, per_client)

    @property
    def num_held(self) -> int:
        return self._semaphore.num_held

    @property
    def num_waiting(self) -> int:
        return self._semaphore.num_waiting

    def note_progress(self, permit: Permit) -> None:
        """Note that a call made progress."""
        self._semaphore.note_progress(permit, self._clock())

    @asynccontextmanager
    async def permit(self, group: str, client: str = "") -> AsyncIterator[Permit]:
        """Acquire a permit, waiting if necessary, and hold it until the context ends or the permit is revoked.

        Args:
            group: the group whose share of all permits the permit counts toward.
            client: the client whose quota the permit counts toward.

        Raises:
            LimitExceededError: no permit is available, or the permit was revoked for another call.
        """
        if self._quota is not None:
            self._quota.acquire(client)
        try:
            async with self._held(group) as permit:
                yield permit
        finally:
            if self._quota is not None:
                self._quota.release(client)

    @asynccontextmanager
    async def _held(self, group: str) -> AsyncIterator[Permit]:
        loop = asyncio.get_running_loop()
        granted, revoked = asyncio.Event(), False
        permit = Permit(group, self._clock(), on_grant=granted.set)
        try:
            async with asyncio.timeout(None) as scope:

                def revoke() -> None:
                    nonlocal revoked
                    revoked = True
                    scope.reschedule(loop.time())

                permit.on_revoke = revoke
                try:
                    self._semaphore.acquire(permit, self._clock())
                    await self._wait_for(granted)
                    yield permit
                finally:
                    self._semaphore.release(permit, self._clock())
        except TimeoutError:
            if not revoked:
                raise
            raise LimitExceededError(
                f"{self._what}: the server's limit is reached, and other callers have fewer or were faster",
                retry_after_s=RETRY_S,
            ) from None

    async def _wait_for(self, granted: asyncio.Event) -> None:
        """Wait for a permit, and check periodically whether a call with a permit has stalled."""
        while not granted.is_set():
            try:
                async with asyncio.timeout(RETRY_S / 2):
                    await granted.wait()
            except TimeoutError:
                if granted.is_set():
                    return
                self._semaphore.revoke_stalled(self._clock())
