"""Limits how many calls of one kind are served at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fedmtl_core.errors import LimitExceededError
from fedmtl_server.access.rates import RETRY_S
from fedmtl_server.access.semaphores import FairSemaphore, Permit, Quota


class ConcurrencyLimiter:
    """The permits of one kind of call, for calls that run as tasks.

    Args:
        what: names the calls, for messages.
        semaphore: who has a permit.
        clock: seconds, monotonic.
        per_client: how many a client may have; any number if None.
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
        """Hold a permit, after waiting for it if need be, until it is released or revoked.

        Args:
            group: whose share of all permits it counts to.
            client: whose quota it counts to.

        Raises:
            LimitExceededError: there is none, or another call needs it more.
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
                f"{self._what}: there are too many in all, and others have fewer or were faster", retry_after_s=RETRY_S
            ) from None

    async def _wait_for(self, granted: asyncio.Event) -> None:
        """Wait for a permit; from time to time, see whether a call that has one has stalled meanwhile."""
        while not granted.is_set():
            try:
                async with asyncio.timeout(RETRY_S / 2):
                    await granted.wait()
            except TimeoutError:
                if granted.is_set():
                    return
                self._semaphore.revoke_stalled(self._clock())
