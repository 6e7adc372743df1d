"""The display of a round by `fedmtl-server runs show RUN --round N`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from fedmtl_core.config.stages import ADAPTERS
from fedmtl_core.model.sharing import blocks_text
from fedmtl_server.commands.printing import Table, bytes_text, print_facts, print_json, time_text
from fedmtl_server.commands.run_facts import round_summary
from fedmtl_server.commands.updates_shown import refusals_table, updates_table

if TYPE_CHECKING:
    from fedmtl_server.storage.records import RoundRecord, UpdateRecord
    from fedmtl_server.storage.stored_reports import StoredMetric, StoredReport, StoredVariant


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
        **_inexactness(report),
        **_moves(report),
        **_variants(report),
        **_discarded(report),
        **_warnings(report),
    )
    _tasks_table(report).show()
    updates_table(report, updates).show()
    refusals_table(report).show()


def _scaling(report: StoredReport) -> dict[str, str]:
    """Return the factors that preserved the norm of the tasks' deltas, by component and part; empty without factors."""
    texts = [
        f"{component['scope']}: " + ", ".join(f"{part} {factor:.3f}" for part, factor in factors.items())
        for component in report["components"]
        if (factors := component.get("scaling"))
    ]
    return {"scaling": "; ".join(texts)} if texts else {}


def _inexactness(report: StoredReport) -> dict[str, str]:
    """Return how far the adapters' products are from their mean, by component; empty if it wasn't measured."""
    errors = report.get("stages", {}).get(ADAPTERS.name, {}).get("inexactness", {})
    texts = [f"{scope}: {_share_text(error)} off the clients' mean product" for scope, error in errors.items()]
    return {"adapters": "; ".join(texts)} if texts else {}


def _share_text(share: float) -> str:
    """Return a share in percent; shares that would show as 0.00 % without being 0 have a bound instead."""
    return "less than 0.01%" if 0 < share < 1e-4 else f"{share:.2%}"


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
