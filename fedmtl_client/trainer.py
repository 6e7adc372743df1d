"""Local training and evaluation: a plain PyTorch loop over one task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from fedmtl_client import batches
from fedmtl_client.data import EncodedRows
from fedmtl_client.proximal import ProximalTerm
from fedmtl_client.vocabulary import restrict_embeddings
from fedmtl_core.errors import ConfigError, DataError, DivergedError
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.randomness import seed_all
from fedmtl_core.tasks import kinds
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.plan import TrainingPlan
from fedmtl_core.tasks.spec import TaskSpec


class TrainingStopped(Exception):
    """Training was ended from outside; the model is somewhere on its way."""


@dataclass(frozen=True)
class Step:
    """Where training stands after one optimiser step."""

    step: int
    """Counted from 1, in this round."""
    num_steps: int
    epoch: int
    num_epochs: int
    loss: float
    """Mean over the epoch so far."""
    epoch_ended: bool


@dataclass(frozen=True)
class TrainingResult:
    """What one round of local training came to."""

    loss: float
    """Mean over the last epoch."""
    num_steps: int
    seconds: float
    learning_rate_sum: float = 0.0
    """Of all steps."""


def choose_device(name: str) -> torch.device:
    """The device that a setting names; `auto` is the best there is.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = torch.device(name)
    if not available[device.type] or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise ConfigError(f"training.device: this machine has no {name}")
    return device


def local_optimizer(model: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    """The plan's optimiser over a model's trainable parameters, with weight decay on those of two and more dimensions.

    Args:
        plan: `sgd` is without momentum, and its weight decay is part of the gradient.
    """
    decayed = [p for p in _trainable(model) if p.ndim >= 2]
    others = [p for p in _trainable(model) if p.ndim < 2]  # biases and norms
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # Fused, it is one pass per parameter: over wide embeddings the step is else half of the time.
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
    """Take one optimiser step that lowers a loss.

    Args:
        loss: of one batch, a scalar with a graph.
        schedule: steps with the optimiser.
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
    """Yields a function to be called with each epoch that begins, counted from 1. It sets which parameters train in the
    epoch: with `head_epochs` first the head alone, then all others alone (FedRep; Collins et al. 2021,
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

    With `proximal_mu` what is minimised is the loss and FedProx's term together, so that gradients are clipped with it.

    A subclass is a trainer of one's own, for `training.trainer`. It may override `train`, `loss` and `optimizer`. One
    object stays from round to round, until the server's plan changes.

    Args:
        spec: the task.
        plan: how to train.
        device: where; the model must be there.
    """

    def __init__(self, spec: TaskSpec, plan: TrainingPlan, device: torch.device):
        self.spec = spec
        self.plan = plan
        self.device = device
        self._kind = kinds.kind_of(spec)

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

        The learning rate follows one schedule over the whole run, taken up at this round's place in it, so that
        a client may come at any round.

        Args:
            round_: counted from 1.
            seed: of shuffling and dropout, and of what is random in the batches.
            on_step: told after every optimiser step.
            should_stop: asked before every step.
            correct: corrects the gradients, clipped already, before every step; for control variates.

        Raises:
            TrainingStopped: `should_stop` said so.
            DivergedError: the loss isn't finite any more.
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
        words = rows.vocabulary if self._moves_only_what_has_a_gradient(correct is not None) else None
        with _alternating(model, plan) as begin, restrict_embeddings(model.encoder, words, optimizer):
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
        """The task's metrics and the mean `loss` over all rows, or over all tokens that have a target.

        A mapping of those that have a value; its `undefined` says why others have none.

        Raises:
            DataError: there is nothing to measure.
            DivergedError: the model gives NaN, or the loss isn't finite.
        """
        model.eval()
        kept, wanted, losses = [], [], []
        for inputs, labels in batches.to_evaluate_on(rows, self.plan):
            outputs, targets = self._outputs(model, inputs, labels)
            kept.append(self._kind.kept(outputs).float().cpu())
            wanted.append(targets.cpu())
            losses.append(self._kind.loss(outputs, targets, reduction="none").float().cpu())
        all_outputs, all_targets = (torch.cat(parts).numpy().astype(np.float64) for parts in (kept, wanted))
        if not len(all_targets):
            raise DataError(f"{self.spec.name}: none of the {len(rows)} rows to evaluate on has a token with a target")
        loss = float(torch.cat(losses).mean())
        if not math.isfinite(loss) or np.isnan(all_outputs).any():
            raise DivergedError(f"{self.spec.name}: loss {loss} on {len(rows)} rows", loss)
        measured = replace(kinds.measure(self.spec, all_outputs, all_targets), num_examples=len(rows))
        return measured.with_metric("loss", loss)

    def loss(self, model: MultiTaskModel, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """What a training step minimises over one batch, a scalar.

        Args:
            inputs: the tokenizer's, each `(batch, tokens)`, on CPU.
            labels: `(batch,)`, or where the task's kind sees tokens `(batch, tokens)`; likewise.
        """
        outputs, targets = self._outputs(model, inputs, labels)
        # Of a batch without a target, such as one text of a few words, there is nothing to learn.
        return self._kind.loss(outputs, targets) if len(targets) else outputs.sum()

    def _outputs(self, model: MultiTaskModel, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The head's outputs, `(targets, …)`, and what they should be, `(targets,)`."""
        labels = labels.to(self.device)
        if self._kind.sees == "text":
            return model(self.spec.name, self._there(inputs)), labels
        has_target = labels != kinds.IGNORED
        return model(self.spec.name, self._there(inputs), has_target), labels[has_target]

    def optimizer(
        self, model: MultiTaskModel, steps_per_round: int, round_: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """A round's optimizer, and its schedule, which steps with it. Both are new in each round."""
        optimizer = local_optimizer(model, self.plan)
        return optimizer, self.schedule(optimizer, steps_per_round, round_)

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_round: int, round_: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The run's schedule, taken up at this round's place in it, for an optimizer whose rates are the peaks."""
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        total = self.plan.num_rounds * steps_per_round
        schedule: torch.optim.lr_scheduler.LRScheduler = get_linear_schedule_with_warmup(
            optimizer,
            num_warmup_steps=round(self.plan.warmup_ratio * total),
            num_training_steps=total,
            last_epoch=(round_ - 1) * steps_per_round - 1,
        )
        return schedule

    def _moves_only_what_has_a_gradient(self, is_corrected: bool) -> bool:
        """Whether nothing but weight decay, and no code of somebody's own, sees the word embeddings of other words than
        the rows have."""
        return type(self) is Trainer and not (is_corrected or self.plan.proximal_mu or self._kind.sees_embeddings)

    def _there(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}


def _finite(loss: Tensor, step: int, num_steps: int) -> float:
    """The loss of a step.

    Raises:
        DivergedError: it is NaN or infinite.
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
            f"training.control_variates: expected a trainer of one learning rate, got {len(rates)} different ones"
        )
