"""The rules of a run's rounds: the section `rounds`, and other sections' keys about rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedmtl_core.config import Config, RoundsConfig
from fedmtl_server.rounds.task_selection import RoundRobin, TaskSelection


@dataclass(frozen=True)
class RoundRules:
    """The times at which rounds open and close, and their participants."""

    num_rounds: int
    """Rounds of training."""
    min_clients: Mapping[str, int]
    """The quorum by task: clients needed for a round to open, and updates for it to be complete."""
    auxiliary: frozenset[str] = frozenset()
    """Tasks whose clients neither open a round nor fill an asynchronous round's buffer. A round waits for them like for
    all other members of its cohort."""
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    """The section `rounds`: times in seconds, the choice of cohorts, and the mode."""
    task_deadline_s: Mapping[str, float] = field(default_factory=dict)
    """By task, the deadline of its clients instead of `rounds.deadline_s`."""
    selection: TaskSelection = field(default_factory=RoundRobin)
    """Chooses the task of a client that has examples of several tasks."""
    seed: int = 0
    """The seed of the random draws of cohorts and tasks."""
    max_examples: Mapping[str, int] = field(default_factory=dict)
    """By task with a limit, the largest number of examples that an update counts as."""
    expected: frozenset[str] = frozenset()
    """Client ids that the first round waits for in addition to the quorum, up to `rounds.await_clients_s` after the
    latest arrival."""

    @classmethod
    def from_config(cls, config: Config, selection: TaskSelection) -> RoundRules:
        """Return the rules of a configuration.

        Args:
            config: the run's configuration.
            selection: the selection that its `rounds.task_selection` names.
        """
        rounds, tasks = config.rounds, config.tasks
        return cls(
            num_rounds=config.training.num_rounds,
            min_clients={name: task.min_clients for name, task in tasks.items()},
            auxiliary=config.auxiliary_tasks(),
            rounds=rounds,
            task_deadline_s={name: task.deadline_s for name, task in tasks.items() if task.deadline_s is not None},
            selection=selection,
            seed=config.training.seed,
            max_examples=config.max_examples(),
            expected=frozenset(client.client_id for client in config.clients if rounds.await_clients_s),
        )

    @property
    def is_asynchronous(self) -> bool:
        """Whether rounds of training are buffered asynchronous ones (FedBuff; Nguyen et al. 2022, arXiv:2106.06639).

        Such a round commits when `rounds.buffer_size` updates have arrived, whichever of the last rounds' models they
        started from.
        """
        return self.rounds.mode == "async"

    def discount(self, staleness: int) -> float:
        """Return the factor of an update's weight in an asynchronous round: (1 + s)^-a.

        Args:
            staleness: number of commits since the model that the update started from.
        """
        return float((1 + staleness) ** -self.rounds.staleness_exponent)

    def deadline_length_s(self, task: str) -> float:
        """Return the seconds that a client of a task has for its answer."""
        return self.task_deadline_s.get(task, self.rounds.deadline_s)
