"""The server's multi-task model, kept as one flat component per scope."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fedmtl_core.config import Config
from fedmtl_core.errors import UnknownTaskError
from fedmtl_core.layout import Component, Layout
from fedmtl_core.modeling import MultiTaskModel, load_encoder, require_length
from fedmtl_core.plan import Pooling
from fedmtl_core.scopes import SHARED, task_scope
from fedmtl_core.tasks import TaskSpec


@dataclass(frozen=True)
class ModelSummary:
    """True parameter counts."""

    base_model: str
    shared_parameters: int
    head_parameters: Mapping[str, int]

    @property
    def total_parameters(self) -> int:
        return self.shared_parameters + sum(self.head_parameters.values())


class MTLServerModel:
    """One encoder and a head for every task (MT-DNN; Liu et al. 2019, arXiv:1901.11504).

    The PyTorch parameters are views into `components`, so that a commit replaces components without a copy and
    `module` can be run at any time.

    Args:
        encoder: on CPU; see `MultiTaskModel`.
        tasks: the run's tasks.
        hidden_size: width of the encoder's output.
        pooling: what a head sees of the encoder.
        dropout: before each head.
        seed: of the heads' first values.
        base_model: where the encoder comes from, for people.
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
    ):
        self.base_model = base_model
        self.module = MultiTaskModel(
            encoder, tasks, hidden_size=hidden_size, pooling=pooling, dropout=dropout, seed=seed
        )
        self._components = {
            scope: Component.adopt(scope, tensors) for scope, tensors in self.module.parameters_by_scope().items()
        }

    @classmethod
    def from_config(cls, config: Config, *, weights: bool = True) -> MTLServerModel:
        """Build the model that a configuration names.

        Args:
            config: the configuration.
            weights: whether the encoder's weights are wanted, or only its architecture.

        Raises:
            ModelUnavailableError: the encoder can't be had.
            ConfigError: it has fewer positions than `training.max_length`, or a task's name is taken.
        """
        encoder, hidden_size = load_encoder(
            config.model.server_model,
            weights=weights,
            num_hidden_layers=config.model.num_hidden_layers,
            random_init=config.model.random_init,
            seed=config.training.seed,
        )
        require_length(encoder, config.training.max_length)
        return cls(
            encoder,
            config.task_specs(),
            hidden_size=hidden_size,
            pooling=config.model.pooling,
            dropout=config.model.head_dropout,
            seed=config.training.seed,
            base_model=config.model.server_model,
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.module.tasks

    @property
    def components(self) -> Mapping[str, Component]:
        """The model's bytes by scope, the encoder's first."""
        return self._components

    def scopes_for(self, task: str | None) -> tuple[str, ...]:
        """The scopes of one task's slice, or with None those of all tasks; the encoder's first.

        Raises:
            UnknownTaskError: there is no such task.
        """
        if task is None:
            return tuple(self._components)
        if task not in self.tasks:
            raise UnknownTaskError(f"expected one of the tasks {', '.join(self.tasks)}, got {task!r}")
        return (SHARED, task_scope(task))

    def layouts_for(self, task: str | None) -> tuple[Layout, ...]:
        """The layouts of one task's slice, or with None those of all tasks."""
        return tuple(self._components[scope].layout for scope in self.scopes_for(task))

    def add_task(self, spec: TaskSpec) -> None:
        """Add a head. Every other parameter stays bitwise as it was."""
        self.module.add_head(spec)
        scope = task_scope(spec.name)
        self._components[scope] = Component.adopt(scope, self.module.parameters_by_scope()[scope])

    def get_shared_parameters(self) -> dict[str, Tensor]:
        """The encoder's tensors by name, as copies."""
        return self._copies(SHARED)

    def get_task_head_parameters(self, task: str) -> dict[str, Tensor]:
        """One head's tensors by name, as copies.

        Raises:
            UnknownTaskError: there is no such task.
        """
        return self._copies(self.scopes_for(task)[-1])

    def get_model_slice_for_task(self, task: str) -> dict[str, Tensor]:
        """What a client of this task gets: the encoder's and its head's tensors by name, as copies.

        Raises:
            UnknownTaskError: there is no such task.
        """
        return {name: tensor for scope in self.scopes_for(task) for name, tensor in self._copies(scope).items()}

    def set_shared_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the encoder, whole or not at all.

        Raises:
            LayoutMismatchError: a tensor is missing, unknown, or of another shape or dtype.
        """
        self._components[SHARED].copy_from(parameters)

    def set_task_head_parameters(self, task: str, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite one head, whole or not at all.

        Raises:
            UnknownTaskError: there is no such task.
            LayoutMismatchError: a tensor is missing, unknown, or of another shape or dtype.
        """
        self._components[self.scopes_for(task)[-1]].copy_from(parameters)

    def install(self, components: Mapping[str, Component]) -> None:
        """Replace whole components, without a copy; those not given stay bitwise as they are.

        Args:
            components: by scope; they are the model's from now on.

        Raises:
            LayoutMismatchError: a layout differs; nothing has changed then.
        """
        for scope, component in components.items():
            self._components[scope].layout.require_same(component.layout)
        parameters = self.module.parameters_by_scope()
        for scope, component in components.items():
            component.lend_to(parameters[scope])
            self._components[scope] = component

    def summary(self) -> ModelSummary:
        """How many parameters are shared, and how many each head has."""
        return ModelSummary(
            base_model=self.base_model,
            shared_parameters=self._components[SHARED].layout.num_elements,
            head_parameters={task: self._components[task_scope(task)].layout.num_elements for task in self.tasks},
        )

    def _copies(self, scope: str) -> dict[str, Tensor]:
        return {name: view.clone() for name, view in self._components[scope].views().items()}
