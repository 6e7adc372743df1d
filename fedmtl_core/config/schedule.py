"""The entries of a run's schedule, which change the sharing and the learning rate after given rounds."""

from __future__ import annotations

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
