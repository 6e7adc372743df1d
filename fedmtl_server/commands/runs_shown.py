"""The display of a run or a round by `fedmtl-server runs`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from fedmtl_core.errors import ConfigError
from fedmtl_core.identifiers import name_task
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import SHARED, group_of, task_of
from fedmtl_core.model.sharing import blocks_text
from fedmtl_server.commands.printing import Table, bytes_text, print_facts, print_json, time_text
from fedmtl_server.storage.runs import Place

if TYPE_CHECKING:
    from fedmtl_core.config import Config
    from fedmtl_server.storage.records import MetricRecord, RoundRecord, RunRecord, UpdateRecord
    from fedmtl_server.storage.stored_reports import (
        StoredContribution,
        StoredMetric,
        StoredReport,
        StoredTask,
        StoredVariant,
    )

# A run.


def show_run(place: Place, rounds: Sequence[RoundRecord], updates: Sequence[UpdateRecord], as_json: bool) -> None:
    """Print a run and its rounds."""
    run = place.run
    done = sum(one.outcome == "committed" and one.purpose == "train" and one.round > 0 for one in rounds)
    by_round = updates_by_round(rounds, updates)
    if as_json:
        run_facts = summary(place, done) | {"started_from": place.started_from, "config": _shown_config(run)}
        print_json({"run": run_facts, "rounds": [round_summary(one, by_round[one.round]) for one in rounds]})
        return
    finished = f", finished {time_text(run.finished_at_unix_ms)}" if run.finished_at_unix_ms is not None else ""
    print_facts(
        run=run.run_id,
        state=f"{place.state}, {done} of {run.num_rounds} rounds{_why_early(place)}",
        created=time_text(run.created_at_unix_ms) + finished,
        model=run.base_model + _started_from(place),
        tasks=tasks_text(run),
        folder=place.folder,
    )
    if len(rounds) < 2:
        typer.echo("No round has opened yet.")
        return
    main = _main_metrics(run)
    columns = ["round", "outcome", "opened", "seconds", "counted", "refused", "missing", "in", "out"]
    table = Table(
        "Each task's metric of the model that the round began with, and the task's share of the encoder",
        *columns,
        *(f"{name_task(task, auxiliary=task in auxiliary_tasks(run))}\n{main.get(task, '')}" for task in run.tasks),
    )
    for one in rounds[1:]:
        facts = round_summary(one, by_round[one.round])
        report = one.report
        tasks = {task["task"]: task for task in report.get("tasks", ())} if report else {}
        table.add(
            f"{one.round}{' (evaluation)' if one.purpose == 'evaluate' else ''}",
            _outcome_text(one),
            time_text(one.opened_at_unix_ms),
            f"{report['duration_s']:.1f}" if report else "-",
            f"{facts['num_counted']} of {len(one.cohort)}",
            facts["num_refused"],
            len(report["missing_clients"]) if report else "-",
            bytes_text(report["bytes_received"]) if report else "-",
            bytes_text(report["bytes_sent"]) if report else "-",
            *(_metric_and_share(main.get(task), tasks.get(task)) for task in run.tasks),
        )
    table.show()


def _started_from(place: Place) -> str:
    """Return the text about the run that a run's model started from; empty if it didn't start from one."""
    started = place.started_from
    if started is None:
        return ""
    text = f", from round {started['round']} of run {started['run_id']}"
    heads = [f"{kind} of {', '.join(started[key])}" for kind, key in _HEADS.items() if started[key]]
    means = [f"{scope} is the mean of the encoders of {', '.join(of)}" for scope, of in started["averaged"].items()]
    return "; ".join([text, *heads, *means])


_HEADS = {"heads": "heads", "new heads": "new_heads"}
"""By kind of head in words, its key in `read_started_from`."""


def _outcome_text(record: RoundRecord) -> str:
    """Return a round's outcome and its number of discarded components."""
    text = record.outcome.replace("_", " ")
    num_discarded = len(record.report.get("discarded") or ()) if record.report else 0
    return text + (f", {num_discarded} component{'s' * (num_discarded > 1)} discarded" if num_discarded else "")


def _why_early(place: Place) -> str:
    """Return the reason why training ended before the last round; empty if it didn't."""
    if not place.stopped_early:
        return ""
    patience = (place.run.config.get("early_stopping") or {}).get("patience")
    return f": early stopping after round {place.last_training_round}, no improvement for {patience} rounds"


def _metric_and_share(name: str | None, task: StoredTask | None) -> str:
    """Return a task's main metric in a round (its first if the main one is unknown) and its share of the encoder."""
    if task is None:
        return "-"
    values = task.get("received_metrics", {})
    value = values.get(name) if name else next(iter(values.values()), None)
    share = task.get("encoder_share", 0.0)
    missing = "undefined" if name in task.get("received_reports", {}) else "-"
    return (missing if value is None else f"{value:.3f}") + (f" {share:.0%}" if share else "")


def auxiliary_tasks(run: RunRecord) -> set[str]:
    """Return the run's auxiliary tasks."""
    return {task for task, section in (run.config.get("tasks") or {}).items() if section.get("auxiliary")}


def tasks_text(run: RunRecord) -> str:
    """Return the names of a run's tasks, with a mark for auxiliary tasks."""
    return ", ".join(name_task(task, auxiliary=task in auxiliary_tasks(run)) for task in run.tasks)


def read_config(run: RunRecord) -> Config | None:
    """Return a run's configuration; None if this version can't read it."""
    from fedmtl_core.config import Config

    try:
        return Config.model_validate(_given(run.config))
    except (ValueError, ConfigError):  # another version wrote it
        return None


def _main_metrics(run: RunRecord) -> dict[str, str]:
    """Return the main metric by task from the run's configuration; empty if this version can't read it."""
    config = read_config(run)
    try:
        return {} if config is None else {spec.name: spec.main_metric for spec in config.task_specs()}
    except (ValueError, ConfigError):  # another version wrote it
        return {}


def _shown_config(run: RunRecord) -> dict[str, object]:
    """Return a run's configuration without the database's password."""
    from fedmtl_server.storage.engines import without_password

    store = run.config.get("store") or {}
    if not store.get("url"):
        return dict(run.config)
    return {**run.config, "store": {**store, "url": without_password(store["url"])}}


def _given(values: JsonObject) -> dict[str, object]:
    """Return a configuration without the keys whose value is None."""
    return {
        key: _given(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


@dataclass(frozen=True)
class LastMetric:
    """A task's main metric of the newest model that the task's clients evaluated."""

    metric: str
    value: float | None
    """None if the metric is undefined for that model."""
    round: int
    """The round of the evaluated model."""


def last_metrics(run: RunRecord, metrics: Sequence[MetricRecord]) -> dict[str, LastMetric]:
    """Return the latest main metric of each evaluated task; its first metric if the main one is unknown."""
    main = _main_metrics(run)
    last: dict[str, LastMetric] = {}
    for task in run.tasks:
        mine = [one for one in metrics if one.task == task]
        round_ = max((one.round for one in mine), default=0)
        values = {one.name: one.value for one in mine if one.round == round_}
        if values:
            name = main.get(task, next(iter(values)))
            last[task] = LastMetric(name, values.get(name), round_)
    return last


def last_metrics_text(last: Mapping[str, LastMetric]) -> str:
    """Return the result of `last_metrics` on one line."""
    values = {task: "undefined" if one.value is None else f"{one.value:.3f}" for task, one in last.items()}
    return ", ".join(f"{task} {last[task].metric} {value}" for task, value in values.items())


def summary(place: Place, rounds_done: int) -> dict[str, object]:
    """Return the values that `runs list --json` prints for a run, without its metrics."""
    run = place.run
    return {
        "run_id": run.run_id,
        "state": place.state,
        "created_at_unix_ms": run.created_at_unix_ms,
        "finished_at_unix_ms": run.finished_at_unix_ms,
        "base_model": run.base_model,
        "tasks": list(run.tasks),
        "auxiliary_tasks": [task for task in run.tasks if task in auxiliary_tasks(run)],
        "rounds_done": rounds_done,
        "num_rounds": run.num_rounds,
        "stopped_early": place.stopped_early,
        "folder": str(place.folder),
    }


# A round.


def updates_by_round(records: Sequence[RoundRecord], updates: Iterable[UpdateRecord]) -> dict[int, list[UpdateRecord]]:
    """Return each round's updates, without updates of an earlier, rolled back run of the round."""
    by_round: dict[int, list[UpdateRecord]] = {record.round: [] for record in records}
    rolled_back = {record.round for record in records if record.outcome == "rolled_back"}
    for one in updates:
        if one.round in by_round and (one.outcome != "rolled_back" or one.round in rolled_back):
            by_round[one.round].append(one)
    return by_round


def round_summary(record: RoundRecord, updates: Sequence[UpdateRecord]) -> dict[str, object]:
    """Return a round's record with its numbers of counted and refused updates."""
    outcomes = Counter(one.outcome for one in updates)
    num_refused = record.report["num_refused"] if record.report else outcomes["refused"]
    return asdict(record) | {"num_counted": outcomes["counted"], "num_refused": num_refused}


def show_round(record: RoundRecord, updates: Sequence[UpdateRecord], as_json: bool) -> None:
    """Print a round: its participants and its outcome."""
    if as_json:
        print_json({"round": round_summary(record, updates), "updates": [asdict(one) for one in updates]})
        return
    report = record.report
    seconds = f", {report['duration_s']:.1f} s" if report else ""
    print_facts(
        run=record.run_id,
        round=f"{record.round}, to {record.purpose}" if record.round else "0, the model before the first round",
        outcome=record.outcome.replace("_", " "),
        opened=time_text(record.opened_at_unix_ms) + seconds,
        cohort=", ".join(f"{client} ({task})" for client, task in record.cohort.items()) or "no client",
    )
    if report is None:
        if record.round:
            typer.echo("The round has no report, because it hasn't ended.")
        return
    print_facts(
        bytes=f"{bytes_text(report['bytes_received'])} in, {bytes_text(report['bytes_sent'])} out",
        missing=", ".join(report["missing_clients"]) or "no client",
        unchanged=", ".join(f"head {task}" for task in report["unchanged_tasks"]) or "no head",
        **_scaling(report),
        **_moves(report),
        **_variants(report),
        **_discarded(report),
        **_warnings(report),
    )
    _tasks_table(report).show()
    _updates_table(report, updates).show()
    _refusals_table(report).show()


def _scaling(report: StoredReport) -> dict[str, str]:
    """Return the factors that preserved the norm of the tasks' deltas, by component and part; empty without factors."""
    texts = [
        f"{component['scope']}: " + ", ".join(f"{part} {factor:.3f}" for part, factor in factors.items())
        for component in report["components"]
        if (factors := component.get("scaling"))
    ]
    return {"scaling": "; ".join(texts)} if texts else {}


def _moves(report: StoredReport) -> dict[str, str]:
    """Return the regrouped layers with their old and new groups and the cause; older reports lack some of them."""
    moved, causes = report.get("moved") or {}, report.get("moved_by") or {}
    texts = (
        f"{part}: {blocks_text(old)} to {blocks_text(report['sharing'][part])}"
        + (f" ({causes[part]})" if part in causes else "")
        for part, old in moved.items()
    )
    return {"moved": "; ".join(texts)} if moved else {}


def _variants(report: StoredReport) -> dict[str, str]:
    """Return the results of the round's variants in words; empty without variants, and for older reports."""
    texts = [f"{task['task']}: {_variant_text(one)}" for task in report["tasks"] for one in task.get("variants", ())]
    return {"variants": "; ".join(texts)} if texts else {}


def _variant_text(variant: StoredVariant) -> str:
    """Return the result of a variant, such as `variant own: loss -0.031 ± 0.008 on 400 rows`."""
    difference, error = variant["loss_difference"], variant["standard_error"]
    text = "not evaluated"
    if variant["num_diverged"]:
        text = f"loss not finite for {_clients_text(variant['num_diverged'])}"
    elif difference is not None:
        text = f"loss {difference:+.3f}" + ("" if error is None else f" ± {error:.3f}")
        text += f" on {variant['num_examples']} rows"
    return f"variant {variant['name']}: {text}" + (", chosen" if variant["chosen"] else "")


def _discarded(report: StoredReport) -> dict[str, str]:
    """Return the components that kept their values although updates counted, with reasons; older reports lack them."""
    found = report.get("discarded") or ()
    texts = [f"{one['scope']}: {one['reason']} (updates of {', '.join(one['contributors'])})" for one in found]
    return {"discarded": "; ".join(texts)} if texts else {}


def _warnings(report: StoredReport) -> dict[str, str]:
    """Return the warnings about a round's result; older reports lack them."""
    texts = [one["message"] for one in report.get("warnings", ())]
    return {"warnings": "; ".join(texts)} if texts else {}


def _tasks_table(report: StoredReport) -> Table:
    models = ("received model", "trained models")
    table = Table("Tasks", "task", "updates", "examples", "encoder share", *models, wrapped=models)
    for task in report["tasks"]:
        received = _metrics_text(task["received_metrics"], task.get("received_reports", {}))
        trained = _metrics_text(task["trained_metrics"], task.get("trained_reports", {}))
        share = f"{task['encoder_share']:.1%}"
        weight = task.get("auxiliary_weight")  # older reports lack it
        name = task["task"] if weight is None else f"{task['task']} (auxiliary, weight {weight:.3g} per example)"
        table.add(name, task["num_updates"], task["num_examples"], share, received, trained)
    return table


def _updates_table(report: StoredReport, updates: Sequence[UpdateRecord]) -> Table:
    """Return the table of updates: client, outcome, and weight in each component."""
    weights: dict[str, dict[str, float]] = {}
    for component in report["components"]:
        for part in component["contributions"]:
            weights.setdefault(part["client_id"], {})[component["scope"]] = part["weight"]
    norms = {part["client_id"]: _norm_text(part) for part in _encoder_parts(report)}
    counted = _counted_examples(report)
    has_groups = any(group_of(component["scope"]) for component in report["components"])
    elsewhere = "in its groups and heads" if has_groups else "in its heads"
    of_the_encoder = ("weight in the encoder", "norm there")
    columns = ("client", "task", "became", "examples", "began in", *of_the_encoder, elsewhere, "bytes")
    table = Table("Updates", *columns, wrapped=["became"])
    for one in (one for one in updates if one.outcome != "refused"):
        mine = dict(weights.get(one.client_id, {}))
        encoder = f"{mine.pop(SHARED):.3f}" if SHARED in mine else "-"
        heads = ", ".join(f"{task_of(scope) or group_of(scope)} {weight:.3f}" for scope, weight in mine.items()) or "-"
        became = one.outcome.replace("_", " ") + (f": {one.reason or one.code}" if one.reason or one.code else "")
        base = f"round {one.base_round}"
        norm = norms.get(one.client_id, "-")
        size = bytes_text(one.num_bytes)
        examples = f"{one.num_examples}{counted.get(one.client_id, '')}"
        table.add(one.client_id, one.task, became, examples, base, encoder, norm, heads, size)
    return table


def _counted_examples(report: StoredReport) -> dict[str, str]:
    """Return by client, if fewer examples count than it reported, the smallest number; older reports lack it."""
    least: dict[str, float] = {}
    for component in report["components"]:
        for part in component["contributions"]:
            if (counted := part.get("counted_examples")) is not None:
                least[part["client_id"]] = min(counted, least.get(part["client_id"], counted))
    return {client_id: f", counted as {examples:.6g}" for client_id, examples in least.items()}


def _encoder_parts(report: StoredReport) -> list[StoredContribution]:
    encoder = (component for component in report["components"] if component["scope"] == SHARED)
    return [part for component in encoder for part in component["contributions"]]


def _norm_text(part: StoredContribution) -> str:
    """Return the norm of a client's delta in a component; older reports lack it."""
    norm, clipped_to = part.get("norm"), part.get("clipped_to")
    return "-" if norm is None else f"{norm:.3g}" + ("" if clipped_to is None else f", clipped to {clipped_to:.3g}")


def _refusals_table(report: StoredReport) -> Table:
    refused, total = report["refused"], report["num_refused"]
    title = "Refused" if total == len(refused) else f"Refused, the first {len(refused)} of {total}"
    table = Table(title, "client", "task", "code", "reason", wrapped=["reason"])
    for one in refused:
        table.add(one["client_id"], one["task"], one["code"], one["reason"])
    return table


def _metrics_text(metrics: Mapping[str, float], reports: Mapping[str, StoredMetric]) -> str:
    """Return metrics with their numbers of rows and clients in brackets; older reports lack the numbers."""
    texts: dict[str, list[str]] = {}
    for name in dict.fromkeys([*metrics, *reports]):
        value = f"{metrics[name]:.3f}" if name in metrics else "undefined"
        texts.setdefault(_taken_over(reports.get(name)), []).append(f"{name} {value}")
    return "; ".join(", ".join(values) + taken for taken, values in texts.items()) or "-"


def _taken_over(report: StoredMetric | None) -> str:
    if report is None:
        return ""
    facts = []
    if report["num_clients"]:
        facts.append("pooled" if report["is_pooled"] else "mean")
        facts.append(f"{report['num_eval_examples']} rows of {_clients_text(report['num_clients'])}")
    if report["num_undefined"]:
        of = "undefined for" if facts else "for"
        facts.append(f"{of} {_clients_text(report['num_undefined'])}")
    return f" ({', '.join(facts)})"


def _clients_text(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"
