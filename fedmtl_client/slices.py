"""A client's slice of the model, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedmtl_core.tasks.plan import Purpose, TrainingPlan
from fedmtl_core.wire.layout import Component


@dataclass(frozen=True)
class Slice:
    """A client's part of the model, as one commit left it."""

    run_id: str
    round: int
    """The round that trains on it."""
    task: str
    """The task whose head it has; empty for the whole model, with the heads of all tasks."""
    purpose: Purpose
    plan: TrainingPlan
    components: Mapping[str, Component]
    """By scope, encoder first. They are the cache's own components where the slice was received into a
    `ComponentCache`."""
    controls: Mapping[str, Component] = field(default_factory=dict)
    """The server's control variates by the scope that each is for; empty if the server has none. They are the cache's
    own components too."""
    control_since: int = 0
    """The round in which the control variates began."""
    bytes_received: int = 0
    """Encoded bytes that were received for it."""
