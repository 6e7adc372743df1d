"""Many clients in one process, without training: each has its own connection and uploads the slice it downloaded.

    python -m benchmarks.swarm ADDRESS TASK[,TASK...] FIRST_NUMBER NUM_ROUNDS

The process has one client for each task. On the command `rounds`, the clients connect, participate in NUM_ROUNDS
rounds and leave. The answer has the duration of every call, and all errors. The clients use the generated stubs with
asyncio.

All clients get the same bytes, and a chunk's message is the same in both directions. Each component's messages are
stored once for all clients of a process, and compared with the messages that each client gets.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import google_crc32c
import grpc
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc

from benchmarks.processes import serve_commands
from fedmtl_core.runtime.allocator import keep_freed_blocks
from fedmtl_core.runtime.proxies import NO_PROXY
from fedmtl_core.wire.chunks import Chunk, read_message

CALL_TIMEOUT_S = 300.0
"""Seconds for one download or upload, with the wait for admission."""
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # one connection for each client, as if each were a process
    *NO_PROXY.items(),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]

_SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name


class DamagedError(Exception):
    """A slice contradicts its header or another client's slice."""


class Swarm:
    """The clients of one process, and their shared messages and measurements."""

    def __init__(self, address: str, tasks: Sequence[str], first: int, num_rounds: int):
        self.address = address
        self.num_rounds = num_rounds
        self.get_seconds: list[float] = []
        self.push_seconds: list[float] = []
        self.errors: list[str] = []
        self._messages: dict[bytes, dict[int, tuple[int, bytes]]] = {}
        self._newest: dict[str, bytes] = {}
        self._clients = [Client(self, f"client-{first + i:04}", task) for i, task in enumerate(tasks)]

    async def run(self) -> None:
        """Run all rounds of all clients."""
        await asyncio.gather(*(client.run() for client in self._clients))

    def take(self, component: pb.Component, chunk: Chunk, message: bytes) -> None:
        """Check a chunk of one client, and store its message if no client got it before.

        Raises:
            DamagedError: the chunk contradicts its checksum, or differs from another client's chunk.
        """
        if google_crc32c.value(chunk.data) != chunk.crc32c:
            raise DamagedError(f"{chunk.scope}: the chunk at byte {chunk.offset} contradicts its checksum")
        if self._newest.get(component.scope) != component.digest:
            self._messages.pop(self._newest.get(component.scope, b""), None)
            self._newest[component.scope] = component.digest
        crc, _ = self._messages.setdefault(component.digest, {}).setdefault(chunk.offset, (chunk.crc32c, message))
        if crc != chunk.crc32c:
            raise DamagedError(f"{chunk.scope}: the chunk at byte {chunk.offset} differs from another client's")

    def messages(self, component: pb.Component) -> list[bytes]:
        """Return a component's chunk messages in order."""
        return [message for _, (_, message) in sorted(self._messages[component.digest].items())]


class Client:
    """A client with its own connection."""

    def __init__(self, swarm: Swarm, client_id: str, task: str):
        self._swarm = swarm
        self._client_id = client_id
        self._task = task

    async def run(self) -> None:
        """Participate in the rounds. Errors are recorded, and the client continues with the next event."""
        async with grpc.aio.insecure_channel(self._swarm.address, options=OPTIONS) as channel:
            stub = pb_grpc.FederatedMtlServiceStub(channel)
            self._get: Any = channel.unary_stream(f"/{_SERVICE}/GetSlice", pb.GetSliceRequest.SerializeToString, None)
            self._push: Any = channel.stream_unary(f"/{_SERVICE}/PushUpdate", None, pb.PushUpdateResponse.FromString)
            try:
                events: Any = stub.WatchRounds(pb.WatchRoundsRequest(client_id=self._client_id, task=self._task))
                await self._follow(events)
                events.cancel()
            except grpc.aio.AioRpcError as error:
                self._note("WatchRounds", error)

    async def _follow(self, events: AsyncIterator[pb.WatchRoundsResponse]) -> None:
        async for event in events:
            if event.kind == pb.ROUND_EVENT_KIND_COMMITTED and event.round == self._swarm.num_rounds:
                return
            if event.kind == pb.ROUND_EVENT_KIND_OPENED and event.in_cohort and not event.reported:
                await self._take_part(event)

    async def _take_part(self, event: pb.WatchRoundsResponse) -> None:
        rpc = "GetSlice"
        try:
            began = time.monotonic()
            async with asyncio.timeout(CALL_TIMEOUT_S):
                header = await self._download(event)
            self._swarm.get_seconds.append(time.monotonic() - began)
            rpc, began = "PushUpdate", time.monotonic()
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._upload(header)
            self._swarm.push_seconds.append(time.monotonic() - began)
        except (grpc.aio.AioRpcError, TimeoutError, DamagedError) as error:
            self._note(rpc, error)

    async def _download(self, event: pb.WatchRoundsResponse) -> pb.SliceHeader:
        request = pb.GetSliceRequest(run_id=event.run_id, client_id=self._client_id, task=self._task, round=event.round)
        stream = self._get(request)
        header = pb.GetSliceResponse.FromString(await stream.read()).header
        components = {component.scope: component for component in header.components}
        arrived = dict.fromkeys(components, 0)
        while (message := await stream.read()) is not grpc.aio.EOF:
            chunk = read_message(message, pb.GetSliceResponse)
            if not isinstance(chunk, Chunk) or arrived[chunk.scope] != chunk.offset:
                raise DamagedError("the slice's chunks don't follow one another")
            self._swarm.take(components[chunk.scope], chunk, message)
            arrived[chunk.scope] += chunk.num_bytes
        if any(arrived[scope] != component.num_bytes for scope, component in components.items()):
            raise DamagedError("the slice is short")
        return header

    async def _upload(self, header: pb.SliceHeader) -> None:
        update = pb.UpdateHeader(
            run_id=header.run_id,
            client_id=self._client_id,
            task=self._task,
            base_round=header.round,
            update_id=uuid.uuid4().hex,
            kind=pb.UPDATE_KIND_PARAMETERS,
            num_examples=1,
            components=header.components,
        )
        call = self._push()
        await call.write(pb.PushUpdateRequest(header=update).SerializeToString())
        await call.initial_metadata()  # the server has admitted the call
        for component in header.components:
            for message in self._swarm.messages(component):
                await call.write(message)
        await call.done_writing()
        receipt = await call
        if receipt.outcome != pb.OUTCOME_ACCEPTED:
            raise DamagedError(f"the server answered the update with {pb.Outcome.Name(receipt.outcome)}")

    def _note(self, rpc: str, error: Exception) -> None:
        text = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else repr(error)
        self._swarm.errors.append(f"{self._client_id}: {rpc}: {text}")


def raise_file_limit() -> None:
    """Raise the limit of open files to its maximum, for as many connections as possible."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(address: str, tasks: str, first: str, num_rounds: str) -> None:
    keep_freed_blocks()
    raise_file_limit()

    def rounds() -> dict[str, object]:
        swarm = Swarm(address, tasks.split(","), int(first), int(num_rounds))
        asyncio.run(swarm.run())
        return {"get": swarm.get_seconds, "push": swarm.push_seconds, "errors": swarm.errors}

    print(json.dumps("ready"), flush=True)
    serve_commands({"rounds": rounds})


if __name__ == "__main__":
    main(*sys.argv[1:])
