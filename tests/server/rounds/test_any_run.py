"""What holds in every run, whatever its rules and whatever happens."""

import contextlib
import copy
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_core.wire.updates import Update
from fedmtl_server.rounds.completion import missing_quorum
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.exchanges import PLAIN, TRAIN, Exchange, everybody
from fedmtl_server.rounds.transitions import Phase, Step
from fedmtl_server.rounds.waiting import waiting_for
from tests.server.rounds.driven import claim, delta, opened_async, round_rules

CLIENTS, HOURS = "abcd", 3 * 3600.0
TASKS = {"sst2": 100.0, "qqp": 40.0, "stsb": 250.0}
any_cohort = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"cohort": st.just("fraction"), "cohort_fraction": st.sampled_from([0.1, 0.5, 1.0])}),
    st.fixed_dictionaries(
        {"cohort": st.just("over_select"), "cohort_size": st.integers(1, 3), "cohort_extra": st.integers(0, 2)}
    ),
)
any_asynchronous = st.fixed_dictionaries(
    {"mode": st.just("async"), "buffer_size": st.integers(1, 5), "max_staleness": st.integers(0, 3)}
)
any_rules = st.builds(
    lambda cohort_or_mode, **rules: round_rules(**rules, **cohort_or_mode),
    st.one_of(any_cohort, any_asynchronous),
    num_rounds=st.integers(1, 4),
    min_clients=st.fixed_dictionaries({"sst2": st.integers(0, 2), "qqp": st.integers(0, 2)}),
    deadline_s=st.just(TASKS["sst2"]),
    task_deadline_s=st.sampled_from([{}, {task: TASKS[task] for task in ("qqp", "stsb")}]),
    quorum_timeout_s=st.sampled_from([30.0, 500.0]),
    rejoin_grace_s=st.sampled_from([0.0, 5.0]),
    transfer_timeout_s=st.just(10.0),
    on_missing_quorum=st.sampled_from(["commit", "extend", "fail"]),
    max_extensions=st.integers(1, 3),
    seed=st.integers(0, 3),
)
clients, tasks = st.sampled_from(CLIENTS), st.sampled_from(list(TASKS))


@settings(max_examples=200)
@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from([-1, -1, 0, 1, 2])), min_size=5, max_size=40
    ),
)
def test_no_update_counts_twice_in_an_asynchronous_run_however_late_it_comes_again(buffer_size, max_staleness, sent):
    """Each is a client's new update from a model some rounds old, or one of its earlier ones."""
    rounds = opened_async("ab", buffer_size, max_staleness=max_staleness, num_rounds=100)
    made: dict[str, list[Update]] = {"a": [], "b": []}
    counted = []
    for number, (client_id, age, again) in enumerate(sent):
        if again == -1 or not made[client_id]:
            made[client_id].append(delta(client_id, rounds.round - age, f"u{number}"))
        update = made[client_id][-1 - max(0, again) % len(made[client_id])]
        with contextlib.suppress(StaleRoundError):
            rounds.count(update)
            counted.append(update.update_id)
        if rounds.advance(1.0) is Step.CLOSED:
            rounds.committed(1.0)
            assert rounds.advance(1.0) is Step.OPENED
    assert len(set(counted)) == len(counted)


class AnyRun(RuleBasedStateMachine):
    """A run under any rules, with clients that come, go and repeat themselves, and a server that crashes."""

    exchanges = PLAIN

    @initialize(rules=any_rules)
    def begin(self, rules):
        assume(len(self.exchanges) == 1 or not rules.is_asynchronous)
        self.rules, self.now = rules, 50.0
        self.engine = RoundEngine(rules, self.now, exchanges=self.exchanges)
        self.sent: list[Update] = []
        self.counted: dict[str, tuple[Update, int]] = {}  # with its round
        self.acknowledged: list[Update] = []  # of the round in progress
        self.everybody_joins()
        self.advance()

    @rule(client_id=clients, task=tasks)
    def join(self, client_id, task):
        self.engine.join(client_id, task, self.now)

    @rule()
    def everybody_joins(self):
        for number, one in enumerate(CLIENTS):
            self.engine.join(one, list(TASKS)[number % 2], self.now)

    @rule(client_id=clients)
    def leave(self, client_id):
        self.engine.leave(client_id, self.now)

    @rule(client_id=clients)
    def progress(self, client_id):
        self.engine.progress(client_id, self.now)

    @rule(seconds=st.sampled_from([0.1, 4.0, 9.0, 30.0, 90.0, HOURS]))
    def wait(self, seconds):
        self.now += seconds

    @rule(client_id=clients, age=st.sampled_from([0, 0, 0, 1, 2, -1]), kind=st.sampled_from(["delta", "parameters"]))
    def count(self, client_id, age, kind):
        member = self.engine.cohort.get(client_id)
        task = member.task if member else self.engine.view.present.get(client_id, "sst2")
        if (exchange := self.engine.view.exchange) is not TRAIN:
            (kind,) = exchange.kinds
        self.sent.append(claim(client_id, task, self.engine.round - age, f"u{len(self.sent)}", kind))
        self._count(self.sent[-1])

    @rule(number=st.integers(1, len(CLIENTS)))
    def many_report(self, number):
        for client_id in CLIENTS[:number]:
            self.count(client_id, 0, "delta")

    @rule(times=st.integers(1, 6))
    def time_goes_by(self, times):
        for _ in range(times):
            self.now += self.engine.next_wakeup(self.now) or 0.0
            self.advance()
            if self.engine.phase is Phase.AGGREGATING:
                self.deal_with_it(stop=False)

    @precondition(lambda self: self.sent)
    @rule(number=st.integers(0, 9))
    def count_again(self, number):
        self._count(self.sent[-1 - number % len(self.sent)])

    def _count(self, update):
        try:
            self.engine.count(update)
        except (StaleRoundError, InvalidRequestError):
            return
        assert update.update_id not in self.counted, "an update counts twice"
        assert self.engine.phase is Phase.OPEN
        assert self.engine.counted_in(update) == self.engine.round
        self.counted[update.update_id] = update, self.engine.round
        self.acknowledged.append(update)

    @rule()
    def advance(self):
        before, present, round_ = self.engine.phase, dict(self.engine.view.present), self.engine.round
        answered = [one.client_id for one in self.engine.view.members.values() if one.reported]
        step = self.engine.advance(self.now)
        if step is Step.OPENED:
            assert before is Phase.WAITING
            cohort = {member.client_id: member.task for member in self.engine.cohort.values()}
            assert cohort.items() <= present.items()
            assert not self.acknowledged
            assert set(present) == set(cohort) or self.rules.rounds.cohort != "all"
        if step is Step.ABANDONED:
            assert not answered, "an update that counted is forgotten"
            self._forget_acknowledged()
        if step is Step.NEXT_EXCHANGE:
            assert before is self.engine.phase is Phase.OPEN
            assert list(self.engine.view.members) == answered
            assert len(self.exchanges) > 1
        if step in (Step.CLOSED, Step.FAILED):
            assert self.engine.phase is Phase.AGGREGATING
        if step is Step.FAILED:
            assert self.rules.rounds.on_missing_quorum == "fail"
            assert missing_quorum(self.engine.view)
            self._forget_acknowledged()
        assert self.engine.round == round_

    def _forget_acknowledged(self):
        for update in self.acknowledged:
            del self.counted[update.update_id]
        if self.engine.phase is not Phase.AGGREGATING:
            self.acknowledged = []

    @precondition(lambda self: self.engine.phase is Phase.AGGREGATING)
    @rule(stop=st.sampled_from([False, False, False, True]))
    def deal_with_it(self, stop):
        self.engine.committed(self.now)
        self.acknowledged = []
        if stop and self.engine.phase is Phase.WAITING:
            self.engine.stop_training()

    @precondition(lambda self: self.engine.phase is Phase.OPEN and self.engine.purpose == "train")
    @precondition(lambda self: len(self.exchanges) == 1)
    @rule()
    def crash(self):
        """What is on disk: the cohort as the round opened, what was acknowledged, each client's last update before."""
        engine = self.engine
        joined_later = {one.client_id for one in self.acknowledged} if engine.view.is_asynchronous else set()
        cohort = {one.client_id: one.task for one in engine.cohort.values() if one.client_id not in joined_later}
        before = [(one, round_) for one, round_ in self.counted.values() if one not in self.acknowledged]
        counted = {one.client_id: (one.update_id, round_) for one, round_ in before}
        rules = replace(self.rules, num_rounds=engine.view.last_training_round)
        self.engine = RoundEngine(rules, self.now, engine.round, counted)
        self.engine.reopen(cohort, self.acknowledged, self.now)

    @invariant()
    def what_is_acknowledged_is_kept(self):
        updates = [answer for member in self.engine.cohort.values() for answer in member.answers]
        if self.engine.phase in (Phase.OPEN, Phase.AGGREGATING):
            assert sorted(one.update_id for one in updates) == sorted(one.update_id for one in self.acknowledged)

    @invariant()
    def an_open_round_ends_by_itself(self):
        """With nobody doing anything more, woken when it asks to be, in the time that the rules allow."""
        if self.engine.phase is not Phase.OPEN:
            return
        engine, now = copy.deepcopy(self.engine), self.now
        extensions = self.rules.rounds.max_extensions if self.rules.rounds.on_missing_quorum == "extend" else 0
        longest = max(TASKS.values()) * (2 + extensions)
        latest = max(now, engine.view.exchange_opened_at + longest)
        for _ in range(100):
            if (step := engine.advance(now)) in (Step.CLOSED, Step.FAILED, Step.ABANDONED):
                break
            if step is Step.NEXT_EXCHANGE:
                latest = now + longest
            if step in (Step.EXTENDED, Step.NEXT_EXCHANGE):
                continue
            wakeup = engine.next_wakeup(now)
            assert wakeup is not None, "it waits for nothing"
            assert wakeup > 0
            assert copy.deepcopy(engine).advance(now + wakeup / 2) is None, "it sleeps over something"
            now += wakeup
        assert engine.phase is not Phase.OPEN
        assert now <= latest

    @invariant()
    def it_says_what_it_waits_for(self):
        waits = self.engine.phase is Phase.OPEN and copy.deepcopy(self.engine).advance(self.now) is None
        assert not waits or " updates: " in waiting_for(self.engine.view, self.now)


TestAnyRun = AnyRun.TestCase
TestAnyRun.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


class AnyRunOfTwoExchanges(AnyRun):
    """The same of rounds whose members first send something that only they understand."""

    exchanges = (Exchange("keys", frozenset({"key"}), "a public key", everybody), TRAIN)


TestAnyRunOfTwoExchanges = AnyRunOfTwoExchanges.TestCase
TestAnyRunOfTwoExchanges.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
