"""A TCP proxy that does to connections what networks do: slow, cut, refuse and forget them, or try them twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any

READ_BYTES = 65536

Range = tuple[int, int]


@dataclass(frozen=True)
class Faults:
    """What befalls connections. Everything is drawn anew for each of them, from the proxy's seed."""

    delay_s: float = 0.0
    """Before every read of 64 KiB is passed on: up to so long."""
    bytes_per_s: float = 0.0
    """In each direction; 0 for as fast as it goes."""
    buffer_bytes: int = 0
    """What waits on the way to be passed on, at most; 0 for what the operating system gives."""
    cut_after: Range | None = None
    """Bytes, of both directions together, after which a connection is reset; None for never."""
    max_cuts: int | None = None
    """No more connections than so many are cut."""
    duplicate_share: float = 0.0
    """Share of the connections that reach the server twice: a second one brings it the client's first bytes again."""
    duplicate_bytes: Range = (1, 20_000)
    """How many of them, before the second connection is dropped."""


class FaultyProxy:
    """Passes bytes on to a server. It runs in a thread of its own and may be told other things at any time.

    Args:
        target: the server's address.
        faults: what befalls connections from the start.
        seed: of everything drawn.
    """

    def __init__(self, target: str, faults: Faults | None = None, *, seed: int = 0):
        self.target = target
        """Where the next connections go."""
        self.faults = faults or Faults()
        """What befalls the next connections."""
        self.address = ""
        self.counts: Counter[str] = Counter()
        """What was done: `connections`, `cut`, `refused`, `duplicated`, `unreachable`, `bytes_up`, `bytes_down`."""
        self._random = random.Random(seed)
        self._refuse_until = 0.0
        self._dark = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy", daemon=True)
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        self._server = self._in_loop(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._in_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def refuse(self, seconds: float) -> None:
        """Reset every new connection for a while."""
        self._refuse_until = time.monotonic() + seconds

    def go_dark(self) -> None:
        """Pass nothing on any more over the connections that there are, and tell neither end. New ones work."""
        dark, self._dark = self._dark, threading.Event()
        dark.set()

    def cut_all(self) -> None:
        """Reset the connections that there are."""
        self._in_loop(self._cut_all())

    def _in_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _cut_all(self) -> None:
        self.counts["cut"] += len(self._connections)
        await self._end_connections()

    async def _close(self) -> None:
        self._server.close()
        await self._end_connections()

    async def _end_connections(self) -> None:
        ending = list(self._connections)
        for connection in ending:
            connection.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        faults, draw = self.faults, random.Random(self._random.random())
        with contextlib.ExitStack() as resets:
            resets.callback(_reset, writer)
            if time.monotonic() < self._refuse_until:
                self.counts["refused"] += 1
                return
            try:
                server_reader, server_writer = await self._connect()
            except OSError:
                self.counts["unreachable"] += 1
                return
            resets.callback(_reset, server_writer)
            self.counts["connections"] += 1
            left = draw.randint(*faults.cut_after) if faults.cut_after and self._may_cut(faults) else None
            fate = _Fate(faults, draw, left, self._dark)
            tee = await self._duplicate(faults, draw)
            pipes = [
                asyncio.ensure_future(self._pipe(reader, server_writer, fate, "bytes_up", tee)),
                asyncio.ensure_future(self._pipe(server_reader, writer, fate, "bytes_down")),
            ]
            try:
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pipe in pipes:
                    pipe.cancel()
                await asyncio.gather(*pipes, return_exceptions=True)
                if tee:
                    tee.drop()

    def _may_cut(self, faults: Faults) -> bool:
        return faults.max_cuts is None or self.counts["cut"] < faults.max_cuts

    def _take(self, data: bytes, fate: _Fate) -> bytes:
        """As much of some bytes as their connection lives to pass on.

        The cut is settled and counted here, before a byte is held back. If that were asked again later, another
        connection might have been the last that may be cut, and this one would go on with bytes missing.
        """
        if fate.left is not None and len(data) >= fate.left:
            if self._may_cut(fate.faults):
                self.counts["cut"] += 1
            else:
                fate.left = None
        if fate.left is not None:
            data = data[: fate.left]
            fate.left -= len(data)
        return data

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.target.rpartition(":")
        connection = socket.socket()
        try:
            connection.setblocking(False)
            if buffer_bytes := self.faults.buffer_bytes:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            await self._loop.sock_connect(connection, (host, int(port)))
        except BaseException:
            connection.close()
            raise
        return await asyncio.open_connection(sock=connection, limit=buffer_bytes or READ_BYTES)

    async def _duplicate(self, faults: Faults, draw: random.Random) -> _Duplicate | None:
        if draw.random() >= faults.duplicate_share:
            return None
        try:
            duplicate = _Duplicate(*await self._connect(), draw.randint(*faults.duplicate_bytes))
        except OSError:
            return None
        self.counts["duplicated"] += 1
        return duplicate

    async def _pipe(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fate: _Fate,
        counter: str,
        tee: _Duplicate | None = None,
    ) -> None:
        faults = fate.faults
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if fate.dark.is_set() or fate.is_cut:  # the other direction is about to end a connection that is cut
                    continue
                data = self._take(data, fate)
                wait_s = fate.draw.uniform(0, faults.delay_s) if faults.delay_s else 0.0
                wait_s += len(data) / faults.bytes_per_s if faults.bytes_per_s else 0.0
                if wait_s:
                    await asyncio.sleep(wait_s)
                self.counts[counter] += len(data)
                writer.write(data)
                await writer.drain()
                if tee:
                    tee.pass_on(data)
                if fate.is_cut:
                    return


@dataclass
class _Fate:
    """What is in store for one connection."""

    faults: Faults
    draw: random.Random
    left: int | None
    """Bytes that it lives for; None for ever."""
    dark: threading.Event
    """Set once nothing is passed on any more."""

    @property
    def is_cut(self) -> bool:
        return self.left == 0


class _Duplicate:
    """A second connection to the server that begins as the first did, hears nothing of the answers, and is dropped."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, num_bytes: int):
        self._writer = writer
        self._left = num_bytes
        self._listener = asyncio.ensure_future(_read_all(reader))

    def pass_on(self, data: bytes) -> None:
        """What the client sent on the first."""
        if not self._left:
            return
        data = data[: self._left]
        self._left -= len(data)
        self._writer.write(data)
        if not self._left:
            asyncio.get_running_loop().call_later(0.05, self.drop)  # the server gets to read it

    def drop(self) -> None:
        self._listener.cancel()
        _reset(self._writer)


async def _read_all(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(READ_BYTES):
            pass


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset: whatever is on its way is lost."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
