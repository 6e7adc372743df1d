"""A trainer that waits for its turn: a plug-in for clients whose updates have to come in one order.

It is copied into the folder in which clients run. `SAME_BITS_GATES` names another; in a round N for which that has a
file `CLIENT-N.shut`, training writes `CLIENT-N.reached` there and begins when `CLIENT-N.open` is there too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmtl_client.trainer import Trainer, TrainingResult, TrainingStopped


def _never() -> bool:
    return False


class Gated(Trainer):
    """FedMTL's own trainer, behind a gate."""

    def train(
        self, model: Any, rows: Any, round_: int, *, should_stop: Callable[[], bool] = _never, **others: Any
    ) -> TrainingResult:
        """A round's training, once its gate is open."""
        gate = Path(os.environ["SAME_BITS_GATES"], f"{os.environ['SAME_BITS_CLIENT']}-{round_}")
        if gate.with_suffix(".shut").exists():
            gate.with_suffix(".reached").touch()
            while not gate.with_suffix(".open").exists():
                if should_stop():
                    raise TrainingStopped
                time.sleep(0.02)
        return super().train(model, rows, round_, should_stop=should_stop, **others)
