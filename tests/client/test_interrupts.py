"""Interrupts of the main thread, which may come between any two instructions of it."""

import contextlib
import contextvars
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import grpc
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc

from fedmtl_client import interrupts
from fedmtl_client.api import FederationApi
from fedmtl_client.interrupts import CallThread
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.messages import component_to_proto

CHUNK_BYTES = 400
NUM_DOWNLOADS = 200


class Interrupted(BaseException):
    """As `KeyboardInterrupt`, which pytest takes for its own."""


@contextlib.contextmanager
def interrupted_after(seconds):
    """Interrupt the main thread once, so much later."""

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class LongSlices(pb_grpc.FederatedMtlServiceServicer):
    """Hands out a slice in many small chunks, so that a client asks for the next one all the time."""

    def __init__(self):
        component = Component.pack("shared", {"encoder.weight": torch.randn(1000, 5000)})
        header = pb.SliceHeader(components=[component_to_proto(EncodedComponent.exact(component).layout)])
        self._header = pb.GetSliceResponse(header=header)
        self._bytes = bytes(component.memory())

    def GetSlice(self, request, context):  # noqa: N802
        yield self._header
        for offset in range(0, len(self._bytes), CHUNK_BYTES):
            data = self._bytes[offset : offset + CHUNK_BYTES]
            chunk = pb.Chunk(scope="shared", offset=offset, data=data, crc32c=google_crc32c.value(data))
            yield pb.GetSliceResponse(chunk=chunk)


@pytest.fixture
def address():
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_FederatedMtlServiceServicer_to_server(LongSlices(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(grace=None).wait()


def test_downloads_interrupted_at_any_moment_end_with_the_interrupt_and_in_order(address, monkeypatch):
    broken = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: broken.append(repr(failure.exc_value)))
    moments = random.Random(7)
    for _ in range(NUM_DOWNLOADS):
        api = FederationApi(address, client_id="a", task="sst2")
        with pytest.raises(Interrupted), interrupted_after(moments.uniform(0.002, 0.02)):
            api.get_slice(0)
        api.close()
    assert broken == []


@pytest.fixture
def thread():
    thread = CallThread(end=lambda: None)
    yield thread
    thread.close()


def test_a_call_from_the_main_thread_is_made_in_another_with_the_same_context(thread):
    variable = contextvars.ContextVar("variable")
    variable.set("of the caller")
    where, value = thread.make(lambda: (threading.current_thread(), variable.get()))
    assert where is not threading.main_thread()
    assert value == "of the caller"


def test_a_call_from_another_thread_is_made_in_that_one(thread):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(thread.make, threading.get_ident).result() == pool.submit(threading.get_ident).result()


def test_what_a_call_raises_comes_to_the_caller_and_the_next_is_made(thread):
    with pytest.raises(ZeroDivisionError):
        thread.make(lambda: 1 / 0)
    assert thread.make(lambda: "next") == "next"


def test_a_call_after_closing_is_made_at_once():
    thread = CallThread(end=lambda: None)
    thread.close()
    assert thread.make(threading.current_thread) is threading.main_thread()


def test_a_call_that_comes_while_another_thread_closes_is_made_all_the_same(thread, monkeypatch):
    def closed_just_before_it_is_handed_over():
        thread.close()
        return contextvars.copy_context()

    monkeypatch.setattr(interrupts, "copy_context", closed_just_before_it_is_handed_over)
    assert thread.make(lambda: "made") == "made"
    with pytest.raises(ZeroDivisionError):
        thread.make(lambda: 1 / 0)


def test_an_interrupted_call_is_told_to_end_and_has_ended_when_the_interrupt_comes_out():
    told, ended = threading.Event(), threading.Event()

    def call():
        assert told.wait(30)
        ended.set()

    def end():
        told.set()
        thread.close()

    thread = CallThread(end)
    with pytest.raises(Interrupted), interrupted_after(0.05):
        thread.make(call)
    assert ended.is_set()
