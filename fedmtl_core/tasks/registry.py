"""Task types by name: built-in ones and users' own."""

from __future__ import annotations

from collections.abc import Mapping

from fedmtl_core import plugins
from fedmtl_core.errors import ConfigError, InvalidRequestError
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.tasks.evaluation import LOSS_BOUNDS, MAX_METRIC, Bounds
from fedmtl_core.tasks.kinds import Classification, Regression, TaskKind
from fedmtl_core.tasks.masked_lm import MaskedLM
from fedmtl_core.tasks.spec import BUILT_IN, TaskSpec, Traits

_KINDS: Mapping[str, type[TaskKind]] = {kind.name: kind for kind in (Classification, Regression, MaskedLM)}


def kind_of(spec: TaskSpec) -> TaskKind:
    """Return a task's type as an object.

    Raises:
        ConfigError: the type is a plug-in that can't be loaded, or whose constructor raises.
    """
    key = f"tasks.{spec.name}.type"
    kind = _KINDS.get(spec.type) or plugins.load(key, spec.type, TaskKind)  # type: ignore[type-abstract]
    with plugins.attribute_errors(key, spec.type):
        return kind(spec)


def traits_of(task: str, type_: str) -> Traits:
    """Return the traits of a task type.

    Args:
        task: the task's name, for messages.
        type_: `classification`, `regression`, `masked_lm`, or `module:Name`, which is imported.

    Raises:
        ConfigError: the type is a plug-in that can't be loaded, or whose class attributes contradict each other.
    """
    if type_ in BUILT_IN:
        return BUILT_IN[type_]
    key = f"tasks.{task}.type"
    plugin = plugins.load(key, type_, TaskKind)  # type: ignore[type-abstract]
    name = plugin.name or plugin.__name__
    try:
        require_identifier("name", name)
    except InvalidRequestError as error:
        raise ConfigError(f"{key}: {type_}: {error}") from None
    if name in BUILT_IN:
        raise ConfigError(
            f"{key}: {type_}: expected `name` to differ from the built-in types, got {name!r}; give it another name"
        )
    metrics = getattr(plugin, "metrics", None)
    if not isinstance(metrics, tuple) or not metrics or not all(isinstance(metric, str) for metric in metrics):
        raise ConfigError(f"{key}: {type_}: expected `metrics` to be a tuple of names, got {metrics!r}")
    if plugin.sees not in ("text", "tokens"):
        raise ConfigError(f"{key}: {type_}: expected `sees` to be 'text' or 'tokens', got {plugin.sees!r}")
    return Traits(name, metrics, plugin.has_labels, plugin.is_labelled, _bounds_of(key, type_, plugin.metric_bounds))


def _bounds_of(key: str, type_: str, bounds: object) -> Mapping[str, Bounds]:
    """Return the bounds of a plug-in's metrics, and those of losses.

    Raises:
        ConfigError: the bounds aren't pairs of numbers by name.
    """
    try:
        pairs = {str(name): (float(low), float(high)) for name, (low, high) in dict(bounds).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError):
        pairs = {"": (0.0, 0.0)}
    if not all(-MAX_METRIC <= low < high <= MAX_METRIC for low, high in pairs.values()):
        raise ConfigError(
            f"{key}: {type_}: expected `metric_bounds` to map metric names to (lowest, highest), within "
            f"±{MAX_METRIC:g}, got {bounds!r}"
        )
    return {**LOSS_BOUNDS, **pairs}
