"""Streams whose opening message was read before they are handed on."""

import pytest

from fedmtl_core.errors import MalformedStreamError
from fedmtl_server.transfer.streams import OpenedStream
from tests.support import aiter_of


def giving(message, asked):
    async def opening():
        asked.append(message)
        return message

    return opening


async def test_the_opening_message_comes_first_and_is_asked_for_when_the_reader_wants_it():
    asked = []
    stream = OpenedStream(giving("header", asked), aiter_of(["a", "b"]))
    assert asked == []
    assert [message async for message in stream] == ["header", "a", "b"]
    assert asked == ["header"]
    assert await anext(stream, None) is None


async def test_what_is_wrong_with_the_opening_message_is_raised_once_and_where_it_is_read():
    async def opening():
        raise MalformedStreamError("no message")

    stream = OpenedStream(opening, aiter_of(["a"]))
    with pytest.raises(MalformedStreamError, match="no message"):
        await anext(stream)
    assert await anext(stream) == "a"


async def test_the_messages_after_it_are_those_of_the_stream_itself_without_anything_in_between():
    class Rest:
        def __init__(self):
            self.step = object()

        def __aiter__(self):
            return self

        def __anext__(self):
            return self.step

    rest = Rest()
    stream = OpenedStream(giving("outer", []), OpenedStream(giving("inner", []), rest))
    assert [await anext(stream), await anext(stream)] == ["outer", "inner"]
    assert stream.__anext__() is rest.step


async def test_an_empty_stream_under_a_check_of_its_opening_message_stays_empty():
    under = aiter_of([])

    async def opening():
        return await anext(under)

    assert [message async for message in OpenedStream(opening, under)] == []
