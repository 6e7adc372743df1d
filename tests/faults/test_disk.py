"""Disks that are full or can't be written, on a small file system of the tests' own."""

import os
import subprocess

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_core.errors import StoreError
from tests.support import WideEncoder, eventually, full_of, serving, tiny_model, watching

OPENED, COMMITTED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_COMMITTED
MODEL_MB = 4


class SmallDisk:
    """A file system in memory, of a size that can be changed."""

    def __init__(self, folder):
        self.folder = folder

    def mount(self, megabytes):
        self._mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(self.folder))

    def set_size(self, megabytes):
        self._mount("-o", f"remount,rw,size={megabytes}m", str(self.folder))

    def make_read_only(self):
        self._mount("-o", "remount,ro", str(self.folder))

    def unmount(self):
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def _mount(self, *options):
        subprocess.run(["mount", *options], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = SmallDisk(folder)
    if os.geteuid() != 0:
        pytest.skip("to mount a small file system takes root")
    try:
        disk.mount(100)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system can be mounted here: {getattr(error, 'stderr', error)}")
    yield disk
    disk.unmount()


def model(seed=0):
    return tiny_model("sst2", encoder=WideEncoder(MODEL_MB * 250_000, seed))


async def test_with_a_disk_that_is_full_an_update_waits_at_its_client_until_there_is_room(disk):
    run_dir = disk.folder / "run"
    async with serving(run_dir, model()) as server, watching(server, a="sst2") as clients:
        client = clients["a"]
        await client.until(OPENED)
        header, data = await client.get_slice()
        disk.set_size(MODEL_MB + 2)
        update = client.update(header, full_of(data, 1))
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.push(update)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the update can't be written: No space left on device" in caught.value.details()
        assert "staging.failed" in [line["event"] for line in logs]
        assert [one.reported for one in server.federation.status().clients] == [False]
        disk.set_size(100)
        assert (await client.push(update)).outcome == pb.OUTCOME_ACCEPTED
        event = await client.until(COMMITTED, 1)
    assert [part.client_id for part in event.report.components[0].contributions] == ["a"]


async def test_with_a_disk_that_is_full_a_commit_stops_the_server_and_is_made_by_the_next_one(disk):
    """What was acknowledged before is in its file, and nothing of the commit is half there."""
    run_dir = disk.folder / "run"
    async with serving(run_dir, model(), num_rounds=2) as server, watching(server, a="sst2") as clients:
        client = clients["a"]
        await client.until(OPENED)
        header, data = await client.get_slice()
        disk.set_size(2 * MODEL_MB + 2)  # the first checkpoint and the update, but not the second checkpoint
        assert (await client.push(client.update(header, full_of(data, 7)))).outcome == pb.OUTCOME_ACCEPTED
        with pytest.raises(StoreError, match=r"can't write .*round-0001.safetensors: No space left on device"):
            await server.run_task
    disk.set_size(100)
    second = model(seed=1)
    async with serving(run_dir, second, num_rounds=2) as server, watching(server, a="sst2") as clients:
        await clients["a"].until(OPENED, 2)
        assert server.federation.last_report.round == 1
        await eventually(lambda: bool(second.module.encoder.weight.eq(7).all()))


async def test_a_run_folder_that_cannot_be_written_is_an_error_in_words(disk):
    disk.make_read_only()
    with pytest.raises(StoreError, match=r"can't write .*: Read-only file system"):
        async with serving(disk.folder / "run", model()):
            pass
    disk.set_size(100)
    async with serving(disk.folder / "run", model()):
        pass
    disk.make_read_only()
    with pytest.raises(StoreError, match=r"can't write .*: .*[Rr]ead-only"):
        async with serving(disk.folder / "run", model()):
            pass
