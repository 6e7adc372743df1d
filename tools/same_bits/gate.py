"""A trainer plug-in that waits for its turn, for clients whose updates must arrive in a given order.

The file is copied into the folder in which the clients run. `SAME_BITS_GATES` names the folder of the gates. If that
folder has the file `CLIENT-N.shut`, training for round N writes `CLIENT-N.reached` and starts when `CLIENT-N.open`
exists.
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
        """Wait until the round's gate is open, then train."""
        gate = Path(os.environ["SAME_BITS_GATES"], f"{os.environ['SAME_BITS_CLIENT']}-{round_}")
        if gate.with_suffix(".shut").exists():
            gate.with_suffix(".reached").touch()
            while not gate.with_suffix(".open").exists():
                if should_stop():
                    raise TrainingStopped
                time.sleep(0.02)
        return super().train(model, rows, round_, should_stop=should_stop, **others)
