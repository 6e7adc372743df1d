"""The proxy that the other tests rely on."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tests.faults.proxy import Faults, FaultyProxy

NUM_CONNECTIONS, MAX_CUTS = 20, 3
PIECES = [bytes([number]) * 2_000 for number in range(5)]


async def test_a_connection_that_is_not_cut_loses_no_byte_however_many_others_are_cut_at_the_same_time() -> None:
    """All of them come to where they would be cut at once, and few may be."""
    ends: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = b""
        with suppress(ConnectionError):  # the proxy cut it, which is what it is for
            while data := await reader.read(65536):
                received += data
                if len(received) == sum(map(len, PIECES)):
                    break
        ends.put_nowait(received)
        writer.close()

    async def send(address: str) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with suppress(ConnectionError):  # likewise
            for piece in PIECES:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    faults = Faults(cut_after=(3_000, 3_000), delay_s=0.05, max_cuts=MAX_CUTS)
    async with server, asyncio.timeout(20):
        with FaultyProxy(target, faults, seed=1) as proxy:
            await asyncio.gather(*(send(proxy.address) for _ in range(NUM_CONNECTIONS)))
            received = [await ends.get() for _ in range(NUM_CONNECTIONS)]
    whole = b"".join(PIECES)
    assert all(whole.startswith(data) for data in received)
    assert sorted(data == whole for data in received) == [False] * MAX_CUTS + [True] * (NUM_CONNECTIONS - MAX_CUTS)
    assert proxy.counts["cut"] == MAX_CUTS
