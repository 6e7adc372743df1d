"""The sharing that a run's configuration sets, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.sharing import parts_in, parts_text

if TYPE_CHECKING:
    from fedmtl_server.sharing.selection_rules import SelectionRules
    from fedmtl_server.storage.records import RunRecord


def policy_of(run: RunRecord) -> str | None:
    """Return the name of the policy that changes the sharing; None without one."""
    name: str | None = _adaptive(run).get("policy")
    return name


def configured_text(run: RunRecord) -> str:
    """Return the configured sharing in words."""
    section = _section(run)
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
    if policy_of(run) == "validated":
        owned = [part for key in _adaptive(run).get("layers") or () for part in parts_in(key)]
        return f"each task has its own {parts_text(owned) if owned else 'encoder'} and its own head"
    return "all tasks share one encoder, and each task has its own head"


def policy_text(policy: str | None, rules: SelectionRules | None) -> str:
    """Return the policy that changes the sharing, with its margins, in words."""
    if policy is None:
        return "none"
    if rules is None:
        return policy
    return (
        f"{policy}: at most {rules.trials} trials for a task in a round; accepts a calibrated loss that is lower by at "
        f"least {rules.min_gain:.3g} of it and by {rules.z_join:.2f} standard errors, or {rules.z_leave:.2f} with "
        "fewer sources. An added task must also do more than a shorter update, and not lower the main metric"
    )


def _section(run: RunRecord) -> JsonObject:
    section: JsonObject = run.config.get("sharing") or {}
    return section


def _adaptive(run: RunRecord) -> JsonObject:
    adaptive: JsonObject = _section(run).get("adaptive") or {}
    return adaptive
