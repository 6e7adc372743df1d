"""A round as a list of exchanges: in each exchange, every member is asked once and answers once.

Production uses two lists, `PLAIN` and `EVALUATION`, of one exchange each. A protocol with several exchanges (secure
aggregation: keys, shares, masked updates, unmasking) is another list for the same `RoundEngine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedmtl_server.rounds.cohorts import num_enough
from fedmtl_server.rounds.rules import RoundRules


class Answer(Protocol):
    """The properties of an answer that the engine reads. `Update` implements it; its other content is opaque here."""

    @property
    def client_id(self) -> str:
        """The id of the answering client."""

    @property
    def task(self) -> str:
        """The task of the answer."""

    @property
    def base_round(self) -> int:
        """The answer's round, or the round whose model it started from."""

    @property
    def update_id(self) -> str:
        """The permanent id of the answer, which a retry repeats."""

    @property
    def kind(self) -> str:
        """One of `Exchange.kinds`."""

    @property
    def next_task(self) -> str:
        """The client's preferred task from the next round on; empty if its preference stays."""


Enough = Callable[[RoundRules, Mapping[str, int]], Mapping[str, int]]
"""Returns, by task, how many answers are enough, given the rules and the number of members by task."""


@dataclass(frozen=True)
class Exchange:
    """One request to the members of a round, which each of them answers once."""

    name: str
    kinds: frozenset[str]
    """The accepted kinds of answer."""
    expects: str
    """The accepted kinds as text, for error messages."""
    enough: Enough
    """By task, how many answers close the exchange before its deadline."""
    deadline_s: float | None = None
    """Seconds from its opening to its deadline; None for the deadlines of the rules and of each task."""

    def deadline_length_s(self, rules: RoundRules, task: str) -> float:
        """Return the seconds that a member of a task has for its answer."""
        return rules.deadline_length_s(task) if self.deadline_s is None else self.deadline_s


def everybody(rules: RoundRules, num_members: Mapping[str, int]) -> Mapping[str, int]:
    """Return the number of answers by task if all members are needed."""
    return num_members


def over_selected(rules: RoundRules, num_members: Mapping[str, int]) -> Mapping[str, int]:
    """Return the number of answers needed by task: all members', or with over-selection the number wanted of each
    task."""
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
