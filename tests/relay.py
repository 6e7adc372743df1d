"""A gateway that passes calls on to a server, and ends some of them with a status of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc


@dataclass
class Cuts:
    """Which calls the gateway ends, and how."""

    method: str
    """The last part of the name of the calls it ends."""
    code: grpc.StatusCode
    after_bytes: int = -1
    """Bytes of one call's messages that are passed on, in the direction that has the data; -1 for no message at all."""
    times: int | None = None
    """How many calls it ends; None for all of them."""
    details: str = "the gateway has had enough"


class Relay:
    """Passes calls on, message by message, as they are. Its own errors have no details, as those of gateways.

    Args:
        target: the server's address.
        cuts: which calls it ends.
        reset_as: the status that it gives instead of the server's errors, behind their details.
    """

    def __init__(self, target: str, cuts: Cuts | None = None, reset_as: grpc.StatusCode | None = None):
        self._target = target
        self._cuts = cuts or Cuts("", grpc.StatusCode.INTERNAL)
        self._reset_as = reset_as
        self.num_cut = 0
        self.calls: list[str] = []
        """The names of all calls, in the order in which they began."""
        self.address = ""

    async def __aenter__(self) -> Relay:
        self._channel = grpc.aio.insecure_channel(self._target)
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)
        await self._channel.close()

    async def serve(self, method: str, requests: AsyncIterator[bytes], context: Any) -> None:
        """One call."""
        name = method.rpartition("/")[2]
        self.calls.append(name)
        call: Any = self._channel.stream_stream(method)(metadata=context.invocation_metadata())
        left = self._cuts.after_bytes if name == self._cuts.method and self._may_cut() else None
        answers = asyncio.ensure_future(_pass_answers(call, context, left if name == "GetSlice" else None))
        upwards = asyncio.ensure_future(_pass_requests(requests, call, None if name == "GetSlice" else left))
        try:
            await asyncio.wait({answers, upwards}, return_when=asyncio.FIRST_COMPLETED)
            if (upwards.done() and upwards.result()) or await answers:
                self.num_cut += 1
                await context.abort(self._cuts.code, self._cuts.details)
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                await context.abort(self._reset_as or code, await call.details(), tuple(await call.trailing_metadata()))
        finally:
            for task in (answers, upwards):
                task.cancel()
            await asyncio.gather(answers, upwards, return_exceptions=True)
            call.cancel()

    def _may_cut(self) -> bool:
        return self._cuts.times is None or self.num_cut < self._cuts.times


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, relay: Relay):
        self._relay = relay

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method

        async def serve(requests: AsyncIterator[bytes], context: Any) -> None:
            await self._relay.serve(method, requests, context)

        return grpc.stream_stream_rpc_method_handler(serve)


async def _pass_requests(requests: AsyncIterator[bytes], call: Any, left: int | None) -> bool:
    """Pass a call's requests on; whether it is to be cut."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call is over
        async for message in requests:
            if left is not None and (left := left - len(message)) < 0:
                return True
            await call.write(message)
        await call.done_writing()
    return False


async def _pass_answers(call: Any, context: Any, left: int | None) -> bool:
    """Pass a call's answers on; whether it is to be cut."""
    with contextlib.suppress(grpc.aio.AioRpcError):  # the status is passed on by itself
        await context.send_initial_metadata(await call.initial_metadata())
        while (message := await call.read()) is not grpc.aio.EOF:
            if left is not None and (left := left - len(message)) < 0:
                return True
            await context.write(message)
    return False
