"""The experiment trackers that a configuration names. A tracker's package is imported only if it is named."""

from __future__ import annotations

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_server.monitoring.tracking import Tracker


def trackers_for(config: Config) -> list[Tracker]:
    """Return the trackers that a configuration names. Only their packages are imported.

    Raises:
        ConfigError: a package isn't installed.
    """
    section = config.tracking
    trackers: list[Tracker] = []
    for name in section.report_to:
        try:
            if name == "tensorboard":
                from fedmtl_server.monitoring.tensorboard_tracker import TensorBoardTracker

                trackers.append(TensorBoardTracker(section.tensorboard_dir))
            else:
                from fedmtl_server.monitoring.mlflow_tracker import MlflowTracker

                trackers.append(MlflowTracker(section.mlflow_uri, section.mlflow_experiment))
        except ImportError as error:
            raise ConfigError(
                f"tracking.report_to: {name} can't be used: {error}. Install it: pip install 'fedmtl[{name}]'"
            ) from None
    return trackers
