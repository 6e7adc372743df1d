"""The rules of a run's rounds: its `rounds` section, and what other sections of the configuration say about rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedmtl_core.config import Config, RoundsConfig
from fedmtl_server.rounds.task_selection import RoundRobin, TaskSelection


@dataclass(frozen=True)
class RoundRules:
    """When rounds open and close, and who takes part."""

    num_rounds: int
    """Rounds of training."""
    min_clients: Mapping[str, int]
    """The quorum by task: clients needed for a round to open, and updates for it to be complete."""
    auxiliary: frozenset[str] = frozenset()
    """Tasks whose clients neither open a round nor fill an asynchronous round's buffer. As members of a cohort they are
    waited for like all others."""
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    """Deadlines and other times in seconds, how a cohort is chosen, and whether rounds are asynchronous."""
    task_deadline_s: Mapping[str, float] = field(default_factory=dict)
    """By task, the deadline that its clients have in place of `rounds.deadline_s`."""
    selection: TaskSelection = field(default_factory=RoundRobin)
    """Chooses the task of a client that has examples of several."""
    seed: int = 0
    """Of the random draws of cohorts and tasks."""
    max_examples: Mapping[str, int] = field(default_factory=dict)
    """By task with a limit, the number of examples that an update counts as at most."""
    expected: frozenset[str] = frozenset()
    """Client ids that the first round to be opened waits for in addition to the quorum, up to
    `rounds.await_clients_s` after the last of them arrived."""

    @classmethod
    def from_config(cls, config: Config, selection: TaskSelection) -> RoundRules:
        """The rules of a configuration.

        Args:
            config: the run's.
            selection: what its `rounds.task_selection` names.
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
        """The factor of an update's weight in an asynchronous round: (1 + s)^-a.

        Args:
            staleness: commits since the model that the update started from.
        """
        return float((1 + staleness) ** -self.rounds.staleness_exponent)

    def deadline_length_s(self, task: str) -> float:
        """How long a client of a task has for its answer."""
        return self.task_deadline_s.get(task, self.rounds.deadline_s)
