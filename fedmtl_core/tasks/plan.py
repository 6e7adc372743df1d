"""What a client is asked to do in a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LocalOptimizer = Literal["adamw", "sgd"]
"""What a client takes its steps with."""

UpdateKind = Literal["parameters", "delta", "metrics"]
"""What an update carries: trained parameters, trained minus received parameters, or metrics alone."""

Pooling = Literal["cls", "mean", "last"]
"""What a head sees of the encoder: its pooled first token, the mean over all tokens, or the last token."""

Purpose = Literal["train", "evaluate"]
"""What a round asks for."""


def round_title(purpose: Purpose, round_: int, num_rounds: int) -> str:
    """A round's name for people, in logs and progress bars: `Round 2/10`, or `Final evaluation`.

    Args:
        purpose: what the round asks for.
        round_: its number, counted from 1.
        num_rounds: training rounds in the run.
    """
    return "Final evaluation" if purpose == "evaluate" else f"Round {round_}/{num_rounds}"


@dataclass(frozen=True)
class TrainingPlan:
    """How a client is asked to train; it travels in the slice's header."""

    local_epochs: int
    """Passes over the client's examples in one round."""
    batch_size: int
    learning_rate: float
    """The optimiser's, at its peak."""
    weight_decay: float
    warmup_ratio: float
    """Share of the run's steps over which the learning rate rises; then it falls linearly to 0 at the run's end."""
    max_grad_norm: float
    """L2 norm that gradients are clipped to; 0 for no clipping."""
    max_length: int
    """Longest input in tokens."""
    seed: int
    client_model: str
    """Name or folder of the encoder's architecture and tokenizer."""
    num_hidden_layers: int
    """Layers to keep of it; 0 for all."""
    pooling: Pooling
    head_dropout: float
    update: UpdateKind
    train_samples: int
    """Rows to train on, at most; 0 for all."""
    val_samples: int
    """Rows to evaluate on, at most; 0 for all."""
    num_rounds: int
    """Training rounds in the run."""
    task_type: str | None = None
    """The kind of task of the slice's head, `TaskSpec.kind`; None if the server doesn't say."""
    labels: tuple[str, ...] = ()
    """Names of its classes, in the order of the head's outputs. Empty for regression."""
    proximal_mu: float = 0.0
    """What half the squared distance to the received parameters counts for in the loss; 0 for nothing."""
    optimizer: LocalOptimizer = "adamw"
    head_epochs: int = 0
    """Passes in which the head alone is trained, before those of `local_epochs` train the rest alone; 0 for neither."""
    group_by_length: bool = False
    """Whether rows of like length come in a batch together, else in random order."""
    local: tuple[str, ...] = ()
    """Names of the parameters that a client keeps for itself: no slice and no update has them."""
