"""What becomes of updates by how far they move the model: they are measured, clipped, or refused.

Scaling a delta down to a bound before it is averaged takes from one client the power to replace the model (Sun et al.
2019, arXiv:1911.07963). A bound that is a multiple of the median of recent norms follows the run by itself, as in
Andrew et al. 2021 (arXiv:1905.03871), which tracks a quantile. The same history gives the same bounds.
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
"""Updates are not measured."""


class RecentNorms:
    """The norms that updates counted with, of the last rounds that changed each component.

    Args:
        window: so many rounds.
    """

    def __init__(self, window: int):
        self._by_scope: dict[str, deque[list[float]]] = defaultdict(lambda: deque(maxlen=window))

    def add(self, norms: Mapping[str, Sequence[float]]) -> None:
        """Take in a round's: by scope, the norms that updates counted with."""
        for scope, all_of_them in norms.items():
            if larger := [norm for norm in all_of_them if norm > 0]:  # of 0 nothing could grow
                self._by_scope[scope].append(larger)

    def of(self, scope: str) -> list[float]:
        """All of a component's."""
        return [norm for norms in self._by_scope.get(scope, ()) for norm in norms]


class NormScreening(Stage):
    """Measures updates, and clips those that move a component too far. Those to be refused are so before they count.

    Args:
        section: of the configuration.
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
        """Whether norms are looked at."""
        return self._section.action != "none"

    @property
    def has_limits(self) -> bool:
        """Whether updates are held against the model's own norms."""
        return self._section.model_factor is not None and self.measures

    @property
    def refusal_bounds(self) -> Mapping[str, float]:
        """By scope, the norm beyond which an update is refused in this round; empty unless `action` is `refuse`."""
        return self._bounds if self._section.action == "refuse" else {}

    def limits(self, model_norms: Mapping[str, float]) -> dict[str, float]:
        """The most that any update's norm may be, by scope: a single one beyond it would ruin the model.

        Args:
            model_norms: the model's own; see `reference_norm`.
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
        if record.is_regrouped:  # components aren't what they were
            self._recent = RecentNorms(self._section.window)
        else:
            self._recent.add(record.norms)

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        """Take the bounds from the rounds that were recorded before."""
        self._bounds = self.bounds([layout.scope for layout in layouts])

    def bounds(self, scopes: Collection[str]) -> dict[str, float]:
        """The most that a delta's norm may be in the next round; a scope without a bound is absent.

        What was clipped is in the history as what it was clipped to, and what was refused isn't. So one who sends
        ever larger updates, even if nobody else does, can raise the bound by no more than the factor a round.
        """
        section = self._section
        if section.action not in ("clip", "refuse"):
            return {}
        bounds = {} if section.bound is None else dict.fromkeys(scopes, section.bound)
        if section.median_factor is not None:
            for scope in scopes:
                if norms := self._recent.of(scope):
                    # The lower of the two in the middle: half of the norms, however large, don't raise it.
                    bounds[scope] = min(bounds.get(scope, math.inf), section.median_factor * median_low(norms))
        return bounds


def require_within(norms: Mapping[str, float], bounds: Mapping[str, float], why: str = "") -> None:
    """Check that an update moves no component further than is allowed.

    Args:
        norms: the update's, by scope.
        bounds: the most that is allowed, by scope.
        why: where the bound comes from, for the message.

    Raises:
        NormExceededError: it does.
    """
    for scope, norm in norms.items():
        if scope in bounds and not norm <= bounds[scope]:  # NaN is within no bound
            raise NormExceededError(
                f"{scope}: the update moves it by an L2 norm of {norm:.6g}, at most {bounds[scope]:.6g} is allowed"
                f"{why}",
                scope=scope,
                norm=f"{norm:.6g}",
                allowed=f"{bounds[scope]:.6g}",
            )
