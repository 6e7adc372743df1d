"""The schedule of a run: its entries change the sharing and the learning rate after given rounds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from fedmtl_core.config.section import SERVER_AND_LAUNCHER, UINT32, Section
from fedmtl_core.model.sharing_schedule import SharingChange


class ScheduleEntry(Section):
    """One change of the sharing after a round, with the training of the rounds that follow."""

    read_by = ("server",)

    after_round: int = Field(
        ge=1, le=UINT32, description="Round whose commit includes the entry's change of the sharing."
    )
    layers: dict[str, str] = Field(
        min_length=1,
        description="Parts of the encoder whose sharing changes, with the keys and values of `sharing.layers`, except "
        "`local`.",
    )
    restart_schedule: bool = Field(
        False,
        description="Whether a new learning-rate schedule, with warm-up and decay to 0, begins after "
        "`sharing.schedule[].after_round`. The schedule before it then ends with that round.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of the clients' optimizer after `sharing.schedule[].after_round`, above 0. If "
        "not given, the rate of the rounds before stays.",
    )
    num_rounds: Annotated[int | None, SERVER_AND_LAUNCHER] = Field(
        None,
        ge=1,
        le=UINT32,
        description="Number of training rounds from `sharing.schedule[].after_round` to the next entry, or to the end "
        "of the run. In the last entry, it determines `training.num_rounds`. If not given, `training.num_rounds` and "
        "the next entry determine it.",
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _text_keys(cls, layers: object) -> object:
        return text_keys(layers)

    def change(self) -> SharingChange:
        """The change of the sharing."""
        return SharingChange(self.after_round, self.layers)


def text_keys(layers: object) -> object:
    """Return a mapping with layer numbers, which YAML reads as integers, as text."""
    return {str(key): level for key, level in layers.items()} if isinstance(layers, dict) else layers


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
