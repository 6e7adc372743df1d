"""Scopes: the sets of clients that share parameters. `fedmtl_core.model.sharing` maps parameters to scopes.

A scope is named after the clients that share it: `shared` for all, `group:NAME` for the clients of some tasks,
`task:NAME` for those of one task. The scope of a client's own parameters is `local`; they are never sent.

With adapters, the encoder's own parameters are the base, which no client trains. Its scope is `frozen`. If the server
adds each round's adapters to the weights beside them, these weights have the scope `merged` instead.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedmtl_core.tasks.adapters import Factor, factor_in_turn

SHARED = "shared"
"""The scope of every client."""
LOCAL = "local"
"""The scope of a single client."""
FROZEN = "frozen"
"""The scope of the base's parameters that never change. They are the same for every client."""
MERGED = "merged"
"""The scope of the base's weights to which the server adds each round's adapters. They are the same for every client
that has the current base."""

_TASK_PREFIX = "task:"
_GROUP_PREFIX = "group:"
_STACK_PREFIX = "stack:"
_FACTOR_PREFIXES: Mapping[Factor, str] = {"a": "factor_a:", "b": "factor_b:"}


def task_scope(task: str) -> str:
    """Return the scope of one task's clients: `task:NAME`."""
    return _TASK_PREFIX + task


def task_of(scope: str) -> str | None:
    """Return the task that a scope belongs to, `sst2` for `task:sst2` and for `factor_b:task:sst2`; None for a scope
    that isn't one task's."""
    clients = without_factor(scope)
    return clients.removeprefix(_TASK_PREFIX) if clients.startswith(_TASK_PREFIX) else None


def group_scope(group: str) -> str:
    """Return the scope of the clients of some tasks: `group:NAME`."""
    return _GROUP_PREFIX + group


def group_of(scope: str) -> str | None:
    """Return the group that a scope belongs to, `pairs` for `group:pairs` and for `factor_b:group:pairs`; None for a
    scope that isn't a group's."""
    clients = without_factor(scope)
    return clients.removeprefix(_GROUP_PREFIX) if clients.startswith(_GROUP_PREFIX) else None


def factor_scope(factor: Factor, scope: str) -> str:
    """Return the scope of one factor of the adapters that some clients share, if factors are trained in turn:
    `factor_a:shared`."""
    return _FACTOR_PREFIXES[factor] + scope


def factor_in(scope: str) -> Factor | None:
    """Return the factor whose own scope this is; None for any other scope."""
    return next((factor for factor, prefix in _FACTOR_PREFIXES.items() if scope.startswith(prefix)), None)


def without_factor(scope: str) -> str:
    """Return the clients that share one factor of the adapters, as a scope: `shared` for `factor_a:shared`. A scope
    that isn't one factor's is returned as it is."""
    factor = factor_in(scope)
    return scope if factor is None else scope.removeprefix(_FACTOR_PREFIXES[factor])


def is_shared(scope: str) -> bool:
    """Return whether every client shares the parameters of a scope."""
    return without_factor(scope) == SHARED


def stack_scope(scope: str) -> str:
    """Return the scope of the stack of a component's adapters: `stack:shared`. See `fedmtl_core.model.merging`."""
    return _STACK_PREFIX + scope


def is_stack(scope: str) -> bool:
    """Return whether a component is a stack of adapters."""
    return scope.startswith(_STACK_PREFIX)


def is_trained(scope: str, round_: int) -> bool:
    """Return whether a round trains the parameters of a scope.

    Args:
        round_: counted from 1.
    """
    return not (scope in (FROZEN, MERGED) or is_stack(scope)) and factor_in(scope) in (None, factor_in_turn(round_))


def is_of_model(scope: str) -> bool:
    """Return whether a scope is of the model's parameters, and not of other state such as control variates."""
    parts = (scope in (SHARED, FROZEN, MERGED), task_of(scope), group_of(scope), factor_in(scope))
    return any(part not in (False, None) for part in parts)


def scope_of(name: str) -> str:
    """Return the scope of a parameter in a plain table, by name: `heads.TASK.…` is the task's, the rest is shared."""
    part, _, rest = name.partition(".")
    return task_scope(rest.partition(".")[0]) if part == "heads" else SHARED
