"""The contract as a client calls it: typed, with FedMTL's errors, and patient with a server that is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential
from tenacity.nap import sleep_using_event

from fedmtl_core.chunks import Assembler, split, verify_digests
from fedmtl_core.errors import ChecksumError, MalformedStreamError, RequestError, UnavailableError
from fedmtl_core.layout import Component
from fedmtl_core.logs import get_logger
from fedmtl_core.plan import Purpose, TrainingPlan
from fedmtl_core.status import error_from_status
from fedmtl_core.wire import PURPOSE_FROM_PROTO, component_to_proto, layout_from_proto, plan_from_proto

_CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]

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
    """By scope, encoder first. To be read only: updates are relative to it."""
    bytes_received: int = 0


@dataclass
class _Download:
    """What has arrived of a slice so far, over however many attempts."""

    components: dict[str, Component] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    bytes_received: int = 0

    def held(self) -> list[pb.HeldComponent]:
        return [
            pb.HeldComponent(scope=scope, digest=self.digests[scope], num_bytes=offset)
            for scope, offset in self.offsets.items()
        ]

    def begin(self, header: pb.SliceHeader) -> Assembler:
        """Make room for what the header announces; bytes that the server continues from stay."""
        for component in header.components:
            if component.start_offset > self.offsets.get(component.scope, 0):
                raise MalformedStreamError(
                    f"{component.scope}: the server continues at byte {component.start_offset}, "
                    f"but only {self.offsets.get(component.scope, 0)} bytes are here"
                )
            if self.digests.get(component.scope) != component.digest:
                self.components[component.scope] = Component(layout_from_proto(component))
                self.digests[component.scope] = component.digest
        scopes = [component.scope for component in header.components]
        self.components = {scope: self.components[scope] for scope in scopes}
        return Assembler(self.components.values(), {c.scope: c.start_offset for c in header.components})

    def arrived(self, assembler: Assembler) -> None:
        self.offsets = assembler.offsets
        self.bytes_received += assembler.bytes_received


class FederationApi:
    """A connection to one server. Safe to use from several threads.

    Args:
        address: `HOST:PORT`.
        client_id: who calls.
        task: which task it has data for.
        reconnect_s: how long a call keeps trying while the server is away.
    """

    def __init__(self, address: str, *, client_id: str, task: str, reconnect_s: float = 300.0):
        self.address = address
        self.client_id = client_id
        self.task = task
        self._reconnect_s = reconnect_s
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = pb_grpc.FederatedMtlServiceStub(self._channel)
        self._closed = threading.Event()
        self._last_contact = 0.0
        self._log = get_logger()

    def close(self) -> None:
        """End every call in progress."""
        self._closed.set()
        self._channel.close()

    def watch(self) -> Iterator[pb.WatchRoundsResponse]:
        """The run's events for as long as the run lasts, over however many connections.

        Raises:
            UnavailableError: the server can't be reached for `reconnect_s`.
            RequestError: the server refuses this client.
        """
        while not self._closed.is_set():
            stream, first = self._patiently(self._open_watch)
            yield first
            try:
                yield from stream
            except UnavailableError as error:
                if self._closed.is_set():
                    return
                self._log.warning("server.lost", address=self.address, reason=str(error))

    def get_slice(
        self,
        round_: int,
        *,
        run_id: str = "",
        all_tasks: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Slice:
        """Download this client's slice, or the whole model; a download that breaks goes on where it stopped.

        Args:
            round_: the round it is for; 0 for the current one.
            run_id: the run it is for; empty for whichever is served.
            all_tasks: every head, instead of the client's own.
            should_stop: asked after every failure; trying again ends when it says so.

        Raises:
            StaleRoundError: the run has left that round.
            WrongRunError: another run is served.
            UnavailableError: the server can't be reached for `reconnect_s`.
        """
        download = _Download()
        request = pb.GetSliceRequest(
            run_id=run_id,
            client_id=self.client_id,
            task="" if all_tasks else self.task,
            all_tasks=all_tasks,
            round=round_,
        )
        header = self._patiently(lambda: self._download(request, download), should_stop)
        return Slice(
            run_id=header.run_id,
            round=header.round,
            purpose=PURPOSE_FROM_PROTO[header.purpose],
            plan=plan_from_proto(header.plan),
            components=download.components,
            bytes_received=download.bytes_received,
        )

    def push_update(
        self,
        header: pb.UpdateHeader,
        components: Sequence[Component] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> pb.PushUpdateResponse:
        """Upload an update, again from the start if the transfer fails; it counts once.

        Args:
            header: everything but `components`, which are filled in here.
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
        whole.components.extend(component_to_proto(one.layout, one.digest()) for one in components)

        def messages() -> Iterator[pb.PushUpdateRequest]:
            yield pb.PushUpdateRequest(header=whole)
            for component in components:
                for chunk in split(component):
                    self._last_contact = time.monotonic()
                    yield pb.PushUpdateRequest(chunk=chunk)

        return self._patiently(lambda: _call(lambda: self._stub.PushUpdate(messages())), should_stop)

    def get_status(self) -> pb.GetStatusResponse:
        """Where the run stands."""
        return self._patiently(lambda: _call(lambda: self._stub.GetStatus(pb.GetStatusRequest())))

    def _open_watch(self) -> tuple[Iterator[pb.WatchRoundsResponse], pb.WatchRoundsResponse]:
        request = pb.WatchRoundsRequest(client_id=self.client_id, task=self.task)
        stream = _translated(self._stub.WatchRounds(request))
        first = next(stream, None)
        if first is None:
            raise UnavailableError("the server ended the stream without an event")
        return stream, first

    def _download(self, request: pb.GetSliceRequest, download: _Download) -> pb.SliceHeader:
        del request.held[:]
        request.held.extend(download.held())
        stream = _translated(self._stub.GetSlice(request))
        first = next(stream, None)
        if first is None or first.WhichOneof("part") != "header":
            raise MalformedStreamError("expected a header first in the slice's stream")
        assembler = download.begin(first.header)
        try:
            for message in stream:
                assembler.add(message.chunk)
                self._last_contact = time.monotonic()
        finally:
            download.arrived(assembler)
        assembler.finish()
        components = list(download.components.values())
        try:
            verify_digests(components, [download.digests[component.scope] for component in components])
        except ChecksumError:
            download.offsets.clear()  # nothing of it can be trusted: the next attempt begins anew
            raise
        return first.header

    def _patiently(self, attempt: Callable[[], _T], should_stop: Callable[[], bool] = lambda: False) -> _T:
        """Call until the server answers, with exponential backoff and jitter in between.

        It gives up when nothing was heard of the server for `reconnect_s`, however long the call went well before.
        """
        began = time.monotonic()

        def give_up(_: RetryCallState) -> bool:
            away_s = time.monotonic() - max(began, self._last_contact)
            return away_s >= self._reconnect_s or self._closed.is_set() or should_stop()

        retrying = Retrying(
            retry=retry_if_exception_type((UnavailableError, ChecksumError)),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            stop=give_up,
            sleep=sleep_using_event(self._closed),
            before_sleep=self._log_retry,
            reraise=True,
        )
        return retrying(lambda: self._unless_closed(attempt))

    def _unless_closed(self, attempt: Callable[[], _T]) -> _T:
        try:
            return attempt()
        except ValueError:  # what gRPC raises for a call on a closed channel
            if not self._closed.is_set():
                raise
            raise UnavailableError("the connection is closed") from None

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if not self._closed.is_set():
            self._log.info(
                "server.away",
                address=self.address,
                attempt=state.attempt_number,
                next_try_s=state.next_action.sleep if state.next_action else None,
                reason=str(error),
            )


def _translated(stream: Iterator[_T]) -> Iterator[_T]:
    """A stream's messages, its failure as one of FedMTL's errors."""
    try:
        yield from stream
    except grpc.RpcError as error:
        raise _error_of(error) from None


def _call(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except grpc.RpcError as error:
        raise _error_of(error) from None


def _error_of(error: Any) -> RequestError:
    return error_from_status(error.code(), error.details() or "")
