"""What the server's model is made of, and which tasks share what: names, shapes and counts, without values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedmtl_core.errors import ConfigError
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.model.scopes import SHARED, scope_of, task_scope
from fedmtl_core.model.sharing import ModelShape, Partition, SharingRules, SharingTable, make_table, parts_in
from fedmtl_core.wire.layout import Layout


@dataclass(frozen=True)
class ModelSummary:
    """True parameter counts of what the server keeps."""

    base_model: str
    shared_parameters: int
    """That all tasks share."""
    head_parameters: Mapping[str, int]
    """By task, in the run's order; 0 where clients keep it for themselves."""
    scope_parameters: Mapping[str, int] = field(default_factory=dict)
    """By scope, encoder and heads."""

    @property
    def total_parameters(self) -> int:
        return sum(self.scope_parameters.values())


@dataclass(frozen=True)
class ModelParts:
    """The parameters of a multi-task model, the part of it that each is in, and the tasks that share it.

    It does not change: when layers move, or a task is added, the model gets another.
    """

    shape: ModelShape
    """The parameters' names, by where in the model they are."""
    tensors: Mapping[str, Tensor]
    """By name, a tensor of the parameter's shape and dtype, whose values mean nothing."""
    rules: SharingRules
    """The configuration's."""
    table: SharingTable
    """Which scope each task's parameters are in."""

    @classmethod
    def of(cls, model: MultiTaskModel, rules: SharingRules) -> ModelParts:
        """The parts of a model whose tasks share what the rules say.

        Raises:
            ConfigError: the rules name what the encoder hasn't, or leave a task nothing to send.
        """
        shape = model.shape()
        return cls(shape, model.exchanged(), rules, make_table(model.tasks, shape, rules))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The model's tasks, in the run's order."""
        return tuple(self.table.tasks)

    @property
    def encoder(self) -> dict[str, tuple[str, ...]]:
        """The encoder's parameters by the part that they are in: a layer's number or one of `NAMED_PARTS`."""
        parts: dict[str, list[str]] = {}
        for name, part in self.shape.parts.items():
            parts.setdefault(part, []).append(name)
        return {part: tuple(names) for part, names in parts.items()}

    # Who shares what.

    def movable(self, layers: Collection[str] | None) -> dict[str, tuple[str, ...]]:
        """By part that may move to other scopes, the parameters that move with it.

        Args:
            layers: the parts; None for all that the configuration leaves to what all share.

        Raises:
            ConfigError: the encoder hasn't got one of them.
        """
        norms = self.shape.norms if self.rules.norms is not None else ()
        parts = {part: tuple(name for name in names if name not in norms) for part, names in self.encoder.items()}
        if missing := [part for part in layers or () if part not in parts]:
            raise ConfigError(f"sharing.adaptive.layers: the encoder has no {missing[0]}; it has {', '.join(parts)}")
        named = {part for key in self.rules.layers for part in parts_in(key)}
        chosen = [part for part in parts if part not in named] if layers is None else layers
        return {part: parts[part] for part in chosen if parts[part]}

    def moved(self, moved: Mapping[str, Partition]) -> ModelParts:
        """The same parts where some of them are shared otherwise than the configuration says.

        Args:
            moved: by part of the encoder, the blocks of tasks that share it. The other parts are shared as configured.
        """
        return self.shared_by(make_table(self.tasks, self.shape, self.rules, moved))

    def shared_by(self, table: SharingTable) -> ModelParts:
        """The same parts, shared as another table says."""
        return replace(self, table=table)

    def blocks(self, name: str) -> Partition:
        """The blocks of tasks that share a parameter of the encoder; each task is in one of them."""
        scopes = {task: self.table.by_task[task][name] for task in self.tasks}
        return tuple(
            tuple(task for task in self.tasks if scopes[task] == scope) for scope in dict.fromkeys(scopes.values())
        )

    def layouts(self) -> list[Layout]:
        """The layout of each component, in the order of the table's scopes."""
        return [
            Layout.of(scope, {name: self.tensors[name] for name in self.table.tensors(scope)})
            for scope in self.table.scopes
        ]

    # How many numbers they have.

    def num_elements(self, names: Iterable[str]) -> int:
        """The number of elements of some parameters, in one task's model."""
        return sum(self.tensors[name].numel() for name in names)

    def encoder_elements(self) -> int:
        """The number of elements of one encoder."""
        return self.num_elements(self.shape.parts)

    def kept_encoder_elements(self) -> int:
        """The number of encoder elements that the server keeps, in all scopes together."""
        kept = (name for scope in self.table.scopes for name in self.table.tensors(scope))
        return self.num_elements(name for name in kept if name in self.shape.parts)

    def summary(self, base_model: str) -> ModelSummary:
        """How many parameters all tasks share, how many each head has, and how many there are in each scope.

        Args:
            base_model: where the encoder comes from, for people.
        """
        names = {scope: self.table.tensors(scope) for scope in self.table.scopes}
        heads = {
            task: [name for name in names.get(task_scope(task), ()) if scope_of(name) != SHARED] for task in self.tasks
        }
        by_scope = {scope: self.num_elements(mine) for scope, mine in names.items()}
        return ModelSummary(
            base_model=base_model,
            shared_parameters=by_scope.get(SHARED, 0),
            head_parameters={task: self.num_elements(mine) for task, mine in heads.items()},
            scope_parameters=by_scope,
        )
