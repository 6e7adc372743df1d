"""A round as a value, and the functions of it."""

import copy
from dataclasses import replace

import pytest

from fedmtl_core.errors import StaleRoundError
from fedmtl_server.rounds import admission, completion, deadlines, opening, waiting
from fedmtl_server.rounds.membership import ClientCapabilities
from fedmtl_server.rounds.transitions import Phase, Step
from tests.server.rounds.driven import claim, engine, opened


def test_functions_of_a_view_leave_it_as_it_is():
    rounds = opened(on_missing_quorum="extend")
    rounds.count(claim("a"))
    for view in (rounds.view, replace(rounds.view, phase=Phase.WAITING), engine().view):
        before = copy.deepcopy(view)
        for function in (completion.has_enough, completion.awaited, completion.needed, completion.missing_quorum):
            function(view)
        for function in (deadlines.closes_at, deadlines.closing_step, deadlines.deadline):
            function(view)
        for function in (opening.lacking, opening.lacking_text, opening.opens_at, opening.choose_members):
            function(view)
        for function in (opening.may_open, deadlines.may_close, deadlines.next_wakeup, waiting.waiting_for):
            function(view, 50.0)
        with pytest.raises(StaleRoundError):
            admission.check(view, claim("stranger"))
        assert (view.clients, view.members, view.counted) == (before.clients, before.members, before.counted)


def test_a_view_shows_what_the_engine_was_told_without_copies():
    rounds = opened()
    view = rounds.view
    assert view.members is rounds.cohort
    rounds.count(claim("a"))
    assert view.members["a"].answer == claim("a")
    rounds.join("late", "sst2", 1.0)
    assert view.clients["late"] == ClientCapabilities(("sst2",), "sst2")


def test_the_step_of_a_round_that_closes_depends_on_nothing_but_its_view():
    view = opened(on_missing_quorum="extend", max_extensions=1).view
    assert deadlines.closing_step(view) is Step.EXTENDED
    assert deadlines.closing_step(replace(view, num_extensions=1)) is Step.ABANDONED
    assert deadlines.closing_step(replace(view, last_training_round=0)) is Step.CLOSED
    answered = {one.client_id: replace(one, answer=claim(one.client_id, one.task)) for one in view.members.values()}
    assert deadlines.closing_step(replace(view, members=answered)) is Step.CLOSED
    assert deadlines.closing_step(replace(view, members=answered, training_exchanges=view.exchanges * 2)) is (
        Step.NEXT_EXCHANGE
    )


def test_a_client_that_has_examples_of_one_task_prefers_it_and_one_of_several_leaves_the_choice_to_the_server():
    assert ClientCapabilities.of("sst2") == ClientCapabilities(("sst2",), "sst2")
    assert ClientCapabilities.of("", ("sst2", "qqp")).eligible_tasks == ("sst2", "qqp")
    assert ClientCapabilities.of("qqp", ("sst2", "qqp")).eligible_tasks == ("qqp",)
