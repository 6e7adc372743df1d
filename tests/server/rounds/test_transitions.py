"""The phases of a round and the steps between them."""

import itertools

import pytest

from fedmtl_server.rounds.transitions import TRANSITIONS, IllegalStepError, Phase, Step, phase_after
from tests.server.rounds.driven import engine, opened


def test_every_phase_has_its_row_and_every_step_leads_somewhere():
    assert TRANSITIONS.keys() == set(Phase)
    assert {step for row in TRANSITIONS.values() for step in row} == set(Step)


@pytest.mark.parametrize(("phase", "step"), list(itertools.product(Phase, Step)))
def test_a_step_that_the_table_does_not_have_is_an_error_with_both_names(phase, step):
    if step in TRANSITIONS[phase]:
        assert phase_after(phase, step) is TRANSITIONS[phase][step]
        return
    with pytest.raises(IllegalStepError, match=f"that is {phase.value} can't be {step.value}$") as error:
        phase_after(phase, step)
    assert (error.value.phase, error.value.step) == (phase, step)


def test_every_phase_can_be_reached_and_every_run_can_end():
    reached = {Phase.WAITING}
    for _ in Phase:
        reached |= {after for phase in reached for after in TRANSITIONS[phase].values()}
    assert reached == set(Phase)
    assert [phase for phase, row in TRANSITIONS.items() if not row] == [Phase.FINISHED]


def test_an_open_round_can_be_neither_committed_nor_finished_nor_resumed():
    rounds = opened()
    for step in (lambda: rounds.committed(1.0), rounds.finish, lambda: rounds.reopen({}, [], 1.0)):
        with pytest.raises(IllegalStepError, match="a round that is open can't be"):
            step()
        assert rounds.phase is Phase.OPEN


def test_a_run_that_is_finished_takes_no_step_any_more():
    rounds = engine()
    rounds.finish()
    for client_id, task in {"a": "sst2", "b": "qqp"}.items():
        rounds.join(client_id, task, 0.0)
    assert rounds.phase is Phase.FINISHED
    assert rounds.advance(1e6) is None
    with pytest.raises(IllegalStepError, match="a round that is finished can't be finished"):
        rounds.finish()
