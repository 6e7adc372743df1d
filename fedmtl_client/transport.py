"""What a client's session needs of a connection to the server, in values: `FederationApi` is the one over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedmtl_client.component_cache import ComponentCache
from fedmtl_client.slices import Slice
from fedmtl_core.tasks.plan import Purpose, round_title
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.formats import Encoding
from fedmtl_core.wire.updates import Update

EventKind = Literal["waiting", "opened", "closing", "committed", "finished", "failed", "unknown"]
"""What has happened in the run; `unknown` for the event of a newer contract."""

Outcome = Literal["accepted", "duplicate", "unknown"]
"""What became of an update that the server has acknowledged; `unknown` for the outcome of a newer contract."""


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
    """Whether the client is asked to work in this round."""
    reported: bool = False
    """Whether the client's update already counts in this round."""
    oldest_base_round: int = 0
    """Updates that started from this round's model or a later one can count from now on."""
    task: str = ""
    """With `in_cohort`: the task that the client has in this round."""
    waiting_for: str = ""
    """With `waiting`: for people, such as `1 more qqp client`."""

    @property
    def title(self) -> str:
        """The round's name for people."""
        return round_title(self.purpose, self.round, self.num_rounds)


@dataclass(frozen=True)
class Receipt:
    """The server's acknowledgement of an update, which counts from then on."""

    outcome: Outcome
    round: int
    """The round that it counts in."""
    num_bytes: int = 0
    """Encoded bytes that the server received with it."""


class Transport(Protocol):
    """One client's connection to a server. Its methods may be called from several threads."""

    @property
    def client_id(self) -> str:
        """Who is connected."""

    def watch(self) -> Iterator[RoundEvent]:
        """The run's events until the run is over or the connection is closed.

        Raises:
            UnavailableError: the server stayed away for too long.
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
            round_: the round; 0 for the current one.
            run_id: the run; empty for whichever is served.
            task: the task; empty for the client's own.
            encoding: how the components are to travel.
            cache: the components that the client has already, and where the slice is stored.
            should_stop: called after every failure; there is no further attempt when it returns True.

        Raises:
            StaleRoundError: the run has left that round.
            WrongRunError: another run is served.
            UnavailableError: the server stayed away for too long.
        """

    def push_update(
        self,
        update: Update,
        components: Sequence[EncodedComponent] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Receipt:
        """Upload an update. However often it is sent, it counts once.

        Args:
            update: everything but how its components travel, which `components` say.
            components: its tensors, in the order of the slice; none for metrics alone.
            should_stop: called after every failure; there is no further attempt when it returns True.

        Raises:
            StaleRoundError: the round has closed.
            WrongRunError: another run is served.
            InvalidRequestError: the update doesn't fit the server's layout, or one of its numbers is impossible.
            UnavailableError: the server stayed away for too long.
        """

    def close(self) -> None:
        """End every call in progress."""
