"""Parameter sharing: the table from parameter names to scopes, task by task.

An encoder parameter is shared within *blocks* of tasks: one block of all tasks (MT-DNN; Liu et al. 2019,
arXiv:1901.11504), one block per group, one per task, or none. A block is named by a scope, and the parameters of one
scope form a component. A client's local parameters have the scope `local`, and no component.

This module works on names only. It uses no tensors, clients or rounds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from fedmtl_core.errors import ConfigError
from fedmtl_core.model.scopes import LOCAL, SHARED, factor_in, factor_scope, group_scope, scope_of, task_scope
from fedmtl_core.tasks.adapters import FACTORS, Factor

Block = tuple[str, ...]
"""Tasks whose clients share parameters, in the run's order."""
Partition = tuple[Block, ...]
"""The tasks in blocks, each task in exactly one block."""

NAMED_PARTS = ("embeddings", "pooler", "rest")
"""Parts of an encoder besides its layers. `rest` has the parameters of no other part, such as a norm after the last
layer."""
LEVELS = ("shared", "all", "group", "task", "local")
"""The levels at which a part may be shared; a group's name is a level too."""

_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_EMPTY: Mapping[str, Partition] = MappingProxyType({})


@dataclass(frozen=True)
class ModelShape:
    """The parameter names of a multi-task model, by their position in the model."""

    parts: Mapping[str, str]
    """The encoder's parameters that may be shared, in its own order, each with its part: a layer's number or one of
    `NAMED_PARTS`."""
    heads: Mapping[str, Sequence[str]]
    """By task, the parameters of the task's head."""
    norms: Collection[str] = ()
    """The encoder's parameters that belong to normalization layers."""
    factors: Mapping[str, Factor] = field(default_factory=dict)
    """The encoder's parameters that belong to an adapter, each with its factor."""


@dataclass(frozen=True)
class SharingRules:
    """The configuration's section `sharing`, from which a table is made."""

    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By name, the tasks and groups in a group."""
    layers: Mapping[str, str] = field(default_factory=dict)
    """By part or range of layers, the level at which it is shared. All tasks share parts that neither `layers` nor
    `own` lists."""
    head: str = "task"
    norms: str | None = None
    """The level at which all norms of the encoder are shared; None for the level of the part that each norm is in."""
    own: Collection[str] | None = ()
    """The parts of which each task has its own copy, unless `layers` lists them; None for all parts."""
    factors: Mapping[Factor, str] = field(default_factory=dict)
    """By factor of the adapters, the level at which it is shared; absent for the level of the part that it is in."""
    factors_apart: bool = False
    """Whether each factor has components of its own, since rounds train one factor only."""


@dataclass(frozen=True)
class GroupTree:
    """A tree with the tasks as leaves, groups as inner nodes, and the set of all tasks as root.

    Args:
        tasks: in the run's order.
        groups: by name, the tasks and groups in a group.

    Raises:
        ValueError: the groups don't form a tree; the message says where.
    """

    tasks: Sequence[str]
    groups: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        for group in self.groups:
            self._require_no_cycle(group)

    @cached_property
    def _parents(self) -> Mapping[str, str]:
        parents: dict[str, str] = {}
        for group, members in self.groups.items():
            if group in self.tasks:
                raise ValueError(f"groups: {group!r} is a task, and can't be a group's name too")
            if group in LEVELS:
                raise ValueError(f"groups: {group!r} is the name of a level, and can't be a group's name")
            if not members:
                raise ValueError(f"groups.{group}: expected at least one task or group, got none")
            for member in members:
                if member not in self.tasks and member not in self.groups:
                    known = ", ".join([*self.tasks, *self.groups])
                    raise ValueError(f"groups.{group}: there is no task or group {member!r}; expected one of {known}")
                if member in parents:
                    first = parents[member]
                    twice = f"twice in {group!r}" if first == group else f"in {first!r} and in {group!r}"
                    raise ValueError(f"groups: {member!r} is {twice}; it can be in one group only, and once")
                parents[member] = group
        return parents

    def _require_no_cycle(self, group: str) -> None:
        path = [group]
        while path[-1] in self._parents and path[-1] not in path[:-1]:
            path.append(self._parents[path[-1]])
        if path[-1] in path[:-1]:
            raise ValueError(f"groups: {' is in '.join(map(repr, path))}: a group can't be in itself")

    def above(self, task: str) -> list[str]:
        """Return the groups that contain a task, the innermost first."""
        found = []
        while task in self._parents:
            task = self._parents[task]
            found.append(task)
        return found

    def members(self, group: str) -> Block:
        """Return the tasks of a group, including those of its inner groups."""
        return tuple(task for task in self.tasks if group in self.above(task))

    def scopes(self, level: str) -> dict[str, str]:
        """Return, by task, the scope in which its model shares a part.

        Args:
            level: `shared` or `all` for all tasks together; `group` for the tasks of the same innermost group, or of
                none; `task` for each task alone; or `local`. A group's name joins the tasks of that group, and treats
                other tasks as `group` does.
        """
        if level == "local":
            return dict.fromkeys(self.tasks, LOCAL)
        if level == "task":
            return {task: task_scope(task) for task in self.tasks}
        keys = {task: self._key(task, level) for task in self.tasks}
        return self.scopes_of([[task for task in self.tasks if keys[task] == key] for key in set(keys.values())])

    def blocks(self, level: str) -> Partition:
        """Return the blocks of tasks that share a part at a level other than `local`; see `scopes`."""
        scopes = self.scopes(level)
        return tuple(
            tuple(task for task in self.tasks if scopes[task] == scope) for scope in dict.fromkeys(scopes.values())
        )

    def scopes_of(self, blocks: Iterable[Sequence[str]]) -> dict[str, str]:
        """Return, by task, the scope of its block."""
        return {task: self.scope(block) for block in blocks for task in block}

    def _key(self, task: str, level: str) -> str:
        """Return the key that tasks sharing a part at a level have in common."""
        if level in ("shared", "all"):
            return ""
        groups = self.above(task)
        return level if level in groups else groups[0] if groups else ""

    def scope(self, block: Sequence[str]) -> str:
        """Return the scope of the encoder parameters that a block of tasks shares."""
        if len(block) == len(self.tasks):
            return SHARED
        if len(block) == 1:
            return task_scope(block[0])
        named = next((group for group in self.groups if set(self.members(group)) == set(block)), None)
        return group_scope(named if named is not None else "+".join(task for task in self.tasks if task in block))


@dataclass(frozen=True)
class SharingTable:
    """The scope of every parameter of every task's model."""

    tasks: Sequence[str]
    by_task: Mapping[str, Mapping[str, str]]
    """By task, the scopes by parameter name, in the model's order."""

    @cached_property
    def _members(self) -> Mapping[str, Block]:
        members: dict[str, list[str]] = {}
        for task in self.tasks:
            for scope in dict.fromkeys(self.by_task[task].values()):
                if scope != LOCAL:
                    members.setdefault(scope, []).append(task)
        return {scope: tuple(tasks) for scope, tasks in members.items()}

    @cached_property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of the components: `shared` first, then from those of many tasks to those of one."""
        place = {task: number for number, task in enumerate(self.tasks)}

        def outside_in(scope: str) -> tuple[bool, int, list[int]]:
            members = self.members(scope)
            return scope != SHARED, -len(members), [place[task] for task in members]

        return tuple(sorted(self._members, key=outside_in))

    def members(self, scope: str) -> Block:
        """Return the tasks whose clients share a scope."""
        return self._members[scope]

    def tensors(self, scope: str) -> tuple[str, ...]:
        """Return a scope's parameters in the model's order, which are the same for each of its tasks."""
        return tuple(name for name, one in self.by_task[self.members(scope)[0]].items() if one == scope)

    def scopes_for(self, task: str) -> tuple[str, ...]:
        """Return the scopes of a task's slice."""
        mine = set(self.by_task[task].values())
        return tuple(scope for scope in self.scopes if scope in mine)

    def local_for(self, task: str) -> tuple[str, ...]:
        """Return the local parameters of a task's clients."""
        return tuple(name for name, scope in self.by_task[task].items() if scope == LOCAL)

    @property
    def is_one_model(self) -> bool:
        """Whether each parameter exists once and none is local, so that one encoder has all heads."""
        return self.has_one_encoder and not any(map(self.local_for, self.tasks))

    @property
    def has_one_encoder(self) -> bool:
        """Whether all tasks share one encoder, without local parameters."""
        return len({tuple(self._of_encoder(task)) for task in self.tasks}) == 1 and self.has_encoder(self.tasks[0])

    def has_encoder(self, task: str) -> bool:
        """Whether no parameter of a task's encoder is local."""
        return LOCAL not in self._of_encoder(task)

    def _of_encoder(self, task: str) -> list[str]:
        return [scope for name, scope in self.by_task[task].items() if scope_of(name) == SHARED]


def make_table(
    tasks: Sequence[str], shape: ModelShape, rules: SharingRules, moved: Mapping[str, Partition] = _EMPTY
) -> SharingTable:
    """Return the sharing table of a model.

    Args:
        tasks: in the run's order.
        shape: the model's parameter names.
        rules: the configuration's sharing rules.
        moved: by part, blocks that override the rules.

    Raises:
        ConfigError: the rules name a part that the model doesn't have, or leave a task nothing to send.
    """
    tree = tree_of(tasks, rules)
    by_part = {part: tree.scopes(level) for part, level in levels_of(shape, rules).items()}
    by_part |= {part: tree.scopes_of(blocks) for part, blocks in moved.items()}
    of_norms = None if rules.norms is None else tree.scopes(rules.norms)
    of_factors = {factor: tree.scopes(level) for factor, level in rules.factors.items()}

    def scopes_of(name: str, part: str) -> Mapping[str, str]:
        if of_norms is not None and name in shape.norms:
            return of_norms
        factor = shape.factors.get(name)
        scopes = by_part[part] if factor is None else of_factors.get(factor, by_part[part])
        if factor is None or not rules.factors_apart:
            return scopes
        return {task: scope if scope == LOCAL else factor_scope(factor, scope) for task, scope in scopes.items()}

    scopes = {name: scopes_of(name, part) for name, part in shape.parts.items()}
    by_task = {}
    for task in tasks:
        encoder = {name: by_name[task] for name, by_name in scopes.items()}
        head = LOCAL if rules.head == "local" else task_scope(task)
        by_task[task] = encoder | dict.fromkeys(shape.heads[task], head)
        if all(scope == LOCAL for scope in by_task[task].values()):
            raise ConfigError(
                f"sharing: all parameters of {task}'s model are local, so its clients would have nothing to send; "
                f"share the head or a part of the encoder"
            )
        if rules.factors_apart:
            _require_something_to_send(task, by_task[task].values())
    return SharingTable(tuple(tasks), by_task)


def _require_something_to_send(task: str, scopes: Collection[str]) -> None:
    """Check that a task's clients have parameters to send in each round, if factors of adapters are trained in turn.

    Raises:
        ConfigError: in some rounds, all parameters that they train and share are of the other factor.
    """
    sent = {factor_in(scope) for scope in scopes if scope != LOCAL}
    for factor in FACTORS:
        if sent.isdisjoint({None, factor}):
            raise ConfigError(
                f"sharing: `model.adapters.aggregation: alternate` trains one factor in each round, and clients of "
                f"{task} would have nothing to send in the rounds of {factor.upper()}; with `sharing.head: local`, "
                f"share factors {factor.upper()} too, or take another aggregation"
            )


def tree_of(tasks: Sequence[str], rules: SharingRules) -> GroupTree:
    """Return the tree of a run's tasks.

    Raises:
        ConfigError: the rules describe no tree.
    """
    try:
        return GroupTree(tuple(tasks), rules.groups)
    except ValueError as error:
        raise ConfigError(f"sharing.{error}") from None


def levels_of(shape: ModelShape, rules: SharingRules, key_of_layers: str = "sharing.layers") -> dict[str, str]:
    """Return, by part of the encoder, the level at which it is shared.

    Args:
        shape: the model's parameter names.
        rules: the sharing rules.
        key_of_layers: the setting that the rules' layers come from, for messages.

    Raises:
        ConfigError: the rules name a part that the encoder doesn't have.
    """
    there = list(dict.fromkeys(shape.parts.values()))
    levels = {part: "task" if rules.own is None or part in rules.own else "shared" for part in there}
    for key, level in rules.layers.items():
        for part in parts_in(key):
            if part not in levels:
                has = ", ".join(sorted(there, key=_numbers_first))
                raise ConfigError(f"{key_of_layers}: the encoder has no {part_text(part)}; it has {has}")
            levels[part] = level
    return levels


def movable_parts(
    rules: SharingRules, layers: Sequence[str] | None, scheduled: Collection[str] = ()
) -> Collection[str] | None:
    """Return the parts that a policy may move between scopes; None for all parts that nothing else names.

    Args:
        rules: the parts that they name don't move.
        layers: the parts that may move, in the notation of the rules' layers.
        scheduled: the parts that only the schedule moves.

    Raises:
        ValueError: a rule or the schedule names one of these parts, or a name is no part.
    """
    if layers is None:
        return None
    named = {part for key in rules.layers for part in parts_in(key)}
    parts = [part for key in layers for part in parts_in(key)]
    for part in parts:
        if part in named or part in scheduled:
            where = "`layers`, and stays fixed" if part in named else "`schedule`, which alone moves it"
            raise ValueError(f"adaptive.layers: {part_text(part)} is in {where}; remove it from one of the two")
    return parts


def require_rules(tasks: Sequence[str], rules: SharingRules) -> None:
    """Check the rules as far as possible without the model.

    Raises:
        ValueError: the groups form no tree of these tasks, or a level or part is unknown or occurs twice.
    """
    tree = GroupTree(tuple(tasks), rules.groups)
    first: dict[str, str] = {}
    for key, level in rules.layers.items():
        _require_level(f"layers.{key}", level, tree)
        for part in parts_in(key):
            if part in first:
                raise ValueError(f"layers: {part_text(part)} occurs twice, in {first[part]!r} and in {key!r}")
            first[part] = key
    if rules.norms is not None:
        _require_level("norms", rules.norms, tree)
    for factor, factor_level in rules.factors.items():
        _require_level(f"adapters.{factor}", factor_level, tree)


def parts_in(key: str) -> Iterator[str]:
    """Yield the parts of a key in `sharing.layers`: a layer's number, a range of layers, or one of `NAMED_PARTS`.

    Raises:
        ValueError: the key has another form.
    """
    if key in NAMED_PARTS:
        yield key
        return
    match = _RANGE.fullmatch(key)
    if match is None:
        raise ValueError(
            f"layers: expected a layer's number, a range such as 2-5, or one of {', '.join(NAMED_PARTS)}, got {key!r}"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"layers: the range {key!r} ends before it begins")
    yield from map(str, range(first, last + 1))


def _require_level(key: str, level: str, tree: GroupTree) -> None:
    if level not in LEVELS and level not in tree.groups:
        groups = f", or one of the groups {', '.join(tree.groups)}" if tree.groups else "; there are no groups"
        raise ValueError(f"{key}: expected one of {', '.join(LEVELS)}{groups}, got {level!r}")
    if level == "group" and not tree.groups:
        raise ValueError(f"{key}: `group` needs groups in `sharing.groups`, got none")


def part_text(part: str) -> str:
    """Return a part's name in messages: `layer 7`, or `pooler`."""
    return f"layer {part}" if part.isdecimal() else part


def parts_text(parts: Iterable[str]) -> str:
    """Return the names of several parts in messages: `embeddings, layers 0-2, pooler`."""
    runs: list[list[str]] = []
    for part in parts:
        follows = bool(runs) and part.isdecimal() and runs[-1][-1].isdecimal() and int(part) == int(runs[-1][-1]) + 1
        if follows:
            runs[-1].append(part)
        else:
            runs.append([part])
    return ", ".join(part_text(run[0]) if len(run) == 1 else f"layers {run[0]}-{run[-1]}" for run in runs)


def _numbers_first(part: str) -> tuple[bool, int, str]:
    return (False, int(part), "") if part.isdecimal() else (True, 0, part)


def blocks_text(partition: Iterable[Iterable[str]]) -> str:
    """Format blocks of tasks for people: `sst2 | qqp+stsb`."""
    return " | ".join("+".join(block) for block in partition)


def blocks_of(partition: Iterable[Iterable[str]]) -> Partition:
    """Convert a partition from JSON."""
    return tuple(tuple(block) for block in partition)
