"""Policies that decide during a run which tasks share a layer, by the similarity of the tasks' updates.

Tasks with conflicting updates of a layer should each have a copy of it; tasks with similar updates should share one. A
policy receives the inner products of the tasks' deltas, layer by layer, and decides which tasks share a layer from then
on. A policy receives no tensors, and is a function of its arguments.

The built-in policy `cosine` uses cosine similarities, as clustered federated learning does for whole models (Sattler et
al. 2019, arXiv:1910.01991). The algorithm differs from that paper's: it clusters tasks instead of clients, treats each
layer separately, and can merge clusters again.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmtl_core.config import AdaptiveConfig
from fedmtl_core.config.sharing import VALIDATED
from fedmtl_core.errors import AggregationError
from fedmtl_core.model.sharing import Block, Partition, blocks_of
from fedmtl_core.plugins import Registry


@dataclass(frozen=True)
class PartStats:
    """One round's statistics of a part of the encoder whose sharing may change."""

    part: str
    """The part's name: a layer's number, `embeddings`, `pooler` or `rest`."""
    num_parameters: int
    """The number of the part's parameters in one task's model."""
    blocks: Partition
    """The blocks of tasks that share the part now."""
    products: NDArray[np.float64]
    """Inner products of the tasks' deltas of the part, `(tasks, tasks)`; 0 for tasks without an update."""


@dataclass(frozen=True)
class SharingRound:
    """The input of a policy: one round."""

    round: int
    tasks: Sequence[str]
    """All tasks of the run, in the order of `PartStats.products`."""
    parts: Sequence[PartStats]
    """The parts whose sharing may change; the configuration fixes all others."""
    room: int
    """How many more parameters the server may keep; below 0 if it already keeps too many."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The policy's state from the previous round; empty in the first."""


@dataclass(frozen=True)
class Decided:
    """A policy's decision: the sharing of parts after a round."""

    blocks: Mapping[str, Partition] = field(default_factory=dict)
    """By part that changes, its new blocks; every task must be in exactly one block."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The policy's state for the next round: JSON values without NaN."""


class SharingPolicy(ABC):
    """Base class of policies. To add a policy, derive a class in your own module and name it in the configuration.

    The same arguments must give the same result, because a resumed run computes a round again.

    Args:
        settings: the configuration's section `sharing.adaptive`.
    """

    def __init__(self, settings: AdaptiveConfig):
        self.settings = settings

    @abstractmethod
    def decide(self, round_: SharingRound) -> Decided:
        """Decide which tasks share which parts after a round."""


class Cosine(SharingPolicy):
    """Splits blocks of tasks whose updates disagree and merges blocks whose updates agree, with hysteresis.

    For each pair of tasks, the cosine of their deltas is smoothed over the rounds in which both took part. A block
    should split if its lowest cosine is below `split_below`, into clusters without a pair below `split_below`. Two
    blocks should merge if no pair across them is below `merge_above`, which is larger than `split_below`. A change
    happens once the policy has wanted the same change `patience` times in a row. Merges come first, then splits, lowest
    cosine first, while `room` allows them.
    """

    def decide(self, round_: SharingRound) -> Decided:
        cosines, wishes, decided = {}, {}, {}
        due: list[tuple[float, PartStats, Partition]] = []
        known = round_.state.get("cosines", {})
        before = round_.state.get("wishes", {})
        for one in round_.parts:
            cosines[one.part] = self._smoothed(known.get(one.part, {}), one, round_.tasks)
            wanted = self._wanted(one.blocks, cosines[one.part], round_.tasks)
            if wanted == one.blocks:
                continue
            last, times = before.get(one.part, (None, 0))
            times = times + 1 if last is not None and blocks_of(last) == wanted else 1
            wishes[one.part] = (wanted, times)
            if times >= self.settings.patience:
                due.append((_least(one.blocks, cosines[one.part]), one, wanted))
        room = round_.room
        for _, one, wanted in sorted(due, key=lambda item: (len(item[2]) > len(item[1].blocks), item[0])):
            cost = (len(wanted) - len(one.blocks)) * one.num_parameters
            if cost <= max(room, 0) or cost < 0:
                decided[one.part] = wanted
                room -= cost
                del wishes[one.part]
        return Decided(decided, {"cosines": cosines, "wishes": wishes})

    def _smoothed(self, known: Mapping[str, float], one: PartStats, tasks: Sequence[str]) -> dict[str, float]:
        """Return the smoothed cosine by pair of tasks, `first second`, without pairs that never took part together."""
        result = dict(known)
        for (i, first), (j, second) in combinations(enumerate(tasks), 2):
            norms = math.sqrt(one.products[i, i]) * math.sqrt(one.products[j, j])
            cosine = one.products[i, j] / norms if norms > 0 else math.nan
            if math.isfinite(cosine):
                cosine = min(1.0, max(-1.0, float(cosine)))
                pair = _pair(first, second)
                kept = self.settings.smoothing if pair in known else 0.0
                result[pair] = kept * known.get(pair, 0.0) + (1 - kept) * cosine
        return result

    def _wanted(self, blocks: Partition, cosines: Mapping[str, float], tasks: Sequence[str]) -> Partition:
        parted = [
            cluster
            for block in blocks
            for cluster in (
                _clusters([(task,) for task in block], cosines, self.settings.split_below, unknown=math.inf)
                if _least([block], cosines) < self.settings.split_below
                else [block]
            )
        ]
        joined = _clusters(parted, cosines, self.settings.merge_above, unknown=-math.inf)
        place = {task: number for number, task in enumerate(tasks)}
        whole = [tuple(sorted(block, key=place.__getitem__)) for block in joined]
        return tuple(sorted(whole, key=lambda block: place[block[0]]))


def _clusters(blocks: Sequence[Block], cosines: Mapping[str, float], least: float, unknown: float) -> list[Block]:
    """Merge the most similar blocks first, while all pairs across two blocks have a cosine of at least `least`.

    This is complete linkage. `unknown` is the cosine of pairs that never took part together.
    """
    clusters = list(blocks)
    while len(clusters) > 1:
        pairs = list(combinations(range(len(clusters)), 2))
        alike = [
            min(cosines.get(_pair(a, b), unknown) for a in clusters[first] for b in clusters[second])
            for first, second in pairs
        ]
        most = max(alike)
        if most < least:
            break
        first, second = pairs[alike.index(most)]
        clusters[first] += clusters.pop(second)
    return clusters


def _least(blocks: Sequence[Block], cosines: Mapping[str, float]) -> float:
    """Return the lowest cosine of a pair within a block; infinite if no cosine is known."""
    pairs = [_pair(a, b) for block in blocks for a, b in combinations(block, 2)]
    return min((cosines[pair] for pair in pairs if pair in cosines), default=math.inf)


def _pair(first: str, second: str) -> str:
    return " ".join(sorted((first, second)))


POLICIES = Registry("sharing.adaptive.policy", SharingPolicy, {"cosine": Cosine})  # type: ignore[type-abstract]


def make_policy(section: AdaptiveConfig) -> SharingPolicy | None:
    """Return the policy that regroups layers; None if a configuration names none, or `validated`, which regroups none.

    Raises:
        ConfigError: a custom class can't be loaded or constructed.
    """
    return None if section.policy in (None, VALIDATED) else POLICIES.make(section.policy, section)


def checked(decided: Decided, round_: SharingRound) -> Decided:
    """Validate the decision of a policy, which may be a plug-in, and return it with the state as JSON restores it.

    Raises:
        AggregationError: the decision isn't valid.
    """
    movable = [one.part for one in round_.parts]
    blocks = {}
    try:
        state = json.loads(json.dumps(dict(decided.state), allow_nan=False))
        for part, partition in decided.blocks.items():
            blocks[part] = blocks_of(partition)
    except (TypeError, ValueError, AttributeError) as error:
        raise AggregationError(f"{POLICIES.key}: expected blocks of tasks and a JSON state: {error}") from None
    for part, partition in blocks.items():
        if part not in movable:
            raise AggregationError(
                f"{POLICIES.key}: the policy moves {part!r}; only {', '.join(movable) or 'nothing'} may move"
            )
        if sorted(task for block in partition for task in block) != sorted(round_.tasks) or not all(partition):
            raise AggregationError(
                f"{POLICIES.key}: {part}: expected each of the tasks {', '.join(round_.tasks)} in one block, "
                f"got {partition}"
            )
    return Decided(blocks, state)
