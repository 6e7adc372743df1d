"""Where updates lie between their first byte and the average: in memory up to a budget, and in files beyond it."""

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
"""So many updates have room whatever the budget: one that comes in while another is averaged."""


@dataclass(eq=False)
class StagedUpdate:
    """The encoded bytes of one update."""

    header: bytes
    """A serialised `UpdateHeader`. It precedes the bytes in their file, so that the file says what it holds."""
    place: int
    """How many are folded before it."""
    parts: Sequence[EncodedLayout]
    """None for metrics alone."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """By scope; empty while the bytes are in the file alone."""
    offsets: dict[str, int] = field(default_factory=dict)
    """By scope, how many leading bytes have arrived."""
    path: Path | None = None
    """The file that holds all its bytes, if one does."""
    complete: bool = False
    """Whether it counts in its round."""
    in_use: bool = False
    """Whether a stream writes to it or the average reads it."""
    forgotten: bool = False
    """Whether nothing needs its file any more."""
    writing: asyncio.Task[None] | None = None
    """What puts it into a file at the moment; its memory is read meanwhile."""

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    @property
    def is_float32(self) -> bool:
        """Whether its bytes are its numbers, all of them float32; not so of metrics alone."""
        specs = [spec for part in self.parts for spec in part.layout.tensors]
        exact = all(part.encoding == "float32" for part in self.parts)
        return exact and bool(specs) and all(spec.dtype == torch.float32 for spec in specs)

    def continues_with(self, parts: Sequence[EncodedLayout]) -> bool:
        """Whether components, encoded as they say, begin where what has arrived ends."""
        starts = {part.scope: part.start for part in parts}
        return starts == self.offsets and [replace(part, start=0) for part in parts] == [
            replace(part, start=0) for part in self.parts
        ]

    def largest_norms(self) -> dict[str, float]:
        """By scope, a number that the norm of its numbers doesn't exceed, found without decoding them."""
        buffers = self.buffers
        return {
            part.scope: largest_magnitude(part.layout, part.encoding, buffers[part.scope])
            * math.sqrt(part.layout.num_elements)
            for part in (self.parts if buffers else ())
        }

    def require_valid(self) -> None:
        """Check that every number is one.

        Raises:
            NonFiniteError, MalformedStreamError: see `fedmtl_core.wire.encodings.require_valid`.
        """
        buffers = self.buffers  # they are taken away in one go when the round closes; then nothing is to be checked
        for part in self.parts if buffers else ():
            require_valid(part.layout, part.encoding, buffers[part.scope])


class StagingArea:
    """Gives updates room, and takes it back.

    Memory for an update is waited for: first come those that are folded first, so that little has to wait for its
    turn. When it is needed, updates that broke off are forgotten, and complete ones are moved to files, those that are
    folded last first.

    One event loop's; arithmetic and file I/O run in threads.

    Args:
        memory_bytes: the budget.
        spool: where the files are.
        pool: where buffers come from and go back to.
        durable: whether every update is in a file before it counts, and stays there until `forget`.
    """

    def __init__(self, memory_bytes: int, spool: Spool, pool: BufferPool, *, durable: bool = False):
        self._memory_bytes = memory_bytes
        self.spool = spool
        """Where the files are."""
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
        """Bytes of updates in memory."""
        return sum(staged.num_bytes for staged in self._in_memory)

    @property
    def num_waiting(self) -> int:
        """Updates that wait for room."""
        return sum(not future.done() for _, _, _, future in self._waiting)

    async def make_room(self, staged: StagedUpdate) -> None:
        """Get an update its buffers, when its turn for memory has come.

        Raises:
            RequestError: as given to `refuse_waiting`, meanwhile.
            UnavailableError: there is no room, and none can be made.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (staged.place, next(self._arrivals), staged, future))
        self._serve_waiting()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(staged)  # it got its room in the very moment
            raise

    def rest(self, staged: StagedUpdate, *, complete: bool = False) -> None:
        """Note that no stream writes to an update any more, so that it can make room for others.

        Args:
            staged: the update.
            complete: whether it counts now; it is forgotten if it has to make room, otherwise.
        """
        staged.in_use = False
        staged.complete = staged.complete or complete
        self._serve_waiting()

    def refuse_waiting(self, error: RequestError) -> None:
        """Send away those that wait for room."""
        for _, _, _, future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    async def secure(self, staged: StagedUpdate) -> None:
        """Put an update whose bytes are all there into a file, if every update has to be in one.

        Raises:
            UnavailableError: it can't be written.
        """
        if self._durable:
            try:
                await self._write(staged)
            except OSError as error:
                self._log.error("staging.failed", reason=error.strerror or str(error), folder=str(self.spool.folder))
                raise UnavailableError(f"the update can't be written: {error.strerror or error}") from None

    async def look(self, staged: StagedUpdate, inspect: Callable[[Mapping[str, Component]], _T]) -> _T:
        """Look at an update whose bytes are all in memory, decoded for the moment; one at a time.

        If its round closes meanwhile, what is looked at may be anything: the update can't count any more.

        Args:
            staged: in memory, and valid.
            inspect: gets its components, none if the bytes have been taken away, and runs in a thread.
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
        """A complete update's components, decoded. `release` takes back what is in use for them.

        Raises:
            StoreError: its file can't be read.
        """
        await self.hold([staged])
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
        self, staged: StagedUpdate, components: Mapping[str, Component] | None = None, kept: Collection[str] = ()
    ) -> None:
        """Take an update's memory back, and its file if nothing depends on it. More than once does no harm.

        Args:
            staged: what it was made for.
            components: what `load` made of it.
            kept: scopes of components whose bytes go on being used; `take_back` is for those, later.
        """
        if staged.writing:
            self.forget(staged)  # and the rest when it is written
            return
        buffers, staged.buffers = staged.buffers, {}
        keep = {id(component.buffer) for scope, component in (components or {}).items() if scope in kept}
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
        """Take back what `load` took for an update whose bytes are to be read again, until `release`.

        Its bytes stay in its file; or in memory, until that is needed for others, if it has none.
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

    async def hold(self, updates: Iterable[StagedUpdate]) -> None:
        """Have complete updates stay where they are, in memory or in files, until `release`."""
        held = list(updates)
        for staged in held:
            staged.in_use = True  # so that no move of it begins
        while self._moving:
            await asyncio.wait([self._moving])
            for staged in held:
                staged.in_use = True  # if that was its own, it ended with this

    def forget(self, staged: StagedUpdate) -> None:
        """Give up an update's file: it is in the model now, or counts nowhere. More than once does no harm."""
        staged.forgotten = True
        path, staged.path = staged.path, None
        if path is not None:
            self.spool.discard(path)

    def take_back(self, buffer: Tensor) -> None:
        """Use a buffer again that `release` left to its user."""
        self._pool.release(buffer)

    def close(self) -> None:
        """Remove the files that nobody uses."""
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
        """Begin to free memory for the first that waits, if any of what is there can go elsewhere."""
        if self._moving and not self._moving.done():
            return
        idle = [staged for staged in self._in_memory if not staged.in_use]
        broken = [staged for staged in idle if not staged.complete]
        if broken:
            self.release(broken[0])  # and so on, from there
        elif idle:
            self._moving = asyncio.create_task(self._move(max(idle, key=lambda staged: staged.place)))

    async def _move(self, staged: StagedUpdate) -> None:
        """Move a complete update from memory to its file."""
        staged.in_use = True
        try:
            await self._write(staged)
        except OSError as error:
            self._log.error("staging.full", reason=error.strerror or str(error), folder=str(self.spool.folder))
            self.refuse_waiting(UnavailableError(f"there is no room to stage an update: {error.strerror or error}"))
            return
        finally:
            staged.in_use = False
            self._moving = None
        if staged in self._in_memory:  # it hasn't been released meanwhile
            self._in_memory.remove(staged)
            for buffer in staged.buffers.values():
                self._pool.release(buffer)
            staged.buffers = {}
        self._serve_waiting()

    async def _write(self, staged: StagedUpdate) -> None:
        """Put an update into a file, if it isn't in one. Whoever waits for that may be cancelled, the writing isn't.

        Raises:
            OSError: it can't be written.
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
            if staged.forgotten:  # meanwhile
                self.release(staged)

    def _spooled(self, staged: StagedUpdate, buffers: Sequence[Tensor]) -> Path | None:
        return None if staged.forgotten else self.spool.write(staged.header, buffers)

    def _scratch(self, part: EncodedLayout) -> Component | None:
        """Where to decode to; nowhere if the bytes are the component's own."""
        if part.encoding == "float32":
            return None
        return Component(part.layout, self._pool.acquire(part.layout.num_bytes))
