"""A client's slice of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fedmtl_core.tasks.plan import Purpose, TrainingPlan
from fedmtl_core.wire.layout import Component


@dataclass(frozen=True)
class Slice:
    """A client's part of the model, as of one committed round."""

    run_id: str
    round: int
    """The round that trains on this slice."""
    task: str
    """The task whose head the slice has; empty for the whole model, with the heads of all tasks."""
    purpose: Purpose
    plan: TrainingPlan
    components: Mapping[str, Component]
    """By scope, encoder first. If the slice was received into a `ComponentCache`, these are the cache's own
    components."""
    controls: Mapping[str, Component] = field(default_factory=dict)
    """The server's control variates, by the scope of the component that each belongs to; empty if the server has none.
    They are the cache's own components too."""
    control_since: int = 0
    """The round in which the control variates began."""
    variants: Mapping[str, float] = field(default_factory=dict)
    """By name, the variants of this slice that the round offers, each with its start margin: training starts from a
    variant whose loss is lower by at least so many standard errors on the client's rows; 0 for never."""
    bytes_received: int = 0
    """Encoded bytes that were received for this slice."""
    base_digest: bytes = b""
    """The digest of the base that the slice belongs to; empty without adapters."""
    stacks: Mapping[str, Component] = field(default_factory=dict)
    """By scope, the adapters that the server added to the base last; empty if it never did."""
    stack_base_digest: bytes = b""
    """The digest of the component `merged` that the stacks are added to; empty without stacks."""
    read_only: Collection[str] = ()
    """The scopes of the components that the round doesn't train, and that an update leaves out."""

    @property
    def not_trained(self) -> frozenset[str]:
        """The names of the parameters in the components that the round doesn't train."""
        return frozenset(spec.name for scope in self.read_only for spec in self.components[scope].layout.tensors)


@dataclass(frozen=True)
class SliceVariant:
    """A variant of a slice: other values for some of its tensors."""

    name: str
    components: Mapping[str, Component]
    """By scope; the scopes differ from those of the slice. The tensors have names and shapes of the slice's tensors."""
    bytes_received: int = 0
    """Encoded bytes that were received for this variant."""


@dataclass(frozen=True)
class ServerBase:
    """The server's base without its values."""

    digest: bytes
    """The SHA-256 of the base."""
    tensors: Mapping[str, bytes]
    """The SHA-256 of each tensor's bytes by name."""
    num_bytes: int
    """The size of a download."""
