"""Room for updates, in memory and in files."""

import asyncio
import os
import struct
import threading
from pathlib import Path

import google_crc32c
import pytest
import torch

from fedmtl_core.errors import StaleRoundError, StoreError, UnavailableError
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.storage.spool import Spool
from fedmtl_server.transfer.buffers import BufferPool
from fedmtl_server.transfer.staging import StagedUpdate, StagingArea

LAYOUTS = [
    Layout.of("shared", {"a": torch.zeros(100)}),
    Layout.of("task:x", {"b": torch.zeros(3), "c": torch.zeros(0)}),
]
SIZE = 412


def area(tmp_path, updates=2, *, sync=False, **options):
    return StagingArea(updates * SIZE, Spool(tmp_path / "staging", sync=sync), BufferPool(10 * SIZE), **options)


def update(place):
    parts = [EncodedLayout(layout, "float32", layout.num_bytes) for layout in LAYOUTS]
    return StagedUpdate(b"header", place, parts)


async def staged(staging, place, value=None):
    """An update that is there whole, its encoder full of a number."""
    one = update(place)
    await staging.make_room(one)
    for part in one.parts:
        Component(part.layout, one.buffers[part.scope]).runs()[0].fill_(place if value is None else value)
    one.complete, one.in_use = True, False
    return one


def is_waiting(task):
    return not task.done()


async def ticks(number=20):
    for _ in range(number):
        await asyncio.sleep(0.005)


async def test_released_memory_is_used_again(tmp_path):
    staging = area(tmp_path)
    first = await staged(staging, 0)
    buffers = {id(buffer) for buffer in first.buffers.values()}
    assert staging.used_bytes == SIZE
    staging.release(first)
    staging.release(first)
    assert staging.used_bytes == 0
    assert {id(buffer) for buffer in (await staged(staging, 1)).buffers.values()} == buffers


async def test_room_is_given_first_to_those_folded_first(tmp_path):
    staging = area(tmp_path)
    writing = [update(place) for place in (0, 1)]
    for one in writing:
        await staging.make_room(one)  # and stays in use
    waiting = {place: asyncio.create_task(staging.make_room(update(place))) for place in (7, 3, 5)}
    await ticks(2)
    assert staging.num_waiting == 3
    staging.release(writing[0])
    await ticks(2)
    assert {place for place, task in waiting.items() if task.done()} == {3}
    staging.release(writing[1])
    await ticks(2)
    assert {place for place, task in waiting.items() if task.done()} == {3, 5}
    staging.refuse_waiting(StaleRoundError("the round has closed"))
    with pytest.raises(StaleRoundError, match="has closed"):
        await waiting[7]


async def test_two_updates_have_room_whatever_the_budget(tmp_path):
    staging = area(tmp_path, updates=0)
    for place in (0, 1):
        await staging.make_room(update(place))
    third = asyncio.create_task(staging.make_room(update(2)))
    await ticks(2)
    assert is_waiting(third)
    third.cancel()


async def test_complete_updates_make_room_the_last_folded_first_and_are_read_back(tmp_path):
    staging = area(tmp_path, updates=2)
    updates = {place: await staged(staging, place) for place in (9, 4)}
    updates[2] = await staged(staging, 2)
    assert staging.used_bytes == 2 * SIZE
    assert not updates[9].buffers
    assert updates[4].buffers
    assert [path.name for path in (tmp_path / "staging").iterdir()] == ["0000.update"]
    for place, one in updates.items():
        components = await staging.load(one)
        assert components["shared"].views()["a"].eq(place).all()
        assert components["task:x"].views()["b"].eq(place).all()
        staging.release(one, components)
    assert staging.used_bytes == 0
    staging.close()
    assert not (tmp_path / "staging").exists()


async def test_updates_that_broke_off_make_room_before_complete_ones_are_moved(tmp_path):
    staging = area(tmp_path, updates=2)
    broken = await staged(staging, 0)
    broken.complete = False
    complete = await staged(staging, 9)
    await staged(staging, 5)
    assert not broken.buffers
    assert complete.buffers
    assert not (tmp_path / "staging").exists()


async def test_room_is_made_as_soon_as_those_that_have_it_are_complete(tmp_path):
    staging = area(tmp_path, updates=2)
    writing = [update(place) for place in (3, 4)]
    for one in writing:
        await staging.make_room(one)
    third = asyncio.create_task(staging.make_room(update(0)))
    await ticks(2)
    assert is_waiting(third)
    staging.rest(writing[1], complete=True)
    await asyncio.wait_for(third, 5)
    assert writing[1].path is not None
    assert writing[0].buffers


async def test_a_kept_component_is_not_used_again_until_it_is_taken_back(tmp_path):
    staging = area(tmp_path)
    one = await staged(staging, 0, value=3)
    components = await staging.load(one)
    kept = components["shared"]
    staging.release(one, components, kept_scopes={"shared"})
    for place in (1, 2):
        assert all(buffer is not kept.buffer for buffer in (await staged(staging, place, value=8)).buffers.values())
    assert kept.views()["a"].eq(3).all()


async def test_every_update_is_on_disk_where_that_is_asked_for(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(real):
        return lambda descriptor: (synced.append(os.readlink(f"/proc/self/fd/{descriptor}")), real(descriptor))[1]

    monkeypatch.setattr("fedmtl_server.storage.spool.os.fsync", noted(fsync))
    monkeypatch.setattr("fedmtl_server.storage.spool._sync_data", noted(fsync))
    staging = area(tmp_path, durable=True, sync=True)
    one = await staged(staging, 9)
    await staging.secure(one)
    assert [Path(path).name for path in synced] == ["0000.update", "staging"]
    staging.release(one)
    staging.forget(one)
    one = await staged(staging, 1)
    await staging.secure(one)
    assert [Path(path).name for path in synced[2:]] == ["0000.update"]  # its name is on disk already
    data = (tmp_path / "staging" / "0000.update").read_bytes()
    body = b"header" + torch.full((103,), 1.0).numpy().tobytes()
    assert data[:8] == b"FEDMTLU1"
    assert struct.unpack("<QQII", data[8:32]) == (6, SIZE, google_crc32c.value(body), 0)
    assert data[32:] == body


async def test_a_durable_file_stays_until_its_update_is_forgotten_and_is_then_used_again(tmp_path):
    """Through the average, that is: the commit may fail after it."""
    staging, file = area(tmp_path, durable=True), tmp_path / "staging" / "0000.update"
    one = await staged(staging, 9)
    await staging.secure(one)
    staging.release(one, await staging.load(one))
    assert staging.used_bytes == 0
    (whole,) = Spool(tmp_path / "staging").scan()
    assert (whole.path, whole.header, whole.num_bytes) == (file, b"header", SIZE)
    staging.close()
    assert file.exists()
    staging.forget(one)
    staging.forget(one)
    assert file.read_bytes()[:32] == bytes(32)
    assert Spool(tmp_path / "staging").scan() == []
    again = await staged(staging, 1)
    await staging.secure(again)
    assert again.path == file
    assert [path.name for path in (tmp_path / "staging").iterdir()] == ["0000.update"]
    staging.release(again)
    staging.forget(again)
    staging.close()
    assert not (tmp_path / "staging").exists()


async def test_a_durable_update_that_does_not_count_leaves_its_file_to_others(tmp_path):
    """Its round closed between its file and the count."""
    staging = area(tmp_path, durable=True)
    one = await staged(staging, 9)
    one.complete = False
    await staging.secure(one)
    staging.release(one)
    assert one.path is None
    assert Spool(tmp_path / "staging").scan() == []


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing stops after the last byte until it may go on: `(written, go_on)`."""
    written, go_on, write = threading.Event(), threading.Event(), Spool.write

    def slow(*arguments):
        path = write(*arguments)
        written.set()
        go_on.wait(10)
        return path

    monkeypatch.setattr(Spool, "write", slow)
    yield written, go_on
    go_on.set()


async def test_an_update_forgotten_while_it_is_written_leaves_its_file_to_others(tmp_path, slow_disk):
    written, go_on = slow_disk
    staging = area(tmp_path, durable=True)
    one = await staged(staging, 9)
    one.complete = False
    securing = asyncio.create_task(staging.secure(one))
    await asyncio.to_thread(written.wait, 10)
    staging.release(one)
    assert staging.used_bytes == SIZE  # it is still read
    go_on.set()
    await securing
    assert one.path is None
    assert staging.used_bytes == 0
    assert Spool(tmp_path / "staging").scan() == []


async def test_an_update_whose_stream_is_cut_while_it_is_written_leaves_no_file_that_nobody_knows(tmp_path, slow_disk):
    written, go_on = slow_disk
    staging = area(tmp_path, durable=True)
    one = await staged(staging, 0)
    one.complete = False
    securing = asyncio.create_task(staging.secure(one))
    await asyncio.to_thread(written.wait, 10)
    securing.cancel()
    await asyncio.gather(securing, return_exceptions=True)
    staging.rest(one)
    staging.release(one)
    go_on.set()
    await ticks(5)
    assert staging.used_bytes == 0
    assert Spool(tmp_path / "staging").scan() == []


async def test_an_update_that_comes_over_another_stream_while_it_is_written_is_written_once(tmp_path, slow_disk):
    written, go_on = slow_disk
    staging = area(tmp_path, durable=True)
    one = await staged(staging, 0)
    one.complete = False
    cut = asyncio.create_task(staging.secure(one))
    await asyncio.to_thread(written.wait, 10)
    cut.cancel()
    again = asyncio.create_task(staging.secure(one))
    await ticks(3)
    go_on.set()
    await again
    assert [whole.path for whole in Spool(tmp_path / "staging").scan()] == [one.path]


async def test_an_update_damaged_on_disk_is_not_averaged(tmp_path):
    staging = area(tmp_path, updates=0)
    updates = [await staged(staging, place) for place in range(3)]
    (moved,) = (one for one in updates if not one.buffers)
    data = bytearray(moved.path.read_bytes())
    data[-1] ^= 1
    moved.path.write_bytes(data)
    with pytest.raises(StoreError, match="isn't what was written to it: its checksum is wrong"):
        await staging.load(moved)


async def test_metrics_alone_take_no_memory_and_are_in_a_file_all_the_same(tmp_path):
    staging = area(tmp_path, durable=True)
    one = StagedUpdate(b"metrics", 0, ())
    await staging.secure(one)
    staging.rest(one, complete=True)
    staging.release(one)
    (whole,) = Spool(tmp_path / "staging").scan()
    assert (whole.header, whole.num_bytes, staging.used_bytes) == (b"metrics", 0, 0)


async def test_a_disk_without_room_refuses_those_that_wait_and_keeps_what_is_there(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    staging = area(tmp_path, updates=2)
    complete = [await staged(staging, place) for place in (1, 2)]
    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(UnavailableError, match=r"no memory or disk space for an update: No space left"):
        await staging.make_room(update(3))
    assert all(one.buffers for one in complete)


async def test_an_update_that_cannot_be_written_is_not_acknowledged(tmp_path):
    (tmp_path / "staging").write_text("a file in the way")
    staging = area(tmp_path, durable=True)
    with pytest.raises(UnavailableError, match="the update can't be written: File exists"):
        await staging.secure(await staged(staging, 1))


async def test_one_who_goes_away_while_it_waits_takes_no_room(tmp_path):
    staging = area(tmp_path)
    writing = [update(place) for place in (0, 1)]
    for one in writing:
        await staging.make_room(one)
    gone = asyncio.create_task(staging.make_room(update(2)))
    await ticks(2)
    gone.cancel()
    await ticks(2)
    for one in writing:
        staging.release(one)
    assert staging.used_bytes == 0
