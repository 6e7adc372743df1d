"""Stores updates from their first byte until they are averaged: in memory up to a budget, and in files beyond it."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fedmtl_core.errors import RequestError, UnavailableError
from fedmtl_core.logs import get_logger
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import decode, largest_magnitude, require_valid
from fedmtl_core.wire.layout import Component
from fedmtl_server.storage.spool import Spool
from fedmtl_server.transfer.buffers import BufferPool

_T = TypeVar("_T")

MIN_UPDATES_IN_MEMORY = 2
"""The number of updates that fit in memory whatever the budget: one arrives while another is averaged."""


@dataclass(eq=False)
class StagedUpdate:
    """The encoded bytes of one update."""

    header: bytes
    """The serialized `UpdateHeader`. It precedes the bytes in their file, so that the file describes its content."""
    place: int
    """The number of updates that are accumulated before this one."""
    parts: Sequence[EncodedLayout]
    """The components; empty for metrics alone."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """The bytes by scope; empty while the bytes are only in the file."""
    offsets: dict[str, int] = field(default_factory=dict)
    """The number of leading bytes that have arrived, by scope."""
    path: Path | None = None
    """The file with all bytes of the update; None if there is none."""
    complete: bool = False
    """Whether the update counts in its round."""
    in_use: bool = False
    """Whether a stream writes to the update or the average reads it."""
    forgotten: bool = False
    """Whether the update's file is no longer needed."""
    writing: asyncio.Task[None] | None = None
    """The task that writes the update to a file at the moment, and reads its memory meanwhile."""

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    @property
    def is_float32(self) -> bool:
        """Whether all tensors are float32 and sent as float32; False for metrics alone."""
        specs = [spec for part in self.parts for spec in part.layout.tensors]
        exact = all(part.encoding == "float32" for part in self.parts)
        return exact and bool(specs) and all(spec.dtype == torch.float32 for spec in specs)

    def continues_with(self, parts: Sequence[EncodedLayout]) -> bool:
        """Return whether components have the same encoding, and begin where the received bytes end."""
        starts = {part.scope: part.start for part in parts}
        return starts == self.offsets and [replace(part, start=0) for part in parts] == [
            replace(part, start=0) for part in self.parts
        ]

    def largest_norms(self) -> dict[str, float]:
        """Return an upper bound of each component's norm by scope, computed without decoding."""
        buffers = self.buffers
        return {
            part.scope: largest_magnitude(part.layout, part.encoding, buffers[part.scope])
            * math.sqrt(part.layout.num_elements)
            for part in (self.parts if buffers else ())
        }

    def require_valid(self) -> None:
        """Check that every number is finite and correctly encoded.

        Raises:
            NonFiniteError, MalformedStreamError: see `fedmtl_core.wire.encodings.require_valid`.
        """
        buffers = self.buffers  # all buffers are released at once when the round closes; there is nothing to check then
        for part in self.parts if buffers else ():
            require_valid(part.layout, part.encoding, buffers[part.scope])


class StagingArea:
    """Allocates and frees memory and files for updates.

    Updates wait for memory. Updates that are accumulated earlier get memory first, so that few complete updates wait
    for their turn. When memory is needed, interrupted updates are dropped, and complete updates are moved to files, in
    reverse order of accumulation.

    The object belongs to one event loop. Arithmetic and file I/O run in threads.

    Args:
        memory_bytes: the memory budget in bytes.
        spool: the storage for files.
        pool: the pool of the buffers.
        durable: whether every update is written to a file before it counts, and the file is kept until `forget`.
    """

    def __init__(self, memory_bytes: int, spool: Spool, pool: BufferPool, *, durable: bool = False):
        self._memory_bytes = memory_bytes
        self.spool = spool
        """The storage for files."""
        self._pool = pool
        self._durable = durable
        self._in_memory: list[StagedUpdate] = []
        self._waiting: list[tuple[int, int, StagedUpdate, asyncio.Future[None]]] = []
        self._arrivals = count()
        self._moving: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._log = get_logger()

    @property
    def used_bytes(self) -> int:
        """The size of all updates in memory, in bytes."""
        return sum(staged.num_bytes for staged in self._in_memory)

    @property
    def num_waiting(self) -> int:
        """The number of updates that wait for memory."""
        return sum(not future.done() for _, _, _, future in self._waiting)

    async def make_room(self, staged: StagedUpdate) -> None:
        """Wait for memory, and give the update its buffers.

        Raises:
            RequestError: the error passed to `refuse_waiting` during the wait.
            UnavailableError: there is no memory, and none can be freed.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (staged.place, next(self._arrivals), staged, future))
        self._serve_waiting()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(staged)  # the update got its memory at the moment of the cancellation
            raise

    def rest(self, staged: StagedUpdate, *, complete: bool = False) -> None:
        """Record that no stream writes to an update, so that its memory can be freed for others.

        Args:
            staged: the update.
            complete: whether the update counts now. An incomplete update is dropped when its memory is needed.
        """
        staged.in_use = False
        staged.complete = staged.complete or complete
        self._serve_waiting()

    def refuse_waiting(self, error: RequestError) -> None:
        """Raise an error in all calls that wait for memory."""
        for _, _, _, future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    async def secure(self, staged: StagedUpdate) -> None:
        """Write a complete update to a file, if the staging area is durable.

        Raises:
            UnavailableError: the file can't be written.
        """
        if self._durable:
            try:
                await self._write(staged)
            except OSError as error:
                self._log.error("staging.failed", reason=error.strerror or str(error), folder=str(self.spool.folder))
                raise UnavailableError(f"the update can't be written: {error.strerror or error}") from None

    async def look(self, staged: StagedUpdate, inspect: Callable[[Mapping[str, Component]], _T]) -> _T:
        """Decode an update that is in memory and inspect it, one update at a time.

        If the round closes meanwhile, the inspected values are arbitrary, but the update can no longer count.

        Args:
            staged: a valid update in memory.
            inspect: called in a thread with the decoded components; with none if the memory was released before.
        """
        async with self._looking:
            return await asyncio.to_thread(self._look, staged.parts, staged.buffers, inspect)

    def _look(
        self,
        parts: Sequence[EncodedLayout],
        buffers: Mapping[str, Tensor],
        inspect: Callable[[Mapping[str, Component]], _T],
    ) -> _T:
        decoded = {}
        scratch = []
        for part in parts if buffers else ():
            into = self._scratch(part)
            scratch += [into] if into else []
            decoded[part.scope] = decode(part.layout, part.encoding, buffers[part.scope], into)
        try:
            return inspect(decoded)
        finally:
            for component in scratch:
                self._pool.release(component.buffer)

    async def load(self, staged: StagedUpdate) -> dict[str, Component]:
        """Return the decoded components of a complete update. `release` frees their memory.

        Raises:
            StoreError: the update's file can't be read.
        """
        await self.pin([staged])
        return await asyncio.to_thread(self._load, staged)

    def _load(self, staged: StagedUpdate) -> dict[str, Component]:
        if not staged.buffers:
            staged.buffers = {part.scope: self._pool.acquire(part.num_bytes) for part in staged.parts}
            assert staged.path is not None
            self.spool.read(staged.path, list(staged.buffers.values()))
        return {
            part.scope: decode(part.layout, part.encoding, staged.buffers[part.scope], self._scratch(part))
            for part in staged.parts
        }

    def release(
        self, staged: StagedUpdate, components: Mapping[str, Component] | None = None, kept_scopes: Collection[str] = ()
    ) -> None:
        """Free an update's memory, and its file if it is not needed. Calling this again has no effect.

        Args:
            staged: the update.
            components: the update's components from `load`.
            kept_scopes: the scopes of components whose buffers stay in use; `take_back` frees these buffers later.
        """
        if staged.writing:
            self.forget(staged)  # the memory is freed after the write
            return
        buffers, staged.buffers = staged.buffers, {}
        keep = {id(component.buffer) for scope, component in (components or {}).items() if scope in kept_scopes}
        mine = {id(buffer): buffer for buffer in buffers.values()}
        mine |= {id(component.buffer): component.buffer for component in (components or {}).values()}
        for key, buffer in mine.items():
            if key not in keep:
                self._pool.release(buffer)
        if staged in self._in_memory:
            self._in_memory.remove(staged)
        if not (self._durable and staged.complete):
            self.forget(staged)
        self._serve_waiting()

    def retain(self, staged: StagedUpdate, components: Mapping[str, Component]) -> None:
        """Free the memory that `load` took, and keep the update for a second read until `release`.

        The bytes stay in the update's file. Without a file they stay in memory, until others need the memory.
        """
        mine = {id(buffer) for buffer in staged.buffers.values()}
        scratch = [one.buffer for one in components.values() if id(one.buffer) not in mine]
        if staged.path is not None:
            scratch += staged.buffers.values()
            staged.buffers = {}
            if staged in self._in_memory:
                self._in_memory.remove(staged)
        for buffer in scratch:
            self._pool.release(buffer)
        staged.in_use = False
        self._serve_waiting()

    async def pin(self, updates: Iterable[StagedUpdate]) -> None:
        """Keep complete updates where they are, in memory or in files, until `release`."""
        pinned = list(updates)
        for staged in pinned:
            staged.in_use = True  # prevents a move to a file
        while self._moving:
            await asyncio.wait([self._moving])
            for staged in pinned:
                staged.in_use = True  # a move of this update resets the flag at its end

    def forget(self, staged: StagedUpdate) -> None:
        """Discard the file of an update that the model now contains, or that does not count.

        Calling this again has no effect.
        """
        staged.forgotten = True
        path, staged.path = staged.path, None
        if path is not None:
            self.spool.discard(path)

    def take_back(self, buffer: Tensor) -> None:
        """Return a buffer to the pool that `release` has left in use."""
        self._pool.release(buffer)

    def close(self) -> None:
        """Remove the unused files."""
        self.spool.close()

    def _serve_waiting(self) -> None:
        while self._waiting:
            _, _, staged, future = self._waiting[0]
            if future.done():
                heapq.heappop(self._waiting)
                continue
            if not self._has_room(staged.num_bytes):
                self._clear()
                return
            heapq.heappop(self._waiting)
            staged.buffers = {part.scope: self._pool.acquire(part.num_bytes) for part in staged.parts}
            staged.in_use = True
            self._in_memory.append(staged)
            future.set_result(None)

    def _has_room(self, num_bytes: int) -> bool:
        return len(self._in_memory) < MIN_UPDATES_IN_MEMORY or self.used_bytes + num_bytes <= self._memory_bytes

    def _clear(self) -> None:
        """Start freeing memory for the first waiting update: drop an interrupted update, or move a complete one."""
        if self._moving and not self._moving.done():
            return
        idle = [staged for staged in self._in_memory if not staged.in_use]
        broken = [staged for staged in idle if not staged.complete]
        if broken:
            self.release(broken[0])  # this serves the waiting updates again
        elif idle:
            self._moving = asyncio.create_task(self._move(max(idle, key=lambda staged: staged.place)))

    async def _move(self, staged: StagedUpdate) -> None:
        """Move a complete update from memory to its file."""
        staged.in_use = True
        try:
            await self._write(staged)
        except OSError as error:
            self._log.error("staging.full", reason=error.strerror or str(error), folder=str(self.spool.folder))
            self.refuse_waiting(
                UnavailableError(f"the server has no memory or disk space for an update: {error.strerror or error}")
            )
            return
        finally:
            staged.in_use = False
            self._moving = None
        if staged in self._in_memory:  # else the update was released meanwhile
            self._in_memory.remove(staged)
            for buffer in staged.buffers.values():
                self._pool.release(buffer)
            staged.buffers = {}
        self._serve_waiting()

    async def _write(self, staged: StagedUpdate) -> None:
        """Write an update to a file, unless it has one. Canceling the wait does not cancel the write.

        Raises:
            OSError: the file can't be written.
        """
        if staged.path is None and not staged.forgotten:
            if staged.writing is None:
                buffers = [staged.buffers[part.scope] for part in staged.parts]
                staged.writing = asyncio.create_task(self._write_once(staged, buffers))
            await asyncio.shield(staged.writing)

    async def _write_once(self, staged: StagedUpdate, buffers: Sequence[Tensor]) -> None:
        try:
            staged.path = await asyncio.to_thread(self._spooled, staged, buffers)
        finally:
            staged.writing = None
            if staged.forgotten:  # the update was released during the write
                self.release(staged)

    def _spooled(self, staged: StagedUpdate, buffers: Sequence[Tensor]) -> Path | None:
        return None if staged.forgotten else self.spool.write(staged.header, buffers)

    def _scratch(self, part: EncodedLayout) -> Component | None:
        """Return a component to decode into; None if the encoded bytes are the component's own."""
        if part.encoding == "float32":
            return None
        return Component(part.layout, self._pool.acquire(part.layout.num_bytes))
