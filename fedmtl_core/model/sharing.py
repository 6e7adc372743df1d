"""Who shares which parameter: the table from parameter names to scopes, task by task.

A parameter of the encoder is shared by some *blocks* of tasks: by one block of all of them (MT-DNN; Liu et al. 2019,
arXiv:1901.11504), by a block for each group, by one for each task, or by nobody at all. A block is named as a scope,
and the parameters of one scope form a component. What a client keeps for itself has the scope `local`, and no
component.

All of this is names. It knows no tensors, no clients and no rounds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from fedmtl_core.errors import ConfigError
from fedmtl_core.model.scopes import LOCAL, SHARED, group_scope, scope_of, task_scope

Block = tuple[str, ...]
"""Tasks whose clients share something, in the run's order."""
Partition = tuple[Block, ...]
"""The tasks in blocks: each of them in exactly one."""

NAMED_PARTS = ("embeddings", "pooler", "rest")
"""Parts of an encoder besides its layers: `rest` is what is in none, such as a norm after the last layer."""
LEVELS = ("shared", "all", "group", "task", "local")
"""Who may share a part; besides these, a group's name."""

_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_EMPTY: Mapping[str, Partition] = MappingProxyType({})


@dataclass(frozen=True)
class ModelShape:
    """A multi-task model's parameters by name, as far as the table needs to know them."""

    parts: Mapping[str, str]
    """The encoder's, in its own order: each with the part that it is in, a layer's number or one of `NAMED_PARTS`."""
    heads: Mapping[str, Sequence[str]]
    """Each task's head's."""
    norms: Collection[str] = ()
    """The encoder's that are in its normalisation layers."""


@dataclass(frozen=True)
class SharingRules:
    """The section `sharing`: what a table is made by."""

    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By name, the tasks and groups in a group."""
    layers: Mapping[str, str] = field(default_factory=dict)
    """By part or range of layers, who shares it; what isn't there, all do."""
    head: str = "task"
    norms: str | None = None
    """Who shares the encoder's norms, wherever they are; None for what shares the part that they are in."""


@dataclass(frozen=True)
class GroupTree:
    """The tasks as leaves of a tree, whose inner nodes are groups and whose root are all tasks.

    Args:
        tasks: in the run's order.
        groups: by name, the tasks and groups in a group.

    Raises:
        ValueError: that is no tree; the message says where.
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
                raise ValueError(f"groups: {group!r} means something else, and can't be a group's name")
            if not members:
                raise ValueError(f"groups.{group}: expected at least one task or group, got none")
            for member in members:
                if member not in self.tasks and member not in self.groups:
                    known = ", ".join([*self.tasks, *self.groups])
                    raise ValueError(f"groups.{group}: there is no task or group {member!r}; there are {known}")
                if member in parents:
                    first = parents[member]
                    twice = f"twice in {group!r}" if first == group else f"in {first!r} and in {group!r}"
                    raise ValueError(f"groups: {member!r} is {twice}; it can be in one alone, once")
                parents[member] = group
        return parents

    def _require_no_cycle(self, group: str) -> None:
        path = [group]
        while path[-1] in self._parents and path[-1] not in path[:-1]:
            path.append(self._parents[path[-1]])
        if path[-1] in path[:-1]:
            raise ValueError(f"groups: {' is in '.join(map(repr, path))}: a group can't be in itself")

    def above(self, task: str) -> list[str]:
        """The groups that a task is in, the innermost first."""
        found = []
        while task in self._parents:
            task = self._parents[task]
            found.append(task)
        return found

    def members(self, group: str) -> Block:
        """The tasks of a group and of those in it."""
        return tuple(task for task in self.tasks if group in self.above(task))

    def scopes(self, level: str) -> dict[str, str]:
        """By task, the scope of what its model shares at a level.

        Args:
            level: `shared` or `all`; `group`, with those that are in the same innermost group, or in none; a group's
                name, the same but all within that group together; `task`; or `local`.
        """
        if level == "local":
            return dict.fromkeys(self.tasks, LOCAL)
        if level == "task":
            return {task: task_scope(task) for task in self.tasks}
        keys = {task: self._key(task, level) for task in self.tasks}
        return self.scopes_of([[task for task in self.tasks if keys[task] == key] for key in set(keys.values())])

    def scopes_of(self, blocks: Iterable[Sequence[str]]) -> dict[str, str]:
        """By task, the scope of what blocks of tasks share."""
        return {task: self.scope(block) for block in blocks for task in block}

    def _key(self, task: str, level: str) -> str:
        """What the tasks that share something at a level have in common."""
        if level in ("shared", "all"):
            return ""
        groups = self.above(task)
        return level if level in groups else groups[0] if groups else ""

    def scope(self, block: Sequence[str]) -> str:
        """The name of what a block of tasks shares in the encoder."""
        if len(block) == len(self.tasks):
            return SHARED
        if len(block) == 1:
            return task_scope(block[0])
        named = next((group for group in self.groups if set(self.members(group)) == set(block)), None)
        return group_scope(named if named is not None else "+".join(task for task in self.tasks if task in block))


@dataclass(frozen=True)
class SharingTable:
    """Every parameter of every task's model with its scope."""

    tasks: Sequence[str]
    by_task: Mapping[str, Mapping[str, str]]
    """By task, the scope by parameter, in the model's order."""

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
        """Of the components: `shared` first, then from those of many tasks to those of one."""
        place = {task: number for number, task in enumerate(self.tasks)}

        def outside_in(scope: str) -> tuple[bool, int, list[int]]:
            members = self.members(scope)
            return scope != SHARED, -len(members), [place[task] for task in members]

        return tuple(sorted(self._members, key=outside_in))

    def members(self, scope: str) -> Block:
        """The tasks whose clients share a scope."""
        return self._members[scope]

    def tensors(self, scope: str) -> tuple[str, ...]:
        """A scope's parameters, in the model's order: the same for each of its tasks."""
        return tuple(name for name, one in self.by_task[self.members(scope)[0]].items() if one == scope)

    def scopes_for(self, task: str) -> tuple[str, ...]:
        """The scopes of a task's slice."""
        mine = set(self.by_task[task].values())
        return tuple(scope for scope in self.scopes if scope in mine)

    def local_for(self, task: str) -> tuple[str, ...]:
        """The parameters that a task's clients keep for themselves."""
        return tuple(name for name, scope in self.by_task[task].items() if scope == LOCAL)

    @property
    def is_one_model(self) -> bool:
        """Whether there is one of each parameter, and none is local: one encoder, with all heads on it."""
        return self.has_one_encoder and not any(map(self.local_for, self.tasks))

    @property
    def has_one_encoder(self) -> bool:
        """Whether all tasks share one encoder, which is nobody's own."""
        return len({tuple(self._of_encoder(task)) for task in self.tasks}) == 1 and self.has_encoder(self.tasks[0])

    def has_encoder(self, task: str) -> bool:
        """Whether none of a task's encoder is local."""
        return LOCAL not in self._of_encoder(task)

    def _of_encoder(self, task: str) -> list[str]:
        return [scope for name, scope in self.by_task[task].items() if scope_of(name) == SHARED]


def make_table(
    tasks: Sequence[str], shape: ModelShape, rules: SharingRules, moved: Mapping[str, Partition] = _EMPTY
) -> SharingTable:
    """The table that rules come to for a model.

    Args:
        tasks: in the run's order.
        shape: of the model.
        rules: the configuration's.
        moved: by part, blocks that hold instead of the rules'.

    Raises:
        ConfigError: the rules name what the model hasn't, or leave a task nothing to send.
    """
    tree = tree_of(tasks, rules)
    by_part = {part: tree.scopes(level) for part, level in levels_of(shape, rules).items()}
    by_part |= {part: tree.scopes_of(blocks) for part, blocks in moved.items()}
    of_norms = None if rules.norms is None else tree.scopes(rules.norms)
    by_task = {}
    for task in tasks:
        encoder = {
            name: (by_part[part] if of_norms is None or name not in shape.norms else of_norms)[task]
            for name, part in shape.parts.items()
        }
        head = LOCAL if rules.head == "local" else task_scope(task)
        by_task[task] = encoder | dict.fromkeys(shape.heads[task], head)
        if all(scope == LOCAL for scope in by_task[task].values()):
            raise ConfigError(f"sharing: nothing of {task}'s model is shared: its clients would have nothing to send")
    return SharingTable(tuple(tasks), by_task)


def tree_of(tasks: Sequence[str], rules: SharingRules) -> GroupTree:
    """The tree of a run's tasks.

    Raises:
        ConfigError: the rules describe none.
    """
    try:
        return GroupTree(tuple(tasks), rules.groups)
    except ValueError as error:
        raise ConfigError(f"sharing.{error}") from None


def levels_of(shape: ModelShape, rules: SharingRules) -> dict[str, str]:
    """By part of the encoder, who shares it.

    Raises:
        ConfigError: the rules name a part that the encoder hasn't.
    """
    there = list(dict.fromkeys(shape.parts.values()))
    levels = dict.fromkeys(there, "shared")
    for key, level in rules.layers.items():
        for part in parts_in(key):
            if part not in levels:
                has = ", ".join(sorted(there, key=_numbers_first))
                raise ConfigError(f"sharing.layers: the encoder has no {_called(part)}; it has {has}")
            levels[part] = level
    return levels


def movable_parts(rules: SharingRules, layers: Sequence[str] | None) -> Collection[str] | None:
    """The parts that may move from one scope to another; None for all that no rule names.

    Args:
        rules: what they name stays as they say.
        layers: what may move, in the form of the rules' layers.

    Raises:
        ValueError: a rule names one of them too, or it is none.
    """
    if layers is None:
        return None
    named = {part for key in rules.layers for part in parts_in(key)}
    parts = [part for key in layers for part in parts_in(key)]
    if both := [part for part in parts if part in named]:
        raise ValueError(f"adaptive.layers: {_called(both[0])} is in `layers`, and stays as that says")
    return parts


def require_rules(tasks: Sequence[str], rules: SharingRules) -> None:
    """Check what can be checked without the model.

    Raises:
        ValueError: the groups are no tree of these tasks, or a level or part is unknown or there twice.
    """
    tree = GroupTree(tuple(tasks), rules.groups)
    first: dict[str, str] = {}
    for key, level in rules.layers.items():
        _require_level(f"layers.{key}", level, tree)
        for part in parts_in(key):
            if part in first:
                raise ValueError(f"layers: {_called(part)} is there twice, in {first[part]!r} and in {key!r}")
            first[part] = key
    if rules.norms is not None:
        _require_level("norms", rules.norms, tree)


def parts_in(key: str) -> Iterator[str]:
    """The parts that a key of `sharing.layers` stands for: a layer's number, a range of them, or one of `NAMED_PARTS`.

    Raises:
        ValueError: it is none of these.
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
        raise ValueError(f"{key}: `group` needs `sharing.groups`, which has none")


def _called(part: str) -> str:
    return f"layer {part}" if part.isdecimal() else part


def _numbers_first(part: str) -> tuple[bool, int, str]:
    return (False, int(part), "") if part.isdecimal() else (True, 0, part)


def blocks_text(partition: Iterable[Iterable[str]]) -> str:
    """Blocks of tasks for people: `sst2 | qqp+stsb`."""
    return " | ".join("+".join(block) for block in partition)


def blocks_of(partition: Iterable[Iterable[str]]) -> Partition:
    """A partition as JSON has it."""
    return tuple(tuple(block) for block in partition)
