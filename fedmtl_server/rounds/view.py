"""A round at one moment, as a value: admission, opening, deadlines and wait conditions are functions of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedmtl_core.tasks.plan import Purpose
from fedmtl_server.rounds.arrivals import Arrivals
from fedmtl_server.rounds.exchanges import EVALUATION, Answer, Exchange
from fedmtl_server.rounds.membership import ClientCapabilities, Member, current_task
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.rounds.task_selection import TaskLoss
from fedmtl_server.rounds.transitions import Phase


@dataclass(frozen=True)
class RoundView:
    """A round at one moment. Times are in seconds.

    `clients` and `members` are the engine's own mappings, so that a view is free to make. A view is valid until the
    engine is next called.
    """

    rules: RoundRules
    training_exchanges: Sequence[Exchange]
    """The exchanges of a round of training."""
    phase: Phase
    round: int
    """Counted from 1."""
    last_training_round: int
    """The round after it evaluates the final model."""
    arrivals: Arrivals
    """The clients that the first round still waits for."""
    clients: Mapping[str, ClientCapabilities]
    """By client id, the connected clients."""
    members: Mapping[str, Member]
    """By client id, the participants of the exchange in progress, in the order of aggregation."""
    counted: Mapping[str, tuple[str, int]]
    """By client id, the id of the answer that counted last in earlier rounds, and its round."""
    waiting_since: float
    """When the wait for the round's quorum began."""
    opened_at: float
    """When the round opened; for a waiting round, when the previous round opened."""
    exchange_opened_at: float
    """When the exchange in progress opened."""
    dropped: Mapping[str, Member] = field(default_factory=dict)
    """By client id, the members that dropped out because they didn't answer in an earlier exchange."""
    exchange_index: int = 0
    """The index in `exchanges` of the exchange in progress."""
    num_extensions: int = 0
    """How often the deadline of the exchange in progress was extended."""
    num_abandoned: int = 0
    """How often the round was abandoned."""
    not_waited_for: frozenset[str] = frozenset()
    """Tasks whose quorum was waited for unsuccessfully, and without a new client since."""
    opened_without: Sequence[str] = ()
    """The expected clients that were missing when the round in progress opened."""
    losses: Mapping[str, TaskLoss] = field(default_factory=dict)
    """By task, for tasks measured so far."""

    @property
    def purpose(self) -> Purpose:
        """The purpose of the round: training or evaluation."""
        return "train" if self.round <= self.last_training_round else "evaluate"

    @property
    def exchanges(self) -> Sequence[Exchange]:
        """The exchanges of the round, in order."""
        return self.training_exchanges if self.purpose == "train" else EVALUATION

    @property
    def exchange(self) -> Exchange:
        """The exchange in progress; the first one before the round is open."""
        return self.exchanges[self.exchange_index]

    @property
    def is_asynchronous(self) -> bool:
        """Whether updates may start from earlier rounds' models."""
        return self.purpose == "train" and self.rules.is_asynchronous

    @property
    def oldest_base_round(self) -> int:
        """The oldest round whose slice an update may have started from to count."""
        if self.is_asynchronous:
            return max(1, self.round - self.rules.rounds.max_staleness)
        return self.round if self.phase in (Phase.WAITING, Phase.OPEN) else self.round + 1

    @property
    def cohort(self) -> Mapping[str, Member]:
        """All members of the round by client id, with the dropped-out members at the end."""
        return {**self.members, **self.dropped} if self.dropped else self.members

    @property
    def present(self) -> Mapping[str, str]:
        """Task by client id, of the connected clients; see `current_task`."""
        return {client_id: current_task(self.members.get(client_id), one) for client_id, one in self.clients.items()}

    @property
    def tasks(self) -> set[str]:
        """The tasks of the members."""
        return {member.task for member in self.members.values()}

    @property
    def num_members(self) -> Mapping[str, int]:
        """Members by task."""
        return Counter(member.task for member in self.members.values())

    @property
    def num_answers(self) -> Counter[str]:
        """Answers in the exchange in progress by task."""
        return Counter(member.task for member in self.members.values() if member.answer is not None)

    @property
    def unreported(self) -> list[Member]:
        """The members that haven't answered in the exchange in progress."""
        return [member for member in self.members.values() if member.answer is None]

    def staleness(self, answer: Answer) -> int:
        """Return the commits between the model that an answer started from and the model of the round in progress."""
        return self.round - answer.base_round

    def discount(self, answer: Answer) -> float:
        """Return the factor of an update's weight for its staleness; 1 in a synchronous round."""
        return self.rules.discount(self.staleness(answer)) if self.is_asynchronous else 1.0
