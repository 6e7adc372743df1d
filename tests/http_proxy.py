"""An HTTP proxy that gRPC's clients connect through, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from types import TracebackType


class HttpProxy:
    """Answers `CONNECT`, in a thread of its own.

    Args:
        routes: where connections to a `HOST:PORT` go; a request for any other is answered with 403.
    """

    def __init__(self, routes: Mapping[str, str] | None = None):
        self._routes = dict(routes or {})
        self.requested: list[str] = []
        """The targets of all requests."""
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-proxy", daemon=True)

    def __enter__(self) -> HttpProxy:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = started.result(30)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            request = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = request.split(maxsplit=2)
            assert method == b"CONNECT"
            self.requested.append(target.decode())
            route = self._routes.get(target.decode())
            if route is None:
                writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                await writer.drain()
                return
            host, _, port = route.rpartition(":")
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
            with contextlib.closing(server_writer):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                pipes = [
                    asyncio.ensure_future(_pipe(reader, server_writer)),
                    asyncio.ensure_future(_pipe(server_reader, writer)),
                ]
                try:
                    await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pipe in pipes:
                        pipe.cancel()
                    await asyncio.gather(*pipes, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
