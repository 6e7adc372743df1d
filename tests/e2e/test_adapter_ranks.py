"""A server process with clients of unequal ranks is killed: an acknowledged update of the smaller rank counts."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
from fedmtl.v1 import federation_pb2 as pb

from tests.e2e.test_processes import Federation
from tests.server.adapting import mean_of, received, scaled, tensors, update_of
from tests.server.aggregation.adapters import cut, relative
from tests.support import WireClient

RANKS = {"large": 4, "small": 2}

pytestmark = pytest.mark.e2e

CONFIG = """
model:
  server_model: "builtin:toy"
  adapters: {aggregation: svd, rank: 4, alpha: 16.0, ranks: {small: 2}}
training: {num_rounds: 2, max_length: 48}
rounds: {deadline_s: 60, quorum_timeout_s: 20, rejoin_grace_s: 20}
tasks:
  sst2: {min_clients: 2}
"""


@contextlib.asynccontextmanager
async def watching(address):
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for client_id in RANKS:
            client = WireClient(SimpleNamespace(address=address), client_id, "sst2")
            clients[client_id] = await stack.enter_async_context(client)
            await client.watch()
        yield clients


@pytest.mark.parametrize("kind", ["parameters", "delta"])
async def test_a_killed_server_keeps_an_acknowledged_update_of_the_smaller_rank(kind, tmp_path):
    parts = {}
    with contextlib.ExitStack() as stack:
        run = Federation(tmp_path, stack, config=CONFIG)
        async with watching(run.address) as clients:
            for client in clients.values():  # the products are 0 before
                await client.push((await update_of(client, 1, kind))[0])
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, 2)
            messages, parts["small"] = await update_of(clients["small"], 2, kind)
            assert (await clients["small"].push(messages)).outcome == pb.OUTCOME_ACCEPTED
            run.server.kill()
            run.server.wait()
        (run.run_dir / "server.json").unlink(missing_ok=True)
        again = Federation(tmp_path, stack, config=CONFIG)
        async with watching(again.address) as clients:
            assert (await clients["small"].push(messages)).outcome == pb.OUTCOME_DUPLICATE
            large, parts["large"] = await update_of(clients["large"], 2, kind)
            await clients["large"].push(large)
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, 3)
            wanted = mean_of(parts, RANKS)
            for client_id, rank in RANKS.items():
                got = scaled(tensors(*await received(clients[client_id], 3)), rank)
                assert relative(got, {layer: cut(one, rank) for layer, one in wanted.items()}) < 2e-6
