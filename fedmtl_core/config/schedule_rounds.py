"""The rounds of a schedule: their total number, and the learning rate and its schedule in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fedmtl_core.config.schedule import ScheduleEntry


def num_rounds_of(schedule: Sequence[ScheduleEntry], num_rounds: int, *, is_given: bool) -> int:
    """Return the number of training rounds in a run, and check the entries' numbers of rounds.

    Args:
        schedule: the entries, by ascending round.
        num_rounds: `training.num_rounds`.
        is_given: whether the user has set that number. If not, the last entry may determine the number of rounds.

    Raises:
        ValueError: two settings contradict each other, or the last entry is due after all rounds.
    """
    if not schedule:
        return num_rounds
    for number, (one, following) in enumerate(pairwise(schedule)):
        between = following.after_round - one.after_round
        if one.num_rounds not in (None, between):
            raise ValueError(
                f"schedule[{number}].num_rounds: expected {between}, since the next entry is due after round "
                f"{following.after_round}, got {one.num_rounds}; the number may be left out"
            )
    number, last = len(schedule) - 1, schedule[-1]
    if last.num_rounds is not None:
        total = last.after_round + last.num_rounds
        if is_given and num_rounds != total:
            raise ValueError(
                f"schedule[{number}].num_rounds: {last.num_rounds} rounds after round {last.after_round} make {total} "
                f"rounds, but `training.num_rounds` is {num_rounds}; leave out one of the two"
            )
        num_rounds = total
    if last.after_round >= num_rounds:
        raise ValueError(
            f"schedule[{number}].after_round: expected a round before the last one, which is round {num_rounds} "
            f"(`training.num_rounds`), got {last.after_round}"
        )
    return num_rounds


def learning_rate_in(schedule: Sequence[ScheduleEntry], round_: int, learning_rate: float) -> float:
    """Return the peak learning rate of a round.

    Args:
        schedule: the entries, by ascending round.
        round_: the round, counted from 1.
        learning_rate: the peak learning rate of the first round.
    """
    rates = [one.learning_rate for one in schedule if one.after_round < round_ and one.learning_rate is not None]
    return rates[-1] if rates else learning_rate


def rate_schedule_in(schedule: Sequence[ScheduleEntry], round_: int, num_rounds: int) -> tuple[int, int]:
    """Return the first round and the number of rounds of the learning-rate schedule that a round belongs to.

    Args:
        schedule: the entries, by ascending round.
        round_: the round, counted from 1.
        num_rounds: the number of training rounds in the run.
    """
    ends = [0, *(one.after_round for one in schedule if one.restart_schedule), num_rounds]
    before = max(end for end in ends[:-1] if end < round_)
    return before + 1, ends[ends.index(before) + 1] - before
