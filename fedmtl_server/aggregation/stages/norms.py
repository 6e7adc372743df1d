"""Measures, clips or refuses updates by the norm of their delta.

Scaling a delta down to a bound before averaging prevents a single client from replacing the model (Sun et al. 2019,
arXiv:1911.07963). A bound that is a multiple of the median of recent norms adapts to the run, as in Andrew et al. 2021
(arXiv:1905.03871), which tracks a quantile. The same history gives the same bounds.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median_low

from fedmtl_core.config import NormsConfig
from fedmtl_core.config.stages import NORMS
from fedmtl_core.errors import NormExceededError
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.norms import update_norms
from fedmtl_server.aggregation.stages.base import Stage
from fedmtl_server.aggregation.values import RoundContext, RoundRecord, ScreenedUpdate, StageState

NO_NORMS = NormsConfig(action="none")
"""Settings with which updates are not measured."""


class RecentNorms:
    """The norms of counted updates in the last rounds that changed each component.

    Args:
        window: the number of rounds.
    """

    def __init__(self, window: int):
        self._by_scope: dict[str, deque[list[float]]] = defaultdict(lambda: deque(maxlen=window))

    def add(self, norms: Mapping[str, Sequence[float]]) -> None:
        """Add the norms of a round's counted updates, by scope."""
        for scope, all_of_them in norms.items():
            if larger := [norm for norm in all_of_them if norm > 0]:  # a bound of 0 could never grow
                self._by_scope[scope].append(larger)

    def of(self, scope: str) -> list[float]:
        """Return all recent norms of a component."""
        return [norm for norms in self._by_scope.get(scope, ()) for norm in norms]


class NormScreening(Stage):
    """Measures updates and clips deltas with too large a norm. Updates are refused elsewhere, before they count.

    Args:
        section: the configuration's section `robustness.norms`.
    """

    rule = NORMS

    def __init__(self, section: NormsConfig):
        self._section = section
        self._recent = RecentNorms(section.window)
        self._base: Mapping[str, Component] = {}
        self._bounds: Mapping[str, float] = {}

    # Before an update counts.

    @property
    def measures(self) -> bool:
        """Whether norms are measured."""
        return self._section.action != "none"

    @property
    def has_limits(self) -> bool:
        """Whether updates' norms are compared with the model's own norms."""
        return self._section.model_factor is not None and self.measures

    @property
    def refusal_bounds(self) -> Mapping[str, float]:
        """By scope, the norm above which an update is refused in this round; empty unless `action` is `refuse`."""
        return self._bounds if self._section.action == "refuse" else {}

    def limits(self, model_norms: Mapping[str, float]) -> dict[str, float]:
        """Return the largest allowed norm of an update by scope; a single update above it would ruin the model.

        Args:
            model_norms: the model's own norms; see `reference_norm`.
        """
        if self._section.model_factor is None or not self.measures:
            return {}
        return {scope: self._section.model_factor * norm for scope, norm in model_norms.items()}

    # In a round.

    def begin(self, context: RoundContext) -> None:
        self._base = context.base
        self._bounds = self.bounds(context.base)

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        if not self.measures:
            return update
        norms = update.norms or update_norms(update.kind, update.components, self._base)
        bounds = self._bounds if self._section.action == "clip" else {}
        clipped_to = {scope: bound for scope, bound in bounds.items() if norms.get(scope, 0.0) > bound}
        return replace(update, norms=norms, clipped_to=clipped_to)

    def record(self, record: RoundRecord) -> None:
        if record.is_regrouped:  # norms of the old components don't apply to the new ones
            self._recent = RecentNorms(self._section.window)
        else:
            self._recent.add(record.norms)

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        """Compute the bounds from the rounds that were recorded before."""
        self._bounds = self.bounds([layout.scope for layout in layouts])

    def bounds(self, scopes: Collection[str]) -> dict[str, float]:
        """Return the largest norm of a delta in the next round by scope; a scope without a bound is absent.

        The history contains clipped norms after clipping, and no refused norms. A client that sends ever larger updates
        can therefore raise the bound by at most the factor `median_factor` per round, even if it is the only client.
        """
        section = self._section
        if section.action not in ("clip", "refuse"):
            return {}
        bounds = {} if section.bound is None else dict.fromkeys(scopes, section.bound)
        if section.median_factor is not None:
            for scope in scopes:
                if norms := self._recent.of(scope):
                    # The low median: half of the norms, however large, don't raise it.
                    bounds[scope] = min(bounds.get(scope, math.inf), section.median_factor * median_low(norms))
        return bounds


def require_within(norms: Mapping[str, float], bounds: Mapping[str, float], why: str = "") -> None:
    """Check that no norm of an update exceeds its bound.

    Args:
        norms: the update's norms by scope.
        bounds: the largest allowed norms by scope.
        why: the origin of the bounds, for the message.

    Raises:
        NormExceededError: a norm exceeds its bound.
    """
    for scope, norm in norms.items():
        if scope in bounds and not norm <= bounds[scope]:  # NaN exceeds every bound
            raise NormExceededError(
                f"{scope}: the update moves it by an L2 norm of {norm:.6g}, at most {bounds[scope]:.6g} is allowed"
                f"{why}",
                scope=scope,
                norm=f"{norm:.6g}",
                allowed=f"{bounds[scope]:.6g}",
            )
