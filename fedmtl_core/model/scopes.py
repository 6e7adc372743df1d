"""Scopes: the sets of clients that share parameters. `fedmtl_core.model.sharing` maps parameters to scopes.

A scope is named by who shares: `shared` is everybody, `group:NAME` the clients of some tasks, `task:NAME` those of one
task. What a client keeps for itself is `local`, and never sent.
"""

from __future__ import annotations

SHARED = "shared"
"""The scope of every client."""
LOCAL = "local"
"""The scope of one client alone."""

_TASK_PREFIX = "task:"
_GROUP_PREFIX = "group:"


def task_scope(task: str) -> str:
    """The scope of one task's clients: `task:NAME`."""
    return _TASK_PREFIX + task


def task_of(scope: str) -> str | None:
    """The task that a scope belongs to, or None for a scope that isn't one task's."""
    return scope.removeprefix(_TASK_PREFIX) if scope.startswith(_TASK_PREFIX) else None


def group_scope(group: str) -> str:
    """The scope of the clients of some tasks: `group:NAME`."""
    return _GROUP_PREFIX + group


def group_of(scope: str) -> str | None:
    """The group that a scope belongs to, or None for one that isn't a group's."""
    return scope.removeprefix(_GROUP_PREFIX) if scope.startswith(_GROUP_PREFIX) else None


def scope_of(name: str) -> str:
    """The scope of a parameter in a plain table, by its name: `heads.TASK.…` is the task's, the rest shared."""
    part, _, rest = name.partition(".")
    return task_scope(rest.partition(".")[0]) if part == "heads" else SHARED
