"""The tables of a round's updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmtl_core.model.scopes import factor_in, group_of, is_shared, task_of, without_factor
from fedmtl_server.commands.printing import Table, bytes_text

if TYPE_CHECKING:
    from fedmtl_server.storage.records import UpdateRecord
    from fedmtl_server.storage.stored_reports import StoredContribution, StoredReport


def updates_table(report: StoredReport, updates: Sequence[UpdateRecord]) -> Table:
    """Return the table of updates: client, outcome, and weight in each component."""
    weights: dict[str, dict[str, float]] = {}
    for component in report["components"]:
        for part in component["contributions"]:
            weights.setdefault(part["client_id"], {})[component["scope"]] = part["weight"]
    norms = {part["client_id"]: _norm_text(part) for part in _encoder_parts(report)}
    counted = _counted_examples(report)
    has_groups = any(group_of(without_factor(component["scope"])) for component in report["components"])
    elsewhere = "in its groups and heads" if has_groups else "in its heads"
    of_the_encoder = ("weight in the encoder", "norm there")
    columns = ("client", "task", "became", "examples", "began in", *of_the_encoder, elsewhere, "bytes")
    table = Table("Updates", *columns, wrapped=["became"])
    for one in (one for one in updates if one.outcome != "refused"):
        mine = dict(weights.get(one.client_id, {}))
        encoder = next((f"{mine.pop(scope):.3f}" for scope in list(mine) if is_shared(scope)), "-")
        heads = ", ".join(f"{_name_of(scope)} {weight:.3f}" for scope, weight in mine.items()) or "-"
        became = one.outcome.replace("_", " ") + (f": {one.reason or one.code}" if one.reason or one.code else "")
        base = f"round {one.base_round}"
        norm = norms.get(one.client_id, "-")
        size = bytes_text(one.num_bytes)
        examples = f"{one.num_examples}{counted.get(one.client_id, '')}"
        table.add(one.client_id, one.task, became, examples, base, encoder, norm, heads, size)
    return table


def refusals_table(report: StoredReport) -> Table:
    """Return the table of refused updates: client, task, and why."""
    refused, total = report["refused"], report["num_refused"]
    title = "Refused" if total == len(refused) else f"Refused, the first {len(refused)} of {total}"
    table = Table(title, "client", "task", "code", "reason", wrapped=["reason"])
    for one in refused:
        table.add(one["client_id"], one["task"], one["code"], one["reason"])
    return table


def _name_of(scope: str) -> str:
    """Return the task or group of a scope, with the factor if the scope is one factor's."""
    factor, rest = factor_in(scope), without_factor(scope)
    name = task_of(rest) or group_of(rest) or rest
    return name if factor is None else f"{factor.upper()} of {name}"


def _counted_examples(report: StoredReport) -> dict[str, str]:
    """Return by client, if fewer examples count than it reported, the smallest number; older reports lack it."""
    least: dict[str, float] = {}
    for component in report["components"]:
        for part in component["contributions"]:
            if (counted := part.get("counted_examples")) is not None:
                least[part["client_id"]] = min(counted, least.get(part["client_id"], counted))
    return {client_id: f", counted as {examples:.6g}" for client_id, examples in least.items()}


def _encoder_parts(report: StoredReport) -> list[StoredContribution]:
    encoder = (component for component in report["components"] if is_shared(component["scope"]))
    return [part for component in encoder for part in component["contributions"]]


def _norm_text(part: StoredContribution) -> str:
    """Return the norm of a client's delta in a component; older reports lack it."""
    norm, clipped_to = part.get("norm"), part.get("clipped_to")
    return "-" if norm is None else f"{norm:.3g}" + ("" if clipped_to is None else f", clipped to {clipped_to:.3g}")
