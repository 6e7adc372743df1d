"""The round's state machine: who takes part, what it waits for, when it closes. It decides and does nothing else.

    WAITING (for a quorum) -> OPEN (until all have reported, or the deadline) -> AGGREGATING -> next, or FINISHED

It knows no network, no files and no clock: whoever drives it passes the time in and carries out what it decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_core.plan import Purpose, UpdateKind


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
    CLOSED = "closed"
    """Average what was reported, if anything, then call `committed`."""
    ABANDONED = "abandoned"
    """Nobody reported: forget the round; it will be opened anew."""


@dataclass(frozen=True)
class RoundRules:
    """When rounds open and close. Times are in seconds."""

    num_rounds: int
    min_clients: Mapping[str, int]
    """Clients needed for a quorum, by task."""
    deadline_s: float = 600.0
    """A round closes this long after it opened."""
    quorum_timeout_s: float = 60.0
    """After the first round: how long to wait for a quorum before going on with who is there."""
    rejoin_grace_s: float = 10.0
    """How long an open round waits for a member that disconnected."""
    transfer_timeout_s: float = 30.0
    """An upload that made progress within this time keeps its round open, to twice the deadline at most."""


@dataclass(frozen=True)
class UpdateClaim:
    """What an update says of itself before its tensors are looked at."""

    client_id: str
    task: str
    base_round: int
    update_id: str
    kind: UpdateKind
    num_examples: int
    num_eval_examples: int
    received_metrics: Mapping[str, float]
    trained_metrics: Mapping[str, float]


@dataclass
class Member:
    """A client in a round's cohort."""

    client_id: str
    task: str
    claim: UpdateClaim | None = None
    """What it reported, once it has."""
    absent_since: float | None = None
    last_progress: float | None = None
    """When its running upload last received bytes."""

    @property
    def reported(self) -> bool:
        return self.claim is not None


class RoundEngine:
    """One run's rounds: `rules.num_rounds` of training, then one that evaluates the final model."""

    def __init__(self, rules: RoundRules, now: float):
        self.rules = rules
        self.phase = Phase.WAITING
        self.round = 1
        self.opened_at = now
        self._waiting_since = now
        self._present: dict[str, str] = {}
        self._cohort: dict[str, Member] = {}
        self._counted: dict[str, tuple[str, int]] = {}
        self._not_waited_for: set[str] = set()

    @property
    def purpose(self) -> Purpose:
        return "train" if self.round <= self.rules.num_rounds else "evaluate"

    @property
    def present(self) -> Mapping[str, str]:
        """Task by client id, of the connected clients."""
        return self._present

    @property
    def cohort(self) -> Mapping[str, Member]:
        """The members of the round in progress by client id, in the order their updates are folded in."""
        return self._cohort

    def join(self, client_id: str, task: str, now: float) -> None:
        """A client has connected (again)."""
        if self.phase is Phase.WAITING and not self._present:
            self._waiting_since = now  # after a time without anybody, everybody gets the time to come back
        self._present[client_id] = task
        self._not_waited_for.discard(task)
        member = self._cohort.get(client_id)
        if member is not None and member.task == task:
            member.absent_since = None

    def leave(self, client_id: str, now: float) -> None:
        """A client has disconnected."""
        self._present.pop(client_id, None)
        if client_id in self._cohort:
            self._cohort[client_id].absent_since = now

    def counted_in(self, claim: UpdateClaim) -> int | None:
        """The round in which this very update already counts, or None."""
        update_id, round_ = self._counted.get(claim.client_id, ("", 0))
        return round_ if update_id == claim.update_id else None

    def check(self, claim: UpdateClaim) -> None:
        """Check that an update may count in the round in progress.

        Raises:
            StaleRoundError: it belongs to another round, its client isn't in the cohort, or has reported.
            InvalidRequestError: it is of another task or kind than the round expects.
        """
        if claim.base_round != self.round or self.phase is not Phase.OPEN:
            raise StaleRoundError(
                f"the update is for round {claim.base_round}, but the run is at round {self.round} ({self.phase.value})"
            )
        member = self._cohort.get(claim.client_id)
        if member is None:
            raise StaleRoundError(f"client {claim.client_id!r} is not in the cohort of round {self.round}")
        if member.task != claim.task:
            raise InvalidRequestError(
                f"task: client {claim.client_id!r} takes part in round {self.round} as {member.task!r}, "
                f"got {claim.task!r}"
            )
        if (claim.kind == "metrics") != (self.purpose == "evaluate"):
            expected = "metrics alone" if self.purpose == "evaluate" else "parameters or a delta"
            raise InvalidRequestError(f"kind: round {self.round} expects {expected}, got {claim.kind}")
        if member.reported:
            raise StaleRoundError(
                f"another update of client {claim.client_id!r} already counts in round {self.round}; wait for the next"
            )

    def progress(self, client_id: str, now: float) -> None:
        """A member's upload has received bytes."""
        if client_id in self._cohort:
            self._cohort[client_id].last_progress = now

    def count(self, claim: UpdateClaim) -> None:
        """Count an update whose bytes are all there and in order.

        Raises:
            StaleRoundError, InvalidRequestError: as `check`.
        """
        self.check(claim)
        self._cohort[claim.client_id].claim = claim
        self._counted[claim.client_id] = (claim.update_id, self.round)

    def advance(self, now: float) -> Step | None:
        """Take the next step, if its time has come."""
        if self.phase is Phase.WAITING and self._may_open(now):
            return self._open(now)
        if self.phase is Phase.OPEN and self._may_close(now):
            if self.purpose == "evaluate" or any(member.reported for member in self._cohort.values()):
                self.phase = Phase.AGGREGATING
                return Step.CLOSED
            self._wait(now)
            return Step.ABANDONED
        return None

    def committed(self, now: float) -> None:
        """The closed round's result is the model now."""
        if self.purpose == "evaluate":
            self.phase = Phase.FINISHED
            return
        self.round += 1
        self._wait(now)

    def next_wakeup(self, now: float) -> float | None:
        """Seconds until `advance` may have something to do without anything else happening; None for never."""
        moments: list[float] = []
        if self.phase is Phase.WAITING and self.round > 1 and (self._present or self.purpose == "evaluate"):
            moments = [self._waiting_since + self.rules.quorum_timeout_s]
        if self.phase is Phase.OPEN:
            moments = [
                member.absent_since + self.rules.rejoin_grace_s
                for member in self._unreported()
                if member.absent_since is not None
            ]
            moments.append(self.deadline)
            moments += [moment + self.rules.transfer_timeout_s for moment in self._transfers()]
            moments.append(self._last_deadline)
        ahead = [moment - now for moment in moments if moment > now]
        return min(ahead, default=None)

    @property
    def deadline(self) -> float:
        """When the open round closes, unless an upload is moving."""
        return self.opened_at + self.rules.deadline_s

    @property
    def _last_deadline(self) -> float:
        """When it closes whatever is moving."""
        return self.opened_at + 2 * self.rules.deadline_s

    def waiting_for(self, now: float) -> str:
        """What the run is waiting for, for people: `1 more qqp client, 40 s left`. Empty when for nothing."""
        if self.phase is Phase.WAITING:
            needs = [f"{n} more {task} client{'s' if n > 1 else ''}" for task, n in self._lacking().items()]
            text = ", ".join(needs) or ("" if self._present else "a client")
            if text and self.round > 1 and self._present:
                text += f", {max(0, self._waiting_since + self.rules.quorum_timeout_s - now):.0f} s left"
            return text
        if self.phase is Phase.OPEN:
            missing = [f"{member.client_id} ({member.task})" for member in self._unreported()]
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            return f"{len(missing)} of {len(self._cohort)} updates: {shown}, {max(0, self.deadline - now):.0f} s left"
        return ""

    def _lacking(self) -> dict[str, int]:
        """By task, how many clients the quorum still needs."""
        have = Counter(self._present.values())
        return {
            task: needed - have[task]
            for task, needed in self.rules.min_clients.items()
            if have[task] < needed and task not in self._not_waited_for
        }

    def _may_open(self, now: float) -> bool:
        in_vain = self.round > 1 and now >= self._waiting_since + self.rules.quorum_timeout_s
        if not self._present:  # a run whose training is done ends all the same, without a last evaluation
            return in_vain and self.purpose == "evaluate"
        return in_vain or not self._lacking()

    def _open(self, now: float) -> Step:
        # A task that was waited for in vain isn't waited for again until one of its clients comes.
        self._not_waited_for |= self._lacking().keys()
        self.phase = Phase.OPEN
        self.opened_at = now
        self._cohort = {client_id: Member(client_id, self._present[client_id]) for client_id in sorted(self._present)}
        return Step.OPENED

    def _may_close(self, now: float) -> bool:
        if all(self._given_up(member, now) for member in self._unreported()):
            return True
        if now >= self._last_deadline:
            return True
        return now >= self.deadline and not any(self._moving(member, now) for member in self._unreported())

    def _given_up(self, member: Member, now: float) -> bool:
        gone = member.absent_since is not None and now >= member.absent_since + self.rules.rejoin_grace_s
        return gone and not self._moving(member, now)

    def _moving(self, member: Member, now: float) -> bool:
        """Whether the member's upload made progress of late."""
        return member.last_progress is not None and now < member.last_progress + self.rules.transfer_timeout_s

    def _unreported(self) -> list[Member]:
        return [member for member in self._cohort.values() if not member.reported]

    def _transfers(self) -> list[float]:
        return [member.last_progress for member in self._unreported() if member.last_progress is not None]

    def _wait(self, now: float) -> None:
        self.phase = Phase.WAITING
        self._waiting_since = now
        self._cohort = {}
