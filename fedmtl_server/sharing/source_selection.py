"""Selection of the tasks whose updates a task's own layers take, by clients' paired losses.

Every task has layers of its own, which take its own updates. A *candidate* is another set of source tasks. Clients
compare the task's model with the candidates' models on the same rows, and a candidate is accepted if its paired loss is
lower by a significant margin. This is personalized aggregation as in FedFomo (Zhang et al. 2021, arXiv:2012.08565),
with tasks in place of clients, and with a test in place of weights that follow each difference.

This module works on names and numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

from fedmtl_core.config import Config
from fedmtl_core.json_types import JsonObject

Sources = tuple[str, ...]
"""The tasks whose updates a task's layers take, in the run's order; the task itself is always one of them."""

OWN = "own"
"""The candidate that takes the task's own updates only."""
ALL = "all"
"""The candidate that takes the updates of all tasks."""

_MAX_WAIT = 8
"""The largest number of rounds between two trials of a candidate that keeps failing."""


@dataclass(frozen=True)
class SelectionRules:
    """The limits of the trials and the margins of a decision."""

    trials: int = 3
    """Largest number of candidates for a task in a round."""
    error_rate: float = 0.05
    """Probability that a run accepts any candidate that is no better."""
    min_gain: float = 0.02
    """Smallest accepted reduction of the loss, as a share of the model's loss."""
    num_trials: int = 1
    """Largest number of trials of all tasks in the run; `error_rate` is divided among them."""

    @property
    def z_join(self) -> float:
        """The number of standard errors by which a candidate must be better (Bonferroni's correction)."""
        return NormalDist().inv_cdf(1 - self.error_rate / max(self.num_trials, 1))

    @property
    def z_leave(self) -> float:
        """The number of standard errors by which fewer sources must be better. The correction does not apply, because
        a task that returns to its own updates risks nothing."""
        return NormalDist().inv_cdf(1 - self.error_rate)


@dataclass(frozen=True)
class Candidate:
    """Another set of sources for a task."""

    name: str
    """`own`, `all`, or the task that is added or removed: `with.TASK`, `without.TASK`."""
    sources: Sources


@dataclass(frozen=True)
class Comparison:
    """The paired loss of a candidate's model and the task's model, over all rows of the task's clients."""

    loss: float
    """Mean loss of the candidate's model."""
    difference: float
    """Mean of the candidate's loss minus the model's; below 0 if the candidate is better."""
    standard_error: float
    num_examples: int

    @property
    def z(self) -> float:
        """The difference in standard errors; infinite with its sign if the standard error is 0."""
        if self.standard_error > 0:
            return self.difference / self.standard_error
        return math.copysign(math.inf, self.difference) if self.difference else 0.0

    @property
    def gain(self) -> float:
        """The reduction of the loss as a share of the model's loss; below 0 if the candidate is worse."""
        model = self.loss - self.difference
        return -self.difference / model if model > 0 else 0.0


@dataclass(frozen=True)
class Selection:
    """The sources of one task, and the history of its trials."""

    task: str
    sources: Sources
    is_trial: bool = False
    """Whether the sources are in effect before a comparison with the task's own updates has confirmed them."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """By candidate, the number of its trials in a row in which it was not better."""
    next_round: Mapping[str, int] = field(default_factory=dict)
    """By candidate, the first round in which it may be tried again."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """By candidate, its last difference in standard errors."""

    def to_json(self) -> JsonObject:
        """Return the selection as JSON values; `of_json` is the inverse."""
        return {
            "sources": list(self.sources),
            "is_trial": self.is_trial,
            "failures": dict(self.failures),
            "next_round": dict(self.next_round),
            "scores": dict(self.scores),
        }

    @classmethod
    def of_json(cls, task: str, values: JsonObject) -> Selection:
        return cls(task, **{**values, "sources": tuple(values["sources"])})


def selection_rules(config: Config) -> SelectionRules:
    """Return the limits and margins that a configuration sets for its run."""
    section = config.sharing.adaptive
    num_targets = len(config.tasks) - len(config.auxiliary_tasks())
    num_trials = section.trials * num_targets * config.training.num_rounds
    return SelectionRules(section.trials, section.error_rate, section.min_gain, num_trials)


def sources_of(selected: Mapping[str, Sources], tasks: Sequence[str]) -> dict[str, Sources]:
    """Return the sources of all tasks.

    Args:
        selected: the sources of the tasks that have trials. All other tasks are auxiliary: the sources of an auxiliary
            task are itself and the tasks that take its updates.
        tasks: all tasks, in the run's order.
    """

    def followed(auxiliary: str) -> Sources:
        takers = [task for task, sources in selected.items() if auxiliary in sources]
        return tuple(task for task in tasks if task == auxiliary or task in takers)

    return {task: selected[task] if task in selected else followed(task) for task in tasks}


def candidates(
    selection: Selection, tasks: Sequence[str], order: Mapping[str, float], round_: int, rules: SelectionRules
) -> list[Candidate]:
    """Return the candidates to compare with a task's model in a round, at most `rules.trials`.

    A task with other sources than itself always compares with its own updates first. Then come candidates without a
    trial, by `order`, and after them those with the best last result. A candidate that was not better waits for 1, 2,
    4 and at most 8 rounds before it is tried again.

    Args:
        selection: the task's selection.
        tasks: the tasks with an update, in the run's order.
        order: by task, the priority of its first trial; higher values come first.
        round_: the round of the trials.
        rules: the limits.
    """
    task, now = selection.task, selection.sources
    others = [one for one in tasks if one != task]
    found = []
    for one in others:
        name = f"without.{one}" if one in now else f"with.{one}"
        sources = tuple(other for other in tasks if (other in now) != (other == one))
        found.append((order.get(one, 0.0), Candidate(name, sources)))
    if len(others) > 1:
        found.append((-math.inf, Candidate(ALL, tuple(tasks))))
    own = Candidate(OWN, (task,))
    seen = {now, own.sources}
    ranked = []
    for priority, candidate in found:
        if candidate.sources not in seen and selection.next_round.get(candidate.name, 0) <= round_:
            seen.add(candidate.sources)
            score = selection.scores.get(candidate.name, -math.inf)
            ranked.append((score, -priority, candidate.name, candidate))
    guard = [own] if now != own.sources else []
    return (guard + [candidate for *_, candidate in sorted(ranked, key=lambda item: item[:3])])[: rules.trials]


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
        compared: by candidate, its comparison; a candidate without a valid one is absent.
        round_: the round.
        rules: the margins.
    """
    noted = _noted(selection, compared, round_)
    if selection.is_trial:
        own = compared.get(OWN)
        if own is None:
            return noted, None
        noted = replace(noted, is_trial=False)
        is_confirmed = own.z >= rules.z_join and -own.gain >= rules.min_gain
        if not is_confirmed:
            accepted = next((one for one in offered if one.name == OWN), Candidate(OWN, (selection.task,)))
            return replace(noted, sources=accepted.sources), accepted
    best = min(
        (one for one in offered if one.name in compared and _is_better(selection, one, compared[one.name], rules)),
        key=lambda one: (compared[one.name].difference, one.name),
        default=None,
    )
    if best is None:
        return noted, None
    # Trials relative to the old sources say little about the new ones.
    return replace(noted, sources=best.sources, failures={}, next_round={}, scores={}), best


def _is_better(selection: Selection, candidate: Candidate, compared: Comparison, rules: SelectionRules) -> bool:
    """Whether a candidate is better than the task's model by the margins."""
    is_leaving = set(candidate.sources) < set(selection.sources)
    z = rules.z_leave if is_leaving else rules.z_join
    return compared.z <= -z and compared.gain >= rules.min_gain


def _noted(selection: Selection, compared: Mapping[str, Comparison], round_: int) -> Selection:
    """Return a selection with the results of a round's trials."""
    failures, waits, scores = dict(selection.failures), dict(selection.next_round), dict(selection.scores)
    for name, one in compared.items():
        failures[name] = failures.get(name, 0) + 1 if one.difference >= 0 else 0
        waits[name] = round_ + min(2 ** failures[name], _MAX_WAIT)
        scores[name] = one.z if math.isfinite(one.z) else math.copysign(1e9, one.z)
    return replace(selection, failures=failures, next_round=waits, scores=scores)
