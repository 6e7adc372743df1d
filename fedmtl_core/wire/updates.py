"""One update, as the client, the server, staging and the history use it; `update_headers` maps it to a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.paired import VariantEvaluation
from fedmtl_core.tasks.plan import UpdateKind
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.formats import Compression

Extras = Mapping[str, Mapping[str, float]]
"""By stage and name, numbers of an update that only one stage of the aggregation uses."""


@dataclass(frozen=True)
class Update:
    """The result of one client's work in one round, without the bytes of its tensors."""

    client_id: str
    task: str
    base_round: int
    """The round whose model the client started from."""
    update_id: str
    """The permanent id of the update: a retry repeats it."""
    kind: UpdateKind
    run_id: str = ""
    num_examples: int = 0
    """The number of training examples that the update counts as: at most the task's limit, see `limited_to`."""
    received: Evaluation = field(default_factory=Evaluation)
    """The evaluation of the model that the client started from."""
    trained: Evaluation = field(default_factory=Evaluation)
    """The evaluation of the client's own model after training, with `train_loss` if the client reports it."""
    components: tuple[EncodedLayout, ...] = ()
    """The layouts and encodings of the update's components, in the order of the slice; empty for metrics alone."""
    compression: Compression = "none"
    """The compression of the chunks in transit."""
    next_task: str = ""
    """The task that the client chose for the round after this one; empty if its earlier choice stays."""
    extras: Extras = field(default_factory=dict)
    """Numbers for single stages of the aggregation, except zeros; `extra_of` reads them."""
    variants: tuple[VariantEvaluation, ...] = ()
    """The evaluations of variants of the model that the client started from, each on the rows of `received`."""
    claimed_examples: int = 0
    """The number of training examples that the client reported, if it exceeds the task's limit; 0 otherwise."""

    def extra_of(self, stage: str, name: str) -> float:
        """Return a stage's number by name; 0 if the update has none."""
        return self.extras.get(stage, {}).get(name, 0)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of the update's components."""
        return tuple(one.scope for one in self.components)

    @property
    def num_bytes(self) -> int:
        """The size of the update's encoded components together."""
        return sum(one.num_bytes for one in self.components)

    def limited_to(self, max_examples: int | None) -> Update:
        """Return the update with at most `max_examples` examples; None for no limit."""
        if max_examples is None or self.num_examples <= max_examples:
            return self
        return replace(self, num_examples=max_examples, claimed_examples=self.num_examples)

    def repeats(self, other: Update) -> bool:
        """Whether this update equals another, as a retry does, whatever compression their chunks have."""
        pairs = ((self.received, other.received), (self.trained, other.trained))  # == compares only their metrics
        same_way = replace(self, compression=other.compression)
        if same_way != other or not all(mine.same_as(theirs) for mine, theirs in pairs):
            return False
        return all(mine.same_as(theirs) for mine, theirs in zip(self.variants, other.variants, strict=True))
