"""The clients that are connected, the members of a round's cohort, and the time that an absent member is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedmtl_server.rounds import quorums
from fedmtl_server.rounds.exchanges import Answer


@dataclass(frozen=True)
class ClientCapabilities:
    """The tasks that a connected client has examples of, and the task that it prefers."""

    tasks: tuple[str, ...]
    """In its own order; at least one."""
    preferred_task: str = ""
    """The task that it has chosen for the next round; empty if it leaves the choice to the server."""

    @property
    def eligible_tasks(self) -> tuple[str, ...]:
        """The tasks that it may be given in the next round."""
        return (self.preferred_task,) if self.preferred_task else self.tasks

    @classmethod
    def of(cls, task: str, tasks: Sequence[str] = ()) -> ClientCapabilities:
        """What `WatchRoundsRequest` says: `task` is the client's only one, or the one it prefers among `tasks`."""
        tasks = tuple(tasks) or (task,)
        return cls(tasks, task or (tasks[0] if len(tasks) == 1 else ""))


@dataclass(frozen=True)
class Member:
    """A client in a round's cohort."""

    client_id: str
    task: str
    answer: Answer | None = None
    """Its answer in the exchange in progress; None until it has answered."""
    expected_until: float | None = None
    """While it is disconnected: the time until which it is waited for; None while it is connected."""
    last_progress: float | None = None
    """The time at which its running upload last received bytes; None without an upload in this exchange."""
    earlier: Mapping[str, Answer] = field(default_factory=dict)
    """By name of the exchange, its answers in the round's earlier exchanges."""

    @property
    def reported(self) -> bool:
        """Whether it has answered in the exchange in progress."""
        return self.answer is not None

    @property
    def has_answered(self) -> bool:
        """Whether it has answered in the exchange in progress or an earlier one of the round."""
        return self.answer is not None or bool(self.earlier)

    @property
    def answers(self) -> Sequence[Answer]:
        """All its answers in the round, in order."""
        return [*self.earlier.values(), *([self.answer] if self.answer is not None else ())]


def rejoined(member: Member, capabilities: ClientCapabilities, now: float, grace_s: float) -> Member:
    """A member whose client has connected again.

    If it no longer has the member's task, another process has taken over the client id: its turn is the next round, and
    the member is given no more than its grace to return.
    """
    if member.task in capabilities.tasks:
        return replace(member, expected_until=None)
    return disconnected(member, now, grace_s)


def disconnected(member: Member, now: float, grace_s: float) -> Member:
    """A member whose client is gone. Its grace begins when it first went."""
    return member if member.expected_until is not None else replace(member, expected_until=now + grace_s)


def in_next_exchange(member: Member, exchange_name: str) -> Member:
    """A member that has answered in an exchange, at the beginning of the exchange after it.

    Args:
        member: with an answer.
        exchange_name: of the exchange that it has answered in.
    """
    assert member.answer is not None
    return replace(member, answer=None, last_progress=None, earlier={**member.earlier, exchange_name: member.answer})


def current_task(member: Member | None, capabilities: ClientCapabilities) -> str:
    """The task of a connected client: its task in the round in progress, or the one that it prefers for the next.

    Returns:
        Empty if it has several tasks, and none of them now.
    """
    if member is not None and member.task in capabilities.tasks:
        return member.task
    return capabilities.preferred_task


def task_of_latecomer(
    client_id: str, capabilities: ClientCapabilities, members: Mapping[str, Member], min_clients: Mapping[str, int]
) -> str:
    """The task of a client that joins an open asynchronous round: the one that lacks most clients."""
    others = {member.client_id: (member.task,) for member in members.values()}
    return quorums.spread({**others, client_id: capabilities.eligible_tasks}, min_clients)[client_id]
