"""The contract as a client calls it: typed, with FedMTL's errors, and patient with a server that is away.

Chunk messages bypass protobuf in both directions: `fedmtl_core.wire.chunks` reads and writes them without copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import grpc
from fedmtl.v1 import federation_pb2 as pb
from grpc_health.v1 import health_pb2

from fedmtl_client.component_cache import ComponentCache
from fedmtl_client.connection import SERVICE, Connection, ConnectionSettings
from fedmtl_client.downloads import Download
from fedmtl_client.messages import event_from_proto, receipt_from_proto, slice_from, slice_header
from fedmtl_client.patience import Losses
from fedmtl_client.slices import Slice
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
    """A client's or an observer's connection to one server, over gRPC. Safe to use from several threads.

    What interrupts a call, such as Ctrl-C, closes the connection.

    Args:
        address: `HOST:PORT`.
        client_id: who calls; empty for an observer.
        task: the task it has data for; of several, its first choice, or empty if the server is to choose.
        tasks: if it has data for several, all of them.
        reconnect_s: how long, in seconds, a call keeps trying while the server is away.
        compression: how chunks may be compressed, in both directions.
        connection: how the channel is made.
        tracing: tells the server the span that a call is made in.

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
        connection: ConnectionSettings | None = None,
        tracing: Tracing = OFF,
    ):
        self.client_id = client_id
        self.task = task
        """The task it watches with: its only one, or its choice of `tasks`; empty if the server is to choose."""
        self.tasks = tuple(tasks)
        self._compression = compression
        self._connection = Connection(address, connection or ConnectionSettings(), reconnect_s, tracing)
        self._upload_chunks, self._download_chunks = ChunkSize("upload"), ChunkSize("download")

    def close(self) -> None:
        """End every call in progress."""
        self._connection.close()

    def watch(self) -> Iterator[RoundEvent]:
        """The run's events, as `observe` has them, without the reports of rounds."""
        for message in self.observe():
            yield event_from_proto(message)

    def observe(self) -> Iterator[pb.WatchRoundsResponse]:
        """The run's events with the reports of its rounds, for as long as the run lasts, over however many connections.

        The thread that iterates waits for them: not the main one, where that may be interrupted.

        Raises:
            UnavailableError: the server can't be reached for `reconnect_s`, or an intermediary ends each stream soon
                after it was opened, for as long.
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
                if not connection.patience.may_pass(error):
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
        """Download this client's slice, or the whole model; a download that breaks resumes where it stopped.

        Args:
            round_: the round it is for; 0 for the current one.
            run_id: the run it is for; empty for whichever is served.
            task: the task whose slice it is; `self.task` if empty.
            all_tasks: every head, instead of one task's.
            encoding: how the components are to travel.
            cache: the components that the caller has already, and where the slice is stored.
            should_stop: called after every failure; there is no further attempt when it returns True.

        Raises:
            StaleRoundError: the run has left that round.
            WrongRunError: another run is served.
            UnavailableError: the server can't be reached for `reconnect_s`.
        """
        task = "" if all_tasks else task or self.task
        download = Download(cache or ComponentCache())
        request = pb.GetSliceRequest(
            run_id=run_id,
            client_id=self.client_id,
            task=task,
            all_tasks=all_tasks,
            round=round_,
            encoding=encoding_to_proto(encoding),
            compression=compression_to_proto(self._compression),
        )
        attempts = Attempts(self._download_chunks)
        header, components = self._connection.patiently(
            "GetSlice", lambda: self._attempt_download(request, download, attempts), should_stop
        )
        return slice_from(header, task, components, download.bytes_received)

    def push_update(
        self,
        update: Update,
        components: Sequence[EncodedComponent] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Receipt:
        """Upload an update; an upload that breaks resumes where it stopped, and counts once.

        If the update names its client's next task, `watch` announces that one from then on.

        Args:
            update: everything but how it travels: its components and compression are set here.
            components: its tensors, in the order of the slice; none for metrics alone.
            should_stop: called after every failure; there is no further attempt when it returns True.

        Raises:
            StaleRoundError: the round has closed.
            WrongRunError: another run is served.
            InvalidRequestError: the update doesn't fit the server's layout, or one of its numbers is impossible.
            UnavailableError: the server can't be reached for `reconnect_s`.
        """
        upload = Upload(update, components, self._compression, self._upload_chunks)
        receipt = self._connection.patiently("PushUpdate", lambda: self._attempt_upload(upload), should_stop)
        self.task = update.next_task or self.task
        return receipt_from_proto(receipt)

    def get_plan(self, task: str = "") -> TrainingPlan:
        """The server's training plan for a client of a task: the header of its slice, without the slice.

        Args:
            task: the task; `self.task` if empty.

        Raises:
            RequestError: as for `get_slice`.
        """
        connection = self._connection
        request = pb.GetSliceRequest(client_id=self.client_id, task=task or self.task)

        def attempt() -> TrainingPlan:
            call = connection.get_slice(request, metadata=connection.metadata)
            try:
                header = slice_header(next(connection.answers(call), b""))
            finally:
                call.cancel()
            return plan_from_proto(header.plan)

        return connection.patiently("GetSlice", attempt)

    def is_serving(self) -> bool:
        """Whether gRPC's health check says that the server serves."""
        connection, request = self._connection, health_pb2.HealthCheckRequest(service=SERVICE)
        answer = connection.patiently(
            "Check",
            lambda: connection.answer(lambda: connection.check_health(request, metadata=connection.metadata)),
        )
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def get_status(self) -> pb.GetStatusResponse:
        """The run's status."""
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

    def _attempt_download(
        self, request: pb.GetSliceRequest, download: Download, attempts: Attempts
    ) -> tuple[pb.SliceHeader, dict[str, Component]]:
        """Download what is missing. An attempt that ends before its stream has begun says nothing of the link."""
        connection = self._connection
        del request.held[:]
        request.held.extend(download.held())
        request.max_chunk_bytes = self._download_chunks.num_bytes
        stream = connection.answers(connection.get_slice(request, metadata=connection.call_metadata()))
        header = slice_header(next(stream, b""))
        assembler = download.begin(header)
        try:
            for message in stream:
                chunk = read_message(message, pb.GetSliceResponse)
                if not isinstance(chunk, Chunk):
                    raise MalformedStreamError("expected a chunk after the header in the slice's stream")
                assembler.add(chunk)
                connection.patience.came_on()
        except UnavailableError as error:
            attempts.failed(error, download.position)
            raise
        return header, download.finish()

    def _attempt_upload(self, upload: Upload) -> pb.PushUpdateResponse:
        """Upload what isn't staged yet."""
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
        except LimitExceededError:  # asking what is staged would use up the call that the wait is for
            raise
        except RequestError as error:
            upload.failed(error)
            raise

    def _messages(self, upload: Upload, call: Future[grpc.Call]) -> Iterator[bytes]:
        """An update's messages; the chunks once the server has answered the header, which says that it has room."""
        yield upload.opening()
        messages = upload.chunks()
        first = next(messages, None)  # made while the server looks at the header
        if first is not None:
            call.result().initial_metadata()
            upload.accepted()
            yield first
            for message in messages:
                self._connection.patience.came_on()  # it isn't asked for more where the call has ended
                yield message
