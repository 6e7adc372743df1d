"""Facts of runs and rounds that several commands print, read from their records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from fedmtl_core.errors import ConfigError
from fedmtl_core.identifiers import name_task
from fedmtl_core.json_types import JsonObject
from fedmtl_server.storage.runs import Place

if TYPE_CHECKING:
    from fedmtl_core.config import Config
    from fedmtl_server.storage.records import RoundRecord, RunRecord, UpdateRecord


def auxiliary_tasks(run: RunRecord) -> set[str]:
    """Return the run's auxiliary tasks."""
    return {task for task, section in (run.config.get("tasks") or {}).items() if section.get("auxiliary")}


def tasks_text(run: RunRecord) -> str:
    """Return the names of a run's tasks, with a mark for auxiliary tasks."""
    return ", ".join(name_task(task, auxiliary=task in auxiliary_tasks(run)) for task in run.tasks)


def read_config(run: RunRecord) -> Config | None:
    """Return a run's configuration; None if this version can't read it."""
    from fedmtl_core.config import Config

    try:
        return Config.model_validate(_given(run.config))
    except (ValueError, ConfigError):  # another version wrote it
        return None


def _given(values: JsonObject) -> dict[str, object]:
    """Return a configuration without the keys whose value is None."""
    return {
        key: _given(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def adapters_text(run: RunRecord) -> str:
    """Return a run's adapters in words; empty if it has none."""
    from fedmtl_core.config.adapter_texts import adapters_in_words
    from fedmtl_core.config.adapters import AdaptersConfig

    section = (run.config.get("model") or {}).get("adapters")
    try:
        return "" if section is None else adapters_in_words(AdaptersConfig.model_validate(section))
    except ValueError:  # another version wrote it
        return "of another version of FedMTL"


def encoder_text(run: RunRecord) -> str:
    """Return the part of the encoder that a run trains, in words."""
    return "the encoder's adapters" if (run.config.get("model") or {}).get("adapters") is not None else "the encoder"


def main_metrics(run: RunRecord) -> dict[str, str]:
    """Return the main metric by task from the run's configuration; empty if this version can't read it."""
    config = read_config(run)
    try:
        return {} if config is None else {spec.name: spec.main_metric for spec in config.task_specs()}
    except (ValueError, ConfigError):  # another version wrote it
        return {}


def why_early(place: Place) -> str:
    """Return the reason why training ended before the last round; empty if it didn't."""
    if not place.stopped_early:
        return ""
    patience = (place.run.config.get("early_stopping") or {}).get("patience")
    return f": early stopping after round {place.last_training_round}, no improvement for {patience} rounds"


def shown_config(run: RunRecord) -> dict[str, object]:
    """Return a run's configuration without the database's password."""
    from fedmtl_server.storage.engines import without_password

    store = run.config.get("store") or {}
    if not store.get("url"):
        return dict(run.config)
    return {**run.config, "store": {**store, "url": without_password(store["url"])}}


def summary(place: Place, rounds_done: int) -> dict[str, object]:
    """Return the values that `runs list --json` prints for a run, without its metrics."""
    run = place.run
    return {
        "run_id": run.run_id,
        "state": place.state,
        "created_at_unix_ms": run.created_at_unix_ms,
        "finished_at_unix_ms": run.finished_at_unix_ms,
        "base_model": run.base_model,
        "tasks": list(run.tasks),
        "auxiliary_tasks": [task for task in run.tasks if task in auxiliary_tasks(run)],
        "rounds_done": rounds_done,
        "num_rounds": run.num_rounds,
        "stopped_early": place.stopped_early,
        "folder": str(place.folder),
    }


def updates_by_round(records: Sequence[RoundRecord], updates: Iterable[UpdateRecord]) -> dict[int, list[UpdateRecord]]:
    """Return each round's updates, without updates of an earlier, rolled back run of the round."""
    by_round: dict[int, list[UpdateRecord]] = {record.round: [] for record in records}
    rolled_back = {record.round for record in records if record.outcome == "rolled_back"}
    for one in updates:
        if one.round in by_round and (one.outcome != "rolled_back" or one.round in rolled_back):
            by_round[one.round].append(one)
    return by_round


def round_summary(record: RoundRecord, updates: Sequence[UpdateRecord]) -> dict[str, object]:
    """Return a round's record with its numbers of counted and refused updates."""
    outcomes = Counter(one.outcome for one in updates)
    num_refused = record.report["num_refused"] if record.report else outcomes["refused"]
    return asdict(record) | {"num_counted": outcomes["counted"], "num_refused": num_refused}
