"""What tests share: small models, a served run, and a client that speaks the contract without FedMTL's own codec."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google_crc32c
import grpc
import torch
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from torch import Tensor, nn

from fedmtl_core.config import Config
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.update_headers import update_from_header
from fedmtl_core.wire.updates import Update
from fedmtl_server.model import MTLServerModel
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.server import Server
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE

TASKS = ("sst2", "qqp", "stsb", "mrpc")


def update_of(header: pb.UpdateHeader) -> Update:
    """What an update's header says of a built-in task."""
    return update_from_header(header, PRESETS[header.task])


class OddEncoder(nn.Module):
    """Every shape and dtype that a layout must carry: scalar, empty, half precision, and more than one message."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator).to(dtype))

        self.scale = parameter()
        self.empty = parameter(0, 3)
        self.halves = parameter(5, dtype=torch.float16)
        self.brain = parameter(3, 7, dtype=torch.bfloat16)
        self.doubles = parameter(2, dtype=torch.float64)
        self.large = parameter(1_150_001)  # 4.6 MB: more than gRPC's 4 MiB per message
        self.register_buffer("running", torch.ones(4))
        self.register_buffer("steps", torch.tensor(3))  # an integer buffer stays where it is


class WideEncoder(nn.Module):
    """So many float32 numbers, in rows of 1000."""

    def __init__(self, num_elements: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(num_elements // 1000, 1000, generator=generator))


class TinyEncoder(nn.Module):
    """A few float32 numbers."""

    def __init__(self, width: int = 4, seed: int = 0):
        super().__init__()
        self.dense = nn.Linear(width, width)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, features: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=torch.tanh(self.dense(features)))


def specs(*names: str) -> list[TaskSpec]:
    return [PRESETS[name] for name in names]


def tiny_model(*tasks: str, encoder: nn.Module | None = None) -> MTLServerModel:
    return MTLServerModel(encoder or TinyEncoder(), specs(*tasks), hidden_size=4)


def model_bytes(model: MTLServerModel) -> dict[str, bytes]:
    """The model's bytes by scope, as they are now."""
    return {scope: component.buffer.numpy().tobytes() for scope, component in model.components.items()}


@asynccontextmanager
async def serving(
    run_dir: Path | None,
    model: MTLServerModel,
    *,
    num_rounds: int = 1,
    min_clients: int | Mapping[str, int] = 1,
    port: int = 0,
    settings: Mapping[str, Any] | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    finished: bool = False,
    **rounds: Any,
) -> AsyncIterator[Server]:
    """A whole server on a free port of loopback, holding its rounds.

    Args:
        run_dir: the run's folder; a new one in `server.runs_dir` if None.
        settings: of the section `server`.
        sections: other sections.
        finished: whether the run may be over.
        rounds: of the section `rounds`.
    """
    needed = dict.fromkeys(model.tasks, min_clients) if isinstance(min_clients, int) else min_clients
    config = Config.model_validate(
        {
            "training": {"num_rounds": num_rounds},
            "rounds": {"rejoin_grace_s": 0.2, **rounds},
            "server": {"port": port, **(settings or {})},
            "tasks": {task: {"min_clients": needed.get(task, 0)} for task in model.tasks},
            **(sections or {}),
        }
    )
    server = Server(config, run_dir, model, finished=finished)
    await server.start()
    run = server.run_task = asyncio.create_task(server.run())
    try:
        yield server
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await server.stop("the test is over")


class WireClient:
    """A client made from the generated stubs alone; it cuts, checks and joins bytes by itself.

    Args:
        server: whose address it calls.
        client_id: its name.
        task: its task; of several, its choice, or empty for the server's.
        tasks: if it has data for several, all of them.
        credentials: of its channel; None for plaintext.
        token: what it sends with every call.
    """

    def __init__(
        self,
        server: Server,
        client_id: str,
        task: str,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        tasks: Sequence[str] = (),
    ):
        self.client_id = client_id
        self.task = task
        self.tasks = tasks
        self._channel = (
            grpc.aio.secure_channel(server.address, credentials)
            if credentials
            else grpc.aio.insecure_channel(server.address)
        )
        self.stub: Any = pb_grpc.FederatedMtlServiceStub(self._channel)
        if token is not None:
            metadata = (("authorization", f"Bearer {token}"),)
            methods = [method.name for method in pb.DESCRIPTOR.services_by_name["FederatedMtlService"].methods]
            self.stub = SimpleNamespace(
                **{name: partial(getattr(self.stub, name), metadata=metadata) for name in methods}
            )
        self._events: Any = None

    async def __aenter__(self) -> WireClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def watch(self) -> pb.WatchRoundsResponse:
        """Begin to watch; returns the first event."""
        request = pb.WatchRoundsRequest(client_id=self.client_id, task=self.task, tasks=self.tasks)
        self._events = self.stub.WatchRounds(request)
        return await self.event()

    async def event(self) -> pb.WatchRoundsResponse:
        async with asyncio.timeout(20):
            event = await self._events.read()
        assert event is not grpc.aio.EOF
        return event

    async def until(self, kind: pb.RoundEventKind, round_: int | None = None) -> pb.WatchRoundsResponse:
        """The next event of a kind."""
        while True:
            event = await self.event()
            if event.kind == kind and round_ in (None, event.round):
                return event

    def leave(self) -> None:
        """Stop watching."""
        self._events.cancel()

    async def get_slice(self, **fields: Any) -> tuple[pb.SliceHeader, dict[str, bytes]]:
        """The slice's header, and its bytes by scope."""
        request = pb.GetSliceRequest(**({"task": self.task} | fields))
        header, parts = None, {}
        async for message in self.stub.GetSlice(request):
            if header is None:
                header = message.header
                parts = {component.scope: bytearray() for component in header.components}
                continue
            chunk = message.chunk
            start = next(c.start_offset for c in header.components if c.scope == chunk.scope)
            assert chunk.offset == start + len(parts[chunk.scope])
            assert google_crc32c.value(chunk.data) == chunk.crc32c
            parts[chunk.scope] += chunk.data
        assert header is not None
        return header, {scope: bytes(data) for scope, data in parts.items()}

    async def push(self, messages: Iterable[pb.PushUpdateRequest]) -> pb.PushUpdateResponse:
        async with asyncio.timeout(20):
            return await self.stub.PushUpdate(aiter_of(messages))

    def update(
        self, slice_: pb.SliceHeader, data: Mapping[str, bytes], *, num_examples: int = 1, **header: Any
    ) -> list[pb.PushUpdateRequest]:
        """An update's messages: header and chunks."""
        fields = {
            "run_id": slice_.run_id,
            "client_id": self.client_id,
            "task": self.task,
            "base_round": slice_.round,
            "update_id": f"{self.client_id}-{slice_.round}",
            "kind": pb.UPDATE_KIND_PARAMETERS,
            "num_examples": num_examples,
            "components": [
                pb.Component(scope=c.scope, tensors=c.tensors, num_bytes=c.num_bytes) for c in slice_.components
            ],
        }
        return [pb.PushUpdateRequest(header=pb.UpdateHeader(**(fields | header))), *chunk_messages(data)]


@asynccontextmanager
async def watching(server: Server, **tasks: str) -> AsyncIterator[dict[str, WireClient]]:
    """Clients that watch, by id; given as their tasks by id."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for client_id, task in tasks.items():
            clients[client_id] = await stack.enter_async_context(WireClient(server, client_id, task))
            await clients[client_id].watch()
        yield clients


class CuttingProxy:
    """Passes bytes on to a server, and cuts connections after so many bytes that come from one side.

    Args:
        address: the server's.
        cuts: for one connection after the other, the bytes after which it ends; those after the last stay.
        upwards: whether bytes from the client are counted, or bytes from the server.
    """

    def __init__(self, address: str, cuts: Sequence[int], *, upwards: bool = False):
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._cuts = list(cuts)
        self._upwards = upwards
        self.num_cut = 0
        self.bytes_passed = 0
        """From the side that counts."""

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        budget = self._cuts.pop(0) if self._cuts else None
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        up = asyncio.create_task(self._pipe(reader, server_writer, budget, counts=self._upwards))
        down = asyncio.create_task(self._pipe(server_reader, writer, budget, counts=not self._upwards))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (writer, server_writer):
                one.transport.abort()

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None, *, counts: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if counts and budget is not None:
                    data, rest = data[:budget], data[budget:]
                    budget -= len(data)
                    if rest:
                        writer.write(data)
                        await writer.drain()
                        self.num_cut += 1
                        return
                self.bytes_passed += len(data) if counts else 0
                writer.write(data)
                await writer.drain()


def full_of(data: Mapping[str, bytes], value: float) -> dict[str, bytes]:
    """A slice's float32 bytes, with every number the same."""
    return {scope: torch.full((len(part) // 4,), float(value)).numpy().tobytes() for scope, part in data.items()}


def chunk_message(scope: str, offset: int, data: bytes) -> pb.PushUpdateRequest:
    return pb.PushUpdateRequest(chunk=pb.Chunk(scope=scope, offset=offset, data=data, crc32c=google_crc32c.value(data)))


def chunk_messages(data: Mapping[str, bytes], size: int = 1_000_000) -> list[pb.PushUpdateRequest]:
    """Chunks of an odd size of our own choosing."""
    return [
        chunk_message(scope, offset, whole[offset : offset + size])
        for scope, whole in data.items()
        for offset in range(0, len(whole), size)
    ]


def reports_of(run_dir: Path) -> list[RoundReport]:
    """The reports of a run's rounds, of which the server remembers no more than the last."""
    history = History.open(run_dir / HISTORY_FILE, create=False)
    try:
        rounds = history.rounds(history.runs()[0].run_id)
    finally:
        history.close()
    return [RoundReport.from_dict(one.report) for one in rounds if one.report is not None]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds that no event tells of."""
    async with asyncio.timeout(60):  # only a failure takes so long
        while not condition():
            await asyncio.sleep(0.01)


async def aiter_of(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def flat(tensors: Sequence[Tensor]) -> bytes:
    """Float32 tensors as the contract lays them out when there is nothing else in the component."""
    return b"".join(tensor.to(torch.float32).contiguous().numpy().tobytes() for tensor in tensors)
