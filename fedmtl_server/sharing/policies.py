"""Which layers tasks share, decided while they train, by how alike the tasks' updates are.

Tasks whose updates of a layer point apart pull it to and fro, and are better off with one each; those that agree are
better off together. A policy sees the inner products of the tasks' deltas, layer by layer, and says which tasks share a
layer from now on. It sees no tensors, and is a function of its arguments.

The built-in one, `cosine`, goes by cosine similarities, as clustered federated learning does for whole models (Sattler
et al. 2019, arXiv:1910.01991). It is not that paper's algorithm: layers are looked at one by one, tasks are what is put
into clusters, and what has parted may come together again.
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
from fedmtl_core.errors import AggregationError
from fedmtl_core.model.sharing import Block, Partition, blocks_of
from fedmtl_core.plugins import Registry


@dataclass(frozen=True)
class PartFacts:
    """One part of the encoder that may move, in one round."""

    part: str
    """A layer's number, or `embeddings`, `pooler` or `rest`."""
    num_parameters: int
    """That one task's model has of it."""
    blocks: Partition
    """Who shares it now."""
    products: NDArray[np.float64]
    """Inner products of what each task's clients changed in it, `(tasks, tasks)`; 0 for tasks without an update."""


@dataclass(frozen=True)
class SharingRound:
    """One round, as a policy sees it."""

    round: int
    tasks: Sequence[str]
    """All of the run's, in its order, which is that of `products`."""
    parts: Sequence[PartFacts]
    """Those that may move; the others are the configuration's."""
    room: int
    """How many more parameters the server may keep than it does now; below 0 if it keeps too many."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the policy remembered in the round before; empty in the first."""


@dataclass(frozen=True)
class Decided:
    """Who shares what from now on."""

    blocks: Mapping[str, Partition] = field(default_factory=dict)
    """By part, for those that change: every task in one block."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """For the next round: what JSON can carry, without NaN."""


class SharingPolicy(ABC):
    """Who shares which layer; to be derived from in a file of one's own, which the configuration names.

    The same arguments must give the same result: a run that is taken up computes a round again.

    Args:
        settings: the configuration's section `sharing.adaptive`.
    """

    def __init__(self, settings: AdaptiveConfig):
        self.settings = settings

    @abstractmethod
    def decide(self, round_: SharingRound) -> Decided:
        """Who shares what after this round."""


class Cosine(SharingPolicy):
    """Parts tasks whose updates disagree, and brings together those that agree, with hysteresis.

    For each pair of tasks the cosine of their deltas is smoothed over the rounds in which both took part. A block is to
    be split where the least of its pairs is below `split_below`, into clusters within which none is; two blocks are to
    become one where no pair across them is below `merge_above`, which is larger. What is to be done is done when it was
    to be done, and the same, `patience` times in a row. Blocks come together first, then those with the least cosines
    part, as long as there is room.
    """

    def decide(self, round_: SharingRound) -> Decided:
        cosines, wishes, decided = {}, {}, {}
        due: list[tuple[float, PartFacts, Partition]] = []
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

    def _smoothed(self, known: Mapping[str, float], one: PartFacts, tasks: Sequence[str]) -> dict[str, float]:
        """By pair of tasks, `first second`, the cosine so far; pairs that were never there together are absent."""
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
    """Bring blocks together, the most alike first, while all pairs across are at least so alike (complete linkage)."""
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
    """The least cosine of a pair that shares a block; infinite where none is known."""
    pairs = [_pair(a, b) for block in blocks for a, b in combinations(block, 2)]
    return min((cosines[pair] for pair in pairs if pair in cosines), default=math.inf)


def _pair(first: str, second: str) -> str:
    return " ".join(sorted((first, second)))


POLICIES = Registry("sharing.adaptive.policy", SharingPolicy, {"cosine": Cosine})  # type: ignore[type-abstract]


def make_policy(section: AdaptiveConfig) -> SharingPolicy | None:
    """The policy that a configuration names; None for none.

    Raises:
        ConfigError: a user's own class can't be loaded or constructed.
    """
    return None if section.policy is None else POLICIES.make(section.policy, section)


def checked(decided: Decided, round_: SharingRound) -> Decided:
    """What a policy, which may be a user's own, has decided, as JSON gives it back.

    Raises:
        AggregationError: it is something else than it should be.
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
                f"{POLICIES.key}: it moves {part!r}; only {', '.join(movable) or 'nothing'} may move"
            )
        if sorted(task for block in partition for task in block) != sorted(round_.tasks) or not all(partition):
            raise AggregationError(
                f"{POLICIES.key}: {part}: expected every task of {', '.join(round_.tasks)} in one block, "
                f"got {partition}"
            )
    return Decided(blocks, state)
