"""The table of scopes: which parameter is shared by whom. It is all that is special about multi-task federation.

A scope is the set of clients that share a parameter: `shared` is everybody, `task:NAME` the clients of one task.
"""

from __future__ import annotations

SHARED = "shared"
"""The scope of the encoder: every client."""

_TASK_PREFIX = "task:"


def task_scope(task: str) -> str:
    """The scope of one task's head: `task:NAME`."""
    return _TASK_PREFIX + task


def task_of(scope: str) -> str | None:
    """The task whose head a scope holds, or None for a scope that isn't one task's."""
    return scope.removeprefix(_TASK_PREFIX) if scope.startswith(_TASK_PREFIX) else None


def scope_of(name: str) -> str:
    """The scope of a parameter by its name in the multi-task model: `heads.TASK.…` is the task's, the rest shared."""
    part, _, rest = name.partition(".")
    return task_scope(rest.partition(".")[0]) if part == "heads" else SHARED
