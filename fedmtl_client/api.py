"""The contract as a client calls it: typed, with FedMTL's errors, and patient with a server that is away.

Chunk messages pass protobuf by in both directions: `fedmtl_core.wire.chunks` reads and writes them without copies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedmtl_client.credentials import Credentials
from fedmtl_client.downloads import Download, Holdings
from fedmtl_client.failures import error_of
from fedmtl_client.interrupts import CallThread
from fedmtl_client.patience import Losses, Patience
from fedmtl_client.transfers import Attempts, ChunkSize
from fedmtl_client.uploads import Upload
from fedmtl_core.errors import LimitExceededError, MalformedStreamError, RequestError, UnavailableError
from fedmtl_core.logs import get_logger
from fedmtl_core.runtime.keepalive import keepalive
from fedmtl_core.runtime.tracing import OFF, Tracing
from fedmtl_core.tasks.plan import Purpose, TrainingPlan
from fedmtl_core.wire.chunks import Chunk, read_message
from fedmtl_core.wire.controls import without_controls
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.formats import Compression, Encoding
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.messages import PURPOSE_FROM_PROTO, compression_to_proto, encoding_to_proto, plan_from_proto

CHANNEL_OPTIONS: Mapping[str, int] = {
    **keepalive(20.0, 10.0),
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 5_000,
}

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
        self._options = {**CHANNEL_OPTIONS, **(channel_options or {})}
        self._renew = renew
        self._tracing = tracing
        self._channels: list[grpc.Channel] = []
        self._open_channel(credentials or Credentials())
        self._compression = compression
        self._closed = threading.Event()
        self._thread = CallThread(end=self.close)
        self._patience = Patience(address, reconnect_s, self._closed, self._renew_credentials)
        self._upload_chunks, self._download_chunks = ChunkSize("upload"), ChunkSize("download")
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
            UnavailableError: the server can't be reached for `reconnect_s`, or something in between ends each stream
                soon after it was opened, for as long.
            RequestError: the server refuses this client.
        """
        losses = Losses(self._patience)
        while not self._closed.is_set():
            stream, first = self._patiently("WatchRounds", self._open_watch)
            losses.opened()
            yield first
            lost: UnavailableError | LimitExceededError | None = None
            try:
                yield from stream
            except (UnavailableError, LimitExceededError) as error:
                if self._closed.is_set():
                    return
                if not self._patience.may_pass(error):
                    raise
                lost = error
            losses.note(lost)
            losses.wait()

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
        attempts = Attempts(self._download_chunks)
        header, components = self._patiently(
            "GetSlice", lambda: self._attempt_download(request, download, attempts), should_stop
        )
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
        upload = Upload(header, components, self._compression, self._upload_chunks)

        def attempt() -> pb.PushUpdateResponse:
            if upload.may_be_staged:
                query = upload.query()
                upload.continue_from(self._call(lambda: self._stub.QueryUpload(query, metadata=self._call_metadata())))
            ready: Future[Any] = Future()
            call = self._push_update.future(self._messages(upload, ready), metadata=self._call_metadata())
            ready.set_result(call)
            try:
                receipt: pb.PushUpdateResponse = self._call(call.result)
            except LimitExceededError:  # asking what is staged would use up the call that the wait is for
                raise
            except RequestError as error:
                upload.failed(error)
                raise
            return receipt

        return self._patiently("PushUpdate", attempt, should_stop)

    def _messages(self, upload: Upload, call: Future[Any]) -> Iterator[bytes]:
        """An update's messages; the chunks once the server has answered the header, which says that it has room."""
        yield upload.opening()
        messages = upload.chunks()
        first = next(messages, None)  # made while the server looks at the header
        if first is not None:
            call.result().initial_metadata()
            upload.accepted()
            yield first
            for message in messages:
                self._patience.came_on()  # it isn't asked for more where the call has ended
                yield message

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

        return self._patiently("GetSlice", attempt)

    def is_serving(self) -> bool:
        """What gRPC's health check says of the server."""
        stub: Any = health_pb2_grpc.HealthStub(self._channels[-1])
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        answer = self._patiently("Check", lambda: self._call(lambda: stub.Check(request, metadata=self._metadata)))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def get_status(self) -> pb.GetStatusResponse:
        """Where the run stands."""
        request = pb.GetStatusRequest()
        return self._patiently(
            "GetStatus", lambda: self._call(lambda: self._stub.GetStatus(request, metadata=self._metadata))
        )

    def _open_watch(self) -> tuple[Iterator[pb.WatchRoundsResponse], pb.WatchRoundsResponse]:
        request = pb.WatchRoundsRequest(client_id=self.client_id, task=self.task, tasks=self.tasks)
        stream = self._translated(self._stub.WatchRounds(request, metadata=self._metadata))
        first = next(stream, None)
        if first is None:
            raise UnavailableError("the server ended the stream without an event")
        return stream, first

    def _attempt_download(
        self, request: pb.GetSliceRequest, download: Download, attempts: Attempts
    ) -> tuple[pb.SliceHeader, dict[str, Component]]:
        """Download what isn't here yet. An attempt that ends before its stream has begun says nothing of the link."""
        del request.held[:]
        request.held.extend(download.held())
        request.max_chunk_bytes = self._download_chunks.num_bytes
        stream: Iterator[bytes] = self._translated(self._get_slice(request, metadata=self._call_metadata()))
        opening = read_message(next(stream, b""), pb.GetSliceResponse)
        if isinstance(opening, Chunk) or opening.WhichOneof("part") != "header":
            raise MalformedStreamError("expected a header first in the slice's stream")
        assembler = download.begin(opening.header)
        try:
            for message in stream:
                chunk = read_message(message, pb.GetSliceResponse)
                if not isinstance(chunk, Chunk):
                    raise MalformedStreamError("expected a chunk after the header in the slice's stream")
                assembler.add(chunk)
                self._patience.came_on()
        except UnavailableError as error:
            attempts.failed(error, download.position)
            raise
        return opening.header, download.finish()

    def _patiently(self, call: str, attempt: Callable[[], _T], should_stop: Callable[[], bool] = lambda: False) -> _T:
        """Call until the server answers, in a thread that an interrupt leaves alone."""
        return self._thread.make(
            lambda: self._patience.keep_trying(call, lambda: self._unless_closed(attempt), should_stop)
        )

    def _unless_closed(self, attempt: Callable[[], _T]) -> _T:
        try:
            return attempt()
        except ValueError:  # what gRPC raises for a call on a closed channel
            if not self._closed.is_set():
                raise
            raise UnavailableError("the connection is closed") from None

    def _translated(self, stream: Iterator[_T]) -> Iterator[_T]:
        """A stream's messages, its failure as one of FedMTL's errors."""
        try:
            for message in stream:
                self._patience.answered()
                yield message
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def _call(self, call: Callable[[], _T]) -> _T:
        try:
            answer = call()
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None
        except grpc.FutureCancelledError:
            raise UnavailableError("the call was cancelled") from None
        self._patience.answered()
        return answer

    def _renew_credentials(self) -> None:
        renewed = self._renew()
        if renewed is not None:
            self._open_channel(renewed)
