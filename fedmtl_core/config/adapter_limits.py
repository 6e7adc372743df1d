"""What adapters can't be combined with."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fedmtl_core.config import stages
from fedmtl_core.config.adapters import OF_MATRICES, AdaptersConfig
from fedmtl_core.config.aggregation import AggregationConfig, NormsConfig, ServerOptimizerConfig
from fedmtl_core.config.sharing import SharingConfig
from fedmtl_core.config.stages import Breach, Property
from fedmtl_core.identifiers import shown
from fedmtl_core.model.scopes import SHARED
from fedmtl_core.tasks.adapters import AdapterAggregation

_ONE_BASE = "the adapters of all tasks are added to one base"
PLAIN_AVERAGES: Collection[AdapterAggregation] = ("freeze_a", "average")
"""The aggregations that average the same factors in each round, as other parameters are averaged."""

_CONVEX_WEIGHTINGS = ("examples", "uniform", "fixed", "temperature")
"""The task weightings whose coefficients are at least 0, add up to 1 and don't depend on the tasks' deltas."""


def require_adapters(adapters: AdaptersConfig | None, sharing: SharingConfig) -> None:
    """Check the settings of adapters against each other and against the sharing.

    Raises:
        ValueError: they contradict each other; the message names the keys.
    """
    a, b = sharing.adapters.a, sharing.adapters.b
    if adapters is None:
        if (a, b) != (None, None):
            raise ValueError("sharing.adapters: needs `model.adapters`, for example `model: {adapters: {}}`")
        return
    aggregation = adapters.aggregation
    if a is not None and aggregation == "freeze_a":
        raise ValueError(
            "sharing.adapters.a: with `model.adapters.aggregation: freeze_a` the factors A keep their first values and "
            "are the same everywhere; leave it out, or choose another aggregation"
        )
    if sharing.norms is not None:
        raise ValueError("sharing.norms: with `model.adapters` norms are never trained; leave it out")
    if adapters.ranks and aggregation != "svd":
        raise ValueError(
            f"model.adapters.ranks: factors of different ranks can't be averaged; needs `aggregation: svd`, "
            f"got {aggregation!r}"
        )
    if aggregation in OF_MATRICES:
        if adapters.kind == "dora":
            raise ValueError(
                f"model.adapters.kind: `aggregation: {aggregation}` combines products B A, and `dora` isn't linear in "
                "them; use `lora` or `rslora`"
            )
        if a != b:
            raise ValueError(
                f"sharing.adapters: `aggregation: {aggregation}` combines products B A, so the same tasks must share A "
                f"and B, got {a!r} and {b!r}"
            )


def require_products(
    adapters: AdaptersConfig | None,
    aggregation: AggregationConfig,
    norms: NormsConfig,
    optimizer: ServerOptimizerConfig,
) -> None:
    """Check the settings of an aggregation that combines products against the steps that come before and after it.

    Raises:
        ValueError: they contradict each other; the message names the keys.
    """
    if adapters is None or adapters.aggregation not in OF_MATRICES:
        return
    if optimizer.name != "fedavg":
        raise ValueError(
            f"server_optimizer.name: `model.adapters.aggregation: {adapters.aggregation}` replaces the factors in each "
            f"round, so that steps of a server optimizer don't add up; needs `fedavg`, got {optimizer.name!r}"
        )
    if not adapters.ranks:
        return
    weightings = " or ".join(map("`{}`".format, _CONVEX_WEIGHTINGS))
    for key, fits, needed, got in (
        ("aggregation.normalization", aggregation.normalization == "none", "`none`", aggregation.normalization),
        ("aggregation.scaling", aggregation.scaling == 1, "1.0", aggregation.scaling),
        (
            "aggregation.task_weighting",
            aggregation.task_weighting in _CONVEX_WEIGHTINGS,
            weightings,
            aggregation.task_weighting,
        ),
        ("robustness.norms.action", norms.action != "clip", "`none`, `report` or `refuse`", norms.action),
    ):
        if not fits:
            raise ValueError(
                f"{key}: needs {needed} with `model.adapters.ranks`, got {got!r}: factors of another rank than the "
                "model's have no difference from the model's factors"
            )


def require_stackable(
    adapters: AdaptersConfig | None,
    sharing: SharingConfig,
    aggregation: AggregationConfig,
) -> None:
    """Check that adapters can be added to one base after each round, if the configuration says so.

    Raises:
        ValueError: a setting contradicts it; the message names the key.
    """
    if adapters is None or adapters.aggregation != "stack":
        return
    levels = {f"sharing.layers.{part}": level for part, level in sharing.layers.items()}
    levels |= {"sharing.adapters.a": sharing.adapters.a or SHARED, "sharing.adapters.b": sharing.adapters.b or SHARED}
    for key, needed, got, why in (
        *((key, SHARED, "shared" if level == "all" else level, _ONE_BASE) for key, level in levels.items()),
        ("sharing", "plain", "auto" if sharing.is_auto else "plain", _ONE_BASE),
        ("sharing.adaptive.policy", None, sharing.adaptive.policy, _ONE_BASE),
        ("aggregation.scaling", 1.0, aggregation.scaling, "the base becomes the mean of the clients' weights"),
    ):
        if got != needed:
            raise ValueError(
                f"model.adapters.aggregation: `stack` needs `{key}: {'null' if needed is None else needed}`, got "
                f"{shown(str(got))}: {why}"
            )


def breaches_of_adapters(adapters: AdaptersConfig | None) -> Iterator[Breach]:
    """The properties that the aggregation of adapters removes from other stages."""
    if adapters is not None and adapters.aggregation not in PLAIN_AVERAGES:
        needs, got = "`model.adapters.aggregation: freeze_a` or `average`", repr(adapters.aggregation)
        for one in (Property.SGD_STEPS, Property.WHOLE_STEPS):
            yield Breach(one, needs, got, stages.ADAPTERS)
