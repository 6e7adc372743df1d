"""Which of its tasks a client has in a round, where it has data for several and leaves the choice to the server.

A selection says what it wants for each such client; where that would cost a task its quorum, `choose_tasks` changes the
tasks of as few clients as it takes. It knows no clock and remembers nothing: the same clients, round, losses and seed
give the same tasks, also on a server that takes the run up.
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
    """How one task has done: its `loss` among the metrics of received models, as the rounds' reports have it."""

    first: float
    """Of the first model that was measured."""
    last: float
    """Of the newest."""

    @property
    def relative(self) -> float:
        """The last relative to the first, so that losses of different scales compare; 1 for a first loss of 0."""
        return self.last / self.first if self.first > 0 else 1.0


@dataclass(frozen=True)
class SelectionRound:
    """One round, as a selection sees it."""

    round: int
    """Counted from 1."""
    clients: Mapping[str, Sequence[str]]
    """The clients to choose for: by client id, in order, the tasks each has data for; at least two."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Task by client id, of the connected clients that have one task or have chosen themselves."""
    min_clients: Mapping[str, int] = field(default_factory=dict)
    """The quorum by task, of all the run's tasks."""
    losses: Mapping[str, TaskLoss] = field(default_factory=dict)
    """By task, of those that were measured by now."""
    seed: str = ""
    """Another one in each round; the same when a round is planned again."""


class TaskSelection(ABC):
    """What task each client of several has in a round; to be derived from in a file of one's own, which the
    configuration names.

    It is made without arguments. The same round must give the same answer: a run that is taken up plans again.
    """

    @abstractmethod
    def select(self, round_: SelectionRound) -> Mapping[str, str]:
        """A task for each of the round's `clients`, one of its own. Quorums are seen to afterwards."""


class RoundRobin(TaskSelection):
    """One task after the other, by the round's number.

    As long as the same clients are there, each has every one of its tasks once in as many rounds as it has tasks; and
    among clients of the same tasks, each task has as many as another, or one more.
    """

    def select(self, round_: SelectionRound) -> Mapping[str, str]:
        return {client_id: tasks[0] for client_id, tasks in in_turn(round_).items()}


class HighestLoss(TaskSelection):
    """The task whose loss is highest relative to its first: the one that has learned least. One that wasn't measured by
    now comes before those that were; among equals, and only there, one after the other."""

    def select(self, round_: SelectionRound) -> Mapping[str, str]:
        def rank(task: str) -> float:
            loss = round_.losses.get(task)
            return math.inf if loss is None else loss.relative

        return {client_id: max(tasks, key=rank) for client_id, tasks in in_turn(round_).items()}


class MostLacking(TaskSelection):
    """The task that lacks most clients for its quorum, or has the fewest beyond it; among equals, one after the
    other."""

    def select(self, round_: SelectionRound) -> Mapping[str, str]:
        fixed = {client_id: (task,) for client_id, task in round_.others.items()}
        tasks = quorums.spread({**fixed, **in_turn(round_)}, round_.min_clients)
        return {client_id: tasks[client_id] for client_id in round_.clients}


def in_turn(round_: SelectionRound) -> dict[str, list[str]]:
    """Each client's tasks by name, beginning with the one whose turn it is. Clients of the same tasks begin with
    different ones."""
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
    {"round_robin": RoundRobin, "loss": HighestLoss, "quorum": MostLacking},
)


def make_selection(name: str) -> TaskSelection:
    """The selection that a configuration names.

    Raises:
        ConfigError: a user's own class can't be loaded or constructed.
    """
    return SELECTIONS.make(name)


def choose_tasks(
    selection: TaskSelection,
    offers: Mapping[str, Sequence[str]],
    round_: int,
    min_clients: Mapping[str, int],
    losses: Mapping[str, TaskLoss],
    seed: int,
) -> dict[str, str]:
    """A task for each client, such that quorums are met as far as they can be, and otherwise as the selection wants.

    Args:
        selection: what wants.
        offers: by client id, the tasks that can be chosen for it.
        round_: the round's number.
        min_clients: the quorum by task.
        losses: by task, of those that were measured by now.
        seed: the run's. Of several clients that could be moved to another task for a quorum's sake, it and the round
            draw who is.

    Returns:
        Task by client id, in the order of client ids.

    Raises:
        ConfigError: the selection, which may be a user's own, answers with something else than a client's task.
    """
    in_order = dict(sorted(offers.items()))
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
    random.Random(drawn).shuffle(order)  # it isn't always the same ones that are moved
    return quorums.meet(in_order, wanted, min_clients, order)


def _by_client(answer: object) -> Mapping[str, str]:
    """A selection's answer, as a mapping."""
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
