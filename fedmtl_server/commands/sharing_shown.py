"""The display of a run's sharing by `fedmtl-server runs show --sharing`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from fedmtl_core.identifiers import name_task
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.sharing import blocks_text, parts_in, parts_text
from fedmtl_server.commands.printing import Table, print_facts, print_json
from fedmtl_server.commands.runs_shown import auxiliary_tasks, read_config, summary, tasks_text

if TYPE_CHECKING:
    from fedmtl_server.sharing.source_changes import SourceChange
    from fedmtl_server.sharing.source_selection import SelectionRules
    from fedmtl_server.storage.records import RoundRecord, RunRecord
    from fedmtl_server.storage.runs import Place
    from fedmtl_server.storage.sharing_history import DecidedChange, Move, RoundSharing, Trial


def show_sharing(place: Place, records: Sequence[RoundRecord], as_json: bool) -> None:
    """Print the sharing of a run's layers and updates: the configuration, each change, the trials, and the end."""
    from fedmtl_server.sharing.source_selection import selection_rules
    from fedmtl_server.storage.sharing_history import num_encoders, sharing_history

    run = place.run
    config = read_config(run)
    policy = _adaptive(run).get("policy")
    validates = policy == "validated"
    rules = selection_rules(config) if config is not None and validates else None
    history = sharing_history(records, run.tasks)
    encoders = num_encoders(place.folder)
    if as_json:
        done = sum(not one.is_evaluation for one in history)
        rounds = [_round_values(one, rules, with_sources=validates) for one in history]
        sharing = {"policy": policy, "rules": _rules_values(rules), "num_encoders": encoders, "rounds": rounds}
        print_json({"run": summary(place, done), "sharing": sharing})
        return
    print_facts(
        run=f"{run.run_id}, {place.state}",
        tasks=tasks_text(run),
        configured=_configured_text(run),
        policy=policy_text(policy, rules),
        encoders="unknown: the run folder has no checkpoint with encoder parameters"
        if encoders is None
        else f"{encoders:.3g} (encoder parameters of all copies on the server, divided by those of one encoder)",
    )
    if not history:
        typer.echo("No round has ended yet.")
        return
    lines = [f"{_round_text(one)}: {text}" for one in history for text in _change_texts(one)]
    if lines:
        typer.echo("\nChanges of the sharing")
    for line in lines or ["The sharing has not changed in any round."]:
        typer.echo(line)
    if validates:
        typer.echo("")
        _rejected_table(history, rules).show()
        _sources_table(run, history).show()
    _show_blocks(history[-1])


def policy_text(policy: str | None, rules: SelectionRules | None) -> str:
    """Return the policy that changes the sharing, with its margins, in words."""
    if policy is None:
        return "none"
    if rules is None:
        return policy
    return (
        f"{policy}: at most {rules.trials} trials for a task in a round; accepts a calibrated loss that is lower by at "
        f"least {rules.min_gain:.3g} of it and by {rules.z_join:.2f} standard errors, or {rules.z_leave:.2f} with "
        "fewer sources"
    )


# Changes in words.


def _round_text(sharing: RoundSharing) -> str:
    return f"round {sharing.round}{' (evaluation)' if sharing.is_evaluation else ''}"


def _change_texts(sharing: RoundSharing) -> list[str]:
    """Return the changes of a round in words."""
    return [*map(move_text, sharing.moves), *map(change_text, sharing.changes)]


def move_text(move: Move) -> str:
    """Return a change of layers in words: `layers 0-1: sst2+qqp becomes sst2 | qqp, by sharing.schedule[0]`."""
    cause = f", by {move.cause}" if move.cause else ""
    return f"{parts_text(move.parts)}: {blocks_text(move.before)} becomes {blocks_text(move.after)}{cause}"


def change_text(decided: DecidedChange) -> str:
    """Return a change of a task's sources in words, with the trial that decided it.

    For example: `stsb takes sick's updates: calibrated loss -0.123 ± 0.020 on 400 rows (of 0.836)`.
    """
    change, task = decided.change, decided.change.task
    result = f": {trial_text(decided.trial)}" if decided.trial is not None else ""
    if change.kind == "confirmed":
        kept = _updates_of(_others(task, change.after))
        return f"{task} keeps {kept} after the trial; own updates only{result}"
    if change.kind == "reverted":
        dropped = _updates_of(_others(task, change.before))
        return f"{task} drops {dropped} after the trial; own updates only{result}"
    difference = _difference_text(change)
    if change.kind == "began":
        return f"{task} {difference} on trial, because the task type is the same"
    if change.kind == "followed":
        return f"{task} {difference}: an auxiliary task takes the updates of the tasks that take its updates"
    return f"{task} {difference}{result}"


def trial_text(trial: Trial) -> str:
    """Return the result of a trial in words: `calibrated loss -0.123 ± 0.020 on 400 rows (of 0.836)`."""
    if trial.loss is None or trial.loss_difference is None:
        return "not evaluated"
    return (
        f"calibrated loss {_difference_and_error(trial)} on {trial.num_examples} rows "
        f"(of {trial.loss - trial.loss_difference:.3f})"
    )


def _difference_and_error(trial: Trial) -> str:
    error = "" if trial.standard_error is None else f" ± {trial.standard_error:.3f}"
    return "-" if trial.loss_difference is None else f"{trial.loss_difference:+.3f}{error}"


def _difference_text(change: SourceChange) -> str:
    """Return the difference between a task's sources before and after: `takes sick's updates`."""
    gained = [task for task in change.after if task not in change.before]
    lost = [task for task in change.before if task not in change.after]
    texts = [f"takes {_updates_of(gained)}"] if gained else []
    texts += [f"no longer takes {_updates_of(lost)}"] if lost else []
    return " and ".join(texts)


def _updates_of(tasks: Sequence[str]) -> str:
    """Return `a's and b's updates`, or a list if there are many tasks."""
    if len(tasks) > 3:
        return f"the updates of {', '.join(tasks)}"
    return " and ".join(f"{task}'s" for task in tasks) + " updates"


def _others(task: str, sources: Iterable[str]) -> list[str]:
    return [one for one in sources if one != task]


# Tables.


def _rejected_table(history: Sequence[RoundSharing], rules: SelectionRules | None) -> Table:
    """Return the table of candidates that weren't accepted: one row for each task and candidate."""
    columns = ("task", "candidate", "rounds", "calibrated loss", "in SE", "gain", "rows", "reason")
    table = Table("Candidates that were not accepted, with the numbers of the last trial", *columns, wrapped=["rounds"])
    found: dict[tuple[str, str], list[tuple[RoundSharing, Trial]]] = {}
    for sharing in history:
        for trial in sharing.rejected():
            found.setdefault((trial.task, trial.name), []).append((sharing, trial))
    order = list(history[-1].state.sources)
    for (task, name), trials in sorted(found.items(), key=lambda item: order.index(item[0][0])):
        sharing, trial = trials[-1]
        compared = trial.comparison
        table.add(
            task,
            name,
            rounds_text([one.round for one, _ in trials]),
            _difference_and_error(trial),
            "-" if compared is None else f"{compared.z:+.1f}",
            "-" if compared is None else f"{compared.gain:+.1%}",
            trial.num_examples,
            sharing.reason(trial, rules),
        )
    return table


def _sources_table(run: RunRecord, history: Sequence[RoundSharing]) -> Table:
    """Return the table of the sources in effect after the last round."""
    last = history[-1]
    table = Table(
        f"Sources after {_round_text(last)}", "task", "takes the updates of", "trials", wrapped=["takes the updates of"]
    )
    for task, sources in last.state.sources.items():
        others = _others(task, sources)
        is_auxiliary = task in auxiliary_tasks(run)
        num_trials = sum(trial.task == task for sharing in history for trial in sharing.trials)
        text = ", ".join([task, *others]) if others else f"{task} only"
        text += " (on trial)" if task in last.state.trials else ""
        table.add(name_task(task, auxiliary=is_auxiliary), text, "-" if is_auxiliary else num_trials)
    return table


def _show_blocks(last: RoundSharing) -> None:
    """Print the blocks of tasks that share the parts whose sharing has changed."""
    parts: dict[str, list[str]] = {}
    for part, blocks in last.blocks.items():
        parts.setdefault(blocks_text(blocks), []).append(part)
    if parts:
        typer.echo(f"\nParts of the encoder whose sharing has changed, after {_round_text(last)}")
    for text, names in parts.items():
        typer.echo(f"{parts_text(names)}: {text}")


def rounds_text(rounds: Sequence[int]) -> str:
    """Return rounds in ascending order with ranges: `2-4, 8`."""
    runs: list[list[int]] = []
    for round_ in rounds:
        if runs and round_ == runs[-1][-1] + 1:
            runs[-1].append(round_)
        else:
            runs.append([round_])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


# The configuration.


def _sharing_section(run: RunRecord) -> JsonObject:
    section: JsonObject = run.config.get("sharing") or {}
    return section


def _adaptive(run: RunRecord) -> JsonObject:
    adaptive: JsonObject = _sharing_section(run).get("adaptive") or {}
    return adaptive


def _configured_text(run: RunRecord) -> str:
    """Return the configured sharing in words."""
    section = _sharing_section(run)
    layers, groups = section.get("layers") or {}, section.get("groups") or {}
    texts = [f"{part} {level}" for part, level in layers.items()]
    texts += [f"group {name}: {', '.join(members)}" for name, members in groups.items()]
    texts += [f"norms {section['norms']}"] if section.get("norms") else []
    texts += ["head local"] if section.get("head") == "local" else []
    if entries := section.get("schedule"):
        rounds = ", ".join(str(entry["after_round"]) for entry in entries)
        texts.append(f"schedule with changes after round{'s' * (len(entries) > 1)} {rounds}")
    if texts:
        return "; ".join(texts)
    if _adaptive(run).get("policy") == "validated":
        owned = [part for key in _adaptive(run).get("layers") or () for part in parts_in(key)]
        return f"each task has its own {parts_text(owned) if owned else 'encoder'} and its own head"
    return "all tasks share one encoder, and each task has its own head"


# JSON.


def _rules_values(rules: SelectionRules | None) -> dict[str, float] | None:
    return None if rules is None else asdict(rules) | {"z_join": rules.z_join, "z_leave": rules.z_leave}


def _round_values(sharing: RoundSharing, rules: SelectionRules | None, *, with_sources: bool) -> dict[str, object]:
    rejected = sharing.rejected()
    values: dict[str, object] = {
        "round": sharing.round,
        "purpose": "evaluate" if sharing.is_evaluation else "train",
        "blocks": sharing.blocks,
        "moved": [asdict(one) for one in sharing.moves],
    }
    if with_sources:
        values |= {
            "sources": sharing.state.sources,
            "on_trial": list(sharing.state.trials),
            "changes": [
                asdict(one.change)
                | {"reason": one.change.reason, "trial": None if one.trial is None else asdict(one.trial)}
                for one in sharing.changes
            ],
            "not_accepted": [asdict(one) | {"reason": sharing.reason(one, rules)} for one in rejected],
        }
    return values | {"text": _change_texts(sharing)}
