"""Restores the state of an ended server: the model, the aggregation state, and updates that no commit contains yet."""

from __future__ import annotations

from fedmtl_core.config import Config
from fedmtl_core.errors import RequestError
from fedmtl_core.logs import get_logger
from fedmtl_core.wire.update_headers import update_from_bytes
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.model import MTLServerModel
from fedmtl_server.rounds.report import round_record
from fedmtl_server.storage.resume import LeftOff
from fedmtl_server.storage.store import RunStore
from fedmtl_server.transfer.staging import StagedUpdate
from fedmtl_server.transfer.update_layouts import UpdateLayouts


def restore(left_off: LeftOff, model: MTLServerModel, pipeline: Pipeline) -> None:
    """Restore the model of the last commit and the state of the aggregation stages at that commit.

    Raises:
        LayoutMismatchError: a component has a different layout.
    """
    for report in left_off.reports:
        pipeline.record(round_record(report))
    stages = left_off.reports[-1].stages if left_off.reports else {}
    pipeline.restore(left_off.state, stages, [component.layout for component in left_off.components.values()])
    model.rearrange(pipeline.table or model.sharing, left_off.components)


def recovered_updates(
    store: RunStore, left_off: LeftOff, layouts: UpdateLayouts, config: Config
) -> list[tuple[Update, StagedUpdate]]:
    """Return the staged updates of the open round, one per client, and discard every other file.

    Args:
        store: the store with the files.
        left_off: the state of the run at its last commit.
        layouts: the layouts that the updates must have.
        config: the current configuration of the run.

    Raises:
        StoreError: the files or the history can't be read.
    """
    oldest = left_off.round - (config.rounds.max_staleness if config.rounds.mode == "async" else 0)
    limits = config.max_examples()
    updates: dict[str, tuple[Update, StagedUpdate]] = {}
    for file in store.spool.scan():
        try:
            update = update_from_bytes(file.header, layouts.layouts_of, layouts.spec_of)
        except RequestError as error:
            get_logger().error("update.unreadable", path=str(file.path), reason=str(error))
            store.spool.discard(file.path)
            continue
        of_another_round = left_off.cohort is None or not oldest <= update.base_round <= left_off.round
        _, last_round = left_off.counted.get(update.client_id, ("", 0))
        is_overtaken = update.base_round < last_round  # a later update of this client has counted
        if of_another_round or is_overtaken or store.has_counted(update.client_id, update.update_id):
            store.spool.discard(file.path)
            continue
        # Of two files of one client, the older update was dropped: a client has at most one update that counts.
        if update.client_id in updates and (path := updates[update.client_id][1].path):
            store.spool.discard(path)
        update = update.limited_to(limits.get(update.task))
        staged = StagedUpdate(file.header, 0, update.components, path=file.path, complete=True)
        updates[update.client_id] = (update, staged)
    return list(updates.values())
