"""The bound: a bare gRPC stream of `bytes`, without protobuf or checks, received into one preallocated buffer.

python -m benchmarks.bare server sync|aio MESSAGE_BYTES TOTAL_BYTES plain|tuned
python -m benchmarks.bare client sync|aio MESSAGE_BYTES TOTAL_BYTES plain|tuned ADDRESS
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from benchmarks.processes import Worker, serve_commands
from fedmtl_core.runtime.allocator import keep_freed_blocks
from fedmtl_core.runtime.proxies import NO_PROXY

_METHODS = "bench.Bare"


@dataclass(frozen=True)
class Variant:
    """A variant of a bare gRPC stream."""

    server: str
    """`sync` or `aio`."""
    client: str
    """`sync` or `aio`."""
    message_bytes: int
    tuned: bool = False
    """Whether the processes keep freed memory blocks, as FedMTL's processes do."""

    def __str__(self) -> str:
        return f"{self.server} server, {self.client} client, {self.message_bytes / 2**20:.1f} MiB"

    def start_server(self, total_bytes: int) -> tuple[Worker, str]:
        """Start a server, and return it with its address."""
        worker = Worker("benchmarks.bare", "server", self.server, *self._arguments(total_bytes))
        return worker, f"127.0.0.1:{worker.await_hello()}"

    def start_clients(self, address: str, total_bytes: int, count: int) -> list[Worker]:
        """Start clients with the commands `down`, `up` and `round`, which is `down` and then `up`."""
        workers = [
            Worker("benchmarks.bare", "client", self.client, *self._arguments(total_bytes), address)
            for _ in range(count)
        ]
        for worker in workers:
            worker.await_hello()
        return workers

    def _arguments(self, total_bytes: int) -> list[str]:
        return [str(self.message_bytes), str(total_bytes), "tuned" if self.tuned else "plain"]


class _Messages:
    """The messages to send, each in separate memory, as the parts of a model are."""

    def __init__(self, message_bytes: int, total_bytes: int):
        noise = bytearray(os.urandom(message_bytes))
        whole, rest = divmod(total_bytes, message_bytes)
        self._messages = [bytes(noise) for _ in range(whole)] + ([bytes(noise[:rest])] if rest else [])

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._messages)


class _Sink:
    """A pool of buffers to receive into."""

    def __init__(self, total_bytes: int):
        self._total_bytes = total_bytes
        self._free: list[bytearray] = []

    def take(self) -> _Place:
        return _Place(self._free.pop() if self._free else bytearray(self._total_bytes), self._free)


class _Place:
    """A buffer that is filled from its start."""

    def __init__(self, buffer: bytearray, free: list[bytearray]):
        self._buffer, self._view, self._free, self._end = buffer, memoryview(buffer), free, 0

    def put(self, message: bytes) -> None:
        self._view[self._end : self._end + len(message)] = message
        self._end += len(message)

    def finish(self) -> None:
        assert self._end == len(self._buffer)
        self._free.append(self._buffer)


def _serve_sync(messages: _Messages, sink: _Sink) -> None:
    def down(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        return iter(messages)

    def up(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        place = sink.take()
        for message in requests:
            place.put(message)
        place.finish()
        return b"done"

    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_handlers(down, up),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps(port), flush=True)
    server.wait_for_termination()


async def _serve_aio(messages: _Messages, sink: _Sink) -> None:
    async def down(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        for message in messages:
            await context.write(message)

    async def up(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        place = sink.take()
        async for message in requests:
            place.put(message)
        place.finish()
        return b"done"

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_handlers(down, up),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps(port), flush=True)
    await server.wait_for_termination()


def _handlers(down: Callable[..., object], up: Callable[..., object]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        _METHODS,
        {"down": grpc.unary_stream_rpc_method_handler(down), "up": grpc.stream_unary_rpc_method_handler(up)},
    )


def _call_sync(messages: _Messages, sink: _Sink, address: str) -> None:
    with grpc.insecure_channel(address, options=tuple(NO_PROXY.items())) as channel:
        download: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{_METHODS}/down")
        upload: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"/{_METHODS}/up")

        def down() -> None:
            place = sink.take()
            for message in download(b""):
                place.put(message)
            place.finish()

        def up() -> None:
            upload(iter(messages))

        def both() -> None:
            down()
            up()

        print(json.dumps("ready"), flush=True)
        serve_commands({"down": down, "up": up, "round": both})


def _call_aio(messages: _Messages, sink: _Sink, address: str) -> None:
    loop = asyncio.new_event_loop()

    async def connect() -> tuple[
        grpc.aio.UnaryStreamMultiCallable[bytes, bytes], grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
    ]:
        channel = grpc.aio.insecure_channel(address, options=tuple(NO_PROXY.items()))
        return channel.unary_stream(f"/{_METHODS}/down"), channel.stream_unary(f"/{_METHODS}/up")

    download, upload = loop.run_until_complete(connect())

    async def down() -> None:
        place = sink.take()
        async for message in download(b""):
            place.put(message)
        place.finish()

    async def up() -> None:
        call = upload()
        for message in messages:
            await call.write(message)
        await call.done_writing()
        await call

    async def both() -> None:
        await down()
        await up()

    print(json.dumps("ready"), flush=True)

    def ended(work: Callable[[], Coroutine[object, None, None]]) -> Callable[[], None]:
        return lambda: loop.run_until_complete(work())

    serve_commands({"down": ended(down), "up": ended(up), "round": ended(both)})


def main(role: str, kind: str, message_bytes: str, total_bytes: str, allocator: str, address: str = "") -> None:
    if allocator == "tuned":
        keep_freed_blocks()
    messages, sink = _Messages(int(message_bytes), int(total_bytes)), _Sink(int(total_bytes))
    if role == "server":
        _serve_sync(messages, sink) if kind == "sync" else asyncio.run(_serve_aio(messages, sink))
    else:
        (_call_sync if kind == "sync" else _call_aio)(messages, sink, address)


if __name__ == "__main__":
    main(*sys.argv[1:])
