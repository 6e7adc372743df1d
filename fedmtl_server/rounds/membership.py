"""The connected clients, the members of a round's cohort, and the grace period of absent members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedmtl_server.rounds import quorums
from fedmtl_server.rounds.exchanges import Answer


@dataclass(frozen=True)
class ClientCapabilities:
    """The tasks that a connected client has examples of, and the task that it prefers."""

    tasks: tuple[str, ...]
    """At least one, in the client's own order."""
    preferred_task: str = ""
    """The client's choice for the next round; empty if it leaves the choice to the server."""

    @property
    def eligible_tasks(self) -> tuple[str, ...]:
        """The tasks that the client may be given in the next round."""
        return (self.preferred_task,) if self.preferred_task else self.tasks

    @classmethod
    def of(cls, task: str, tasks: Sequence[str] = ()) -> ClientCapabilities:
        """Return the capabilities in a `WatchRoundsRequest`: `task` is the client's only one, or the preferred one of
        `tasks`."""
        tasks = tuple(tasks) or (task,)
        return cls(tasks, task or (tasks[0] if len(tasks) == 1 else ""))


@dataclass(frozen=True)
class Member:
    """A client in a round's cohort."""

    client_id: str
    task: str
    answer: Answer | None = None
    """The member's answer in the exchange in progress; None until it has answered."""
    expected_until: float | None = None
    """The time until which the round waits for a disconnected member; None while it is connected."""
    last_progress: float | None = None
    """The time at which the member's upload last received bytes; None without an upload in this exchange."""
    earlier: Mapping[str, Answer] = field(default_factory=dict)
    """The member's answers in the round's earlier exchanges, by name of the exchange."""

    @property
    def reported(self) -> bool:
        """Whether the member has answered in the exchange in progress."""
        return self.answer is not None

    @property
    def has_answered(self) -> bool:
        """Whether the member has answered in the exchange in progress or an earlier one of the round."""
        return self.answer is not None or bool(self.earlier)

    @property
    def answers(self) -> Sequence[Answer]:
        """All answers of the member in the round, in order."""
        return [*self.earlier.values(), *([self.answer] if self.answer is not None else ())]


def rejoined(member: Member, capabilities: ClientCapabilities, now: float, grace_s: float) -> Member:
    """Return a member whose client has connected again.

    If the client no longer has the member's task, another process has taken over the client id. That process joins in
    the next round, and the member has only its grace period to return.
    """
    if member.task in capabilities.tasks:
        return replace(member, expected_until=None)
    return disconnected(member, now, grace_s)


def disconnected(member: Member, now: float, grace_s: float) -> Member:
    """Return a member whose client has disconnected. Its grace period starts when it first disconnected."""
    return member if member.expected_until is not None else replace(member, expected_until=now + grace_s)


def in_next_exchange(member: Member, exchange_name: str) -> Member:
    """Return a member that has answered in an exchange, as it starts the next exchange.

    Args:
        member: a member with an answer.
        exchange_name: the name of the exchange that it has answered in.
    """
    assert member.answer is not None
    return replace(member, answer=None, last_progress=None, earlier={**member.earlier, exchange_name: member.answer})


def current_task(member: Member | None, capabilities: ClientCapabilities) -> str:
    """Return the task of a connected client: its task in the round in progress, or its preference for the next round.

    Returns:
        The task; empty if the client has several tasks, and none of them at the moment.
    """
    if member is not None and member.task in capabilities.tasks:
        return member.task
    return capabilities.preferred_task


def task_of_latecomer(
    client_id: str, capabilities: ClientCapabilities, members: Mapping[str, Member], min_clients: Mapping[str, int]
) -> str:
    """Return the task of a client that joins an open asynchronous round: the one that lacks most clients."""
    others = {member.client_id: (member.task,) for member in members.values()}
    return quorums.spread({**others, client_id: capabilities.eligible_tasks}, min_clients)[client_id]
