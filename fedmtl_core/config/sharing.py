"""Sharing settings: the parts of the model that tasks share, and changes of the sharing during a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fedmtl_core.config.adapters import FactorSharing
from fedmtl_core.config.schedule import ScheduleEntry, text_keys
from fedmtl_core.config.section import Section, require_identified, require_known_or_reference
from fedmtl_core.model.sharing import NAMED_PARTS, SharingRules, parts_in
from fedmtl_core.model.sharing_schedule import SharingChange
from fedmtl_core.tasks.adapters import Factor

VALIDATED = "validated"
"""The policy that selects source tasks by clients' paired losses; also the policy of `sharing: auto`."""
POLICIES = ("cosine", VALIDATED)
"""The built-in policies of adaptive sharing."""


class AdaptiveConfig(Section):
    """Changes of the sharing during a run."""

    read_by = ("server",)

    policy: str | None = Field(
        None,
        description="Policy that changes the sharing during the run: `validated` (each task has its own encoder, and "
        "takes other tasks' updates if its clients' evaluations improve), `cosine` (regroups layers by the similarity "
        "of the tasks' updates), or your own class as `module:Name`. If not given, no policy changes the sharing.",
    )
    options: dict[str, object] | None = Field(
        None,
        description="Options of the class that `sharing.adaptive.policy` names, which reads them as "
        "`settings.options`. If not given, the class gets none.",
    )
    split_below: float = Field(
        -0.2,
        ge=-1,
        le=1,
        description="Cosine of two tasks' updates, from -1 to 1, below which `policy: cosine` separates the tasks in a "
        "layer.",
    )
    merge_above: float = Field(
        0.1,
        ge=-1,
        le=1,
        description="Cosine of tasks' updates, from -1 to 1, from which on `policy: cosine` merges a layer of "
        "separate tasks; must be above `split_below`.",
    )
    patience: int = Field(
        3,
        ge=1,
        description="Number of consecutive rounds with the same decision before `policy: cosine` regroups a layer.",
    )
    smoothing: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Weight of the previous rounds' cosines in the moving average of `policy: cosine`, from 0 (the "
        "last round only) to below 1.",
    )
    max_parameters: float = Field(
        2.0,
        ge=1,
        description="Largest number of encoder parameters that the server keeps with a policy that regroups layers, as "
        "a multiple of one encoder's parameters.",
    )
    trials: int = Field(
        2,
        ge=1,
        le=16,
        description="Largest number of candidates that each client of `policy: validated` compares with its task's "
        "model in a round. A control comes in addition.",
    )
    error_rate: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Probability that `policy: validated` accepts any variant of the run that is no better than its "
        "task's model, divided among all trials (Bonferroni's correction).",
    )
    min_gain: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Smallest reduction of the calibrated loss, as a share of it, for which `policy: validated` "
        "accepts a variant.",
    )
    layers: list[str] | None = Field(
        None,
        description="Parts of the encoder that a policy may regroup, or that each task owns with `policy: validated`, "
        "named as in `sharing.layers`. If not given, all parts that `sharing.layers` doesn't name.",
    )

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str | None) -> str | None:
        return None if policy is None else require_known_or_reference(policy, POLICIES)

    @field_validator("layers", mode="before")
    @classmethod
    def _text(cls, layers: object) -> object:
        """Convert layer numbers, which YAML reads as integers, to text."""
        return [str(one) for one in layers] if isinstance(layers, list) else layers

    @model_validator(mode="after")
    def _options_have_a_policy(self) -> AdaptiveConfig:
        if self.options is not None and (self.policy is None or self.policy in POLICIES):
            got = "no `policy`" if self.policy is None else f"`policy: {self.policy}`"
            raise ValueError(f"`options` are for a class of your own in `policy`, got {got}")
        return self

    @model_validator(mode="after")
    def _apart(self) -> AdaptiveConfig:
        if self.split_below >= self.merge_above:
            raise ValueError(
                "`merge_above` must be above `split_below`, or layers would move back and forth; got "
                f"{self.merge_above} and {self.split_below}"
            )
        return self


class SharingConfig(Section):
    """Tasks that share each part of the model. docs/sharing.md compares the choices.

    A configuration may give the section as one word: `sharing: auto` stands for `sharing: {mode: auto}`.
    """

    read_by = ("server",)

    mode: Literal["plain", "auto"] = Field(
        "plain",
        description="Main choice of the sharing. With `plain`, all tasks share one encoder, and each task has its own "
        "head. With `auto`, each task has its own encoder and takes other tasks' updates where clients' evaluations "
        "show a gain (`sharing.adaptive.policy: validated`, unless another policy is given). The short form of "
        "`sharing: {mode: auto}` is `sharing: auto`. In a run with one task, both modes are the same.",
    )
    groups: dict[str, list[str]] = Field(
        {},
        description="Groups of tasks by name, each a list of tasks and other groups. A task or a group belongs to at "
        "most one group.",
    )
    layers: dict[str, str] = Field(
        {},
        description="Sharing of parts of the encoder, by a layer's number, a range such as `2-5`, or "
        f"{', '.join(f'`{part}`' for part in NAMED_PARTS)}. Values: `shared` (all tasks), `group` (tasks of the same "
        "innermost group), a group's name (all tasks in that group), `task` (each task alone) or `local` (each client "
        "alone). All tasks share the parts that aren't named, unless each task owns them by `sharing.adaptive.policy: "
        "validated`.",
    )
    head: Literal["task", "local"] = Field(
        "task",
        description="Sharing of a head: with `task` all clients of the task share the head; with `local` each client "
        "keeps its own.",
    )
    norms: str | None = Field(
        None,
        description="Sharing of the encoder's normalization layers, with the values of `sharing.layers`. If not given, "
        "a normalization layer is shared like the part that contains it.",
    )
    adapters: FactorSharing = FactorSharing()
    schedule: list[ScheduleEntry] = Field(
        default_factory=list, description="Changes of the sharing after given rounds, in ascending order."
    )
    adaptive: AdaptiveConfig = AdaptiveConfig()

    @model_validator(mode="before")
    @classmethod
    def _word(cls, values: object) -> object:
        is_known = values in ("auto", "plain") if isinstance(values, str) else isinstance(values, (dict, SharingConfig))
        if not is_known:
            raise ValueError("expected `auto`, `plain`, or keys such as `layers`")
        return sharing_keys(values)

    @field_validator("layers", mode="before")
    @classmethod
    def _text_keys(cls, layers: object) -> object:
        return text_keys(layers)

    @field_validator("groups")
    @classmethod
    def _named_groups(cls, groups: dict[str, list[str]]) -> dict[str, list[str]]:
        for name in groups:
            require_identified(name, "a group's name")
        return groups

    @property
    def is_auto(self) -> bool:
        """Whether the mode determines the policy."""
        return self.mode == "auto" and self.adaptive.policy == VALIDATED

    def with_policy_of_mode(self, num_tasks: int) -> SharingConfig:
        """Return the section with the policy of its mode, unless it names a policy.

        Args:
            num_tasks: the number of the run's tasks. A single task can share with no other and gets no policy.
        """
        if self.mode == "plain" or num_tasks < 2 or self.adaptive.policy is not None:
            return self
        return self.model_copy(update={"adaptive": self.adaptive.model_copy(update={"policy": VALIDATED})})

    def rules(self, *, factors_apart: bool = False) -> SharingRules:
        """The rules from which the table of scopes follows.

        Args:
            factors_apart: whether each factor of the adapters has components of its own.
        """
        own: tuple[str, ...] | None = ()
        if self.adaptive.policy == VALIDATED:
            layers = self.adaptive.layers
            own = None if layers is None else tuple(part for key in layers for part in parts_in(key))
        levels: dict[Factor, str | None] = {"a": self.adapters.a, "b": self.adapters.b}
        factors = {factor: level for factor, level in levels.items() if level is not None}
        return SharingRules(self.groups, self.layers, self.head, self.norms, own, factors, factors_apart)

    def changes(self) -> list[SharingChange]:
        """The changes of the sharing that the schedule plans."""
        return [entry.change() for entry in self.schedule]


def sharing_keys(section: object) -> object:
    """Return the keys of a section `sharing` that may be a word; a mapping is returned unchanged."""
    return {"mode": section} if isinstance(section, str) else section
