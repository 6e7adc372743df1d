"""A client's instructions for a round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fedmtl_core.tasks.adapters import AdapterSettings

LocalOptimizer = Literal["adamw", "sgd"]
"""The optimizer of a client's steps."""

UpdateKind = Literal["parameters", "delta", "metrics"]
"""The contents of an update: trained parameters, trained minus received parameters, or metrics alone."""

Pooling = Literal["cls", "mean", "last"]
"""The vector that a head sees: the encoder's pooled first token, the mean of all tokens, or the last token."""

Purpose = Literal["train", "evaluate"]
"""The purpose of a round."""


def round_title(purpose: Purpose, round_: int, num_rounds: int) -> str:
    """Return a round's name for people, in logs and progress bars: `Round 2/10`, or `Final evaluation`.

    Args:
        purpose: the round's purpose.
        round_: the round's number, counted from 1.
        num_rounds: training rounds in the run.
    """
    return "Final evaluation" if purpose == "evaluate" else f"Round {round_}/{num_rounds}"


@dataclass(frozen=True)
class TrainingPlan:
    """The training instructions for a client, sent in the slice's header."""

    local_epochs: int
    """Passes over the client's examples in one round."""
    batch_size: int
    learning_rate: float
    """The optimizer's peak learning rate."""
    weight_decay: float
    warmup_ratio: float
    """Share of the learning-rate schedule's steps over which the rate rises; then it falls linearly to 0 at the
    schedule's end."""
    max_grad_norm: float
    """L2 norm that gradients are clipped to; 0 for no clipping."""
    max_length: int
    """Longest input in tokens."""
    seed: int
    client_model: str
    """Name or folder of the encoder's architecture and tokenizer."""
    num_hidden_layers: int
    """Number of the model's layers to keep; 0 for all."""
    pooling: Pooling
    head_dropout: float
    update: UpdateKind
    train_samples: int
    """Largest number of training rows; 0 for all."""
    val_samples: int
    """Largest number of evaluation rows; 0 for all."""
    num_rounds: int
    """Training rounds in the run."""
    task_type: str | None = None
    """The task type of the slice's head, as in `TaskSpec.kind`; None if the server doesn't say."""
    labels: tuple[str, ...] = ()
    """Names of the task's classes, in the order of the head's outputs. Empty for regression."""
    proximal_mu: float = 0.0
    """Weight of half the squared distance to the received parameters in the loss; 0 for no such term."""
    optimizer: LocalOptimizer = "adamw"
    head_epochs: int = 0
    """Passes that train only the head, before the `local_epochs` train only the rest; 0 to train both together."""
    group_by_length: bool = False
    """Whether batches have rows of similar length; otherwise rows are in random order."""
    local: tuple[str, ...] = ()
    """Names of the parameters that a client keeps local: no slice and no update has them."""
    schedule_first_round: int = 0
    """The first round of the learning-rate schedule in progress; 0 if one schedule spans the run."""
    schedule_num_rounds: int = 0
    """Rounds that the learning-rate schedule in progress spans; 0 if one schedule spans the run."""
    adapters: AdapterSettings | None = None
    """The adapters of the client's encoder; None if clients train the encoder's own parameters."""

    @property
    def rate_schedule(self) -> tuple[int, int]:
        """The first round and the number of rounds of the learning-rate schedule in progress."""
        if self.schedule_num_rounds:
            return self.schedule_first_round, self.schedule_num_rounds
        return 1, self.num_rounds

    def differs_only_in_rate(self, other: TrainingPlan) -> bool:
        """Return whether another plan asks for the same model, rows and steps, at whatever learning rates."""
        rate = {name: getattr(other, name) for name in _RATE}
        return replace(self, **rate) == other


_RATE = ("learning_rate", "schedule_first_round", "schedule_num_rounds")
"""The fields of a plan that determine the learning rate, and that change between the entries of a run's schedule."""
