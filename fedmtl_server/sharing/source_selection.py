"""Selection of the tasks whose updates a task's own layers take, by clients' paired losses.

Every task has layers of its own, which take its own updates. A *candidate* is another set of source tasks. Clients
compare the task's model with the candidates' models on the same rows, and a candidate is accepted if its paired loss is
lower by a significant margin. This is personalized aggregation as in FedFomo (Zhang et al. 2021, arXiv:2012.08565),
with tasks in place of clients, and with a test in place of weights that follow each difference.

This module works on names and numbers only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedmtl_core.json_types import JsonObject
from fedmtl_server.sharing.selection_rules import Comparison, SelectionRules

Sources = tuple[str, ...]
"""The tasks whose updates a task's layers take, in the run's order; the task itself is always one of them."""

OWN = "own"
"""The candidate that takes the task's own updates only."""
SHORTER = "shorter"
"""The control of candidates that add a task: the task's last update, as short as its share in such a mean. A step that
is too long is better at any shorter length, whatever is mixed in. The control is never accepted itself."""

_MAX_WAIT = 8
"""The largest number of rounds from one trial of a candidate to the next."""
_MAX_NAME = 64
"""The largest number of characters of a variant's name."""
_MAX_SCORE = 1e9
"""The largest recorded number of standard errors; JSON has no infinite numbers."""


@dataclass(frozen=True)
class Candidate:
    """Another set of sources for a task."""

    name: str
    """`own`, or the task that is added or removed: `with.TASK`, `without.TASK`. Long names are cut."""
    sources: Sources


@dataclass(frozen=True)
class Selection:
    """The sources of one task, and the history of its trials."""

    task: str
    sources: Sources
    failures: Mapping[str, int] = field(default_factory=dict)
    """By candidate, the number of its trials in a row in which it was not better."""
    next_round: Mapping[str, int] = field(default_factory=dict)
    """By candidate, the first round in which it may be tried again."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """By candidate, the `z` of its last comparison, at most 1e9 in size."""

    def to_json(self) -> JsonObject:
        """Return the selection as JSON values; `of_json` is the inverse."""
        return {
            "sources": list(self.sources),
            "failures": dict(self.failures),
            "next_round": dict(self.next_round),
            "scores": dict(self.scores),
        }

    @classmethod
    def of_json(cls, task: str, values: JsonObject) -> Selection:
        return cls(task, **{**values, "sources": tuple(values["sources"])})


def sources_of(selections: Mapping[str, Sources], tasks: Sequence[str]) -> dict[str, Sources]:
    """Return, by task, the tasks whose updates its layers take, including the tasks without trials.

    A task without trials is an auxiliary task. It takes its own updates and those of the tasks that take its updates.

    Args:
        selections: by task with trials, its sources.
        tasks: all tasks, in the run's order.
    """

    def followed(auxiliary: str) -> Sources:
        takers = [task for task, sources in selections.items() if auxiliary in sources]
        return tuple(task for task in tasks if task == auxiliary or task in takers)

    return {task: selections[task] if task in selections else followed(task) for task in tasks}


def taken(states: Iterable[JsonObject], tasks: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Return the rounds whose updates of other tasks each task's layers have taken, also if most of one was given back.

    Args:
        states: the saved state of the mixing after each round, in order. Each has the last `round` with an update, the
            tasks with `deltas` in it, and the `selections`.
        tasks: all tasks, in the run's order.

    Returns:
        By task and by other task, the rounds in ascending order. Tasks that have taken no other updates are absent.
    """
    found: dict[str, dict[str, set[int]]] = {}
    before: JsonObject | None = None
    for state in states:
        chosen = {task: tuple(one["sources"]) for task, one in state["selections"].items()}
        for task, sources in sources_of(chosen, tasks).items():
            rounds = [state]
            if before is not None and task in chosen and before["selections"][task]["sources"] != list(sources):
                rounds.append(before)  # the accepted sources replaced the update before
            for one in rounds:
                others = [other for other in sources if other != task and other in one["deltas"]]
                for other in others if task in one["deltas"] else ():
                    found.setdefault(task, {}).setdefault(other, set()).add(one["round"])
        before = state
    return {task: {other: sorted(rounds) for other, rounds in mine.items()} for task, mine in found.items()}


def candidates(
    selection: Selection,
    tasks: Sequence[str],
    present: Collection[str],
    order: Mapping[str, float],
    round_: int,
    rules: SelectionRules,
) -> list[Candidate]:
    """Return the candidates to compare with a task's model in a round, at most `rules.trials`.

    A task with other sources than itself always compares with its own updates first. Then come candidates without a
    trial, by `order`, and after them those with the best last result. A candidate that was better, but not by the
    margins, is tried again in the next round; one that wasn't better 2, 4 and then 8 rounds later. Candidates differ
    from the sources in tasks with an update only, because another model would be equal.

    Args:
        selection: the task's selection.
        tasks: all tasks, in the run's order.
        present: the tasks with an update, including the selection's task.
        order: by task, the priority of its first trial; higher values come first.
        round_: the round of the trials.
        rules: the limits.
    """
    task, now = selection.task, selection.sources
    others = [one for one in tasks if one != task and one in present]
    found = []
    for one in others:
        name = _named("without" if one in now else "with", one)
        sources = tuple(other for other in tasks if (other in now) != (other == one))
        found.append((order.get(one, 0.0), Candidate(name, sources)))
    own = Candidate(OWN, (task,))
    effective = {one for one in now if one in present}
    seen = {frozenset(effective), frozenset(own.sources)}
    ranked = []
    for priority, candidate in found:
        others_now = frozenset(one for one in candidate.sources if one in present)
        if others_now not in seen and selection.next_round.get(candidate.name, 0) <= round_:
            seen.add(others_now)
            score = selection.scores.get(candidate.name, -math.inf)
            ranked.append((score, -priority, candidate.name, candidate))
    guard = [own] if effective != set(own.sources) else []
    return (guard + [candidate for *_, candidate in sorted(ranked, key=lambda item: item[:3])])[: rules.trials]


def adds_sources(candidate: Candidate, selection: Selection) -> bool:
    """Whether a candidate takes the updates of a task that the selection doesn't."""
    return not set(candidate.sources) <= set(selection.sources)


def decided(
    selection: Selection,
    offered: Sequence[Candidate],
    compared: Mapping[str, Comparison],
    round_: int,
    rules: SelectionRules,
) -> tuple[Selection, Candidate | None]:
    """Return a task's selection after the trials of a round, and the accepted candidate; None if there is none.

    Args:
        selection: the selection with which the round began.
        offered: the candidates of the round.
        compared: by candidate, its comparison; `DIVERGED` if its loss or parameters aren't finite. A candidate that
            nobody has compared is absent, and can be tried again at once.
        round_: the round.
        rules: the margins.
    """
    noted = _noted(selection, offered, compared, round_)
    best = min(
        (one for one in offered if one.name in compared and _is_better(selection, one, compared[one.name], rules)),
        key=lambda one: (len(one.sources), compared[one.name].difference, one.name),
        default=None,
    )
    if best is None:
        return noted, None
    # Trials relative to the old sources say little about the new ones.
    return Selection(selection.task, best.sources), best


def _named(change: str, task: str) -> str:
    """Return the name of a candidate that adds or removes a task. A name that is too long for a variant is cut, and
    ends with a part of its digest."""
    name = f"{change}.{task}"
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _is_better(selection: Selection, candidate: Candidate, compared: Comparison, rules: SelectionRules) -> bool:
    """Whether a candidate is better than the task's model by the margins.

    A task that is added must also be better than the control, and must not lower the main metric: a loss that counts
    probabilities can fall while more examples are classified wrongly.
    """
    z = rules.z_join if adds_sources(candidate, selection) else rules.z_leave
    is_better = compared.z <= -z and compared.gain >= rules.min_gain
    if not is_better or not adds_sources(candidate, selection):
        return is_better
    beyond = compared.beyond_control
    return beyond is not None and beyond.z <= -rules.z_leave and not compared.lowers_metric


def _noted(
    selection: Selection, offered: Sequence[Candidate], compared: Mapping[str, Comparison], round_: int
) -> Selection:
    """Return a selection with the results of a round's trials. For an added task, the weaker result counts: beside the
    model or beside the control."""
    failures, waits, scores = dict(selection.failures), dict(selection.next_round), dict(selection.scores)
    for candidate in offered:
        name = candidate.name
        if name not in compared:
            continue
        results, failed = [compared[name]], False
        if adds_sources(candidate, selection):
            beyond = compared[name].beyond_control
            results += [beyond] if beyond is not None else []
            failed = compared[name].lowers_metric
        failed = failed or any(one.difference >= 0 for one in results)
        failures[name] = failures.get(name, 0) + 1 if failed else 0
        waits[name] = round_ + min(2 ** failures[name], _MAX_WAIT)
        scores[name] = max(-_MAX_SCORE, min(max(one.z for one in results), _MAX_SCORE))
    return replace(selection, failures=failures, next_round=waits, scores=scores)
