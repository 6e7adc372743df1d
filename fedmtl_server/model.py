"""The server's multi-task model, kept as one flat component per scope."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, UnknownTaskError, UserError
from fedmtl_core.identifiers import name_some, quoted
from fedmtl_core.logs import get_logger
from fedmtl_core.model.encoder_check import Use, check_for_server
from fedmtl_core.model.modeling import MultiTaskModel, load_encoder
from fedmtl_core.model.pretrained import LoadedWeights
from fedmtl_core.model.scopes import SHARED, scope_of, task_scope
from fedmtl_core.model.sharing import SharingRules, SharingTable
from fedmtl_core.tasks.plan import Pooling
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.model_parts import ModelParts, ModelSummary
from fedmtl_server.skeleton import Skeleton

PLAIN = SharingRules()
"""All share the encoder, and each task has its head."""


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
        model = MultiTaskModel(
            encoder, self._specs.values(), hidden_size=hidden_size, pooling=pooling, dropout=dropout, seed=seed
        )
        self._skeleton = Skeleton(model)
        self._parts = ModelParts.of(model, sharing)
        table = self._parts.table
        self._components = {scope: self._skeleton.pack(scope, table.tensors(scope)) for scope in table.scopes}
        self._skeleton.empty()

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
        return self._parts.tasks

    def spec_of(self, task: str) -> TaskSpec:
        """What a task is.

        Raises:
            UnknownTaskError: there is no such task.
        """
        if task not in self._specs:
            raise UnknownTaskError(f"expected one of the tasks {', '.join(self.tasks)}, got {task!r}")
        return self._specs[task]

    @property
    def parts(self) -> ModelParts:
        """What the model is made of now, and which tasks share what."""
        return self._parts

    @property
    def sharing(self) -> SharingTable:
        """Which tasks share which parameter now."""
        return self._parts.table

    @property
    def module(self) -> MultiTaskModel:
        """The encoder with every head on it, as the model is now; its parameters are views into the components.

        Raises:
            UserError: tasks have encoder layers of their own, or clients keep parameters for themselves.
        """
        if not self.sharing.is_one_model:
            raise UserError("sharing: tasks don't share one encoder: there is a model for each task alone")
        return self._module(self.sharing.scopes)

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
        if missing := [name for name in self.sharing.local_for(task) if name not in local]:
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
        if not self.sharing.has_encoder(task):
            raise UserError(f"sharing: the clients of {task} keep parts of the encoder for themselves (`local`)")
        return self._module(scopes).encoder

    @property
    def architecture(self) -> str:
        """The encoder's class."""
        return self._skeleton.architecture

    def _module(self, scopes: Sequence[str], local: Mapping[str, Tensor] = MappingProxyType({})) -> MultiTaskModel:
        """A module that lives in some components' memory, and in what a client keeps for itself."""
        views = dict(local)
        for scope in scopes:
            views |= self._components[scope].views()
        return self._skeleton.filled(views)

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
        return self.sharing.scopes_for(task)

    def layouts_for(self, task: str | None) -> tuple[Layout, ...]:
        """The layouts of one task's slice, or with None those of all tasks."""
        return tuple(self._components[scope].layout for scope in self.scopes_for(task))

    def add_task(self, spec: TaskSpec) -> None:
        """Add a head to an encoder that all share. Every other parameter stays bitwise as it was.

        Raises:
            ConfigError: the name is taken, or tasks don't share the whole encoder.
        """
        if self._parts.rules != PLAIN or not self.sharing.is_one_model:
            raise ConfigError(
                f"sharing: nothing says which layers {spec.name!r} would share; name it in the run's tasks"
            )
        self._skeleton.model.add_head(spec)
        self._specs[spec.name] = spec
        self._parts = ModelParts.of(self._skeleton.model, self._parts.rules)
        scope = task_scope(spec.name)
        self._components[scope] = self._skeleton.pack(scope, self.sharing.tensors(scope))
        self._skeleton.empty()

    def get_shared_parameters(self) -> dict[str, Tensor]:
        """The tensors that all tasks share, the encoder's, by name, as copies."""
        return _copies(one for scope, one in self._components.items() if scope == SHARED)

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
        return _copies(self._components[scope] for scope in self.scopes_for(task))

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

    def rearrange(self, table: SharingTable, components: Mapping[str, Component]) -> None:
        """Go over to another table.

        Args:
            table: it.
            components: all of its, by scope; they are the model's from now on.

        Raises:
            LayoutMismatchError: a layout differs; nothing has changed then.
        """
        parts = self._parts.shared_by(table)
        for layout in parts.layouts():
            layout.require_same(components[layout.scope].layout)
        self._parts = parts
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
        return self._parts.summary(self.base_model)

    def _component(self, scope: str) -> Component:
        if scope not in self._components:
            raise UserError(f"sharing: the run has no {scope!r}; it has {', '.join(self._components)}")
        return self._components[scope]


def _copies(components: Iterable[Component]) -> dict[str, Tensor]:
    return {name: view.clone() for component in components for name, view in component.views().items()}
