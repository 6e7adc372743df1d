"""The server's multi-task model, kept as one flat component per scope."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, UnknownTaskError, UserError
from fedmtl_core.identifiers import name_some, quoted
from fedmtl_core.logs import get_logger
from fedmtl_core.model.encoder_check import Use, check_for_server
from fedmtl_core.model.modeling import MultiTaskModel, load_encoder
from fedmtl_core.model.pretrained import LoadedWeights
from fedmtl_core.model.scopes import SHARED, scope_of, task_scope
from fedmtl_core.model.sharing import Partition, SharingRules, SharingTable, make_table, parts_in
from fedmtl_core.tasks.plan import Pooling
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.layout import Component, Layout

PLAIN = SharingRules()
"""All share the encoder, and each task has its head."""


@dataclass(frozen=True)
class ModelSummary:
    """True parameter counts of what the server keeps."""

    base_model: str
    shared_parameters: int
    """That all tasks share."""
    head_parameters: Mapping[str, int]
    """By task; 0 where clients keep it for themselves."""
    scope_parameters: Mapping[str, int] = field(default_factory=dict)
    """By scope, encoder and heads."""

    @property
    def total_parameters(self) -> int:
        return sum(self.scope_parameters.values())


class MTLServerModel:
    """An encoder and a head for every task (MT-DNN; Liu et al. 2019, arXiv:1901.11504), as far as tasks share them.

    The model is its `components`, one for each scope of the sharing table. Of an encoder's layer that groups of tasks
    share there is one for each group, in components of its own. PyTorch modules are made when they are asked for, their
    parameters views into the components, so that a commit replaces components without a copy.

    Args:
        encoder: on CPU; see `MultiTaskModel`. It is the model's own from now on.
        tasks: the run's tasks.
        hidden_size: width of the encoder's output.
        pooling: what a head sees of the encoder.
        dropout: before each head.
        seed: of the heads' first values.
        base_model: where the encoder comes from, for people.
        sharing: who shares which part.

    Raises:
        ConfigError: `sharing` names what the encoder hasn't.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Iterable[TaskSpec],
        *,
        hidden_size: int,
        pooling: Pooling = "cls",
        dropout: float = 0.1,
        seed: int = 42,
        base_model: str = "",
        sharing: SharingRules = PLAIN,
    ):
        self.base_model = base_model
        self._specs = {spec.name: spec for spec in tasks}
        self._skeleton = MultiTaskModel(
            encoder, self._specs.values(), hidden_size=hidden_size, pooling=pooling, dropout=dropout, seed=seed
        )
        self._rules = sharing
        self._shape = self._skeleton.shape()
        self._table = make_table(self.tasks, self._shape, sharing)
        values = self._skeleton.exchanged()
        self._components = {
            scope: Component.pack(scope, {name: values[name].detach() for name in self._table.tensors(scope)})
            for scope in self._table.scopes
        }
        _strip(values.values())

    @classmethod
    def from_config(cls, config: Config, *, weights: bool = True) -> MTLServerModel:
        """Build the model that a configuration names.

        Args:
            config: the configuration.
            weights: whether the encoder's weights are wanted, and the encoder is to be checked for a new run; or only
                its architecture, for a model that a run has already.

        Raises:
            ModelUnavailableError: the encoder can't be had.
            ConfigError: it can't be trained as it is asked for (see `encoder_check`), or a task's name is taken.
        """
        loaded: list[LoadedWeights] = []
        encoder, hidden_size = load_encoder(
            config.model.server_model,
            weights=weights,
            num_hidden_layers=config.model.num_hidden_layers,
            random_init=config.model.random_init,
            seed=config.training.seed,
            on_weights=loaded.append,
        )
        if weights:
            model = config.model
            use = Use.by_tasks(model.server_model, config.training.max_length, model.pooling, config.task_specs())
            report = check_for_server(use, model.client_model, encoder, loaded[0] if loaded else None)
            report.settle(get_logger())
        return cls(
            encoder,
            config.task_specs(),
            hidden_size=hidden_size,
            pooling=config.model.pooling,
            dropout=config.model.head_dropout,
            seed=config.training.seed,
            base_model=config.model.server_model,
            sharing=config.sharing.rules(),
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._skeleton.tasks

    def spec_of(self, task: str) -> TaskSpec:
        """What a task is.

        Raises:
            UnknownTaskError: there is no such task.
        """
        if task not in self._specs:
            raise UnknownTaskError(f"expected one of the tasks {', '.join(self.tasks)}, got {task!r}")
        return self._specs[task]

    @property
    def sharing(self) -> SharingTable:
        """Who shares which parameter."""
        return self._table

    @property
    def module(self) -> MultiTaskModel:
        """The encoder with every head on it, as the model is now; its parameters are views into the components.

        Raises:
            UserError: tasks have encoder layers of their own, or clients keep parameters for themselves.
        """
        if not self._table.is_one_model:
            raise UserError("sharing: tasks don't share one encoder: there is a model for each task alone")
        return self._module(self._table.scopes)

    def module_for(self, task: str, local: Mapping[str, Tensor] = MappingProxyType({})) -> MultiTaskModel:
        """The encoder as one task's clients have it, with its head alone, as the model is now; likewise views.

        Args:
            task: the task.
            local: what one of its clients keeps for itself, by name.

        Raises:
            UnknownTaskError: there is no such task.
            UserError: clients keep parameters for themselves that aren't given, so that it isn't whole.
        """
        scopes = self.scopes_for(task)
        if missing := [name for name in self._table.local_for(task) if name not in local]:
            raise UserError(
                f"sharing: the clients of {task} keep {name_some(missing, 2)} for themselves (`local`): the server "
                "hasn't got them, and the rest computes nothing"
            )
        module = self._module(scopes, local)
        for other in set(self.tasks) - {task}:
            del module.heads[other]
        return module

    def encoder_for(self, task: str) -> nn.Module:
        """The encoder as one task's clients have it, as the model is now; likewise views.

        Raises:
            UnknownTaskError: there is no such task.
            UserError: clients keep some of its parameters for themselves.
        """
        scopes = self.scopes_for(task)
        if not self._table.has_encoder(task):
            raise UserError(f"sharing: the clients of {task} keep parts of the encoder for themselves (`local`)")
        return self._module(scopes).encoder

    @property
    def architecture(self) -> str:
        """The encoder's class."""
        return type(self._skeleton.encoder).__name__

    def _module(self, scopes: Sequence[str], local: Mapping[str, Tensor] = MappingProxyType({})) -> MultiTaskModel:
        """A copy of the skeleton that lives in some components' memory."""
        empty = self._skeleton.exchanged()
        views = dict(local)
        for scope in scopes:
            views |= self._components[scope].views()
        lent: dict[int, object] = {
            id(empty[name]): nn.Parameter(view, requires_grad=empty[name].requires_grad)
            if isinstance(empty[name], nn.Parameter)
            else view
            for name, view in views.items()
        }
        return copy.deepcopy(self._skeleton, lent)

    @property
    def components(self) -> Mapping[str, Component]:
        """The model's bytes by scope, the encoder's first."""
        return self._components

    def scopes_for(self, task: str | None) -> tuple[str, ...]:
        """The scopes of one task's slice, or with None those of all tasks; what most share first, heads last.

        Raises:
            UnknownTaskError: there is no such task.
        """
        if task is None:
            return tuple(self._components)
        if task not in self.tasks:
            raise UnknownTaskError(f"expected one of the tasks {', '.join(self.tasks)}, got {quoted(task)}")
        return self._table.scopes_for(task)

    def layouts_for(self, task: str | None) -> tuple[Layout, ...]:
        """The layouts of one task's slice, or with None those of all tasks."""
        return tuple(self._components[scope].layout for scope in self.scopes_for(task))

    def add_task(self, spec: TaskSpec) -> None:
        """Add a head to an encoder that all share. Every other parameter stays bitwise as it was.

        Raises:
            ConfigError: the name is taken, or tasks don't share the whole encoder.
        """
        if self._rules != PLAIN or not self._table.is_one_model:
            raise ConfigError(
                f"sharing: nothing says which layers {spec.name!r} would share; name it in the run's tasks"
            )
        self._skeleton.add_head(spec)
        self._specs[spec.name] = spec
        self._shape = self._skeleton.shape()
        self._table = make_table(self.tasks, self._shape, self._rules)
        scope, values = task_scope(spec.name), self._skeleton.exchanged()
        head = {name: values[name] for name in self._table.tensors(scope)}
        self._components[scope] = Component.pack(scope, {name: value.detach() for name, value in head.items()})
        _strip(head.values())

    def get_shared_parameters(self) -> dict[str, Tensor]:
        """The tensors that all tasks share, the encoder's, by name, as copies."""
        return self._copies([SHARED])

    def get_task_head_parameters(self, task: str) -> dict[str, Tensor]:
        """One head's tensors by name, as copies; none if its clients keep it for themselves.

        Raises:
            UnknownTaskError: there is no such task.
        """
        whole = self.get_model_slice_for_task(task)
        return {name: tensor for name, tensor in whole.items() if scope_of(name) != SHARED}

    def get_model_slice_for_task(self, task: str) -> dict[str, Tensor]:
        """What a client of this task gets: the encoder's and its head's tensors by name, as copies.

        Raises:
            UnknownTaskError: there is no such task.
        """
        return self._copies(self.scopes_for(task))

    def set_shared_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite what all tasks share, whole or not at all.

        Raises:
            LayoutMismatchError: a tensor is missing, unknown, or of another shape or dtype.
        """
        self._component(SHARED).copy_from(parameters)

    def set_task_head_parameters(self, task: str, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite one head, whole or not at all; what else the task has for itself stays as it is.

        Raises:
            UnknownTaskError: there is no such task.
            LayoutMismatchError: a tensor is missing, unknown, or of another shape or dtype.
        """
        self.scopes_for(task)
        component = self._component(task_scope(task))
        others = {name: view for name, view in component.views().items() if scope_of(name) == SHARED}
        component.copy_from({**others, **parameters})

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The encoder's parameters by the part that they are in."""
        parts: dict[str, list[str]] = {}
        for name, part in self._shape.parts.items():
            parts.setdefault(part, []).append(name)
        return {part: tuple(names) for part, names in parts.items()}

    def table_of(self, moved: Mapping[str, Partition]) -> SharingTable:
        """The table in which some parts are shared by other blocks of tasks than the configuration says."""
        return make_table(self.tasks, self._shape, self._rules, moved)

    def layouts_of(self, table: SharingTable) -> list[Layout]:
        """The components' layouts by a table."""
        empty = self._skeleton.exchanged()
        return [Layout.of(scope, {name: empty[name] for name in table.tensors(scope)}) for scope in table.scopes]

    def movable(self, layers: Collection[str] | None) -> dict[str, tuple[str, ...]]:
        """By part that may change hands, the parameters that do with it.

        Args:
            layers: the parts; None for all that the configuration leaves to what all share.

        Raises:
            ConfigError: the encoder hasn't got one of them.
        """
        norms = self._shape.norms if self._rules.norms is not None else ()
        parts = {part: tuple(name for name in names if name not in norms) for part, names in self.parts.items()}
        if missing := [part for part in layers or () if part not in parts]:
            raise ConfigError(f"sharing.adaptive.layers: the encoder has no {missing[0]}; it has {', '.join(parts)}")
        named = {part for key in self._rules.layers for part in parts_in(key)}
        chosen = [part for part in parts if part not in named] if layers is None else layers
        return {part: parts[part] for part in chosen if parts[part]}

    def blocks(self, name: str) -> Partition:
        """Who shares a parameter of the encoder now: all tasks, in blocks."""
        scopes = {task: self._table.by_task[task][name] for task in self.tasks}
        return tuple(
            tuple(task for task in self.tasks if scopes[task] == scope) for scope in dict.fromkeys(scopes.values())
        )

    def num_elements(self, names: Iterable[str]) -> int:
        """Of some parameters, in one task's model."""
        empty = self._skeleton.exchanged()
        return sum(empty[name].numel() for name in names)

    def rearrange(self, table: SharingTable, components: Mapping[str, Component]) -> None:
        """Go over to another table.

        Args:
            table: it.
            components: all of its, by scope; they are the model's from now on.

        Raises:
            LayoutMismatchError: a layout differs; nothing has changed then.
        """
        for layout in self.layouts_of(table):
            layout.require_same(components[layout.scope].layout)
        self._table = table
        self._components = {scope: components[scope] for scope in table.scopes}

    def install(self, components: Mapping[str, Component]) -> None:
        """Replace whole components, without a copy; those not given stay bitwise as they are.

        Args:
            components: by scope; they are the model's from now on.

        Raises:
            LayoutMismatchError: a layout differs; nothing has changed then.
        """
        for scope, component in components.items():
            self._components[scope].layout.require_same(component.layout)
        self._components |= components

    def summary(self) -> ModelSummary:
        """How many parameters all share, how many each head has, and how many there are in each scope."""
        by_scope = {scope: component.layout.num_elements for scope, component in self._components.items()}
        return ModelSummary(
            base_model=self.base_model,
            shared_parameters=by_scope.get(SHARED, 0),
            head_parameters={task: self._head_size(task) for task in self.tasks},
            scope_parameters=by_scope,
        )

    def _head_size(self, task: str) -> int:
        own = self._components.get(task_scope(task))
        tensors = own.layout.tensors if own else ()
        return sum(spec.num_elements for spec in tensors if scope_of(spec.name) != SHARED)

    def _component(self, scope: str) -> Component:
        if scope not in self._components:
            raise UserError(f"sharing: the run has no {scope!r}; it has {', '.join(self._components)}")
        return self._components[scope]

    def _copies(self, scopes: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of those of some scopes that there are."""
        there = [self._components[scope] for scope in scopes if scope in self._components]
        return {name: view.clone() for component in there for name, view in component.views().items()}


def _strip(tensors: Iterable[Tensor]) -> None:
    """Leave tensors their shapes, without the memory for their values."""
    for tensor in tensors:
        tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
