"""The parts of the server's model and their sharing among tasks: names, shapes and counts, without values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedmtl_core.errors import ConfigError
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.model.scopes import MERGED, SHARED, is_shared, scope_of, task_scope
from fedmtl_core.model.sharing import ModelShape, Partition, SharingRules, SharingTable, make_table, parts_in
from fedmtl_core.model.sharing_schedule import SharingSchedule, scheduled_parts
from fedmtl_core.wire.layout import Layout


@dataclass(frozen=True)
class ModelSummary:
    """The parameter counts of the server's model."""

    base_model: str
    shared_parameters: int
    """The number of parameters that all tasks share."""
    head_parameters: Mapping[str, int]
    """The number of parameters of each head, by task in the run's order; 0 if clients keep the head for themselves."""
    scope_parameters: Mapping[str, int] = field(default_factory=dict)
    """The number of parameters of each scope, encoder and heads."""

    frozen_parameters: int = 0
    """The number of the encoder's parameters that no round changes; the other numbers don't count them."""

    @property
    def total_parameters(self) -> int:
        """The number of parameters that the run trains."""
        return sum(self.scope_parameters.values())


@dataclass(frozen=True)
class ModelParts:
    """The parameters of a multi-task model, the model part of each parameter, and the tasks that share it.

    The object is immutable. When layers are regrouped or a task is added, the model gets a new one.
    """

    shape: ModelShape
    """The parameters' names by their place in the model."""
    tensors: Mapping[str, Tensor]
    """A tensor for each parameter name, with the parameter's shape and dtype; the values have no meaning."""
    rules: SharingRules
    """The sharing rules of the configuration."""
    table: SharingTable
    """The assignment of each task's parameters to scopes."""
    merged: Sequence[Layout] = ()
    """The layout of the weights that no client trains, but that rounds change; see the scope `merged`."""

    @classmethod
    def of(cls, model: MultiTaskModel, rules: SharingRules) -> ModelParts:
        """Return the parts of a model whose tasks share parameters by these rules.

        Raises:
            ConfigError: the rules name a part that the encoder does not have, or leave a task nothing to send.
        """
        shape = model.shape()
        base = model.base()
        merged = [Layout.of(MERGED, base[MERGED])] if MERGED in base else []
        return cls(shape, model.exchanged(), rules, make_table(model.tasks, shape, rules), merged)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The model's tasks, in the run's order."""
        return tuple(self.table.tasks)

    @property
    def encoder(self) -> dict[str, tuple[str, ...]]:
        """The encoder's parameters by encoder part: a layer's number or one of `NAMED_PARTS`."""
        parts: dict[str, list[str]] = {}
        for name, part in self.shape.parts.items():
            parts.setdefault(part, []).append(name)
        return {part: tuple(names) for part, names in parts.items()}

    # Sharing.

    def regroupable(self) -> dict[str, tuple[str, ...]]:
        """Return, by encoder part, the parameters that a regrouping of the part moves.

        These are all of its parameters, except norms and factors with a level of their own (`sharing.norms`,
        `sharing.adapters`).
        """
        fixed = set(self.shape.norms) if self.rules.norms is not None else set()
        fixed |= {name for name, factor in self.shape.factors.items() if factor in self.rules.factors}
        return {part: tuple(name for name in names if name not in fixed) for part, names in self.encoder.items()}

    def movable(self, layers: Collection[str] | None, scheduled: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
        """Return the parts that adaptive sharing may regroup, with the parameters of each part.

        Args:
            layers: the parts; None for all parts that `sharing.layers` does not name.
            scheduled: parts that only the schedule of the sharing regroups.

        Raises:
            ConfigError: the encoder does not have one of the parts.
        """
        parts = self.regroupable()
        if missing := [part for part in layers or () if part not in parts]:
            raise ConfigError(f"sharing.adaptive.layers: the encoder has no {missing[0]}; it has {', '.join(parts)}")
        named = {part for key in self.rules.layers for part in parts_in(key)}.union(scheduled)
        chosen = [part for part in parts if part not in named] if layers is None else layers
        return {part: parts[part] for part in chosen if parts[part]}

    def moved(self, moved: Mapping[str, Partition]) -> ModelParts:
        """Return a copy in which some parts are shared differently from the configuration.

        Args:
            moved: the blocks of tasks that share each regrouped encoder part. Other parts are shared as configured.
        """
        return self.shared_by(make_table(self.tasks, self.shape, self.rules, moved))

    def planned(self, schedule: SharingSchedule) -> dict[int, ModelParts]:
        """Return a copy for each entry of a schedule, by the round after which the entry changes the sharing.

        Raises:
            ConfigError: an entry names a part that has only norms, which `sharing.norms` fixes.
        """
        fixed = {part for part, names in self.regroupable().items() if not names}
        if named := fixed & scheduled_parts(schedule.changes):
            raise ConfigError(
                f"sharing.schedule: {min(named)} has only normalization layers, whose sharing `sharing.norms` fixes; "
                "leave out one of the two"
            )
        return {
            change.after_round: self.moved(
                {part: one.blocks for part, one in schedule.after(change.after_round).items()}
            )
            for change in schedule.changes
        }

    def shared_by(self, table: SharingTable) -> ModelParts:
        """Return a copy with another sharing table."""
        return replace(self, table=table)

    def blocks(self, name: str) -> Partition:
        """Return the blocks of tasks that share an encoder parameter; each task is in exactly one block."""
        scopes = {task: self.table.by_task[task][name] for task in self.tasks}
        return tuple(
            tuple(task for task in self.tasks if scopes[task] == scope) for scope in dict.fromkeys(scopes.values())
        )

    def layouts(self) -> list[Layout]:
        """Return the layout of each component of slices, in the order of the table's scopes."""
        return [
            Layout.of(scope, {name: self.tensors[name] for name in self.table.tensors(scope)})
            for scope in self.table.scopes
        ]

    def checkpoint_layouts(self) -> list[Layout]:
        """Return the layout of each component in the model's file of a checkpoint, in their order."""
        return [*self.layouts(), *self.merged]

    def num_bytes(self) -> int:
        """Return the number of bytes of all components."""
        return sum(layout.num_bytes for layout in self.layouts())

    # Parameter counts.

    def num_elements(self, names: Iterable[str]) -> int:
        """Return the number of elements of some parameters in one task's model."""
        return sum(self.tensors[name].numel() for name in names)

    def encoder_elements(self) -> int:
        """Return the number of elements of one encoder."""
        return self.num_elements(self.shape.parts)

    def kept_encoder_elements(self) -> int:
        """Return the number of encoder elements that the server keeps in all scopes."""
        kept = (name for scope in self.table.scopes for name in self.table.tensors(scope))
        return self.num_elements(name for name in kept if name in self.shape.parts)

    def summary(self, base_model: str) -> ModelSummary:
        """Return the number of parameters that all tasks share, of each head, and of each scope.

        Args:
            base_model: the source of the encoder, for display.
        """
        names = {scope: self.table.tensors(scope) for scope in self.table.scopes}
        heads = {
            task: [name for name in names.get(task_scope(task), ()) if scope_of(name) != SHARED] for task in self.tasks
        }
        by_scope = {scope: self.num_elements(mine) for scope, mine in names.items()}
        return ModelSummary(
            base_model=base_model,
            shared_parameters=sum(size for scope, size in by_scope.items() if is_shared(scope)),
            head_parameters={task: self.num_elements(mine) for task, mine in heads.items()},
            scope_parameters=by_scope,
        )
