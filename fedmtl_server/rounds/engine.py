"""The round's state machine: who takes part, what it waits for, when it closes. It decides and does nothing else.

    WAITING (for a quorum) -> OPEN (until all have reported, or the deadline) -> AGGREGATING -> next, or FINISHED

It knows no network, no files and no clock: whoever drives it passes the time in and carries out what it decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from fedmtl_core.config import MissingQuorum
from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_core.identifiers import name_some, quoted
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.updates import Update
from fedmtl_server.rounds import quorums
from fedmtl_server.rounds.arrivals import Arrivals
from fedmtl_server.rounds.cohorts import CohortRule
from fedmtl_server.rounds.task_selection import RoundRobin, TaskLoss, TaskSelection, choose_tasks


class Phase(Enum):
    """Where a round stands."""

    WAITING = "waiting"
    OPEN = "open"
    AGGREGATING = "aggregating"
    FINISHED = "finished"


class Step(Enum):
    """What `RoundEngine.advance` decided, for the caller to carry out."""

    OPENED = "opened"
    """Tell the cohort to begin."""
    EXTENDED = "extended"
    """A quorum is missing: the deadline is later now."""
    CLOSED = "closed"
    """Average what was reported, if anything, then call `committed`."""
    FAILED = "failed"
    """A quorum is missing: forget what was reported, then call `committed`; the model stays as it was."""
    ABANDONED = "abandoned"
    """Nobody reported: forget the round; it will be opened anew."""


@dataclass(frozen=True)
class AsyncRule:
    """Buffered asynchronous rounds (FedBuff; Nguyen et al. 2022, arXiv:2106.06639).

    A round commits when `buffer_size` updates have come, whichever of the last rounds' models they started from.
    """

    buffer_size: int
    max_staleness: int = 10
    """Updates that started from a model of more commits ago are refused."""
    exponent: float = 0.5

    def discount(self, staleness: int) -> float:
        """How much of an update counts that started from the model of so many commits ago: (1 + s)^-a."""
        return float((1 + staleness) ** -self.exponent)


@dataclass(frozen=True)
class RoundRules:
    """When rounds open and close. Times are in seconds."""

    num_rounds: int
    min_clients: Mapping[str, int]
    """The quorum by task: clients needed for a round to open, and updates for it to be complete."""
    auxiliary: frozenset[str] = frozenset()
    """Tasks whose clients neither open a round nor fill an asynchronous one's buffer. In its cohort, they are waited
    for as others are."""
    deadline_s: float = 600.0
    """A round closes this long after it opened."""
    task_deadline_s: Mapping[str, float] = field(default_factory=dict)
    """Where the clients of a task have another deadline."""
    quorum_timeout_s: float = 60.0
    """After the first round: how long to wait for a quorum before going on with who is there."""
    rejoin_grace_s: float = 10.0
    """How long an open round waits for a member that disconnected."""
    transfer_timeout_s: float = 30.0
    """An upload that made progress within this time keeps its round open, to twice the deadline at most."""
    on_missing_quorum: MissingQuorum = "commit"
    """What becomes of a round that at its deadline has fewer updates of a task than its quorum."""
    max_extensions: int = 3
    """How often a round's deadline is extended by its own length; then it commits with what is there."""
    cohort: CohortRule = field(default_factory=CohortRule)
    asynchronous: AsyncRule | None = None
    selection: TaskSelection = field(default_factory=RoundRobin)
    """Which task a client has in a round that has data for several."""
    seed: int = 0
    """Of what is drawn when tasks are chosen."""
    max_examples: Mapping[str, int] = field(default_factory=dict)
    """By task with a limit, the examples that an update counts as at most."""
    expected: frozenset[str] = frozenset()
    """Client ids that the first round to be opened waits for, beside the quorum."""
    await_clients_s: float = 0.0
    """How long it does, after the last of them that has come."""


@dataclass(frozen=True)
class Offer:
    """What a connected client has data for."""

    tasks: tuple[str, ...]
    """In its own order; at least one."""
    choice: str = ""
    """The one that it has chosen for the next round; empty if it leaves that to the server."""

    @property
    def eligible(self) -> tuple[str, ...]:
        """The tasks that it may be given in the next round."""
        return (self.choice,) if self.choice else self.tasks

    @classmethod
    def of(cls, task: str, tasks: Sequence[str] = ()) -> Offer:
        """As `WatchRoundsRequest` says it: `task` is the client's only one, or its choice among `tasks`."""
        tasks = tuple(tasks) or (task,)
        return cls(tasks, task or (tasks[0] if len(tasks) == 1 else ""))


@dataclass
class Member:
    """A client in a round's cohort."""

    client_id: str
    task: str
    update: Update | None = None
    """What it reported, once it has."""
    expected_until: float | None = None
    """While it is disconnected: how long it is waited for."""
    last_progress: float | None = None
    """When its running upload last received bytes."""

    @property
    def reported(self) -> bool:
        return self.update is not None


class RoundEngine:
    """One run's rounds: `rules.num_rounds` of training, then one that evaluates the final model.

    Args:
        rules: when rounds open and close.
        now: the time.
        round_: the first to be held.
        counted: by client id, the update that counted last and its round, of rounds held before.
    """

    def __init__(
        self, rules: RoundRules, now: float, round_: int = 1, counted: Mapping[str, tuple[str, int]] | None = None
    ):
        self.rules = rules
        self.phase = Phase.WAITING
        self.round = round_
        self.opened_at = now
        self._last_training_round = rules.num_rounds
        self._waiting_since = now
        self.losses: Mapping[str, TaskLoss] = {}
        """By task, of those that were measured by now; for whoever drives it to set."""
        self._offers: dict[str, Offer] = {}
        self._cohort: dict[str, Member] = {}
        self._counted: dict[str, tuple[str, int]] = dict(counted or {})
        self._not_waited_for: set[str] = set()
        self._extensions = 0
        self._abandoned = 0
        self._arrivals = Arrivals(rules.expected, rules.await_clients_s, now)
        self.opened_without: Sequence[str] = ()
        """The expected clients that the round in progress no longer waited for."""

    @property
    def purpose(self) -> Purpose:
        return "train" if self.round <= self._last_training_round else "evaluate"

    @property
    def present(self) -> Mapping[str, str]:
        """Task by client id, of the connected clients: the one it has in the round in progress, or has chosen for the
        next; empty for one that has several, and none of them now."""
        return {client_id: self._task_of(client_id, offer) for client_id, offer in self._offers.items()}

    @property
    def offers(self) -> Mapping[str, Offer]:
        """By client id, what the connected clients have data for."""
        return self._offers

    @property
    def cohort(self) -> Mapping[str, Member]:
        """The members of the round in progress by client id, in the order their updates are folded in."""
        return self._cohort

    @property
    def asynchronous(self) -> AsyncRule | None:
        """How asynchronous the round in progress is; None if all are to start from its own model."""
        return self.rules.asynchronous if self.purpose == "train" else None

    @property
    def oldest_base_round(self) -> int:
        """Updates count that started from the slice of this round or a later one."""
        if self.asynchronous:
            return max(1, self.round - self.asynchronous.max_staleness)
        return self.round if self.phase in (Phase.WAITING, Phase.OPEN) else self.round + 1

    def join(self, client_id: str, task: str, now: float, tasks: Sequence[str] = ()) -> None:
        """A client has connected (again).

        Args:
            client_id: which.
            task: its only task, or the one that it has chosen of several; empty if it leaves that to the server.
            now: the time.
            tasks: if it has data for several, all of them.
        """
        offer = Offer.of(task, tasks)
        if self.phase is Phase.WAITING and not self._somebody_counts:
            self._waiting_since = now  # after a time without anybody, everybody gets the time to come back
        self._offers[client_id] = offer
        self._arrivals.came(client_id, now)
        self._not_waited_for.difference_update(offer.tasks)
        member = self._cohort.get(client_id)
        if member is None:
            if self.phase is Phase.OPEN and self.asynchronous:
                self._cohort[client_id] = Member(client_id, self._task_of_late(client_id, offer))
        elif member.task in offer.tasks:
            member.expected_until = None
        else:
            self._miss(member, now)  # another process has its id; that one's turn is the next round

    def _task_of(self, client_id: str, offer: Offer) -> str:
        member = self._cohort.get(client_id)
        return member.task if member is not None and member.task in offer.tasks else offer.choice

    def _task_of_late(self, client_id: str, offer: Offer) -> str:
        """The task of a client that comes into an open asynchronous round: the one that lacks most."""
        others = {member.client_id: (member.task,) for member in self._cohort.values()}
        return quorums.spread({**others, client_id: offer.eligible}, self.rules.min_clients)[client_id]

    def leave(self, client_id: str, now: float) -> None:
        """A client has disconnected."""
        self._offers.pop(client_id, None)
        if client_id in self._cohort:
            self._miss(self._cohort[client_id], now)

    def _miss(self, member: Member, now: float) -> None:
        """Give a member that is gone the time to come back, from when it went."""
        if member.expected_until is None:
            member.expected_until = now + self.rules.rejoin_grace_s

    def counted_in(self, update: Update) -> int | None:
        """The round in which this very update already counts, or None."""
        update_id, round_ = self._counted.get(update.client_id, ("", 0))
        return round_ if update_id == update.update_id else None

    def check(self, update: Update) -> None:
        """Check that an update may count in the round in progress, or with asynchronous rounds in the next.

        Raises:
            StaleRoundError: it belongs to another round, its client isn't in the cohort, or has reported; it or a
                later one of its client counts already.
            InvalidRequestError: it is of another task or kind than the round expects, or chooses a task that its client
                doesn't have.
        """
        self._check_choice(update)
        if self.asynchronous and self.phase in (Phase.WAITING, Phase.AGGREGATING):
            self._check_base(update)
            self._check_kind(update)
            return
        if self.phase is not Phase.OPEN:
            raise StaleRoundError(self._stale_text(update), round=self.round, got=update.base_round)
        self._check_base(update)
        member = self._cohort.get(update.client_id)
        if member is None and self.asynchronous:  # its watch broke, its upload runs on
            member = Member(update.client_id, update.task)
        if member is None:
            raise StaleRoundError(
                f"client {update.client_id!r} is not in the cohort of round {self.round}", round=self.round
            )
        if update.task not in self._tasks_of(member):
            raise InvalidRequestError(
                f"task: client {update.client_id!r} takes part in round {self.round} as {member.task!r}, "
                f"got {update.task!r}",
                field="task",
            )
        self._check_kind(update)
        if member.reported:
            raise StaleRoundError(
                f"another update of client {update.client_id!r} already counts in round {self.round}; wait for the "
                "next",
                round=self.round,
            )

    def _tasks_of(self, member: Member) -> tuple[str, ...]:
        """The tasks that a member's update may be of: with asynchronous rounds it may have been given another one when
        it began."""
        offer = self._offers.get(member.client_id) if self.asynchronous else None
        return offer.tasks if offer else (member.task,)

    def _check_choice(self, update: Update) -> None:
        offer = self._offers.get(update.client_id)
        if update.next_task and offer and update.next_task not in offer.tasks:
            raise InvalidRequestError(
                f"next_task: expected one of the tasks that client {update.client_id!r} watches with, "
                f"{', '.join(offer.tasks)}, got {quoted(update.next_task)}",
                field="next_task",
            )

    def _check_base(self, update: Update) -> None:
        if not self.oldest_base_round <= update.base_round <= self.round:
            raise StaleRoundError(self._stale_text(update), round=self.round, got=update.base_round)
        # Whoever has been counted starts anew, from that round's model or a later one. So what started before has
        # been counted already, or is overtaken; only the last update of each client has to be remembered.
        _, last_round = self._counted.get(update.client_id, ("", 0))
        if self.counted_in(update) is not None or update.base_round < last_round:
            raise StaleRoundError(
                f"the update for round {update.base_round} of client {update.client_id!r}, or a later one, already "
                f"counts in round {last_round}",
                round=self.round,
                got=update.base_round,
            )

    def _stale_text(self, update: Update) -> str:
        return f"the update is for round {update.base_round}, but the run is at round {self.round} ({self.phase.value})"

    def _check_kind(self, update: Update) -> None:
        if (update.kind == "metrics") != (self.purpose == "evaluate"):
            expected = "metrics alone" if self.purpose == "evaluate" else "parameters or a delta"
            raise InvalidRequestError(
                f"kind: round {self.round} expects {expected}, got {update.kind}", field="kind", round=self.round
            )
        if self.asynchronous and update.kind != "delta":
            raise InvalidRequestError(f"kind: an asynchronous run expects a delta, got {update.kind}", field="kind")

    def progress(self, client_id: str, now: float) -> None:
        """A member's upload has received bytes."""
        if client_id in self._cohort:
            self._cohort[client_id].last_progress = now

    def count(self, update: Update) -> None:
        """Count an update whose bytes are all there and in order.

        Raises:
            StaleRoundError, InvalidRequestError: as `check`, or no round is open.
        """
        self.check(update)
        if self.phase is not Phase.OPEN:
            raise StaleRoundError(self._stale_text(update), round=self.round, got=update.base_round)
        member = self._cohort.setdefault(update.client_id, Member(update.client_id, update.task))
        member.task, member.update = update.task, update
        self._counted[update.client_id] = (update.update_id, self.round)
        offer = self._offers.get(update.client_id)
        if offer and update.next_task:
            self._offers[update.client_id] = replace(offer, choice=update.next_task)

    def staleness(self, update: Update) -> int:
        """Commits between the model that an update started from and the one of the round in progress."""
        return self.round - update.base_round

    def reopen(self, cohort: Mapping[str, str], updates: Iterable[Update], now: float) -> None:
        """Take up a round that was open when a server before this one ended.

        Nobody is connected yet; everybody gets the time to come back that a quorum is waited for.

        Args:
            cohort: task by client id, in the order of folding.
            updates: the updates that counted by then.
            now: the time; the round's deadline begins anew.
        """
        self.phase = Phase.OPEN
        self.opened_at = now
        members = Counter(cohort.values())
        self._not_waited_for = {task for task, needed in self.rules.min_clients.items() if members[task] < needed}
        until = now + max(self.rules.quorum_timeout_s, self.rules.rejoin_grace_s)
        self._cohort = {client_id: Member(client_id, task, expected_until=until) for client_id, task in cohort.items()}
        for update in updates:
            self._cohort.setdefault(update.client_id, Member(update.client_id, update.task, expected_until=until))
            self._cohort[update.client_id].task = update.task
            self._cohort[update.client_id].update = update
            self._counted[update.client_id] = (update.update_id, self.round)

    def stop_training(self) -> None:
        """Have no more rounds of training: the next one evaluates the final model. Only between two rounds."""
        self._last_training_round = min(self._last_training_round, self.round - 1)

    def advance(self, now: float) -> Step | None:
        """Take the next step, if its time has come."""
        if self.phase is Phase.WAITING and self._may_open(now):
            return self._open(now)
        if self.phase is Phase.OPEN and self._may_close(now):
            return self._close(now)
        return None

    def committed(self, now: float) -> None:
        """The closed round is dealt with; what came of it, if anything, is the model now."""
        if self.purpose == "evaluate":
            self.phase = Phase.FINISHED
            return
        self.round += 1
        self._abandoned = 0
        self._wait(now)

    def next_wakeup(self, now: float) -> float | None:
        """Seconds until `advance` may have something to do without anything else happening; None for never."""
        moment = None
        if self.phase is Phase.WAITING:
            is_awaiting = self._arrivals.are_awaited(self._offers, now)
            moment = self._arrivals.until if is_awaiting else self._waits_until
        if self.phase is Phase.OPEN:
            moment = self._closes_at()
        return moment - now if moment is not None and moment > now else None

    @property
    def deadline(self) -> float:
        """When the open round closes, unless an upload is moving."""
        return max((self._deadline_of(task) for task in self._tasks()), default=self._deadline_of(""))

    def deadline_for(self, client_id: str) -> float:
        """When the open round no longer waits for a client."""
        member = self._cohort.get(client_id)
        return self._deadline_of(member.task) if member else self.deadline

    def missing_quorum(self) -> dict[str, int]:
        """By task, how many updates the round in progress lacks for its quorum, where its cohort could have had it."""
        members = Counter(member.task for member in self._cohort.values())
        have = self._reported()
        return {
            task: needed - have[task]
            for task, needed in self.rules.min_clients.items()
            if have[task] < needed <= members[task]
        }

    def waiting_for(self, now: float) -> str:
        """What the run is waiting for, for people: `1 more qqp client, 40 s left`. Empty when for nothing."""
        text, until = self._awaits(now)
        return f"{text}, {max(0, until - now):.0f} s left" if text and until is not None else text

    def awaits(self, now: float) -> str:
        """The same without the time that is left."""
        return self._awaits(now)[0]

    def _awaits(self, now: float) -> tuple[str, float | None]:
        if self.phase is Phase.WAITING and self._arrivals.are_awaited(self._offers, now):
            missing = self._arrivals.missing(self._offers)
            return f"{len(missing)} of the configured clients: {name_some(missing)}", self._arrivals.until
        if self.phase is Phase.WAITING:
            tasks = {client_id: offer.tasks for client_id, offer in self._offers.items()}
            text = quorums.lacking_text(self._eligible(), tasks, self._needs)
            return text or ("" if self._somebody_counts else self._anybody), self._waits_until
        if self.phase is Phase.OPEN and (awaited := self._awaited()):
            needed, goal = self._needed()
            names = name_some([f"{member.client_id} ({member.task})" for member in awaited])
            return f"{needed} of {goal} updates: {names}", self._closes_at()
        return "", None

    @property
    def _waits_until(self) -> float | None:
        """When the run goes on without a quorum; None for never. The first round waits for its own without end."""
        if self.round > 1 and (self._somebody_counts or self.purpose == "evaluate"):
            return self._waiting_since + self.rules.quorum_timeout_s
        return None

    @property
    def _somebody_counts(self) -> bool:
        """Whether a client is there that has a task that isn't auxiliary: without one, a round would be nobody's."""
        return any(task not in self.rules.auxiliary for offer in self._offers.values() for task in offer.tasks)

    @property
    def _anybody(self) -> str:
        return "a client of a task that isn't auxiliary" if self.rules.auxiliary else "a client"

    def _lacking(self) -> dict[str, int]:
        """By task, how many clients the quorum still needs."""
        return quorums.lacking(self._eligible(), self._needs)

    @property
    def _needs(self) -> dict[str, int]:
        """The quorum by task, of those that are waited for."""
        return {task: n for task, n in self.rules.min_clients.items() if task not in self._not_waited_for}

    def _eligible(self) -> dict[str, tuple[str, ...]]:
        """By client that is there, the tasks that it may be given."""
        return {client_id: offer.eligible for client_id, offer in self._offers.items()}

    def _choose_tasks(self) -> dict[str, str]:
        """The task of each client that is there. The final model is measured on all tasks alike."""
        rules = self.rules
        selection = rules.selection if self.purpose == "train" else RoundRobin()
        chosen = choose_tasks(selection, self._eligible(), self.round, rules.min_clients, self.losses, rules.seed)
        if rules.auxiliary.issuperset(chosen.values()):  # no round is held for these alone
            for client_id, tasks in sorted(self._eligible().items()):
                if others := [task for task in tasks if task not in rules.auxiliary]:
                    return chosen | {client_id: others[0]}
        return chosen

    def _may_open(self, now: float) -> bool:
        if self._arrivals.are_awaited(self._offers, now):
            return False
        if self._waits_until is not None and now >= self._waits_until:
            return True  # a run whose training is done ends with nobody there, without a last evaluation
        return self._somebody_counts and not self._lacking()

    def _open(self, now: float) -> Step:
        # A task that was waited for in vain isn't waited for again until one of its clients comes.
        self._not_waited_for |= self._lacking().keys()
        self.phase = Phase.OPEN
        self.opened_at = now
        self.opened_without = self._arrivals.missing(self._offers)
        self._arrivals.end()
        chosen = self._choose_tasks()
        if self.purpose == "train" and not self.asynchronous:
            chosen = self.rules.cohort.choose(chosen, self.round, self.rules.min_clients, self._abandoned)
        self._cohort = {client_id: Member(client_id, task) for client_id, task in chosen.items()}
        return Step.OPENED

    def _may_close(self, now: float) -> bool:
        return self._has_enough() or now >= self._closes_at()

    def _closes_at(self) -> float:
        """When the open round closes, or is extended, if nothing more arrives."""
        if self._insists and self.missing_quorum():
            moments = [self.deadline, *(self._moves_until(member) for member in self._unreported())]
        else:
            moments = [self._awaited_until(member) for member in self._awaited()]
        return max(moments, default=self.opened_at)

    def _has_enough(self) -> bool:
        """Whether there is nothing to wait for, even if somebody may still report."""
        if self.asynchronous:
            return self._num_counting(self._reported()) >= self.asynchronous.buffer_size
        return self._needed()[0] == 0

    def _needed(self) -> tuple[int, int]:
        """How many updates the open round still waits for, and of how many."""
        reported = self._reported()
        if self.asynchronous:
            members = Counter(member.task for member in self._cohort.values())
            goal = min(self.asynchronous.buffer_size, self._num_counting(members))
            return max(0, goal - self._num_counting(reported)), goal
        goals = self._goals()
        return sum(max(0, goal - reported[task]) for task, goal in goals.items()), sum(goals.values())

    def _awaited(self) -> list[Member]:
        """The members of whom an update is needed."""
        if self.asynchronous:
            return self._unreported()
        reported, goals = self._reported(), self._goals()
        return [member for member in self._unreported() if reported[member.task] < goals[member.task]]

    def _goals(self) -> dict[str, int]:
        """By task, how many updates are enough; to evaluate, everybody's."""
        members = Counter(member.task for member in self._cohort.values())
        if self.purpose == "evaluate":
            return members
        rule, min_clients = self.rules.cohort, self.rules.min_clients
        return {task: rule.goal(count, min_clients.get(task, 0)) for task, count in members.items()}

    def _num_counting(self, by_task: Mapping[str, int]) -> int:
        """How many of the numbers by task are those of tasks that aren't auxiliary."""
        return sum(count for task, count in by_task.items() if task not in self.rules.auxiliary)

    def _reported(self) -> Counter[str]:
        """Updates by task."""
        return Counter(member.task for member in self._cohort.values() if member.reported)

    def _close(self, now: float) -> Step:
        reported = any(member.reported for member in self._cohort.values())
        if self.purpose == "train" and not self._has_enough() and self.missing_quorum():
            if self._insists and self._extensions < self.rules.max_extensions:
                self._extensions += 1
                return Step.EXTENDED
            if self.rules.on_missing_quorum == "fail":
                self.phase = Phase.AGGREGATING
                return Step.FAILED
        if self.purpose == "evaluate" or reported:
            self.phase = Phase.AGGREGATING
            return Step.CLOSED
        self._wait(now)
        self._abandoned += 1
        return Step.ABANDONED

    @property
    def _insists(self) -> bool:
        """Whether a missing quorum is waited for to the last deadline, also of members that left."""
        return self.rules.on_missing_quorum == "extend" and self.purpose == "train" and not self.asynchronous

    def _deadline_of(self, task: str) -> float:
        length = self.rules.task_deadline_s.get(task, self.rules.deadline_s)
        return self.opened_at + length * (1 + self._extensions)

    def _last_deadline_of(self, task: str) -> float:
        """When a task's clients are no longer waited for, whatever is moving."""
        return self._deadline_of(task) + self.rules.task_deadline_s.get(task, self.rules.deadline_s)

    def _awaited_until(self, member: Member) -> float:
        """When a member is no longer waited for: it is gone or late, and no upload of it is moving."""
        due = self._deadline_of(member.task)
        if member.expected_until is not None:
            due = min(due, member.expected_until)
        return max(due, self._moves_until(member))

    def _moves_until(self, member: Member) -> float:
        """Until when a member's upload counts as moving, without any more progress."""
        if member.last_progress is None:
            return self.opened_at
        return min(member.last_progress + self.rules.transfer_timeout_s, self._last_deadline_of(member.task))

    def _unreported(self) -> list[Member]:
        return [member for member in self._cohort.values() if not member.reported]

    def _tasks(self) -> set[str]:
        return {member.task for member in self._cohort.values()}

    def _wait(self, now: float) -> None:
        self.phase = Phase.WAITING
        self._waiting_since = now
        self._cohort = {}
        self._extensions = 0
