"""Which tasks share what."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fedmtl_core.config.section import Section, require_identified, require_known_or_reference
from fedmtl_core.model.sharing import NAMED_PARTS, SharingRules


class AdaptiveConfig(Section):
    """Whether, and how, what tasks share changes while they train."""

    policy: str | None = Field(
        None,
        description="What says when layers change hands: `cosine`, how alike the tasks' updates are, or a "
        "class of your own as `module:Name`; never if not given",
    )
    split_below: float = Field(
        -0.2, ge=-1, le=1, description="For `cosine`: tasks part where the cosine of their updates is below this"
    )
    merge_above: float = Field(
        0.1, ge=-1, le=1, description="Likewise: and come together again where it is no longer below this"
    )
    patience: int = Field(3, ge=1, description="Likewise: after so many rounds in a row that say the same")
    smoothing: float = Field(
        0.5, ge=0, lt=1, description="Likewise: what the cosine of the rounds before counts for, 0 for nothing"
    )
    max_parameters: float = Field(
        2.0, ge=1, description="The most parameters of encoders that the server keeps, as a multiple of one encoder's"
    )
    layers: list[str] | None = Field(
        None, description="What may move, as in `sharing.layers`; if not given, all that isn't named there"
    )

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str | None) -> str | None:
        return None if policy is None else require_known_or_reference(policy, ["cosine"])

    @field_validator("layers", mode="before")
    @classmethod
    def _text(cls, layers: object) -> object:
        """YAML has a layer's number as a number."""
        return [str(one) for one in layers] if isinstance(layers, list) else layers

    @model_validator(mode="after")
    def _apart(self) -> AdaptiveConfig:
        if self.split_below >= self.merge_above:
            raise ValueError(
                f"`merge_above` has to be above `split_below`, or layers would move to and fro; got {self.merge_above} "
                f"and {self.split_below}"
            )
        return self


class SharingConfig(Section):
    """Which tasks share which part of the model. docs/sharing.md says what is worth what."""

    groups: dict[str, list[str]] = Field(
        {}, description="Groups of tasks by name: each a list of tasks and of other groups; a task or group is in one"
    )
    layers: dict[str, str] = Field(
        {},
        description=f"Who shares a part of the encoder, by a layer's number, a range such as `2-5`, or "
        f"{', '.join(f'`{part}`' for part in NAMED_PARTS)}: `shared`, all tasks; `group`, those of the same innermost "
        "group; a group's name, all within it; `task`, each for itself; `local`, each client. What isn't named, all do",
    )
    head: Literal["task", "local"] = Field(
        "task", description="Who shares a head: the clients of its `task`; with `local` each client keeps its own"
    )
    norms: str | None = Field(
        None, description="Who shares the encoder's normalisation layers, if not those who share what they are in"
    )
    adaptive: AdaptiveConfig = AdaptiveConfig()

    @field_validator("layers", mode="before")
    @classmethod
    def _text_keys(cls, layers: object) -> object:
        """YAML has a layer's number as a number."""
        return {str(key): level for key, level in layers.items()} if isinstance(layers, dict) else layers

    @field_validator("groups")
    @classmethod
    def _named_groups(cls, groups: dict[str, list[str]]) -> dict[str, list[str]]:
        for name in groups:
            require_identified(name, "a group's name")
        return groups

    def rules(self) -> SharingRules:
        """What the table of scopes is made by."""
        return SharingRules(self.groups, self.layers, self.head, self.norms)
