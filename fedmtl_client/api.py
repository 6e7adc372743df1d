"""The contract as typed calls of a client: they raise FedMTL's errors and retry while the server is away.

Chunk messages bypass protobuf in both directions: `fedmtl_core.wire.chunks` reads and writes them without copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import grpc
from fedmtl.v1 import federation_pb2 as pb
from grpc_health.v1 import health_pb2

from fedmtl_client.component_cache import ComponentCache, OwnVersion
from fedmtl_client.connection import SERVICE, Connection, ConnectionSettings
from fedmtl_client.downloads import Download
from fedmtl_client.messages import event_from_proto, receipt_from_proto, server_base_from, slice_from, slice_header
from fedmtl_client.patience import Losses
from fedmtl_client.slices import ServerBase, Slice, SliceVariant
from fedmtl_client.transfers import Attempts, ChunkSize
from fedmtl_client.transport import Receipt, RoundEvent
from fedmtl_client.uploads import Upload
from fedmtl_core.errors import LimitExceededError, MalformedStreamError, RequestError, UnavailableError
from fedmtl_core.runtime.tracing import OFF, Tracing
from fedmtl_core.tasks.plan import TrainingPlan
from fedmtl_core.wire.chunks import Chunk, read_message
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.formats import Compression, Encoding
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.messages import compression_to_proto, encoding_to_proto, plan_from_proto
from fedmtl_core.wire.updates import Update

__all__ = ["ConnectionSettings", "FederationApi"]


class FederationApi:
    """A connection of a client or an observer to one server, over gRPC. Safe to use from several threads.

    An exception that interrupts a call, such as Ctrl-C, closes the connection.

    Args:
        address: `HOST:PORT`.
        client_id: the caller; empty for an observer.
        task: the client's task. With several tasks, the preferred first task; empty if the server is to choose.
        tasks: all tasks that the client has data for, if there are several.
        reconnect_s: how long, in seconds, a call keeps trying while the server is away.
        compression: the compression allowed for chunks, in both directions.
        connection: settings of the channel.
        tracing: its span context is sent with each call.

    Raises:
        ConfigError: the server is on another machine, and the connection would be unencrypted.
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
        connection: ConnectionSettings | None = None,
        tracing: Tracing = OFF,
    ):
        self.client_id = client_id
        self.task = task
        """The task that `watch` announces: the only or the preferred task; empty if the server is to choose."""
        self.tasks = tuple(tasks)
        self._compression = compression
        self._connection = Connection(address, connection or ConnectionSettings(), reconnect_s, tracing)
        self._upload_chunks, self._download_chunks = ChunkSize("upload"), ChunkSize("download")

    def close(self) -> None:
        """End every call in progress."""
        self._connection.close()

    def watch(self) -> Iterator[RoundEvent]:
        """Yield the run's events as `observe` does, without the reports of rounds."""
        for message in self.observe():
            yield event_from_proto(message)

    def observe(self) -> Iterator[pb.WatchRoundsResponse]:
        """Yield the run's events with the reports of its rounds until the run ends, across reconnections.

        The iterating thread blocks between events. Don't iterate in a main thread that can be interrupted.

        Raises:
            UnavailableError: the server was unreachable for `reconnect_s`, or an intermediary ended every stream soon
                after it was opened, for `reconnect_s`.
            RequestError: the server refuses this client.
        """
        connection = self._connection
        losses = Losses(connection.patience)
        while not connection.closed.is_set():
            stream, first = connection.patiently("WatchRounds", self._open_watch)
            losses.opened()
            yield first
            lost: UnavailableError | LimitExceededError | None = None
            try:
                yield from stream
            except (UnavailableError, LimitExceededError) as error:
                if connection.closed.is_set():
                    return
                if not connection.patience.is_transient(error):
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
        cache: ComponentCache | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Slice:
        """Download this client's slice, or the whole model. A broken download resumes where it stopped.

        Args:
            round_: the round that the slice is for; 0 for the current round.
            run_id: the run that the slice is for; empty for the run that the server serves.
            task: the task of the slice; `self.task` if empty.
            all_tasks: whether to download every head instead of one task's.
            encoding: the encoding of the components in transit.
            cache: the components that the caller already has; the slice is stored there.
            should_stop: called after every failed attempt; True ends the attempts.

        Raises:
            StaleRoundError: the run has left this round.
            WrongRunError: the server serves another run.
            UnavailableError: the server was unreachable for `reconnect_s`.
        """
        task = "" if all_tasks else task or self.task
        download = Download(cache or ComponentCache())
        request = self._slice_request(run_id, task, round_, encoding, all_tasks=all_tasks)
        header, components = self._download(request, download, should_stop)
        return slice_from(header, task, components, download.bytes_received)

    def get_variant(
        self,
        slice_: Slice,
        name: str,
        *,
        encoding: Encoding = "float32",
        cache: ComponentCache | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> SliceVariant:
        """Download a variant of a slice, as `get_slice` downloads the slice; see `Transport.get_variant`.

        Raises:
            MalformedStreamError: the server sends something else than the variant.
            RequestError: as for `get_slice`.
        """
        download = Download(ComponentCache(), cache)
        request = self._slice_request(slice_.run_id, slice_.task, slice_.round, encoding, variant=name)
        _, components = self._download(request, download, should_stop)
        return SliceVariant(name, components, download.bytes_received)

    def get_base(
        self, slice_: Slice, own: Mapping[str, OwnVersion], *, should_stop: Callable[[], bool] = lambda: False
    ) -> Mapping[str, Component]:
        """Download the base that a slice belongs to; see `Transport.get_base`. A broken download resumes."""
        request = self._slice_request(slice_.run_id, slice_.task, slice_.round, base=True)
        return self._download(request, Download(ComponentCache(), own=own), should_stop)[1]

    def describe_base(
        self, slice_: Slice | None = None, *, should_stop: Callable[[], bool] = lambda: False
    ) -> ServerBase:
        """Return the digests and the size of the base, without downloading it; see `Transport.describe_base`."""
        run_id, task, round_ = (slice_.run_id, slice_.task, slice_.round) if slice_ else ("", self.task, 0)
        return server_base_from(self._header(self._slice_request(run_id, task, round_, base=True), should_stop))

    def push_update(
        self,
        update: Update,
        components: Sequence[EncodedComponent] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Receipt:
        """Upload an update. A broken upload resumes where it stopped, and the update counts once.

        If the update names the client's next task, `watch` announces that task from then on.

        Args:
            update: the update without components and compression, which are set here.
            components: the update's tensors, in the order of the slice; empty for metrics alone.
            should_stop: called after every failed attempt; True ends the attempts.

        Raises:
            StaleRoundError: the round has closed.
            WrongRunError: the server serves another run.
            InvalidRequestError: the update doesn't fit the server's layout, or one of its numbers is impossible.
            UnavailableError: the server was unreachable for `reconnect_s`.
        """
        upload = Upload(update, components, self._compression, self._upload_chunks)
        receipt = self._connection.patiently("PushUpdate", lambda: self._attempt_upload(upload), should_stop)
        self.task = update.next_task or self.task
        return receipt_from_proto(receipt)

    def get_plan(self, task: str = "") -> TrainingPlan:
        """Return the server's training plan for a client of a task: the header of its slice, without the slice.

        Args:
            task: the task; `self.task` if empty.

        Raises:
            RequestError: as for `get_slice`.
        """
        request = pb.GetSliceRequest(client_id=self.client_id, task=task or self.task)
        return plan_from_proto(self._header(request).plan)

    def is_serving(self) -> bool:
        """Whether gRPC's health check reports that the server is serving."""
        connection, request = self._connection, health_pb2.HealthCheckRequest(service=SERVICE)
        answer = connection.patiently(
            "Check",
            lambda: connection.answer(lambda: connection.check_health(request, metadata=connection.metadata)),
        )
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def get_status(self) -> pb.GetStatusResponse:
        """Return the run's status."""
        connection, request = self._connection, pb.GetStatusRequest()
        return connection.patiently(
            "GetStatus",
            lambda: connection.answer(lambda: connection.stub.GetStatus(request, metadata=connection.metadata)),
        )

    def _open_watch(self) -> tuple[Iterator[pb.WatchRoundsResponse], pb.WatchRoundsResponse]:
        connection = self._connection
        request = pb.WatchRoundsRequest(client_id=self.client_id, task=self.task, tasks=self.tasks)
        stream = connection.answers(connection.stub.WatchRounds(request, metadata=connection.metadata))
        first = next(stream, None)
        if first is None:
            raise UnavailableError("the server ended the stream without an event")
        return stream, first

    def _slice_request(
        self, run_id: str, task: str, round_: int, encoding: Encoding = "float32", **more: bool | str
    ) -> pb.GetSliceRequest:
        return pb.GetSliceRequest(
            run_id=run_id,
            client_id=self.client_id,
            task=task,
            round=round_,
            encoding=encoding_to_proto(encoding),
            compression=compression_to_proto(self._compression),
            **more,  # type: ignore[arg-type]  # fields of the message
        )

    def _header(self, request: pb.GetSliceRequest, should_stop: Callable[[], bool] = lambda: False) -> pb.SliceHeader:
        """Return the header of a slice's stream, without the stream."""
        connection = self._connection

        def attempt() -> pb.SliceHeader:
            call = connection.get_slice(request, metadata=connection.metadata)
            try:
                return slice_header(next(connection.answers(call), b""))
            finally:
                call.cancel()

        return connection.patiently("GetSlice", attempt, should_stop)

    def _download(
        self, request: pb.GetSliceRequest, download: Download, should_stop: Callable[[], bool]
    ) -> tuple[pb.SliceHeader, dict[str, Component]]:
        attempts = Attempts(self._download_chunks)
        return self._connection.patiently(
            "GetSlice", lambda: self._attempt_download(request, download, attempts), should_stop
        )

    def _attempt_download(
        self, request: pb.GetSliceRequest, download: Download, attempts: Attempts
    ) -> tuple[pb.SliceHeader, dict[str, Component]]:
        """Download the missing bytes. An attempt that fails before its stream began says nothing about the link."""
        connection = self._connection
        del request.held[:]
        request.held.extend(download.held())
        request.max_chunk_bytes = self._download_chunks.num_bytes
        stream = connection.answers(connection.get_slice(request, metadata=connection.call_metadata()))
        header = slice_header(next(stream, b""), request.variant)
        assembler = download.begin(header)
        try:
            for message in stream:
                chunk = read_message(message, pb.GetSliceResponse)
                if not isinstance(chunk, Chunk):
                    raise MalformedStreamError("expected a chunk after the header in the slice's stream")
                assembler.add(chunk)
                connection.patience.made_progress()
        except UnavailableError as error:
            attempts.failed(error, download.position)
            raise
        return header, download.finish()

    def _attempt_upload(self, upload: Upload) -> pb.PushUpdateResponse:
        """Upload the bytes that the server hasn't staged yet."""
        connection = self._connection
        if upload.may_be_staged:
            query = upload.query()
            answer = connection.answer(lambda: connection.stub.QueryUpload(query, metadata=connection.call_metadata()))
            upload.continue_from(answer)
        ready: Future[grpc.Call] = Future()
        call = connection.push_update.future(self._messages(upload, ready), metadata=connection.call_metadata())
        ready.set_result(call)
        try:
            return connection.answer(call.result)
        except LimitExceededError:  # a query for staged bytes would use the call that the rate limit allows next
            raise
        except RequestError as error:
            upload.failed(error)
            raise

    def _messages(self, upload: Upload, call: Future[grpc.Call]) -> Iterator[bytes]:
        """Yield an update's messages; chunks only after the server's answer to the header, which says it has room."""
        yield upload.opening()
        messages = upload.chunks()
        first = next(messages, None)  # made while the server checks the header
        if first is not None:
            call.result().initial_metadata()
            upload.accepted()
            yield first
            for message in messages:
                self._connection.patience.made_progress()  # gRPC asks for no further message after the call has ended
                yield message
