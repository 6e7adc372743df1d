"""The files in a run's folder. Needs neither PyTorch nor SQLAlchemy.

RUN_DIR/
  run.json                 the run's id. A folder with this file holds a run
  beginning.json           the run's id, until the history contains the run
  config.yaml              the configuration in use, without the password of `store.url`
  lock                     held by the server that serves the run
  server.json              address, process id and run id of the server that serves the run, or served it last
  history.sqlite           the run's history, unless `store.url` names another database
  checkpoints/             round-0003.safetensors: the model after a round; the newest few, and each task's best.
                           round-0003.state.safetensors: the saved components of the aggregation stages after the round,
                           if the run has any: the server optimizer's state, control variates, variants.
                           base.safetensors: with adapters, the encoder's parameters that never change
  staging/                 acknowledged updates of the round in progress
  results.json, metrics.png    written when the run is over
  sharing.png              written when the run is over, unless all tasks shared the whole encoder all the time
"""

from __future__ import annotations

from pathlib import Path

RUN_FILE = "run.json"
BEGINNING_FILE = "beginning.json"
CONFIG_FILE = "config.yaml"
LOCK_FILE = "lock"
SERVER_FILE = "server.json"
HISTORY_FILE = "history.sqlite"
RESULTS_FILE = "results.json"
PLOT_FILE = "metrics.png"
SHARING_PLOT_FILE = "sharing.png"
CHECKPOINTS = "checkpoints"
STAGING = "staging"


def checkpoint_path(run_dir: Path, round_: int) -> Path:
    """Return the path of the model after a round."""
    return run_dir / CHECKPOINTS / f"round-{round_:04}.safetensors"


def base_path(run_dir: Path) -> Path:
    """Return the path of the parameters that never change."""
    return run_dir / CHECKPOINTS / "base.safetensors"


def state_path(run_dir: Path, round_: int) -> Path:
    """Return the path of the aggregation stages' saved components after a round."""
    return checkpoint_path(run_dir, round_).with_suffix(".state.safetensors")


def checkpoint_rounds(run_dir: Path) -> list[int]:
    """Return the rounds whose model is in the folder, in order."""
    numbers = (path.stem.removeprefix("round-") for path in (run_dir / CHECKPOINTS).glob("round-*.safetensors"))
    return sorted(int(number) for number in numbers if number.isdecimal())
