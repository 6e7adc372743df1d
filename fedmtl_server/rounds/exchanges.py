"""A round as a list of exchanges: in each one, every member is asked once and answers once.

Production knows two lists, `PLAIN` and `EVALUATION`, of one exchange each. A protocol that needs several (secure
aggregation: keys, shares, masked updates, unmasking) is another list, which `RoundEngine` runs through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedmtl_server.rounds.cohorts import num_enough
from fedmtl_server.rounds.rules import RoundRules


class Answer(Protocol):
    """All that the engine reads of an answer. `Update` is one; what else an answer carries is opaque to the engine."""

    @property
    def client_id(self) -> str:
        """The client that answers."""

    @property
    def task(self) -> str:
        """The task that it answers for."""

    @property
    def base_round(self) -> int:
        """The round that it belongs to, or whose model it started from."""

    @property
    def update_id(self) -> str:
        """Names the answer for good: a retry repeats it."""

    @property
    def kind(self) -> str:
        """One of `Exchange.kinds`."""

    @property
    def next_task(self) -> str:
        """The task that its client prefers from the next round on; empty if its preference stays."""


Enough = Callable[[RoundRules, Mapping[str, int]], Mapping[str, int]]
"""By task, how many answers are enough, given the rules and by task the number of members."""


@dataclass(frozen=True)
class Exchange:
    """One request to the members of a round, which each of them answers once."""

    name: str
    kinds: frozenset[str]
    """The kinds of answer that it takes."""
    expects: str
    """The kinds in words, for error messages."""
    enough: Enough
    """By task, how many answers close the exchange before its deadline."""
    deadline_s: float | None = None
    """Seconds from its opening to its deadline; None for those of the rules and of each task."""

    def deadline_length_s(self, rules: RoundRules, task: str) -> float:
        """How long a member of a task has for its answer, in seconds."""
        return rules.deadline_length_s(task) if self.deadline_s is None else self.deadline_s


def everybody(rules: RoundRules, num_members: Mapping[str, int]) -> Mapping[str, int]:
    """The answers of all members."""
    return num_members


def over_selected(rules: RoundRules, num_members: Mapping[str, int]) -> Mapping[str, int]:
    """The answers of all members, or with over-selection as many as are wanted of each task."""
    return {
        task: num_enough(rules.rounds, number, rules.min_clients.get(task, 0)) for task, number in num_members.items()
    }


TRAIN = Exchange("train", frozenset({"parameters", "delta"}), "parameters or a delta", over_selected)
"""Train on the round's model, answer with an update."""

EVALUATE = Exchange("evaluate", frozenset({"metrics"}), "metrics alone", everybody)
"""Evaluate the round's model, answer with metrics."""

PLAIN = (TRAIN,)
"""The exchanges of a round of training."""

EVALUATION = (EVALUATE,)
"""The exchanges of the round after the last one of training, which evaluates the final model."""
