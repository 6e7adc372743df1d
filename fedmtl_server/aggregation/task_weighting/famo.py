"""FAMO, Liu et al. 2023, arXiv:2306.03792: all losses fall at the same rate.

Each task has a logit ξ, and z = softmax(ξ). A round's weights are z / ℓ, scaled to a sum of 1, with ℓ the loss of the
round's initial model. The clients of the next round measure the result: ξ -= β (Jᵀ δ + γ ξ), where δ is log ℓ before
minus log ℓ after, and J the softmax's Jacobian. A task that gained more than the others therefore gets a lower weight.
"""

from __future__ import annotations

import math

from fedmtl_server.aggregation.task_weighting.base import LEAST_LOSS, TaskRound, TaskWeighting, Weighed, shares, softmax


class FAMO(TaskWeighting):
    """p ∝ softmax(ξ) / ℓ."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        logits: dict[str, float] = dict(round_.state.get("logits", {}))
        before: dict[str, float] = round_.state.get("log_losses", {})
        now = {
            one.task: math.log(max(one.received_loss, LEAST_LOSS))
            for one in round_.tasks
            if one.received_loss is not None
        }
        logits |= self._stepped({task: logits.get(task, 0.0) for task in now if task in before}, before, now)
        z = softmax([logits.get(one.task, 0.0) for one in round_.tasks])
        usual = math.fsum(now.values()) / len(now) if now else 0.0  # for tasks without a reported loss
        log_losses = [now.get(one.task, usual) for one in round_.tasks]
        least = min(log_losses)
        weights = [share * math.exp(least - log_loss) for share, log_loss in zip(z, log_losses, strict=True)]
        logits = {one.task: 0.0 for one in round_.tasks} | logits
        return Weighed(shares(weights), {"logits": logits, "log_losses": now})

    def _stepped(self, logits: dict[str, float], before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
        """Return the updated logits of tasks whose losses before and after the last step are known."""
        if not logits:
            return {}
        z = dict(zip(logits, softmax(list(logits.values())), strict=True))
        gain = {task: before[task] - now[task] for task in logits}
        mean = math.fsum(z[task] * gain[task] for task in logits)
        beta, gamma = self.settings.learning_rate, self.settings.decay
        return {task: logit - beta * (z[task] * (gain[task] - mean) + gamma * logit) for task, logit in logits.items()}
