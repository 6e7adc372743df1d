"""The whole configuration: its sections, and the conditions that hold between sections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pydantic import Field, field_validator, model_validator

from fedmtl_core.config import stages
from fedmtl_core.config.adapter_limits import (
    PLAIN_AVERAGES,
    breaches_of_adapters,
    require_adapters,
    require_products,
    require_stackable,
)
from fedmtl_core.config.aggregation import AggregationConfig, RobustnessConfig, ServerOptimizerConfig
from fedmtl_core.config.clients import ClientConfig, LocalClient, WireConfig, require_one_partition
from fedmtl_core.config.rounds import EarlyStoppingConfig, RoundsConfig
from fedmtl_core.config.schedule_rounds import learning_rate_in, num_rounds_of, rate_schedule_in
from fedmtl_core.config.section import Section, not_text, require_identified
from fedmtl_core.config.server import LimitsConfig, SecurityConfig, ServerConfig, StoreConfig
from fedmtl_core.config.sharing import VALIDATED, SharingConfig
from fedmtl_core.config.stages import Breach, Property, StageRule, require_compatible
from fedmtl_core.config.tasks import AuxiliaryConfig, TaskConfig
from fedmtl_core.config.tracking import TracingConfig, TrackingConfig
from fedmtl_core.config.training import ModelConfig, TrainingConfig
from fedmtl_core.model.sharing import SharingRules, movable_parts, require_rules
from fedmtl_core.model.sharing_schedule import require_schedule, scheduled_parts
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.tasks.plan import TrainingPlan
from fedmtl_core.tasks.spec import HeadInit, TaskSpec

_FREE_TO_CHANGE = re.compile(
    r"server\.|store\.|security\.|limits\.|tracking\.|tracing\.|client\.|clients$|training\.device$"
    r"|tasks\.[^.]+\.data(\.|$)"
    r"|rounds\.(deadline_s|quorum_timeout_s|rejoin_grace_s|transfer_timeout_s|report_interval_s|max_extensions)$"
    r"|rounds\.await_clients_s$"
    r"|tasks\.[^.]+\.deadline_s$"
)
"""Settings that may change when a run is resumed, because they don't affect its results."""
_QUORUM = re.compile(r"tasks\.[^.]+\.min_clients$")
"""Settings that may change when a run is resumed, unless cohorts are drawn: a draw takes at least `min_clients`."""


class Config(Section):
    """A whole configuration file."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    rounds: RoundsConfig = RoundsConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    sharing: SharingConfig = SharingConfig()
    aggregation: AggregationConfig = AggregationConfig()
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    server: ServerConfig = ServerConfig()
    store: StoreConfig = StoreConfig()
    security: SecurityConfig = SecurityConfig()
    limits: LimitsConfig = LimitsConfig()
    tracking: TrackingConfig = TrackingConfig()
    tracing: TracingConfig = TracingConfig()
    client: ClientConfig = ClientConfig()
    wire: WireConfig = WireConfig()
    tasks: dict[str, TaskConfig] = Field(default_factory=dict, description="Tasks of the run by name.")
    clients: list[LocalClient] = Field(
        default_factory=list, description="Clients that `fedmtl-local` starts, with each client's own settings."
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_tasks(cls, tasks: object) -> object:
        if not isinstance(tasks, dict):
            return tasks
        for name in tasks:
            if not isinstance(name, str):
                raise not_text("a task's name must be text", name, name, is_key=True)
        return {name: {} if task is None else task for name, task in tasks.items()}

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: object) -> object:
        """Read a section without keys, such as `training:` alone, as a section of defaults."""
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for name in self.tasks:
            require_identified(name, "a task's name")
            if "." in name:
                raise ValueError(f"a task's name can't have a '.', got {name!r}")
        for client in self.clients:
            for task in client.task_names:
                if task not in self.tasks:
                    raise ValueError(f"client {client.client_id!r} has the task {task!r}, which isn't in `tasks`")
        for task in self.early_stopping.watch or ():
            if task not in self.tasks:
                raise ValueError(f"early_stopping.watch: {task!r} isn't in `tasks`")
            if task in self.auxiliary_tasks():
                raise ValueError(
                    f"early_stopping.watch: {task!r} is auxiliary, and auxiliary tasks don't count for early stopping"
                )
        self._require_task_weights()
        self._complete("sharing", self.sharing.with_policy_of_mode(len(self.tasks)))
        self._require_sharing()
        require_adapters(self.model.adapters, self.sharing)
        require_products(self.model.adapters, self.aggregation, self.robustness.norms, self.server_optimizer)
        require_stackable(self.model.adapters, self.sharing, self.aggregation)
        self._count_rounds()
        require_compatible(self._stages(), self._breaches())
        if self.rounds.mode == "async" and self.rounds.cohort != "all":
            raise ValueError(f"rounds.cohort: `mode: async` needs `cohort: all`, got {self.rounds.cohort!r}")
        ids = [client.client_id for client in self.clients]
        if len(set(ids)) != len(ids):
            raise ValueError(f"client ids must differ, got {', '.join(ids)}")
        for task in self.tasks:
            require_one_partition(task, [client for client in self.clients if task in client.task_names])
        return self

    def _require_task_weights(self) -> None:
        weights = self.aggregation.task_weights
        if weights is None:
            return
        for task in weights:
            if task not in self.tasks:
                raise ValueError(f"aggregation.task_weights: {task!r} isn't in `tasks`")
        for task in self.tasks:
            if task not in weights:
                raise ValueError(f"aggregation.task_weights: expected a weight for every task, got none for {task!r}")

    def _require_sharing(self) -> None:
        if self.model.head_init == "form" and self.sharing.head == "local":
            raise ValueError(
                "model.head_init: `form` is about heads that the server initializes; with `sharing.head: local` each "
                "client draws its own. Leave out one of the two"
            )
        if self.tasks or self.sharing != SharingConfig():
            try:
                require_rules(tuple(self.tasks), self.sharing.rules())
                require_schedule(tuple(self.tasks), self.sharing.rules(), self.sharing.changes())
                movable_parts(
                    self.sharing.rules(), self.sharing.adaptive.layers, scheduled_parts(self.sharing.changes())
                )
            except ValueError as error:
                raise ValueError(f"sharing.{error}") from None

    def _count_rounds(self) -> None:
        """Set `training.num_rounds` to the number of rounds that follows from the schedule, if it has one."""
        given = self.training.num_rounds
        try:
            total = num_rounds_of(self.sharing.schedule, given, is_given="num_rounds" in self.training.model_fields_set)
        except ValueError as error:
            raise ValueError(f"sharing.{error}") from None
        if total != given:
            self._complete("training", self.training.model_copy(update={"num_rounds": total}))

    def _complete(self, name: str, section: Section) -> None:
        """Replace a section during validation. Sections are immutable for their readers."""
        object.__setattr__(self, name, section)

    def _stages(self) -> Iterator[StageRule]:
        """The configured aggregation stages that have requirements."""
        if self.aggregation.normalization != "none":
            yield stages.NORMALIZATION
        if self.model.adapters is not None and self.model.adapters.aggregation not in PLAIN_AVERAGES:
            yield stages.ADAPTERS
        if self.aggregation.rule != "mean":
            yield stages.RULE
        if self.training.control_variates:
            yield stages.CONTROL_VARIATES
        if self.sharing.adaptive.policy is not None:
            yield self._policy_stage()
        if self.sharing.schedule:
            yield stages.SCHEDULE

    def _policy_stage(self) -> StageRule:
        """The stage that the policy of adaptive sharing enables."""
        if self.sharing.adaptive.policy != VALIDATED:
            return stages.SHARING
        return stages.AUTO if self.sharing.is_auto else stages.SOURCES

    def _breaches(self) -> Iterator[Breach]:
        """The settings that remove a property that some aggregation stages require."""
        aggregation, by_examples, together = self.aggregation, Property.EXAMPLE_WEIGHTS, Property.TASKS_TOGETHER
        validates = self.sharing.adaptive.policy == VALIDATED
        policy = None if validates else self.sharing.adaptive.policy
        for property_, key, got, needed, stage in (
            (Property.SGD_STEPS, "training.optimizer", self.training.optimizer, "sgd", None),
            (Property.SYNCHRONOUS, "rounds.mode", self.rounds.mode, "sync", None),
            (Property.MEAN, "aggregation.rule", aggregation.rule, "mean", stages.RULE),
            (by_examples, "aggregation.task_weighting", aggregation.task_weighting, "examples", stages.TASK_WEIGHTING),
            (by_examples, "aggregation.scaling", aggregation.scaling, 1.0, stages.SCALING),
            (together, "aggregation.task_weighting", aggregation.task_weighting, "examples", stages.TASK_WEIGHTING),
            (together, "aggregation.scaling", aggregation.scaling, 1.0, stages.SCALING),
            (together, "sharing.adaptive.policy", policy, None, stages.SHARING),
            (Property.WHOLE_STEPS, "training.head_epochs", self.training.head_epochs, 0, None),
            (Property.FIXED_SCOPES, "sharing.adaptive.policy", policy, None, stages.SHARING),
        ):
            if got != needed:
                yield Breach(property_, f"`{key}: {needed}`", repr(got), stage)
        yield from breaches_of_adapters(self.model.adapters)
        for name, task in self.tasks.items():
            if task.auxiliary is not None and task.auxiliary != AuxiliaryConfig():
                needs = f"`tasks.{name}.auxiliary` to have a weight and a decay of 1"
                yield Breach(by_examples, needs, stage=stages.AUXILIARY)
        if validates:
            needs = "another `sharing.adaptive.policy` than `validated`"
            needs = "`sharing: plain`" if self.sharing.is_auto else needs
            yield Breach(Property.OWN_UPDATES, needs, stage=stages.SOURCES)
        if self.sharing.schedule:
            yield Breach(Property.FIXED_SCOPES, "no `sharing.schedule`", stage=stages.SCHEDULE)
        if several := [client.client_id for client in self.clients if len(client.task_names) > 1]:
            yield Breach(Property.ONE_TASK_PER_CLIENT, "clients of one task each", f"several for {several[0]!r}")
        if self.robustness.norms.action == "clip":
            needs = "another `robustness.norms.action` than `clip`"
            yield Breach(Property.WHOLE_UPDATES, needs, stage=stages.NORMS)

    def task_specs(self) -> list[TaskSpec]:
        """The run's tasks, in the file's order."""
        return [task.spec(name) for name, task in self.tasks.items()]

    def adapters(self) -> AdapterSettings | None:
        """The adapters of the server's model, which have the largest rank of any client; None without adapters."""
        section = self.model.adapters
        return None if section is None else section.settings(self.training.seed, section.largest_rank)

    def sharing_rules(self) -> SharingRules:
        """The rules from which the table of scopes follows."""
        adapters = self.model.adapters
        return self.sharing.rules(factors_apart=adapters is not None and adapters.aggregation == "alternate")

    def head_init(self) -> HeadInit:
        """The tasks whose heads start with the same values."""
        is_default = self.sharing.adaptive.policy == VALIDATED and self.sharing.head == "task"
        return self.model.head_init or ("form" if is_default else "task")

    def auxiliary_tasks(self) -> frozenset[str]:
        """The tasks that count neither for quorums nor for early stopping."""
        return frozenset(name for name, task in self.tasks.items() if task.auxiliary is not None)

    def max_examples(self) -> dict[str, int]:
        """The largest number of examples that an update counts for, by task; tasks without a limit are absent."""
        return {name: task.max_examples for name, task in self.tasks.items() if task.max_examples is not None}

    def plan(self, task: str, round_: int = 1) -> TrainingPlan:
        """The training plan for clients of a task in a round, counted from 1, without ranks of single clients."""
        training, section, schedule = self.training, self.tasks[task], self.sharing.schedule
        spec = section.spec(task)
        restarts = any(entry.restart_schedule for entry in schedule)
        first, count = rate_schedule_in(schedule, round_, training.num_rounds) if restarts else (0, 0)
        return TrainingPlan(
            local_epochs=section.local_epochs or training.local_epochs,
            batch_size=training.per_device_train_batch_size,
            learning_rate=learning_rate_in(schedule, round_, training.learning_rate),
            weight_decay=training.weight_decay,
            warmup_ratio=training.warmup_ratio,
            max_grad_norm=training.max_grad_norm,
            max_length=training.max_length,
            seed=training.seed,
            client_model=self.model.client_model or self.model.server_model,
            num_hidden_layers=self.model.num_hidden_layers or 0,
            pooling=self.model.pooling,
            head_dropout=self.model.head_dropout,
            update="delta" if self.rounds.mode == "async" or training.control_variates else training.update,
            train_samples=section.train_samples or 0,
            val_samples=section.val_samples or 0,
            num_rounds=training.num_rounds,
            task_type=spec.kind,
            labels=spec.labels,
            proximal_mu=training.proximal_mu,
            optimizer=training.optimizer,
            head_epochs=training.head_epochs,
            group_by_length=training.train_sampling_strategy == "group_by_length",
            schedule_first_round=first,
            schedule_num_rounds=count,
            adapters=None if self.model.adapters is None else self.model.adapters.settings(training.seed),
        )


def contradictions(stored: Config, given: Config) -> list[str]:
    """Return why a run can't be resumed with another configuration: `key: the run has X, got Y` for each such key."""
    problems = []
    if stored.tasks.keys() != given.tasks.keys():
        problems.append(f"tasks: the run has {', '.join(stored.tasks)}, got {', '.join(given.tasks)}")
    mine, theirs = (dict(flattened(config.model_dump(mode="json"))) for config in (stored, given))
    if stored.sharing.adaptive.policy == given.sharing.adaptive.policy:
        del mine["sharing.mode"], theirs["sharing.mode"]  # the mode determines the policy and nothing else
    is_drawn = stored.rounds.cohort != "all"
    return problems + [
        f"{key}: the run has {mine.get(key)!r}, got {theirs.get(key)!r}"
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key) and not _FREE_TO_CHANGE.match(key) and (is_drawn or not _QUORUM.match(key))
    ]


def flattened(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested sections by dotted key. A list is one value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
