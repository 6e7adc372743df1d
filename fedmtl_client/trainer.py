"""Local training and evaluation: a plain PyTorch loop over one task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from fedmtl_client import batches
from fedmtl_client.data import EncodedRows
from fedmtl_client.fused_adapters import fuse_adapters
from fedmtl_client.proximal import ProximalTerm
from fedmtl_client.vocabulary import restrict_embeddings
from fedmtl_core.errors import ConfigError, DataError, DivergedError
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.randomness import seed_all
from fedmtl_core.tasks import kinds
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.plan import TrainingPlan
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import TaskSpec


class TrainingStopped(Exception):
    """Training was ended from outside; the model is partly trained."""


@dataclass(frozen=True)
class Step:
    """The progress of training after one optimizer step."""

    step: int
    """Number of the step in this round, counted from 1."""
    num_steps: int
    epoch: int
    num_epochs: int
    loss: float
    """Mean loss over the epoch so far."""
    epoch_ended: bool


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of one round of local training."""

    loss: float
    """Mean loss over the last epoch."""
    num_steps: int
    seconds: float
    learning_rate_sum: float = 0.0
    """Sum of the learning rate over all steps."""


def choose_device(name: str) -> torch.device:
    """Return the device that a setting names; `auto` is the best available device.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = torch.device(name)
    if not available[device.type] or (device.index or 0) >= max(1, torch.cuda.device_count()):
        present = ", ".join(kind for kind, is_present in available.items() if is_present)
        raise ConfigError(f"training.device: this machine has no {name}; it has {present}, and auto chooses the best")
    return device


def local_optimizer(model: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    """Return the plan's optimizer for a model's trainable parameters.

    Weight decay applies to parameters with two or more dimensions.

    Args:
        plan: `sgd` has no momentum, and its weight decay is part of the gradient.
    """
    decayed = [p for p in _trainable(model) if p.ndim >= 2]
    others = [p for p in _trainable(model) if p.ndim < 2]  # biases and norms
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # A fused optimizer makes one pass per parameter; unfused, the step is half of the time with wide embeddings.
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.learning_rate, fused=True)
    return torch.optim.AdamW(groups, lr=plan.learning_rate, fused=True)


def take_step(
    model: nn.Module,
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    max_grad_norm: float,
    proximal: ProximalTerm | None = None,
    correct: Callable[[], None] | None = None,
) -> None:
    """Take one optimizer step on a loss.

    Args:
        loss: a batch's loss, a scalar with a graph.
        schedule: the learning-rate schedule, which steps with the optimizer.
        max_grad_norm: L2 norm that the gradients are clipped to; 0 for no clipping.
        proximal: a term whose gradient is added before the clipping.
        correct: corrects the gradients after the clipping.

    Raises:
        ConfigError: there is a correction, and the optimizer has several learning rates.
    """
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if proximal:
        proximal.add_gradient()
    if max_grad_norm:
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    if correct:
        correct()
        _require_one_rate(optimizer)
    optimizer.step()
    schedule.step()


@contextmanager
def _alternating(model: MultiTaskModel, plan: TrainingPlan) -> Iterator[Callable[[int], None]]:
    """Yield a function to call at the begin of each epoch, counted from 1. It sets the parameters that train in the
    epoch: with `head_epochs` first only the head, then only the other parameters (FedRep; Collins et al. 2021,
    arXiv:2102.07078)."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def begin(epoch: int) -> None:
        for name, parameter in trained if plan.head_epochs else ():
            parameter.requires_grad_(name.startswith("heads.") == (epoch <= plan.head_epochs))

    try:
        yield begin
    finally:
        for _, parameter in trained:
            parameter.requires_grad_(True)


class Trainer:
    """Trains one task's slice: AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) or SGD, linear schedule, clipping.

    With `proximal_mu`, the objective is the loss plus FedProx's term, and gradients are clipped after adding the term.

    A subclass is a custom trainer for `training.trainer`. It may override `train`, `loss` and `optimizer`. One object
    serves all rounds until the server's plan changes, as at a new learning-rate schedule.

    Args:
        spec: the task.
        plan: the training plan.
        device: the device to train on, which the model must be on.
    """

    def __init__(self, spec: TaskSpec, plan: TrainingPlan, device: torch.device):
        self.spec = spec
        self.plan = plan
        self.device = device
        self._kind = kind_of(spec)

    def train(
        self,
        model: MultiTaskModel,
        rows: EncodedRows,
        round_: int,
        *,
        seed: int,
        on_step: Callable[[Step], None] = lambda step: None,
        should_stop: Callable[[], bool] = lambda: False,
        correct: Callable[[], None] | None = None,
    ) -> TrainingResult:
        """Train for one round, in place.

        The learning rate follows the plan's schedule, which spans the run or some of its rounds. It starts at this
        round's position in the schedule, so that a client may join in any round.

        Args:
            round_: counted from 1.
            seed: seeds shuffling, dropout and the random choices in the batches.
            on_step: called after every optimizer step.
            should_stop: called before every step; True ends training.
            correct: corrects the clipped gradients before every step; used for control variates.

        Raises:
            TrainingStopped: `should_stop` returned True.
            DivergedError: the loss has become NaN or infinite.
            ConfigError: there is a correction, and the optimizer has several learning rates.
        """
        plan, began = self.plan, time.monotonic()
        seed_all(seed)
        loader = batches.to_train_on(rows, plan, seed)
        num_epochs = plan.head_epochs + plan.local_epochs
        num_steps = num_epochs * len(loader)
        optimizer, schedule = self.optimizer(model, num_steps, round_)
        proximal = ProximalTerm(_trainable(model), plan.proximal_mu) if plan.proximal_mu else None
        model.train()
        step, mean, rates = 0, 0.0, 0.0
        words = rows.vocabulary if self._may_restrict_embeddings(correct is not None) else None
        with (
            _alternating(model, plan) as begin,
            restrict_embeddings(model.encoder, words, optimizer),
            fuse_adapters(model),
        ):
            for epoch in range(1, num_epochs + 1):
                begin(epoch)
                for batch, (inputs, labels) in enumerate(loader, 1):
                    if should_stop():
                        raise TrainingStopped
                    loss = self.loss(model, inputs, labels)
                    rates += optimizer.param_groups[0]["lr"]
                    take_step(model, loss, optimizer, schedule, plan.max_grad_norm, proximal, correct)
                    step += 1
                    value = _finite(loss, step, num_steps)
                    mean = value if batch == 1 else mean + (value - mean) / batch
                    on_step(Step(step, num_steps, epoch, num_epochs, mean, batch == len(loader)))
        return TrainingResult(mean, num_steps, time.monotonic() - began, rates)

    @torch.inference_mode()
    def evaluate(self, model: MultiTaskModel, rows: EncodedRows) -> Evaluation:
        """Return the task's metrics and the mean `loss` over all rows, or over all tokens that have a target.

        The result maps the metrics with a value; its `undefined` gives the reason for each of the others. Its `losses`
        are the rows' own calibrated losses (`TaskKind.calibrated_losses`), whose mean isn't the metric `loss`. For a
        task that predicts tokens, a row's loss is the mean over its tokens that have a target; rows without such a
        token have none. Every evaluation has the same order of rows.

        Raises:
            DataError: there is nothing to measure.
            DivergedError: the model's outputs have a NaN, or the loss isn't finite.
        """
        model.eval()
        kept, wanted, losses, counts = [], [], [], []
        for inputs, labels in batches.to_evaluate_on(rows, self.plan):
            outputs, targets = self._outputs(model, inputs, labels)
            kept.append(self._kind.reduce_outputs(outputs).float().cpu())
            wanted.append(targets.cpu())
            losses.append(self._kind.loss(outputs, targets, reduction="none").float().cpu())
            if self._kind.sees == "tokens":
                counts.append((labels != kinds.IGNORED).sum(dim=1))
        all_outputs, all_targets = (torch.cat(parts).numpy().astype(np.float64) for parts in (kept, wanted))
        if not len(all_targets):
            raise DataError(f"{self.spec.name}: none of the {len(rows)} evaluation rows has a token with a target")
        loss = float(torch.cat(losses).mean())
        if not math.isfinite(loss) or np.isnan(all_outputs).any():
            raise DivergedError(f"{self.spec.name}: loss {loss} on {len(rows)} evaluation rows", loss)
        measured = replace(kinds.measure(self._kind, all_outputs, all_targets), num_examples=len(rows))
        plain = torch.cat(losses).numpy().astype(np.float64)
        calibrated = kinds.calibrated_losses(self._kind, all_outputs, all_targets, plain)
        by_row = _row_means(calibrated, torch.cat(counts).numpy()) if counts else calibrated
        return replace(measured, losses=by_row).with_metric("loss", loss)

    def loss(self, model: MultiTaskModel, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Return the training objective over one batch, a scalar.

        Args:
            inputs: the tokenizer's output, each tensor `(batch, tokens)`, on CPU.
            labels: `(batch,)`, or `(batch, tokens)` for a task type that sees tokens; on CPU.
        """
        outputs, targets = self._outputs(model, inputs, labels)
        # A batch without targets, such as one text of a few words, has nothing to learn from.
        return self._kind.loss(outputs, targets) if len(targets) else outputs.sum()

    def _outputs(self, model: MultiTaskModel, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head's outputs, `(targets, …)`, and the targets, `(targets,)`."""
        labels = labels.to(self.device)
        if self._kind.sees == "text":
            return model(self.spec.name, self._to_device(inputs)), labels
        has_target = labels != kinds.IGNORED
        return model(self.spec.name, self._to_device(inputs), has_target), labels[has_target]

    def optimizer(
        self, model: MultiTaskModel, steps_per_round: int, round_: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Return a round's optimizer, and its schedule, which steps with it. Both are new in each round."""
        optimizer = local_optimizer(model, self.plan)
        return optimizer, self.schedule(optimizer, steps_per_round, round_)

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_round: int, round_: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the plan's schedule from this round's position, for an optimizer whose rates are the peak rates."""
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        first_round, num_rounds = self.plan.rate_schedule
        total = num_rounds * steps_per_round
        schedule: torch.optim.lr_scheduler.LRScheduler = get_linear_schedule_with_warmup(
            optimizer,
            num_warmup_steps=round(self.plan.warmup_ratio * total),
            num_training_steps=total,
            last_epoch=(round_ - first_round) * steps_per_round - 1,
        )
        return schedule

    def _may_restrict_embeddings(self, is_corrected: bool) -> bool:
        """Whether only weight decay affects the embeddings of words that the rows don't have. A subclass, whose code
        may use them, never qualifies."""
        return type(self) is Trainer and not (is_corrected or self.plan.proximal_mu or self._kind.sees_embeddings)

    def _to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}


def _row_means(losses: kinds.Array, counts: npt.NDArray[np.int64]) -> kinds.Array:
    """Return the mean loss of each row that has a target.

    Args:
        losses: the losses of the tokens that have a target, row by row, `(targets,)`.
        counts: the number of these tokens in each row, `(rows,)`.
    """
    rows = np.repeat(np.arange(len(counts)), counts)
    sums = np.bincount(rows, weights=losses, minlength=len(counts))
    means: kinds.Array = sums[counts > 0] / counts[counts > 0]
    return means


def _finite(loss: Tensor, step: int, num_steps: int) -> float:
    """Return the loss of a step.

    Raises:
        DivergedError: the loss is NaN or infinite.
    """
    value: float = loss.item()
    if not math.isfinite(value):
        raise DivergedError(
            f"training diverged: the loss is {value} at step {step} of {num_steps}; lower training.learning_rate", value
        )
    return value


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _require_one_rate(optimizer: torch.optim.Optimizer) -> None:
    rates = {group["lr"] for group in optimizer.param_groups}
    if len(rates) > 1:
        raise ConfigError(
            f"training.control_variates: expected a trainer with one learning rate, got {len(rates)} different ones"
        )
