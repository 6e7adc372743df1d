"""Task selection: which task a client has in a round, if it has data for several and leaves the choice to the server.

A selection proposes a task for each of these clients. If its proposal would leave a task without its quorum,
`choose_tasks` changes the tasks of as few clients as possible. A selection has no clock and no state: the same clients,
round, losses and seed give the same tasks, also on a server that resumes the run.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedmtl_core.errors import ConfigError
from fedmtl_core.plugins import Registry, attribute_errors
from fedmtl_server.rounds import quorums


@dataclass(frozen=True)
class TaskLoss:
    """The course of one task: its `loss` among the metrics of received models, from the rounds' reports."""

    first: float
    """The loss of the first model that was measured."""
    last: float
    """The loss of the newest model that was measured."""

    @property
    def relative(self) -> float:
        """The last loss relative to the first, which makes different scales comparable; 1 for a first loss of 0."""
        return self.last / self.first if self.first > 0 else 1.0


@dataclass(frozen=True)
class SelectionRound:
    """One round, as input of a task selection."""

    round: int
    """Counted from 1."""
    clients: Mapping[str, Sequence[str]]
    """By client id, in order, the tasks that the client has data for; at least two each. A task is chosen for each of
    these clients."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Task by client id, for the connected clients that have one task or have chosen one."""
    min_clients: Mapping[str, int] = field(default_factory=dict)
    """The quorum by task, for all tasks of the run."""
    losses: Mapping[str, TaskLoss] = field(default_factory=dict)
    """By task, for tasks measured so far."""
    seed: str = ""
    """Differs from round to round, and is the same when a round is planned again."""


class TaskSelection(ABC):
    """Chooses the task of each client that has several. Derive a class from it in a file of your own, and name that
    class in the configuration.

    The class is constructed without arguments. The same round must give the same answer, because a resumed run plans
    its round again.
    """

    @abstractmethod
    def select(self, round_: SelectionRound) -> Mapping[str, str]:
        """Return a task for each of the round's `clients`, one of its own. Quorums are applied afterwards."""


class RoundRobin(TaskSelection):
    """Chooses one task after the other, by the round's number.

    While the connected clients stay the same, each client with n tasks has each of them once in n rounds. Among clients
    with the same tasks, the numbers of clients per task differ by at most one.
    """

    def select(self, round_: SelectionRound) -> Mapping[str, str]:
        return {client_id: tasks[0] for client_id, tasks in rotated_order(round_).items()}


class HighestLoss(TaskSelection):
    """Chooses the task whose loss is highest relative to its first: the task that has learned least. Tasks without a
    measured loss come first. Equal tasks take turns."""

    def select(self, round_: SelectionRound) -> Mapping[str, str]:
        def rank(task: str) -> float:
            loss = round_.losses.get(task)
            return math.inf if loss is None else loss.relative

        return {client_id: max(tasks, key=rank) for client_id, tasks in rotated_order(round_).items()}


class LargestDeficit(TaskSelection):
    """Chooses the task that lacks most clients for its quorum, or has the fewest beyond it. Equal tasks take turns."""

    def select(self, round_: SelectionRound) -> Mapping[str, str]:
        fixed = {client_id: (task,) for client_id, task in round_.others.items()}
        tasks = quorums.spread({**fixed, **rotated_order(round_)}, round_.min_clients)
        return {client_id: tasks[client_id] for client_id in round_.clients}


def rotated_order(round_: SelectionRound) -> dict[str, list[str]]:
    """Return each client's tasks, sorted by name and rotated by the round's number. Clients with the same tasks start
    with different ones."""
    seen: Counter[tuple[str, ...]] = Counter()
    turned = {}
    for client_id, offered in round_.clients.items():
        tasks = tuple(sorted(offered))
        start = (round_.round - 1 + seen[tasks]) % len(tasks)
        seen[tasks] += 1
        turned[client_id] = [*tasks[start:], *tasks[:start]]
    return turned


SELECTIONS = Registry(
    "rounds.task_selection",
    TaskSelection,  # type: ignore[type-abstract]
    {"round_robin": RoundRobin, "loss": HighestLoss, "quorum": LargestDeficit},
)


def make_selection(name: str) -> TaskSelection:
    """Return the selection that a configuration names.

    Raises:
        ConfigError: a user's own class can't be loaded or constructed.
    """
    return SELECTIONS.make(name)


def choose_tasks(
    selection: TaskSelection,
    eligible: Mapping[str, Sequence[str]],
    round_: int,
    min_clients: Mapping[str, int],
    losses: Mapping[str, TaskLoss],
    seed: int,
) -> dict[str, str]:
    """Choose a task for each client, so that quorums are met as far as possible, and otherwise as the selection says.

    Args:
        selection: the selection.
        eligible: by client id, the tasks that can be chosen for it.
        round_: the round's number.
        min_clients: the quorum by task.
        losses: by task, for tasks measured so far.
        seed: the run's seed. If several clients could change task for a quorum, seed and round draw one.

    Returns:
        Task by client id, in the order of client ids.

    Raises:
        ConfigError: the selection, which may be a user's class, doesn't answer with one of the client's tasks.
    """
    in_order = dict(sorted(eligible.items()))
    wanted = {client_id: tasks[0] for client_id, tasks in in_order.items()}
    several = {client_id: tuple(tasks) for client_id, tasks in in_order.items() if len(tasks) > 1}
    if not several:
        return wanted
    others = {client_id: task for client_id, task in wanted.items() if client_id not in several}
    drawn = f"{seed}/{round_}/tasks"
    answer = selection.select(SelectionRound(round_, several, others, min_clients, losses, drawn))
    with attribute_errors(SELECTIONS.key, type(selection).__name__):  # a generator's code runs when it is read
        answer = _by_client(answer)
    for client_id, tasks in several.items():
        wanted[client_id] = _required(answer, client_id, tasks)
    order = list(several)
    random.Random(drawn).shuffle(order)  # so that different clients are moved in each round
    return quorums.meet(in_order, wanted, min_clients, order)


def _by_client(answer: object) -> Mapping[str, str]:
    """Return a selection's answer as a mapping."""
    try:
        return dict(answer)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError) as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:  # raised by the user's code
            raise
        raise ConfigError(
            f"{SELECTIONS.key}: expected a task by client id, got {ascii(answer)[:100]}, a {type(answer).__name__}"
        ) from None


def _required(answer: Mapping[str, str], client_id: str, tasks: Sequence[str]) -> str:
    task = answer.get(client_id)
    if task is None or task not in tasks:
        got = "nothing" if task is None else ascii(task)[:100]
        raise ConfigError(f"{SELECTIONS.key}: expected one of {', '.join(tasks)} for client {client_id!r}, got {got}")
    return task
