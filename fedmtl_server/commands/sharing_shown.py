"""The display of a run's sharing by `fedmtl-server runs show --sharing`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from fedmtl_core.identifiers import name_task
from fedmtl_core.model.sharing import blocks_text, parts_text
from fedmtl_server.commands.configured_sharing import configured_text, policy_of, policy_text
from fedmtl_server.commands.printing import Table, print_facts, print_json
from fedmtl_server.commands.run_facts import (
    adapters_text,
    auxiliary_tasks,
    main_metrics,
    read_config,
    summary,
    tasks_text,
)
from fedmtl_server.commands.sharing_texts import change_text, difference_and_error, move_text, rounds_text

if TYPE_CHECKING:
    from fedmtl_server.sharing.selection_rules import SelectionRules
    from fedmtl_server.storage.records import RoundRecord, RunRecord
    from fedmtl_server.storage.runs import Place
    from fedmtl_server.storage.sharing_history import RoundSharing, Trial


def show_sharing(place: Place, records: Sequence[RoundRecord], as_json: bool) -> None:
    """Print the sharing of a run's layers and updates: the configuration, each change, the trials, and the end."""
    from fedmtl_server.sharing.selection_rules import selection_rules
    from fedmtl_server.storage.sharing_history import num_encoders, sharing_history

    run = place.run
    config = read_config(run)
    policy = policy_of(run)
    validates = policy == "validated"
    rules = selection_rules(config) if config is not None and validates else None
    history = sharing_history(records, run.tasks, main_metrics(run))
    encoders = num_encoders(place.folder)
    counted = "trained encoder parameters" if adapters_text(run) else "encoder parameters"
    if as_json:
        done = sum(not one.is_evaluation for one in history)
        rounds = [_round_values(one, rules, with_sources=validates) for one in history]
        sharing = {"policy": policy, "rules": _rules_values(rules), "num_encoders": encoders, "rounds": rounds}
        print_json({"run": summary(place, done), "sharing": sharing})
        return
    print_facts(
        run=f"{run.run_id}, {place.state}",
        tasks=tasks_text(run),
        configured=configured_text(run),
        policy=policy_text(policy, rules),
        encoders="unknown: the run folder has no checkpoint with encoder parameters"
        if encoders is None
        else f"{encoders:.3g} ({counted} of all copies on the server, divided by those of one encoder)",
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


def _round_text(sharing: RoundSharing) -> str:
    return f"round {sharing.round}{' (evaluation)' if sharing.is_evaluation else ''}"


def _change_texts(sharing: RoundSharing) -> list[str]:
    """Return the changes of a round in words."""
    return [*map(move_text, sharing.moves), *map(change_text, sharing.changes)]


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
            difference_and_error(trial),
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
        others = [one for one in sources if one != task]
        is_auxiliary = task in auxiliary_tasks(run)
        tried = [trial for sharing in history for trial in sharing.trials if trial.task == task]
        num_trials = sum(not trial.is_control for trial in tried)
        text = ", ".join([task, *others]) if others else f"{task} only"
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
            "changes": [
                asdict(one.change)
                | {"reason": one.change.reason, "trial": None if one.trial is None else asdict(one.trial)}
                for one in sharing.changes
            ],
            "not_accepted": [asdict(one) | {"reason": sharing.reason(one, rules)} for one in rejected],
        }
    return values | {"text": _change_texts(sharing)}
