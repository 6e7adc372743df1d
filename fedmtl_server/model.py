"""The server's multi-task model, kept as one flat component per scope."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor, nn

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, UnknownTaskError, UserError
from fedmtl_core.identifiers import name_some, quoted
from fedmtl_core.logs import get_logger
from fedmtl_core.model.adapter_check import check_adapters
from fedmtl_core.model.adapters import require_peft
from fedmtl_core.model.encoder_check import Use, check_for_server
from fedmtl_core.model.modeling import DEFAULT_HEADS, HeadSettings, MultiTaskModel, load_encoder
from fedmtl_core.model.pretrained import LoadedWeights
from fedmtl_core.model.scopes import FROZEN, SHARED, is_shared, is_trained, scope_of, task_scope
from fedmtl_core.model.sharing import SharingRules, SharingTable
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.tasks.plan import Pooling
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.model_parts import ModelParts, ModelSummary
from fedmtl_server.skeleton import Skeleton

PLAIN = SharingRules()
"""The default sharing: all tasks share the encoder, and each task has its own head."""


class MTLServerModel:
    """An encoder and a head for every task (MT-DNN; Liu et al. 2019, arXiv:1901.11504), stored by sharing scope.

    The model's state is its `components`, one for each scope of the sharing table. If groups of tasks share a layer of
    the encoder, each group has its own copy of the layer, in its own component. PyTorch modules are created on request.
    Their parameters are views into the components, so that a commit replaces components without a copy.

    Args:
        encoder: an encoder on CPU (see `MultiTaskModel`); the model owns it from now on.
        tasks: the run's tasks.
        hidden_size: the width of the encoder's output.
        pooling: the pooling of the encoder's output for the heads.
        heads: the dropout before each head, and the source of its initial values.
        base_model: the source of the encoder, for display.
        sharing: the rules that assign parameters to scopes.
        adapters: the adapters to add to the encoder; None for none.

    Raises:
        ConfigError: `sharing` names a part that the encoder does not have, or the adapters don't fit the encoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Iterable[TaskSpec],
        *,
        hidden_size: int,
        pooling: Pooling = "cls",
        heads: HeadSettings = DEFAULT_HEADS,
        base_model: str = "",
        sharing: SharingRules = PLAIN,
        adapters: AdapterSettings | None = None,
    ):
        self.base_model = base_model
        self._specs = {spec.name: spec for spec in tasks}
        model = MultiTaskModel(
            encoder, self._specs.values(), hidden_size=hidden_size, pooling=pooling, heads=heads, adapters=adapters
        )
        self._skeleton = Skeleton(model)
        self._parts = ModelParts.of(model, sharing)
        table = self._parts.table
        self._components = {scope: self._skeleton.pack(scope, table.tensors(scope)) for scope in table.scopes}
        self._base = self._skeleton.take_base()
        self._skeleton.empty()

    @classmethod
    def from_config(cls, config: Config, *, weights: bool = True) -> MTLServerModel:
        """Build the model that a configuration names.

        Args:
            config: the configuration.
            weights: whether to load the encoder's weights and check the encoder, as a new run needs. If False, only
                the architecture is built, for the model of an existing run. With `model.from_run`, weights are loaded
                for adapters only: otherwise, another run's follow.

        Raises:
            ModelUnavailableError: the encoder can't be loaded.
            ConfigError: the encoder or its adapters can't be trained as configured (see `encoder_check` and
                `adapter_check`), `peft` is missing, or a task's name is taken.
        """
        encoder, hidden_size = _load_encoder(config, weights=weights)
        made = cls(
            encoder,
            config.task_specs(),
            hidden_size=hidden_size,
            pooling=config.model.pooling,
            heads=HeadSettings(config.model.head_dropout, config.training.seed, config.head_init()),
            base_model=config.model.server_model,
            sharing=config.sharing_rules(),
            adapters=config.adapters(),
        )
        if weights:
            check_model_adapters(made)
        return made

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._parts.tasks

    def spec_of(self, task: str) -> TaskSpec:
        """Return the specification of a task.

        Raises:
            UnknownTaskError: the run has no task of this name.
        """
        if task not in self._specs:
            raise UnknownTaskError(f"expected one of the tasks {', '.join(self.tasks)}, got {task!r}")
        return self._specs[task]

    @property
    def parts(self) -> ModelParts:
        """The current parts of the model and their sharing."""
        return self._parts

    @property
    def sharing(self) -> SharingTable:
        """The current assignment of each task's parameters to scopes."""
        return self._parts.table

    @property
    def module(self) -> MultiTaskModel:
        """The current model as an encoder with every head. Its parameters are views into the components.

        Raises:
            UserError: tasks have their own encoder layers, or clients keep parameters for themselves.
        """
        if not self.sharing.is_one_model:
            raise UserError("sharing: the tasks do not share one encoder; each task has its own model")
        return self._module(self.sharing.scopes)

    def module_for(self, task: str, local: Mapping[str, Tensor] = MappingProxyType({})) -> MultiTaskModel:
        """Return the current encoder and head of one task. Their parameters are views into the components.

        Args:
            task: the task.
            local: the parameters that one of the task's clients keeps for itself, by name.

        Raises:
            UnknownTaskError: the run has no task of this name.
            UserError: clients keep parameters for themselves that are not in `local`, so the model is incomplete.
        """
        scopes = self.scopes_for(task)
        if missing := [name for name in self.sharing.local_for(task) if name not in local]:
            raise UserError(
                f"sharing: the clients of {task} keep {name_some(missing, 2)} for themselves (`local`); the server "
                "does not have these parameters, and the model is incomplete without them"
            )
        module = self._module(scopes, local)
        for other in set(self.tasks) - {task}:
            del module.heads[other]
        return module

    def encoder_for(self, task: str) -> nn.Module:
        """Return the current encoder of one task, with the adapters merged into its weights. All other parameters are
        views into the components.

        Raises:
            UnknownTaskError: the run has no task of this name.
            UserError: clients keep some of the encoder's parameters for themselves.
        """
        scopes = self.scopes_for(task)
        if not self.sharing.has_encoder(task):
            raise UserError(
                f"sharing: the clients of {task} keep parts of the encoder for themselves (`local`), and the server "
                "does not have the whole encoder"
            )
        return self._module(scopes).merged().encoder

    @property
    def architecture(self) -> str:
        """The name of the encoder's class."""
        return self._skeleton.architecture

    def _module(self, scopes: Sequence[str], local: Mapping[str, Tensor] = MappingProxyType({})) -> MultiTaskModel:
        """Return a module whose tensors are views into the components of some scopes, and the given local tensors."""
        views = dict(local)
        for scope in scopes:
            views |= self._components[scope].views()
        for component in self._base.values():
            views |= component.views()
        return self._skeleton.filled(views)

    @property
    def components(self) -> Mapping[str, Component]:
        """The components of slices by scope, the encoder's first."""
        return self._components

    @property
    def base(self) -> Mapping[str, Component]:
        """The parameters beside adapters by scope: `frozen` and, if adapters are stacked, `merged`; none otherwise."""
        return self._base

    def scopes_for(self, task: str | None, trained_in: int | None = None) -> tuple[str, ...]:
        """Return the scopes of one task's slice, or with None of all tasks. The most widely shared come first.

        Args:
            task: the task.
            trained_in: a round, to return only the scopes that it trains: those of the task's updates.

        Raises:
            UnknownTaskError: the run has no task of this name.
        """
        if task is not None and task not in self.tasks:
            raise UnknownTaskError(f"expected one of the tasks {', '.join(self.tasks)}, got {quoted(task)}")
        scopes = tuple(self._components) if task is None else self.sharing.scopes_for(task)
        return tuple(scope for scope in scopes if trained_in is None or is_trained(scope, trained_in))

    def layouts_for(self, task: str | None, trained_in: int | None = None) -> tuple[Layout, ...]:
        """Return the layouts of the components that `scopes_for` returns."""
        return tuple(self._components[scope].layout for scope in self.scopes_for(task, trained_in))

    def add_task(self, spec: TaskSpec) -> None:
        """Add a head to an encoder that all tasks share. Every other parameter stays bitwise unchanged.

        Raises:
            ConfigError: the name is taken, or the tasks do not share the whole encoder.
        """
        if self._parts.rules != PLAIN or not self.sharing.is_one_model:
            raise ConfigError(
                f"sharing: the layers that task {spec.name!r} shares are not defined; add the task to the run's "
                "configuration"
            )
        self._skeleton.model.add_head(spec)
        self._specs[spec.name] = spec
        self._parts = ModelParts.of(self._skeleton.model, self._parts.rules)
        scope = task_scope(spec.name)
        self._components[scope] = self._skeleton.pack(scope, self.sharing.tensors(scope))
        self._skeleton.empty()

    def get_shared_parameters(self) -> dict[str, Tensor]:
        """Return copies of the encoder tensors that all tasks share and train, by name."""
        return _copies(one for scope, one in self._components.items() if is_shared(scope))

    def get_task_head_parameters(self, task: str) -> dict[str, Tensor]:
        """Return copies of one head's tensors by name; empty if the task's clients keep the head for themselves.

        Raises:
            UnknownTaskError: the run has no task of this name.
        """
        whole = self.get_model_slice_for_task(task)
        return {name: tensor for name, tensor in whole.items() if scope_of(name) != SHARED}

    def get_model_slice_for_task(self, task: str) -> dict[str, Tensor]:
        """Return copies of the tensors that a client of the task gets, encoder and head, by name.

        Raises:
            UnknownTaskError: the run has no task of this name.
        """
        return _copies(self._components[scope] for scope in self.scopes_for(task))

    def set_shared_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the parameters that all tasks share. On an error, nothing changes.

        Raises:
            LayoutMismatchError: a tensor is missing or unknown, or has another shape or dtype.
        """
        shared = [one for scope, one in self._components.items() if is_shared(scope)]
        _copy_into(shared or [self._component(SHARED)], parameters)

    def set_task_head_parameters(self, task: str, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite one head. The task's own encoder layers stay unchanged. On an error, nothing changes.

        Raises:
            UnknownTaskError: the run has no task of this name.
            LayoutMismatchError: a tensor is missing or unknown, or has another shape or dtype.
        """
        self.scopes_for(task)
        component = self._component(task_scope(task))
        others = {name: view for name, view in component.views().items() if scope_of(name) == SHARED}
        component.copy_from({**others, **parameters})

    def rearrange(self, table: SharingTable, components: Mapping[str, Component]) -> None:
        """Switch to another sharing table.

        Args:
            table: the new table.
            components: all components of the new table by scope, and possibly of the base; the model owns them from now
                on.

        Raises:
            LayoutMismatchError: a layout differs; nothing has changed.
        """
        parts = self._parts.shared_by(table)
        base = {scope: components.get(scope, component) for scope, component in self._base.items()}
        for layout in [*parts.layouts(), *(component.layout for component in self._base.values())]:
            layout.require_same({**base, **components}[layout.scope].layout)
        self._parts, self._base = parts, base
        self._components = {scope: components[scope] for scope in table.scopes}

    def install(self, components: Mapping[str, Component]) -> None:
        """Replace whole components without a copy. Components not given stay bitwise unchanged.

        Args:
            components: new components by scope, of slices or of the base; the model owns them from now on.

        Raises:
            LayoutMismatchError: a layout differs; nothing has changed.
        """
        present = {**self._components, **self._base}
        for scope, component in components.items():
            present[scope].layout.require_same(component.layout)
        self._components |= {scope: one for scope, one in components.items() if scope not in self._base}
        self._base |= {scope: one for scope, one in components.items() if scope in self._base}

    def summary(self) -> ModelSummary:
        """Return the number of parameters that all tasks share, of each head, of each scope, and of the base."""
        frozen = sum(component.layout.num_elements for component in self._base.values())
        return replace(self._parts.summary(self.base_model), frozen_parameters=frozen)

    def _component(self, scope: str) -> Component:
        if scope not in self._components:
            raise UserError(f"sharing: the run has no scope {scope!r}; it has {', '.join(self._components)}")
        return self._components[scope]


def changing(components: Mapping[str, Component], base: Mapping[str, Component]) -> dict[str, Component]:
    """Return the components that rounds change: those of slices, and the base without `frozen`. A checkpoint has
    these, in the order of `ModelParts.checkpoint_layouts`."""
    return {**components, **{scope: one for scope, one in base.items() if scope != FROZEN}}


def _copies(components: Iterable[Component]) -> dict[str, Tensor]:
    return {name: view.clone() for component in components for name, view in component.views().items()}


def _copy_into(components: Sequence[Component], parameters: Mapping[str, Tensor]) -> None:
    """Overwrite components that have all the given parameters together. On an error, nothing changes."""
    if len(components) == 1:
        components[0].copy_from(parameters)
        return
    known = {name for one in components for name in one.views()}
    copies = []
    for one in components:
        copies.append(copy := Component(one.layout))
        copy.copy_from(
            {name: tensor for name, tensor in parameters.items() if name in one.views() or name not in known}
        )
    for one, copy in zip(components, copies, strict=True):
        one.copy_from(copy.views())


def check_model_adapters(model: MTLServerModel) -> None:
    """Check that training changes each adapter of a model, and that each has an effect; do nothing without adapters.

    Raises:
        ConfigError: an adapter would not be trained, or not be used; the message names the layers.
    """
    if model.base:
        module = model.module_for(model.tasks[0], model.parts.tensors)  # parameters that clients keep have no values
        check_adapters(module.encoder, module.pooling).settle(get_logger())


def _load_encoder(config: Config, *, weights: bool) -> tuple[nn.Module, int]:
    """Load the encoder that a configuration names, and check it if it gets its weights; see `from_config`."""
    model = config.model
    if model.adapters is not None:
        require_peft()
    loaded: list[LoadedWeights] = []
    encoder, hidden_size = load_encoder(
        model.server_model,
        weights=weights,
        num_hidden_layers=model.num_hidden_layers,
        random_init=not model.needs_weights,
        seed=config.training.seed,
        on_weights=loaded.append,
    )
    if weights:
        use = Use.by_tasks(model.server_model, config.training.max_length, model.pooling, config.task_specs())
        check_for_server(use, model.client_model, encoder, loaded[0] if loaded else None).settle(get_logger())
    return encoder, hidden_size
