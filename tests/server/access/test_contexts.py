"""Contexts around a call's own, with a client that takes its time."""

import asyncio

import grpc
import pytest

from fedmtl_core.errors import LimitExceededError
from fedmtl_server.access import contexts
from fedmtl_server.access.contexts import GuardedContext, WriteProgressContext

CODE = grpc.StatusCode


class Client:
    """gRPC's context of a client that takes only what it is told to."""

    def __init__(self, *takes):
        self.takes = takes
        self.calls = []

    def peer(self):
        return "ipv4:127.0.0.1:1"

    def set_trailing_metadata(self, metadata):
        self.calls.append(("set_trailing_metadata", metadata))

    async def send_initial_metadata(self, metadata):
        await self._take("metadata", metadata)

    async def write(self, message):
        await self._take("message", message)

    async def abort(self, code, details="", trailing_metadata=()):
        await self._take("status", (code, details, trailing_metadata))
        raise grpc.aio.AbortError

    async def _take(self, what, value):
        self.calls.append((what, value))
        if what not in self.takes:
            await asyncio.Event().wait()


def guarded(client, timeout_s=0.05):
    ended = []
    return GuardedContext(client, timeout_s, lambda *why: ended.append(why)), ended


async def test_the_metadata_goes_before_the_first_message_so_that_a_status_can_go_alone():
    client = Client("metadata", "message")
    context, _ = guarded(client)
    await context.write(b"1")
    await context.write(b"2")
    assert client.calls == [("metadata", ()), ("message", b"1"), ("message", b"2")]


async def test_metadata_that_the_handler_has_sent_is_not_sent_again():
    client = Client("metadata", "message")
    context, _ = guarded(client)
    await context.send_initial_metadata((("a", "b"),))
    await context.write(b"1")
    assert client.calls == [("metadata", (("a", "b"),)), ("message", b"1")]


@pytest.mark.parametrize("takes", [(), ("metadata",)])
async def test_a_client_that_takes_nothing_is_past_a_limit_when_the_one_timer_ends(takes):
    context, _ = guarded(Client(*takes))
    with pytest.raises(LimitExceededError, match=r"^the client read no message for 0\.05 s$") as error:
        await context.write(b"1")
    assert error.value.retry_after_s == 1.0


async def test_a_timeout_of_whoever_called_is_not_taken_for_the_clients():
    context, _ = guarded(Client("metadata"), timeout_s=60)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await context.write(b"1")


async def test_a_status_that_is_taken_ends_the_call_and_not_the_connection():
    client = Client("status")
    context, ended = guarded(client)
    with pytest.raises(grpc.aio.AbortError):
        await context.abort(CODE.ABORTED, "late", [("a", "b")])
    assert client.calls == [("status", (CODE.ABORTED, "late", (("a", "b"),)))]
    assert (context.ended_with, ended) == (CODE.ABORTED, [])


async def test_a_status_that_is_not_taken_ends_the_connection(monkeypatch):
    monkeypatch.setattr(contexts, "LAST_WORD_S", 0.01)
    context, ended = guarded(Client())
    with pytest.raises(asyncio.CancelledError):
        await context.abort(CODE.ABORTED)
    assert ended == [("ipv4:127.0.0.1:1", "the client doesn't read the status of a call")]


async def test_a_call_ends_with_its_first_status():
    client = Client("status")
    context, _ = guarded(client)
    with pytest.raises(grpc.aio.AbortError):
        await context.abort(CODE.ABORTED)
    with pytest.raises(asyncio.CancelledError):
        await context.abort(CODE.INTERNAL)
    assert (context.ended_with, len(client.calls)) == (CODE.ABORTED, 1)


async def test_progress_is_a_message_that_was_taken():
    client, progress = Client("metadata"), []
    context = WriteProgressContext(client, lambda: progress.append(len(client.calls)))
    waiting = asyncio.create_task(context.write(b"1"))
    await asyncio.sleep(0)
    assert progress == []
    waiting.cancel()
    client.takes = ("message",)
    await context.write(b"2")
    assert len(progress) == 1


async def test_whatever_else_a_handler_asks_of_its_context_is_that_of_grpc():
    client = Client()
    context = WriteProgressContext(guarded(client)[0], lambda: None)
    assert context.peer() == client.peer()
    context.set_trailing_metadata(())
    assert client.calls == [("set_trailing_metadata", ())]
