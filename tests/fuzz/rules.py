"""What the contract says of a run of synchronous rounds, as a model to compare a server with.

Small and slow on purpose: it knows no streams, threads or bytes. Time is a number that whoever drives it moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

GRACE_S, TRANSFER_S, QUORUM_S, DEADLINE_S = 100.0, 30.0, 500.0, 10_000.0
"""So far apart that what happens in a moment of waiting is never in doubt."""


@dataclass(frozen=True)
class Claim:
    """What counts of an update for the rules."""

    client: str
    task: str
    base_round: int
    update_id: str
    num_examples: int
    value: float
    """Of all its numbers."""
    kind: str


@dataclass
class Member:
    task: str
    claim: Claim | None = None
    expected_until: float | None = None
    last_progress: float | None = None


@dataclass
class Partial:
    """What has arrived of an upload that isn't complete."""

    claim: Claim
    encoding: str
    offsets: dict[str, int]
    stream: object = None
    """Who brings it; None if nobody does."""


@dataclass
class Rules:
    """A run's state by the rules."""

    num_rounds: int
    min_clients: Mapping[str, int]
    parameters: dict[str, NDArray[np.float64]]
    """By scope, the model."""
    now: float = 0.0
    phase: str = "waiting"
    round: int = 1
    present: dict[str, str] = field(default_factory=dict)
    cohort: dict[str, Member] = field(default_factory=dict)
    partials: dict[str, Partial] = field(default_factory=dict)
    counted: dict[str, tuple[str, int]] = field(default_factory=dict)
    acknowledged: dict[tuple[str, str], int] = field(default_factory=dict)
    """By client and update id, the round in which an update counts."""
    commits: list[dict[str, list[Claim]]] = field(default_factory=list)
    """For each round, who counted in which scope."""
    opened_at: float = 0.0
    waiting_since: float = 0.0
    not_waited_for: set[str] = field(default_factory=set)
    recorded_cohort: dict[str, str] | None = None
    """What the history says of the round in progress."""

    @property
    def purpose(self) -> str:
        return "train" if self.round <= self.num_rounds else "evaluate"

    def kind_wanted(self) -> str:
        return "metrics" if self.purpose == "evaluate" else "parameters"

    # Who is there.

    def join(self, client: str, task: str) -> None:
        if self.phase == "waiting" and not self.present:
            self.waiting_since = self.now
        self.present[client] = task
        self.not_waited_for.discard(task)
        if client in self.cohort and self.cohort[client].task == task:
            self.cohort[client].expected_until = None
        else:  # whoever has taken its id has another task: that one's turn is the next round
            self._miss(client)
        self.settle()

    def leave(self, client: str) -> None:
        self.present.pop(client, None)
        self._miss(client)
        self.settle()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    # Updates.

    def verdict(self, claim: Claim) -> str:
        """The status that an update's header is answered with, if nothing else is wrong with it; OK if it is taken."""
        if self.counted.get(claim.client, ("", 0))[0] == claim.update_id:
            return "DUPLICATE"
        if self.phase != "open" or claim.base_round != self.round or claim.client not in self.cohort:
            return "ABORTED"
        member = self.cohort[claim.client]
        if member.task != claim.task or (claim.kind == "metrics") != (self.purpose == "evaluate"):
            return "INVALID_ARGUMENT"
        if member.claim is not None or (claim.client, claim.update_id) in self.acknowledged:
            return "ABORTED"
        return "OK"

    def progress(self, client: str) -> None:
        if client in self.cohort:
            self.cohort[client].last_progress = self.now

    def count(self, claim: Claim) -> None:
        self.cohort[claim.client].claim = claim
        self.counted[claim.client] = (claim.update_id, self.round)
        self.acknowledged[claim.client, claim.update_id] = self.round
        self.partials.pop(claim.client, None)
        self.settle()

    # Rounds.

    def settle(self) -> None:
        """Take every step whose time has come."""
        while self._open_if_due() or self._close_if_due():
            pass

    def restart(self) -> None:
        """The server ends, and another takes the run up; time goes on."""
        self.present, self.partials = {}, {}
        if self.phase == "finished":
            return
        claims = [member.claim for member in self.cohort.values() if member.claim]
        self.not_waited_for = set()
        if self.recorded_cohort is None:
            self._wait()
        else:
            until = self.now + max(QUORUM_S, GRACE_S)
            self.phase, self.opened_at = "open", self.now
            self.cohort = {client: Member(task, expected_until=until) for client, task in self.recorded_cohort.items()}
            members = Counter(self.recorded_cohort.values())
            self.not_waited_for = {task for task, needed in self.min_clients.items() if members[task] < needed}
            for claim in claims:
                self.cohort[claim.client].claim = claim
        self.settle()

    def _miss(self, client: str) -> None:
        if client in self.cohort and self.cohort[client].expected_until is None:
            self.cohort[client].expected_until = self.now + GRACE_S

    def _lacking(self) -> set[str]:
        have = Counter(self.present.values())
        return {
            task for task, needed in self.min_clients.items() if have[task] < needed and task not in self.not_waited_for
        }

    def _open_if_due(self) -> bool:
        if self.phase != "waiting":
            return False
        in_vain = self.round > 1 and self.now >= self.waiting_since + QUORUM_S
        ends_alone = not self.present and in_vain and self.purpose == "evaluate"
        if not ends_alone and (not self.present or (self._lacking() and not in_vain)):
            return False
        self.not_waited_for |= self._lacking()
        self.phase, self.opened_at = "open", self.now
        self.cohort = {client: Member(task) for client, task in sorted(self.present.items())}
        self.recorded_cohort = dict(sorted(self.present.items()))
        return True

    def _close_if_due(self) -> bool:
        if self.phase != "open" or not all(self._is_given_up(one) for one in self.cohort.values() if not one.claim):
            return False
        self.partials = {}
        claims = [member.claim for member in self.cohort.values() if member.claim]
        if not claims and self.purpose == "train":
            self._wait()
            return True
        self._average(claims)
        self.recorded_cohort = None
        if self.purpose == "evaluate":
            self.phase = "finished"
            return True
        self.round += 1
        self._wait()
        return True

    def _average(self, claims: list[Claim]) -> None:
        commit: dict[str, list[Claim]] = {}
        for claim in claims if self.purpose == "train" else ():
            for scope in ("shared", f"task:{claim.task}"):
                commit.setdefault(scope, []).append(claim)
        self.commits.append(commit)
        after = {}
        for scope, counted in commit.items():
            base, total = self.parameters[scope], sum(claim.num_examples for claim in counted)
            parts = [
                claim.num_examples / total * (claim.value + (base if claim.kind == "delta" else np.zeros_like(base)))
                for claim in counted
            ]
            after[scope] = np.sum(parts, axis=0)
        self.parameters |= after

    def _is_given_up(self, member: Member) -> bool:
        gone = member.expected_until is not None and self.now >= member.expected_until
        late = self.now >= self.opened_at + DEADLINE_S
        moving = member.last_progress is not None and self.now < member.last_progress + TRANSFER_S
        return (gone or late) and not (moving and self.now < self.opened_at + 2 * DEADLINE_S)

    def _wait(self) -> None:
        self.phase, self.waiting_since, self.cohort = "waiting", self.now, {}
