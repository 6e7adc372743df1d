"""A round engine driven by hand, and the updates that it is told of."""

from dataclasses import fields

from fedmtl_core.config import RoundsConfig
from fedmtl_core.wire.updates import Update
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.rounds.transitions import Step


def round_rules(**values) -> RoundRules:
    """Rules of values that are either theirs or the configuration section's."""
    own = {name: values.pop(name) for name in {field.name for field in fields(RoundRules)} & values.keys()}
    return RoundRules(rounds=RoundsConfig(**values), **own)


def engine(num_rounds=2, now=0.0, **rules) -> RoundEngine:
    defaults = {
        "min_clients": {"sst2": 1, "qqp": 1},
        "deadline_s": 100.0,
        "quorum_timeout_s": 30.0,
        "rejoin_grace_s": 5.0,
        "transfer_timeout_s": 10.0,
    }
    return RoundEngine(round_rules(num_rounds=num_rounds, **(defaults | rules)), now)


def claim(client_id="a", task="sst2", round_=1, update_id="u1", kind="parameters") -> Update:
    return Update(client_id, task, round_, update_id, kind, num_examples=1)


def opened(**rules) -> RoundEngine:
    """Round 1, open since second 0 with the cohort a (sst2), b (qqp)."""
    return opened_with({"b": "qqp", "a": "sst2"}, **rules)


def opened_with(clients, **rules) -> RoundEngine:
    """Round 1, open since second 0, of these clients."""
    rounds = engine(**rules)
    for client_id, task in clients.items():
        rounds.join(client_id, task, 0.0)
    assert rounds.advance(0.0) is Step.OPENED
    return rounds


def opened_async(clients="abc", buffer_size=2, **rules) -> RoundEngine:
    """Round 1 of an asynchronous run, open since second 0; everybody's task is sst2."""
    defaults = {"num_rounds": 9, "min_clients": {"sst2": 1}, "mode": "async", "buffer_size": buffer_size}
    return opened_with(dict.fromkeys(clients, "sst2"), **(defaults | rules))


def delta(client_id="a", round_=1, update_id="u1", task="sst2") -> Update:
    return claim(client_id, task, round_, update_id, "delta")


def over_selected(size=2, extra=1, **rules) -> RoundEngine:
    """Round 1 with the cohort a, b, c, of which two updates are enough."""
    defaults = {"min_clients": {"sst2": 1}, "cohort": "over_select", "cohort_size": size, "cohort_extra": extra}
    return opened_with(dict.fromkeys("abc", "sst2"), **(defaults | rules))


def commit(rounds, now=1.0) -> None:
    """Close the open round, and open the next."""
    assert rounds.advance(now) is Step.CLOSED
    rounds.committed(now)
    assert rounds.advance(now) is Step.OPENED


def finish_round(rounds: RoundEngine, round_: int, kind: str = "parameters") -> None:
    """Have a and b report in the open round, and end it."""
    rounds.count(claim("a", "sst2", round_, f"a{round_}", kind))
    rounds.count(claim("b", "qqp", round_, f"b{round_}", kind))
    assert rounds.advance(1.0) is Step.CLOSED
    rounds.committed(1.0)
