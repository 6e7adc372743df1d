"""The engine of a run's rounds: its caller reports events and times, and the engine decides the next step.

A round waits for its quorum, opens, runs through its exchanges and closes; `transitions` has the phases and steps,
`exchanges` the lists. The engine knows no network, no files and no clock: its caller passes the time in and executes
the decisions. The decisions are pure functions of a `RoundView`: `opening`, `admission`, `completion`,
`deadlines`, and `waiting` for the words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fedmtl_core.tasks.plan import Purpose
from fedmtl_server.rounds import admission, deadlines, opening
from fedmtl_server.rounds.arrivals import Arrivals
from fedmtl_server.rounds.exchanges import PLAIN, Answer, Exchange
from fedmtl_server.rounds.membership import (
    ClientCapabilities,
    Member,
    disconnected,
    in_next_exchange,
    rejoined,
    task_of_latecomer,
)
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.rounds.task_selection import TaskLoss
from fedmtl_server.rounds.transitions import Phase, Step, phase_after
from fedmtl_server.rounds.view import RoundView


class RoundEngine:
    """One run's rounds: `rules.num_rounds` of training, then one that evaluates the final model.

    Args:
        rules: the rules for opening and closing rounds.
        now: the time in seconds, like all times in this module.
        round_: the first round.
        counted: by client id, the id of the update that counted last in earlier rounds, and its round.
        exchanges: the exchanges of a round of training, in order.

    Raises:
        ValueError: asynchronous rounds of several exchanges.
    """

    def __init__(
        self,
        rules: RoundRules,
        now: float,
        round_: int = 1,
        counted: Mapping[str, tuple[str, int]] | None = None,
        exchanges: Sequence[Exchange] = PLAIN,
    ):
        if rules.is_asynchronous and len(exchanges) != 1:
            raise ValueError("an asynchronous round has one exchange: clients join it at any time")
        self._clients: dict[str, ClientCapabilities] = {}
        self._members: dict[str, Member] = {}
        """This mapping and `_clients` are part of the view, and the only objects changed in place."""
        self._view = RoundView(
            rules=rules,
            training_exchanges=tuple(exchanges),
            phase=Phase.WAITING,
            round=round_,
            last_training_round=rules.num_rounds,
            arrivals=Arrivals.begin(rules.expected, rules.rounds.await_clients_s or 0.0, now),
            clients=self._clients,
            members=self._members,
            counted=counted or {},
            waiting_since=now,
            opened_at=now,
            exchange_opened_at=now,
        )

    @property
    def view(self) -> RoundView:
        """The round at this moment, valid until the engine is next called."""
        return self._view

    @property
    def phase(self) -> Phase:
        return self._view.phase

    @property
    def round(self) -> int:
        """The round in progress, or the next one; counted from 1."""
        return self._view.round

    @property
    def purpose(self) -> Purpose:
        """The purpose of the round: training or evaluation."""
        return self._view.purpose

    @property
    def cohort(self) -> Mapping[str, Member]:
        """All members of the round in progress by client id, in the order in which updates are aggregated."""
        return self._view.cohort

    # Clients.

    def join(self, client_id: str, task: str, now: float, tasks: Sequence[str] = ()) -> None:
        """Note that a client has connected, or connected again.

        Args:
            client_id: the client.
            task: its only task, or the one that it prefers of several; empty if it leaves the choice to the server.
            now: the time.
            tasks: if it has examples of several tasks, all of them.
        """
        view, client = self._view, ClientCapabilities.of(task, tasks)
        # After a time without clients, all clients get the full wait to return.
        is_first = view.phase is Phase.WAITING and not opening.has_counting_client(view)
        self._view = replace(
            view,
            waiting_since=now if is_first else view.waiting_since,
            arrivals=view.arrivals.came(client_id, now),
            not_waited_for=view.not_waited_for.difference(client.tasks),
        )
        self._clients[client_id] = client
        if member := self._members.get(client_id):
            self._members[client_id] = rejoined(member, client, now, view.rules.rounds.rejoin_grace_s)
        elif view.phase is Phase.OPEN and view.is_asynchronous:
            its_task = task_of_latecomer(client_id, client, self._members, view.rules.min_clients)
            self._members[client_id] = Member(client_id, its_task)

    def leave(self, client_id: str, now: float) -> None:
        """Note that a client has disconnected."""
        self._clients.pop(client_id, None)
        if member := self._members.get(client_id):
            self._members[client_id] = disconnected(member, now, self._view.rules.rounds.rejoin_grace_s)

    # Answers.

    def progress(self, client_id: str, now: float) -> None:
        """Note that a member's upload has received bytes."""
        if member := self._members.get(client_id):
            self._members[client_id] = replace(member, last_progress=now)

    def counted_in(self, answer: Answer) -> int | None:
        """Return the round in which exactly this answer already counts; None if it doesn't."""
        return admission.counted_in(self._view, answer)

    def check(self, answer: Answer) -> None:
        """Check that an answer may count in the exchange in progress, or in an asynchronous run in the next round.

        Raises:
            StaleRoundError, InvalidRequestError: it may not count; see `admission.check`.
        """
        admission.check(self._view, answer)

    def count(self, answer: Answer) -> None:
        """Count an answer that is complete and valid.

        Raises:
            StaleRoundError, InvalidRequestError: as `check`, or no round is open.
        """
        admission.check(self._view, answer)
        admission.require_open(self._view, answer)
        member = self._members.get(answer.client_id) or Member(answer.client_id, answer.task)
        self._members[answer.client_id] = replace(member, task=answer.task, answer=answer)
        client = self._clients.get(answer.client_id)
        if client and answer.next_task:
            self._clients[answer.client_id] = replace(client, preferred_task=answer.next_task)

    # Decisions of the caller.

    def reopen(self, cohort: Mapping[str, str], answers: Iterable[Answer], now: float) -> None:
        """Resume a round that was open when an earlier server ended, in its first exchange.

        No client is connected yet. Each gets the longer of `quorum_timeout_s` and `rejoin_grace_s` to return.

        Args:
            cohort: task by client id, in the order of aggregation.
            answers: the answers that had counted.
            now: the time; the round's deadline restarts.

        Raises:
            IllegalStepError: a round is in progress, or the run is finished.
        """
        view, rounds = self._view, self._view.rules.rounds
        phase = phase_after(view.phase, Step.RESUMED)
        num_members = Counter(cohort.values())
        until = now + max(rounds.quorum_timeout_s, rounds.rejoin_grace_s)
        members = {client_id: Member(client_id, task, expected_until=until) for client_id, task in cohort.items()}
        for answer in answers:
            members[answer.client_id] = Member(answer.client_id, answer.task, answer, expected_until=until)
        missing = {task for task, minimum in view.rules.min_clients.items() if num_members[task] < minimum}
        resumed = replace(view, phase=phase, opened_at=now, not_waited_for=frozenset(missing))
        self._start_exchange(resumed, members, now)

    def stop_training(self) -> None:
        """Skip the remaining rounds of training: the next round evaluates the final model. Only between two rounds."""
        view = self._view
        self._view = replace(view, last_training_round=min(view.last_training_round, view.round - 1))

    def note_losses(self, losses: Mapping[str, TaskLoss]) -> None:
        """Note the tasks' losses, which a task selection may use.

        Args:
            losses: by task, for tasks measured so far.
        """
        self._view = replace(self._view, losses=losses)

    def finish(self) -> None:
        """End the run. Only between two rounds, or after the last.

        Raises:
            IllegalStepError: a round is in progress, or the run is finished.
        """
        self._view = replace(self._view, phase=phase_after(self._view.phase, Step.FINISHED))

    # Time.

    def next_wakeup(self, now: float) -> float | None:
        """Return the seconds until `advance` may have work without any other event; None for never."""
        return deadlines.next_wakeup(self._view, now)

    def advance(self, now: float) -> Step | None:
        """Take the next step, if its time has come."""
        if self._view.phase is Phase.WAITING and opening.may_open(self._view, now):
            return self._open(now)
        if self._view.phase is Phase.OPEN and deadlines.may_close(self._view, now):
            return self._close(now)
        return None

    def committed(self, now: float) -> None:
        """Note that the closed round is complete. The model now includes its result, if it has one.

        Raises:
            IllegalStepError: no round is closed.
        """
        view = replace(self._view, phase=phase_after(self._view.phase, Step.COMMITTED))
        if view.purpose == "evaluate":
            self._view = view
            self.finish()
            return
        counted = {
            client_id: (member.answers[-1].update_id, view.round)
            for client_id, member in view.cohort.items()
            if member.has_answered
        }
        following = replace(view, round=view.round + 1, num_abandoned=0, counted={**view.counted, **counted})
        self._wait(following, now)

    def _open(self, now: float) -> Step:
        view = self._view
        opened = replace(
            view,
            phase=phase_after(view.phase, Step.OPENED),
            opened_at=now,
            # After an unsuccessful wait for a task, rounds don't wait for it until one of its clients connects.
            not_waited_for=view.not_waited_for.union(opening.lacking(view)),
            opened_without=view.arrivals.missing(view.clients),
            arrivals=view.arrivals.ended(),
        )
        chosen = opening.choose_members(view)
        self._start_exchange(opened, {client_id: Member(client_id, task) for client_id, task in chosen.items()}, now)
        return Step.OPENED

    def _close(self, now: float) -> Step:
        view = self._view
        step = deadlines.closing_step(view)
        following = replace(view, phase=phase_after(view.phase, step))
        if step is Step.EXTENDED:
            self._view = replace(following, num_extensions=view.num_extensions + 1)
        elif step is Step.NEXT_EXCHANGE:
            self._start_next_exchange(following, now)
        elif step is Step.ABANDONED:
            self._wait(replace(following, num_abandoned=view.num_abandoned + 1), now)
        else:
            self._view = following
        return step

    def _start_next_exchange(self, view: RoundView, now: float) -> None:
        """Start the next exchange with the members that have answered in this one."""
        name = view.exchange.name
        stay = {one.client_id: in_next_exchange(one, name) for one in view.members.values() if one.reported}
        dropped = {**view.dropped, **{one.client_id: one for one in view.unreported}}
        self._start_exchange(replace(view, exchange_index=view.exchange_index + 1, dropped=dropped), stay, now)

    def _start_exchange(self, view: RoundView, members: dict[str, Member], now: float) -> None:
        self._members = members
        self._view = replace(view, members=members, exchange_opened_at=now, num_extensions=0)

    def _wait(self, view: RoundView, now: float) -> None:
        """Forget the members of the finished round, and wait for the quorum of the next."""
        self._members = {}
        self._view = replace(
            view, members=self._members, dropped={}, exchange_index=0, num_extensions=0, waiting_since=now
        )
