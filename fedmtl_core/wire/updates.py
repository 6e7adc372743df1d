"""One update, as client, server, staging and history know it; `update_headers` maps it to a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.plan import UpdateKind
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.formats import Compression

Extras = Mapping[str, Mapping[str, float]]
"""By stage and name, numbers that one stage of the aggregation needs of an update, and no other part of the system."""


@dataclass(frozen=True)
class Update:
    """What one client made of one round, without the bytes of its tensors."""

    client_id: str
    task: str
    base_round: int
    """The round whose model it started from."""
    update_id: str
    """Names it for good: a retry repeats it."""
    kind: UpdateKind
    run_id: str = ""
    num_examples: int = 0
    """Examples that it was trained on and counts as: no more than its task's limit, see `limited_to`."""
    received: Evaluation = field(default_factory=Evaluation)
    """Of the model that it started from."""
    trained: Evaluation = field(default_factory=Evaluation)
    """Of its own model, after training; with `train_loss`, if its client says so."""
    components: tuple[EncodedLayout, ...] = ()
    """What its tensors are and how they travel, in the order of the slice; none for metrics alone."""
    compression: Compression = "none"
    """Of its chunks on their way."""
    next_task: str = ""
    """The task that its client has chosen for the round after this one; empty if its choice stays."""
    extras: Extras = field(default_factory=dict)
    """Numbers for single stages, without those that are 0; `extra_of` reads them."""
    claimed_examples: int = 0
    """The examples that its client says it was trained on, where that is beyond its task's limit; else 0."""

    def extra_of(self, stage: str, name: str) -> float:
        """A stage's own number; 0 if the update has none."""
        return self.extras.get(stage, {}).get(name, 0)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of its components."""
        return tuple(one.scope for one in self.components)

    @property
    def num_bytes(self) -> int:
        """Bytes of its encoded tensors."""
        return sum(one.num_bytes for one in self.components)

    def limited_to(self, max_examples: int | None) -> Update:
        """The update with at most so many examples; None for no limit."""
        if max_examples is None or self.num_examples <= max_examples:
            return self
        return replace(self, num_examples=max_examples, claimed_examples=self.num_examples)

    def repeats(self, other: Update) -> bool:
        """Whether this is the same update in every word, as a retry is, however its chunks are compressed."""
        pairs = ((self.received, other.received), (self.trained, other.trained))  # == compares their metrics alone
        same_way = replace(self, compression=other.compression)
        return same_way == other and all(mine.same_as(theirs) for mine, theirs in pairs)
