"""Updates on their way in whose round closes, or whose client thinks again, while they wait for something."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedmtl_core.errors import StaleRoundError, UnavailableError
from fedmtl_core.wire.updates import Update
from fedmtl_server.transfer.incoming import Transfers
from tests.server.transfer.test_staging import SIZE, area, staged, ticks, update


def claim(client_id):
    return Update(client_id, "x", 1, "u", "delta", run_id="r", num_examples=1)


async def test_a_client_that_opens_a_second_upload_while_its_first_waits_for_room_holds_room_once(tmp_path):
    staging = area(tmp_path, updates=0)  # room for two at a time
    transfers = Transfers(staging, 10, lambda _: None)
    parts = update(0).parts
    held = [await transfers.begin(claim(name), parts, b"", name, place) for place, name in enumerate("ab")]
    first = asyncio.create_task(transfers.begin(claim("c"), parts, b"", "stream 1", 2))
    await ticks(2)
    second = asyncio.create_task(transfers.begin(claim("c"), parts, b"", "stream 2", 2))
    await ticks(2)
    for one in held:
        transfers.forget(one)
    with pytest.raises(UnavailableError, match="the client has opened another upload"):
        await first
    transfer = await second
    assert staging.used_bytes == SIZE
    transfers.abandon(transfer, "stream 2", keep=False)
    assert staging.used_bytes == 0


async def test_an_update_whose_room_is_taken_back_before_it_is_checked_or_written_is_no_error(tmp_path):
    """The round closed while it waited for a thread; that it doesn't count is for the round to say."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    staging, gate = area(tmp_path, durable=True), threading.Event()
    one = await staged(staging, 0)
    one.complete, one.in_use = False, True
    busy = loop.run_in_executor(None, gate.wait, 10)
    checking = asyncio.create_task(asyncio.to_thread(one.require_valid))
    securing = asyncio.create_task(staging.secure(one))
    await ticks(2)
    staging.release(one)
    gate.set()
    await asyncio.gather(busy, checking, securing)
    assert one.path is None
    assert not list(tmp_path.rglob("*.update"))


async def test_an_update_that_is_being_averaged_is_not_moved_away_by_one_that_needs_room(tmp_path):
    """Its memory would be another's while it is read."""
    staging = area(tmp_path, updates=2)
    first, last = await staged(staging, 0), await staged(staging, 5)
    waiting = [asyncio.create_task(staging.make_room(update(place))) for place in (1, 2)]
    await asyncio.sleep(0)  # `last` is on its way to a file
    components = await staging.load(first)
    await ticks(5)
    assert waiting[0].done()
    assert not waiting[1].done()
    assert not last.buffers
    assert components["shared"].runs()[0].eq(0).all()
    assert first.buffers["shared"].data_ptr() == components["shared"].buffer.data_ptr()
    staging.release(first, components)
    await asyncio.gather(*waiting)


async def test_a_stream_whose_round_was_abandoned_hears_of_that(tmp_path):
    """And not of another upload, which there is none."""
    transfers = Transfers(area(tmp_path), 10, lambda _: None)
    transfer = await transfers.begin(claim("a"), update(0).parts, b"", "stream", 0)
    transfer.require_stream("stream")
    transfers.end(StaleRoundError("round 1 has closed"))
    with pytest.raises(StaleRoundError, match="round 1 has closed"):
        transfer.require_stream("stream")
