"""The schedule of the sharing: rounds after which parts of the encoder change the blocks of tasks that share them.

MT-DNN trains in two stages (Liu et al. 2019, arXiv:1901.11504): all tasks together, then each task by itself. A
schedule describes such stages, part by part. This module works on names only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmtl_core.model.sharing import (
    GroupTree,
    ModelShape,
    Partition,
    SharingRules,
    levels_of,
    part_text,
    parts_in,
    require_rules,
    tree_of,
)


@dataclass(frozen=True)
class SharingChange:
    """One entry of a schedule."""

    after_round: int
    """The round whose commit includes the change; at least 1."""
    layers: Mapping[str, str]
    """By part or range of layers, the level at which the part is shared from then on."""


@dataclass(frozen=True)
class ScheduledBlocks:
    """The blocks of tasks that a schedule gives to one part."""

    entry: int
    """The number of the entry in the schedule, counted from 0."""
    blocks: Partition


@dataclass(frozen=True)
class SharingSchedule:
    """The changes of the sharing that a configuration plans.

    Args:
        tree: the run's tasks and groups.
        changes: the entries, by ascending round.
    """

    tree: GroupTree
    changes: Sequence[SharingChange]

    @classmethod
    def of(cls, shape: ModelShape, rules: SharingRules, changes: Sequence[SharingChange]) -> SharingSchedule:
        """Return the schedule of a model.

        Args:
            shape: the model's parameter names.
            rules: the sharing before the first change.
            changes: the entries, by ascending round.

        Raises:
            ConfigError: an entry names a part that the encoder doesn't have.
        """
        for number, change in enumerate(changes):
            levels_of(shape, SharingRules(rules.groups, change.layers), f"sharing.schedule[{number}].layers")
        return cls(tree_of(tuple(shape.heads), rules), changes)

    def after(self, round_: int) -> dict[str, ScheduledBlocks]:
        """Return, by part that has changed by the end of a round, its blocks and the entry that set them."""
        return {
            part: ScheduledBlocks(number, self.tree.blocks(level))
            for number, change in enumerate(self.changes)
            if change.after_round <= round_
            for key, level in change.layers.items()
            for part in parts_in(key)
        }


def scheduled_parts(changes: Sequence[SharingChange]) -> frozenset[str]:
    """Return the parts that a schedule names in any of its entries."""
    return frozenset(part for change in changes for key in change.layers for part in parts_in(key))


def require_schedule(tasks: Sequence[str], rules: SharingRules, changes: Sequence[SharingChange]) -> None:
    """Check a schedule as far as possible without the model.

    Args:
        tasks: in the run's order.
        rules: the sharing before the first change, checked by `require_rules`.
        changes: the entries.

    Raises:
        ValueError: the rounds don't ascend, a level or part is unknown or occurs twice, or a part is or becomes local.
    """
    local = {part: key for key, level in rules.layers.items() if level == "local" for part in parts_in(key)}
    last = 0
    for number, change in enumerate(changes):
        where = f"schedule[{number}]"
        if change.after_round <= last:
            raise ValueError(
                f"{where}.after_round: expected a round after {last}, that of the entry before, got "
                f"{change.after_round}"
            )
        last = change.after_round
        try:
            require_rules(tasks, SharingRules(rules.groups, change.layers))
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from None
        for key, level in change.layers.items():
            if level == "local":
                raise ValueError(
                    f"{where}.layers.{key}: a part can't become `local` during a run; expected a level that the server "
                    "averages, such as `task`"
                )
            if kept := [part for part in parts_in(key) if part in local]:
                raise ValueError(
                    f"{where}.layers.{key}: {part_text(kept[0])} is `local` in `layers.{local[kept[0]]}`, and the "
                    "server has no copy of it to share"
                )
