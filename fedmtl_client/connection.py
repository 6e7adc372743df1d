"""A connection to one server: its channel, credentials and their renewal, errors, and retries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2

from fedmtl_client.credentials import Credentials
from fedmtl_client.failures import error_of
from fedmtl_client.interrupts import CallThread
from fedmtl_client.patience import Patience
from fedmtl_core.errors import UnavailableError
from fedmtl_core.runtime.keepalive import keepalive
from fedmtl_core.runtime.tracing import Tracing

CHANNEL_OPTIONS: Mapping[str, int] = {
    **keepalive(20.0, 10.0),
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 5_000,
}

SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_T = TypeVar("_T")


def _nothing_new() -> Credentials | None:
    return None


@dataclass(frozen=True)
class ConnectionSettings:
    """Settings of the channel to a server."""

    credentials: Credentials = field(default_factory=Credentials)
    """The client's own credentials, and the CA that the server's certificate must come from."""
    renew: Callable[[], Credentials | None] = _nothing_new
    """Called after every failed attempt; returns new credentials, or None if the present ones are the newest."""
    channel_options: Mapping[str, int] = field(default_factory=dict)
    """gRPC channel options, in addition to `CHANNEL_OPTIONS` or overriding them."""


class Connection:
    """Makes calls to one server. Safe to use from several threads.

    An exception that interrupts a call, such as Ctrl-C, closes the connection.

    Args:
        address: `HOST:PORT`.
        settings: settings of the channel.
        reconnect_s: how long, in seconds, a call keeps trying while the server is away.
        tracing: its headers are sent with each call of a round.

    Raises:
        ConfigError: the server is on another machine, and the connection would be unencrypted.
    """

    def __init__(self, address: str, settings: ConnectionSettings, reconnect_s: float, tracing: Tracing):
        self.address = address
        self._settings = settings
        self._tracing = tracing
        self._channels: list[grpc.Channel] = []
        self._open_channel(settings.credentials)
        self.closed = threading.Event()
        """Set when the connection is closed."""
        self._thread = CallThread(end=self.close)
        self.patience = Patience(address, reconnect_s, self.closed, self._renew_credentials)

    def close(self) -> None:
        """End every call in progress."""
        self.closed.set()
        for channel in self._channels:
            channel.close()
        self._thread.close()

    def patiently(self, call: str, attempt: Callable[[], _T], should_stop: Callable[[], bool] = lambda: False) -> _T:
        """Call until the server answers, in a thread that interrupts don't reach.

        Args:
            call: the call's name in the log.
            attempt: makes the call once.
            should_stop: called after every failed attempt; True ends the attempts.

        Raises:
            UnavailableError: the server was unreachable for `reconnect_s`, or the connection is closed.
            RequestError: the server refuses the call.
        """
        return self._thread.make(
            lambda: self.patience.keep_trying(call, lambda: self._unless_closed(attempt), should_stop)
        )

    def answer(self, call: Callable[[], _T]) -> _T:
        """Make one call and return the server's answer; raise a failure as one of FedMTL's errors."""
        try:
            answer = call()
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None
        except grpc.FutureCancelledError:
            raise UnavailableError("the call was cancelled") from None
        self.patience.answered()
        return answer

    def answers(self, stream: Iterator[_T]) -> Iterator[_T]:
        """Yield the messages of one stream; raise a failure as one of FedMTL's errors."""
        try:
            for message in stream:
                self.patience.answered()
                yield message
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call that belongs to a client's round: the token and the span context."""
        return (*self.metadata, *self._tracing.headers())

    def _open_channel(self, credentials: Credentials) -> None:
        """Use a new channel for every call from now on; calls in progress continue on their own channel."""
        channel = credentials.channel(self.address, {**CHANNEL_OPTIONS, **self._settings.channel_options})
        self._channels.append(channel)
        self.metadata = credentials.metadata
        self.stub = pb_grpc.FederatedMtlServiceStub(channel)
        self.get_slice: grpc.UnaryStreamMultiCallable[pb.GetSliceRequest, bytes] = channel.unary_stream(
            f"/{SERVICE}/GetSlice", pb.GetSliceRequest.SerializeToString, None
        )
        """Yields serialized messages, since protobuf would copy each chunk."""
        self.push_update: grpc.StreamUnaryMultiCallable[bytes, pb.PushUpdateResponse] = channel.stream_unary(
            f"/{SERVICE}/PushUpdate", None, pb.PushUpdateResponse.FromString
        )
        """Sends serialized messages."""
        self.check_health: grpc.UnaryUnaryMultiCallable[
            health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        ] = channel.unary_unary(
            f"/{HEALTH}/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )

    def _renew_credentials(self) -> None:
        renewed = self._settings.renew()
        if renewed is not None:
            self._open_channel(renewed)

    def _unless_closed(self, attempt: Callable[[], _T]) -> _T:
        try:
            return attempt()
        except ValueError:  # gRPC raises it for a call on a closed channel
            if not self.closed.is_set():
                raise
            raise UnavailableError("the connection is closed") from None
