"""The contract as a client calls it: typed, with FedMTL's errors, and patient with a server that is away.

Chunk messages pass protobuf by in both directions: `fedmtl_core.chunks` reads and writes them without copies.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenacity import RetryCallState, Retrying, retry_if_exception
from tenacity.nap import sleep_using_event

from fedmtl_client.credentials import Credentials, why_unreachable
from fedmtl_client.downloads import Download, Holdings
from fedmtl_client.interrupts import CallThread
from fedmtl_core.addresses import host_of
from fedmtl_core.chunks import Chunk, ChunkedBytes, read_message
from fedmtl_core.controls import without_controls
from fedmtl_core.details import read_details
from fedmtl_core.errors import (
    ChecksumError,
    LimitExceededError,
    MalformedStreamError,
    RequestError,
    UnavailableError,
    UnreachableError,
    UntrustedServerError,
)
from fedmtl_core.formats import Compression, Encoding
from fedmtl_core.keepalive import keepalive
from fedmtl_core.layout import Component
from fedmtl_core.logs import get_logger
from fedmtl_core.plan import Purpose, TrainingPlan
from fedmtl_core.proxies import proxy_of
from fedmtl_core.status import error_from_status
from fedmtl_core.tracing import OFF, Tracing
from fedmtl_core.wire import (
    PURPOSE_FROM_PROTO,
    EncodedComponent,
    component_to_proto,
    compression_from_proto,
    compression_to_proto,
    encoding_to_proto,
    plan_from_proto,
)

CHANNEL_OPTIONS: Mapping[str, int] = {
    **keepalive(20.0, 10.0),
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 5_000,
}

FIRST_WAIT_S, MAX_WAIT_S = 0.2, 10.0
"""How long to wait before trying again: up to the first, then up to twice as long each time, up to the second."""

_SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name

_T = TypeVar("_T")


@dataclass(frozen=True)
class Slice:
    """A client's part of the model, as one commit left it."""

    run_id: str
    round: int
    """The round that trains on it."""
    purpose: Purpose
    plan: TrainingPlan
    components: Mapping[str, Component]
    """By scope, encoder first. The holdings' own, if the slice went into any."""
    controls: Mapping[str, Component] = field(default_factory=dict)
    """The server's control variates, by the scope that each is for; none if there are none. Likewise."""
    control_since: int = 0
    """The round in which they began."""
    bytes_received: int = 0
    """Encoded bytes that came for it."""


class FederationApi:
    """A connection to one server. Safe to use from several threads.

    What interrupts a call, such as Ctrl-C, closes the connection.

    Args:
        address: `HOST:PORT`.
        client_id: who calls.
        task: the task it has data for; of several, the one that it chooses to begin with, empty if the server is to.
        tasks: if it has data for several, all of them.
        reconnect_s: how long a call keeps trying while the server is away.
        compression: how chunks may be compressed, in both directions.
        channel_options: options of the gRPC channel, besides or instead of `CHANNEL_OPTIONS`.
        credentials: what the client shows, and what the server has to show.
        renew: asked after every failure for other credentials, if there are any by now.
        tracing: tells the server of the span that a call is made in.

    Raises:
        ConfigError: the server is on another machine, and the connection wouldn't be encrypted.
    """

    def __init__(
        self,
        address: str,
        *,
        client_id: str,
        task: str,
        tasks: Sequence[str] = (),
        reconnect_s: float = 300.0,
        compression: Compression = "none",
        channel_options: Mapping[str, int] | None = None,
        credentials: Credentials | None = None,
        renew: Callable[[], Credentials | None] = lambda: None,
        tracing: Tracing = OFF,
    ):
        self.address = address
        self.client_id = client_id
        self.task = task
        """What it watches with: its only one, or the one it has chosen of `tasks`; empty if the server is to choose."""
        self.tasks = tuple(tasks)
        self._reconnect_s = reconnect_s
        self._options = {**CHANNEL_OPTIONS, **(channel_options or {})}
        self._renew = renew
        self._tracing = tracing
        self._channels: list[grpc.Channel] = []
        self._open_channel(credentials or Credentials())
        self._compression = compression
        self._closed = threading.Event()
        self._thread = CallThread(end=self.close)
        self._last_contact = 0.0
        self._was_reached = False
        self._log = get_logger()

    def close(self) -> None:
        """End every call in progress."""
        self._closed.set()
        for channel in self._channels:
            channel.close()
        self._thread.close()

    def _open_channel(self, credentials: Credentials) -> None:
        """Make every call from now on over a new channel; those in progress go on over theirs."""
        channel = credentials.channel(self.address, self._options)
        self._channels.append(channel)
        self._metadata = credentials.metadata
        self._stub = pb_grpc.FederatedMtlServiceStub(channel)
        self._get_slice: Any = channel.unary_stream(f"/{_SERVICE}/GetSlice", pb.GetSliceRequest.SerializeToString, None)
        self._push_update: Any = channel.stream_unary(f"/{_SERVICE}/PushUpdate", None, pb.PushUpdateResponse.FromString)

    def _call_metadata(self) -> tuple[tuple[str, str], ...]:
        return (*self._metadata, *self._tracing.headers())

    def watch(self) -> Iterator[pb.WatchRoundsResponse]:
        """The run's events for as long as the run lasts, over however many connections.

        They are waited for in the thread that asks, which shouldn't be the main one where that may be interrupted.

        Raises:
            UnavailableError: the server can't be reached for `reconnect_s`.
            RequestError: the server refuses this client.
        """
        while not self._closed.is_set():
            stream, first = self._patiently(self._open_watch)
            yield first
            try:
                yield from stream
            except (UnavailableError, LimitExceededError) as error:
                if self._closed.is_set():
                    return
                if not self._may_pass(error):
                    raise
                self._log.warning("server.lost", address=self.address, reason=str(error))

    def get_slice(
        self,
        round_: int,
        *,
        run_id: str = "",
        task: str = "",
        all_tasks: bool = False,
        encoding: Encoding = "float32",
        holdings: Holdings | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Slice:
        """Download this client's slice, or the whole model; a download that breaks goes on where it stopped.

        Args:
            round_: the round it is for; 0 for the current one.
            run_id: the run it is for; empty for whichever is served.
            task: the task whose slice it is; `self.task` if empty.
            all_tasks: every head, instead of one task's.
            encoding: how the components are to travel.
            holdings: what the caller has already, and where the slice goes.
            should_stop: asked after every failure; trying again ends when it says so.

        Raises:
            StaleRoundError: the run has left that round.
            WrongRunError: another run is served.
            UnavailableError: the server can't be reached for `reconnect_s`.
        """
        download = Download(holdings or Holdings())
        request = pb.GetSliceRequest(
            run_id=run_id,
            client_id=self.client_id,
            task="" if all_tasks else task or self.task,
            all_tasks=all_tasks,
            round=round_,
            encoding=encoding_to_proto(encoding),
            compression=compression_to_proto(self._compression),
        )
        header, components = self._patiently(lambda: self._download(request, download), should_stop)
        model, controls = without_controls(components)
        return Slice(
            run_id=header.run_id,
            round=header.round,
            purpose=PURPOSE_FROM_PROTO[header.purpose],
            plan=plan_from_proto(header.plan),
            components=model,
            controls=controls,
            control_since=header.control_since,
            bytes_received=download.bytes_received,
        )

    def push_update(
        self,
        header: pb.UpdateHeader,
        components: Sequence[EncodedComponent] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> pb.PushUpdateResponse:
        """Upload an update; an upload that breaks goes on where it stopped, and counts once.

        Args:
            header: everything but `components` and `compression`, which are filled in here.
            components: what the update carries, in the order of the slice.
            should_stop: asked after every failure; trying again ends when it says so.

        Raises:
            StaleRoundError: the round has closed.
            WrongRunError: another run is served.
            InvalidRequestError: the update isn't what the server's layout says.
            UnavailableError: the server can't be reached for `reconnect_s`.
        """
        whole = pb.UpdateHeader()
        whole.CopyFrom(header)
        whole.components.extend(component_to_proto(one.layout) for one in components)
        whole.compression = compression_to_proto(self._compression)
        chunked = [ChunkedBytes(one.layout.scope, one.data) for one in components]
        may_be_staged = False

        def attempt() -> pb.PushUpdateResponse:
            nonlocal may_be_staged
            if may_be_staged:
                self._continue(whole)
                may_be_staged = False
            ready: Future[Any] = Future()
            call = self._push_update.future(self._messages(whole, chunked, ready), metadata=self._call_metadata())
            ready.set_result(call)
            try:
                receipt: pb.PushUpdateResponse = self._call(call.result)
            except LimitExceededError:  # asking what is staged would use up the call that the wait is for
                raise
            except RequestError:
                may_be_staged = bool(chunked)
                raise
            return receipt

        return self._patiently(attempt, should_stop)

    def _continue(self, header: pb.UpdateHeader) -> None:
        """Have an update's components start where the server's staged bytes end."""
        request = pb.QueryUploadRequest(run_id=header.run_id, client_id=header.client_id, update_id=header.update_id)
        answer = self._call(lambda: self._stub.QueryUpload(request, metadata=self._call_metadata()))
        staged = {one.scope: one.num_bytes for one in answer.components}
        for component in header.components:
            component.start_offset = staged.get(component.scope, 0)

    def _messages(self, header: pb.UpdateHeader, chunked: Sequence[ChunkedBytes], call: Future[Any]) -> Iterator[bytes]:
        """An update's messages; the chunks once the server has answered the header, which says that it has room."""
        yield pb.PushUpdateRequest(header=header).SerializeToString()
        messages = self._chunk_messages(header, chunked)
        first = next(messages, None)  # made while the server looks at the header
        if first is not None:
            call.result().initial_metadata()
            yield first
            yield from messages

    def _chunk_messages(self, header: pb.UpdateHeader, chunked: Sequence[ChunkedBytes]) -> Iterator[bytes]:
        compression = compression_from_proto(header.compression)
        for component, chunks in zip(header.components, chunked, strict=True):
            for offset in chunks.offsets(component.start_offset):
                yield chunks.message(offset, compression)
                self._last_contact = time.monotonic()  # it isn't asked for more where the call has ended

    def get_plan(self, task: str = "") -> TrainingPlan:
        """What the server plans for a client of a task: the header of its slice, without the slice.

        Args:
            task: the task; `self.task` if empty.

        Raises:
            RequestError: as for `get_slice`.
        """

        def attempt() -> TrainingPlan:
            call = self._get_slice(
                pb.GetSliceRequest(client_id=self.client_id, task=task or self.task), metadata=self._metadata
            )
            try:
                opening = read_message(next(self._translated(call), b""), pb.GetSliceResponse)
            finally:
                call.cancel()
            if isinstance(opening, Chunk) or opening.WhichOneof("part") != "header":
                raise MalformedStreamError("expected a header first in the slice's stream")
            return plan_from_proto(opening.header.plan)

        return self._patiently(attempt)

    def is_serving(self) -> bool:
        """What gRPC's health check says of the server."""
        stub: Any = health_pb2_grpc.HealthStub(self._channels[-1])
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        answer = self._patiently(lambda: self._call(lambda: stub.Check(request, metadata=self._metadata)))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def get_status(self) -> pb.GetStatusResponse:
        """Where the run stands."""
        request = pb.GetStatusRequest()
        return self._patiently(lambda: self._call(lambda: self._stub.GetStatus(request, metadata=self._metadata)))

    def _open_watch(self) -> tuple[Iterator[pb.WatchRoundsResponse], pb.WatchRoundsResponse]:
        request = pb.WatchRoundsRequest(client_id=self.client_id, task=self.task, tasks=self.tasks)
        stream = self._translated(self._stub.WatchRounds(request, metadata=self._metadata))
        first = next(stream, None)
        if first is None:
            raise UnavailableError("the server ended the stream without an event")
        return stream, first

    def _download(self, request: pb.GetSliceRequest, download: Download) -> tuple[pb.SliceHeader, dict[str, Component]]:
        del request.held[:]
        request.held.extend(download.held())
        stream: Iterator[bytes] = self._translated(self._get_slice(request, metadata=self._call_metadata()))
        first = next(stream, b"")
        opening = read_message(first, pb.GetSliceResponse)
        if isinstance(opening, Chunk) or opening.WhichOneof("part") != "header":
            raise MalformedStreamError("expected a header first in the slice's stream")
        assembler = download.begin(opening.header)
        for message in stream:
            chunk = read_message(message, pb.GetSliceResponse)
            if not isinstance(chunk, Chunk):
                raise MalformedStreamError("expected a chunk after the header in the slice's stream")
            assembler.add(chunk)
            self._last_contact = time.monotonic()
        return opening.header, download.finish()

    def _patiently(self, attempt: Callable[[], _T], should_stop: Callable[[], bool] = lambda: False) -> _T:
        """Call until the server answers, with exponential backoff and jitter in between.

        A server that says when to come back is asked no sooner. It gives up when nothing was heard of the server for
        `reconnect_s`, however long the call went well before; and it is quick to try again where the last attempt went
        well for a while.
        """
        began = time.monotonic()
        last_contact, in_vain = self._last_contact, 0

        def wait_s(state: RetryCallState) -> float:
            nonlocal last_contact, in_vain
            if (asked_s := _retry_after_s(state)) is not None:
                return asked_s * random.uniform(1, 1.5)  # not all at once
            in_vain = in_vain + 1 if self._last_contact == last_contact else 0
            last_contact = self._last_contact
            return random.uniform(0, min(MAX_WAIT_S, FIRST_WAIT_S * 2**in_vain))

        def give_up(_: RetryCallState) -> bool:
            away_s = time.monotonic() - max(began, self._last_contact)
            return away_s >= self._reconnect_s or self._closed.is_set() or should_stop()

        retrying = Retrying(
            retry=retry_if_exception(self._may_pass),
            wait=wait_s,
            stop=give_up,
            sleep=sleep_using_event(self._closed),
            before_sleep=self._log_retry,
            reraise=True,
        )
        try:
            return self._thread.make(lambda: retrying(lambda: self._unless_closed(attempt)))
        except UnreachableError as error:
            if self._closed.is_set() or should_stop():
                raise
            away_s = time.monotonic() - max(began, self._last_contact)
            raise UnreachableError(
                f"no server at {self.address} for {away_s:.0f} s (client.reconnect_s): {error}. Is it running, and is "
                "that its address?"
            ) from None

    def _unless_closed(self, attempt: Callable[[], _T]) -> _T:
        try:
            return attempt()
        except ValueError:  # what gRPC raises for a call on a closed channel
            if not self._closed.is_set():
                raise
            raise UnavailableError("the connection is closed") from None

    def _may_pass(self, error: BaseException) -> bool:
        """Whether it is worth to try again: a server that was trusted once may be so again, with a new certificate."""
        if isinstance(error, UntrustedServerError):
            return self._was_reached
        if isinstance(error, LimitExceededError):
            return error.retry_after_s is not None
        return isinstance(error, UnavailableError | ChecksumError)

    def _translated(self, stream: Iterator[_T]) -> Iterator[_T]:
        """A stream's messages, its failure as one of FedMTL's errors."""
        try:
            for message in stream:
                self._was_reached = True
                yield message
        except grpc.RpcError as error:
            raise self._error_of(error) from None

    def _call(self, call: Callable[[], _T]) -> _T:
        try:
            answer = call()
        except grpc.RpcError as error:
            raise self._error_of(error) from None
        except grpc.FutureCancelledError:
            raise UnavailableError("the call was cancelled") from None
        self._was_reached = True
        return answer

    def _error_of(self, error: Any) -> RequestError:
        details = error.details() or ""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return why_unreachable(self.address, details, proxy_of(host_of(self.address)))
        told = read_details(error.trailing_metadata())
        failure = error_from_status(error.code(), details, told.reason)
        failure.field, failure.facts = told.field, told.facts
        if isinstance(failure, LimitExceededError):
            failure.retry_after_s = told.retry_after_s
        return failure

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if not self._closed.is_set():
            renewed = self._renew()
            if renewed is not None:
                self._open_channel(renewed)
            self._log.info(
                "server.away",
                address=self.address,
                attempt=state.attempt_number,
                next_try_s=state.next_action.sleep if state.next_action else None,
                reason=str(error),
            )


def _retry_after_s(state: RetryCallState) -> float | None:
    """When the server that refused the last attempt wants to be asked again, if it said so."""
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after_s if isinstance(error, LimitExceededError) else None
