"""Scopes: the sets of clients that share parameters. `fedmtl_core.model.sharing` maps parameters to scopes.

A scope is named after the clients that share it: `shared` for all, `group:NAME` for the clients of some tasks,
`task:NAME` for those of one task. The scope of a client's own parameters is `local`; they are never sent.
"""

from __future__ import annotations

SHARED = "shared"
"""The scope of every client."""
LOCAL = "local"
"""The scope of a single client."""

_TASK_PREFIX = "task:"
_GROUP_PREFIX = "group:"


def task_scope(task: str) -> str:
    """Return the scope of one task's clients: `task:NAME`."""
    return _TASK_PREFIX + task


def task_of(scope: str) -> str | None:
    """Return the task that a scope belongs to; None for a scope that isn't one task's."""
    return scope.removeprefix(_TASK_PREFIX) if scope.startswith(_TASK_PREFIX) else None


def group_scope(group: str) -> str:
    """Return the scope of the clients of some tasks: `group:NAME`."""
    return _GROUP_PREFIX + group


def group_of(scope: str) -> str | None:
    """Return the group that a scope belongs to; None for a scope that isn't a group's."""
    return scope.removeprefix(_GROUP_PREFIX) if scope.startswith(_GROUP_PREFIX) else None


def scope_of(name: str) -> str:
    """Return the scope of a parameter in a plain table, by name: `heads.TASK.…` is the task's, the rest is shared."""
    part, _, rest = name.partition(".")
    return task_scope(rest.partition(".")[0]) if part == "heads" else SHARED
