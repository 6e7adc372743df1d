"""The interface between a client's session and its connection to the server; `FederationApi` implements it for gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedmtl_client.component_cache import ComponentCache, OwnVersion
from fedmtl_client.slices import ServerBase, Slice, SliceVariant
from fedmtl_core.tasks.plan import Purpose, round_title
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.formats import Encoding
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.updates import Update

EventKind = Literal["waiting", "opened", "closing", "committed", "finished", "failed", "unknown"]
"""The kind of an event of the run; `unknown` for an event of a newer contract."""

Outcome = Literal["accepted", "duplicate", "unknown"]
"""The outcome of an update that the server has acknowledged; `unknown` for an outcome of a newer contract."""


@dataclass(frozen=True)
class RoundEvent:
    """One event of the run, as one client sees it."""

    kind: EventKind
    run_id: str
    round: int
    """Counted from 1. The evaluation of the final model is round `num_rounds + 1`."""
    num_rounds: int
    """Training rounds in the run."""
    purpose: Purpose = "train"
    in_cohort: bool = False
    """Whether the client is selected to work in this round."""
    reported: bool = False
    """Whether the client's update already counts in this round."""
    oldest_base_round: int = 0
    """Updates trained from this round's model, or from that of a later round, can count from now on."""
    task: str = ""
    """With `in_cohort`: the client's task in this round."""
    waiting_for: str = ""
    """With `waiting`: the missing clients, for people, such as `1 more qqp client`."""

    @property
    def title(self) -> str:
        """The round's name for people."""
        return round_title(self.purpose, self.round, self.num_rounds)


@dataclass(frozen=True)
class Receipt:
    """The server's acknowledgement of an update, which counts from then on."""

    outcome: Outcome
    round: int
    """The round in which the update counts."""
    num_bytes: int = 0
    """Encoded bytes that the server received with it."""


class Transport(Protocol):
    """One client's connection to a server. Its methods may be called from several threads."""

    @property
    def client_id(self) -> str:
        """The id of the connected client."""

    def watch(self) -> Iterator[RoundEvent]:
        """Yield the run's events until the run is over or the connection is closed.

        Raises:
            UnavailableError: the server was unreachable for too long.
            RequestError: the server refuses this client.
        """

    def get_slice(
        self,
        round_: int,
        *,
        run_id: str = "",
        task: str = "",
        encoding: Encoding = "float32",
        cache: ComponentCache | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Slice:
        """Download the client's slice for a round.

        Args:
            round_: the round; 0 for the current round.
            run_id: the run; empty for the run that the server serves.
            task: the task; empty for the client's own task.
            encoding: the encoding of the components in transit.
            cache: the components that the client already has; the slice is stored there.
            should_stop: called after every failed attempt; True ends the attempts.

        Raises:
            StaleRoundError: the run has left this round.
            WrongRunError: the server serves another run.
            UnavailableError: the server was unreachable for too long.
        """

    def get_variant(
        self,
        slice_: Slice,
        name: str,
        *,
        encoding: Encoding = "float32",
        cache: ComponentCache | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> SliceVariant:
        """Download a variant of a slice.

        Args:
            slice_: a slice that was received with this variant's name.
            name: the name of the variant.
            encoding: the encoding with which the slice was received.
            cache: the components that the client already has; they stay unchanged.
            should_stop: called after every failed attempt; True ends the attempts.

        Raises:
            StaleRoundError: the run has left the slice's round.
            WrongRunError: the server serves another run.
            InvalidRequestError: the round offers no such variant.
            UnavailableError: the server was unreachable for too long.
        """

    def get_base(
        self, slice_: Slice, own: Mapping[str, OwnVersion], *, should_stop: Callable[[], bool] = lambda: False
    ) -> Mapping[str, Component]:
        """Download the base that a slice belongs to.

        Args:
            slice_: a slice of a run with adapters.
            own: by scope, the components of the base that the client has; they are neither sent nor returned.
            should_stop: called after every failed attempt; True ends the attempts.

        Returns:
            The other components by scope.

        Raises:
            StaleRoundError: the run has left the slice's round.
            WrongRunError: the server serves another run.
            InvalidRequestError: the run has no adapters.
            UnavailableError: the server was unreachable for too long.
        """

    def describe_base(
        self, slice_: Slice | None = None, *, should_stop: Callable[[], bool] = lambda: False
    ) -> ServerBase:
        """Return the digests and the size of a slice's base, without downloading it; raises as `get_base` does.

        Args:
            slice_: the slice; None for the run's next one.
            should_stop: called after every failed attempt; True ends the attempts.
        """

    def push_update(
        self,
        update: Update,
        components: Sequence[EncodedComponent] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Receipt:
        """Upload an update. It counts once, however often it is sent.

        Args:
            update: the update without its encoding, which `components` have.
            components: the update's tensors, in the order of the slice; empty for metrics alone.
            should_stop: called after every failed attempt; True ends the attempts.

        Raises:
            StaleRoundError: the round has closed.
            WrongRunError: the server serves another run.
            InvalidRequestError: the update doesn't fit the server's layout, or one of its numbers is impossible.
            UnavailableError: the server was unreachable for too long.
        """

    def close(self) -> None:
        """End every call in progress."""
