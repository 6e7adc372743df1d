"""Updates that are read again, a block at a time, from memory and from files."""

import asyncio

import pytest
import torch

from fedmtl_core.errors import StoreError
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import decode, encode
from fedmtl_core.wire.formats import ENCODINGS
from fedmtl_core.wire.layout import Component
from fedmtl_server.storage.spool import Spool
from fedmtl_server.transfer.buffers import BufferPool
from fedmtl_server.transfer.staged_blocks import StagedBlocks
from fedmtl_server.transfer.staging import StagedUpdate, StagingArea

SIZES = {"shared": 101, "task:x": 7}


def components(seed):
    generator = torch.Generator().manual_seed(seed)
    return [Component.pack(scope, {"w": torch.randn(size, generator=generator)}) for scope, size in SIZES.items()]


def area(tmp_path, updates=2, **options):
    size = 4 * sum(SIZES.values())
    return StagingArea(updates * size, Spool(tmp_path / "staging"), BufferPool(10 * size), **options)


async def staged(staging, place, encoding="float32"):
    """An update that counts; its numbers follow from its place."""
    data = {one.scope: (one.layout, encode(one, encoding)) for one in components(place)}
    parts = [EncodedLayout(layout, encoding, len(raw)) for layout, raw in data.values()]
    one = StagedUpdate(b"a header of 23 bytes...", place, parts)
    await staging.make_room(one)
    for scope, buffer in one.buffers.items():
        buffer.copy_(data[scope][1])
    await staging.secure(one)
    staging.rest(one, complete=True)
    return one


async def accumulated(staging, one):
    """As it is after its turn: its memory goes, or may."""
    staging.retain(one, await staging.load(one))


def expected(place, encoding="float32"):
    return {one.scope: decode(one.layout, encoding, encode(one, encoding)).runs()[0] for one in components(place)}


async def read(staging, updates):
    """All blocks of 10 elements of all components: by client id and scope."""
    await staging.pin(updates.values())
    blocks = StagedBlocks(updates, staging.spool)
    blocks.require_whole()
    return {
        client_id: {
            scope: torch.cat(
                [blocks.read(client_id, scope, 0, start, min(start + 10, size)) for start in range(0, size, 10)]
            )
            for scope, size in SIZES.items()
        }
        for client_id in updates
    }


def assert_same(got, place, encoding="float32"):
    for scope, values in expected(place, encoding).items():
        assert torch.equal(got[scope], values)


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_blocks_are_what_the_update_decodes_to_from_memory_and_from_files(encoding, durable, tmp_path):
    staging = area(tmp_path, durable=durable)
    one = await staged(staging, 3, encoding)
    await accumulated(staging, one)
    assert bool(one.buffers) is not durable
    assert_same((await read(staging, {"a": one}))["a"], 3, encoding)


async def test_a_durable_update_takes_no_memory_until_it_is_read_again(tmp_path):
    staging = area(tmp_path, durable=True)
    updates = {str(place): await staged(staging, place) for place in range(2)}
    for one in updates.values():
        await accumulated(staging, one)
    assert staging.used_bytes == 0
    for place, got in enumerate((await read(staging, updates)).values()):
        assert_same(got, place)
    assert staging.used_bytes == 0


async def test_an_update_in_memory_goes_to_a_file_when_its_room_is_needed_and_is_read_from_there(tmp_path):
    staging = area(tmp_path, updates=2)
    updates = {}
    for place in range(5):
        updates[str(place)] = await asyncio.wait_for(staged(staging, place), 10)
        await accumulated(staging, updates[str(place)])
    assert sum(bool(one.buffers) for one in updates.values()) == 2
    for place, got in enumerate((await read(staging, updates)).values()):
        assert_same(got, place)


async def test_updates_that_are_held_do_not_make_room_for_others(tmp_path):
    staging = area(tmp_path, updates=2)
    updates = [await staged(staging, place) for place in range(2)]
    for one in updates:
        await accumulated(staging, one)
    await staging.pin(updates)
    waiting = asyncio.create_task(staged(staging, 2))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert all(one.buffers for one in updates)
    for one in updates:
        staging.release(one)
        staging.forget(one)
    await asyncio.wait_for(waiting, 10)


async def test_an_update_that_is_forgotten_leaves_its_file_and_its_memory_to_others(tmp_path):
    for durable in (True, False):
        staging = area(tmp_path / str(durable), durable=durable)
        one = await staged(staging, 0)
        await accumulated(staging, one)
        staging.release(one)
        staging.forget(one)
        assert staging.used_bytes == 0
        assert not one.buffers
        assert staging.spool.scan() == []


async def test_a_file_that_was_damaged_is_not_read_again(tmp_path):
    staging = area(tmp_path, durable=True)
    one = await staged(staging, 0)
    await accumulated(staging, one)
    data = bytearray(one.path.read_bytes())
    data[-1] ^= 1
    one.path.write_bytes(data)
    with pytest.raises(StoreError, match="isn't what was written to it: its checksum is wrong"):
        await read(staging, {"a": one})
    one.path.unlink()
    with pytest.raises(StoreError, match="can't read"):
        await read(staging, {"a": one})
