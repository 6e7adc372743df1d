"""A server process that adds adapters to its base is killed: it comes to the same base, to the last bit."""

from __future__ import annotations

import contextlib

import pytest
from fedmtl.v1 import federation_pb2 as pb
from safetensors.torch import load_file

from tests.e2e.test_adapter_ranks import watching
from tests.e2e.test_processes import Federation
from tests.server.adapting import update_of
from tests.support import eventually

pytestmark = pytest.mark.e2e

CONFIG = """
model:
  server_model: "builtin:toy"
  adapters: {aggregation: stack, rank: 4, alpha: 16.0}
training: {num_rounds: 3, max_length: 48}
rounds: {deadline_s: 60, quorum_timeout_s: 20, rejoin_grace_s: 20}
store: {keep_checkpoints: 10}
tasks:
  sst2: {min_clients: 2}
"""


async def push(clients, round_, *client_ids):
    for client_id in client_ids:
        messages, _ = await update_of(clients[client_id], round_, "parameters")
        await clients[client_id].push(messages)


async def finish(clients, first, *missing):
    """The rounds up to the third, of which these updates are missing in the first."""
    await push(clients, first, *missing)
    for round_ in range(first + 1, 4):
        for client in clients.values():
            await client.until(pb.ROUND_EVENT_KIND_OPENED, round_)
        await push(clients, round_, "large", "small")
    await clients["large"].until(pb.ROUND_EVENT_KIND_OPENED, 4)


def checkpoints(run):
    """By file, the bytes of all tensors after each round."""
    return {
        path.name: {name: one.numpy().tobytes() for name, one in load_file(path).items()}
        for path in sorted((run.run_dir / "checkpoints").glob("*.safetensors"))
    }


@contextlib.contextmanager
def killed(run):
    try:
        yield
    finally:
        run.server.kill()
        run.server.wait()
        (run.run_dir / "server.json").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def undisturbed():
    """What every run comes to; filled by the first test that needs it."""
    return {}


async def expected(undisturbed, folder, stack):
    if not undisturbed:
        folder.mkdir()
        run = Federation(folder, stack, config=CONFIG)
        async with watching(run.address) as clients:
            await finish(clients, 1, "large", "small")
        undisturbed |= checkpoints(run)
    return undisturbed


@pytest.mark.parametrize("moment", ["acknowledged", "checkpoint written", "committed"])
async def test_a_killed_server_comes_to_the_same_base(moment, tmp_path, undisturbed):
    with contextlib.ExitStack() as stack:
        wanted = await expected(undisturbed, tmp_path / "undisturbed", stack)
        run = Federation(tmp_path, stack, config=CONFIG)
        async with watching(run.address) as clients:
            await push(clients, 1, "large", "small")
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, 2)
            with killed(run):
                await push(clients, 2, "small")
                if moment != "acknowledged":
                    await push(clients, 2, "large")
                if moment == "checkpoint written":
                    await eventually((run.run_dir / "checkpoints" / "round-0002.safetensors").exists)
                elif moment == "committed":
                    await clients["large"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
        again = Federation(tmp_path, stack, config=CONFIG)
        async with watching(again.address) as clients:
            if moment == "acknowledged":
                await finish(clients, 2, "large")
            else:  # a server that wrote the checkpoint and didn't commit it commits it now
                while (await clients["large"].stub.GetStatus(pb.GetStatusRequest())).round < 3:
                    await clients["large"].event()
                await finish(clients, 3, "large", "small")
        assert checkpoints(again) == wanted
