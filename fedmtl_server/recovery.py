"""What a server that ended has left: the model, what stages remember, and updates that are in no commit yet."""

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


def restore(left_off: LeftOff, model: MTLServerModel, pipeline: Pipeline) -> None:
    """Take up the model of the last commit, and what the stages of the aggregation remembered then.

    Raises:
        LayoutMismatchError: a component is laid out otherwise.
    """
    for report in left_off.reports:
        pipeline.record(round_record(report))
    facts = left_off.reports[-1].stages if left_off.reports else {}
    pipeline.restore(left_off.state, facts, [component.layout for component in left_off.components.values()])
    model.rearrange(pipeline.table or model.sharing, left_off.components)


def recovered_updates(
    store: RunStore, left_off: LeftOff, model: MTLServerModel, config: Config
) -> list[tuple[Update, StagedUpdate]]:
    """The updates of the round that was open, one of each client; every other file is discarded.

    Args:
        store: where they are.
        left_off: where the run stands.
        model: whose layouts they have.
        config: as the run is served now.

    Raises:
        StoreError: the files or the history can't be read.
    """
    oldest = left_off.round - (config.rounds.max_staleness if config.rounds.mode == "async" else 0)
    limits = config.max_examples()
    updates: dict[str, tuple[Update, StagedUpdate]] = {}
    for file in store.spool.scan():
        try:
            update = update_from_bytes(file.header, model.layouts_for, model.spec_of)
        except RequestError as error:
            get_logger().error("update.unreadable", path=str(file.path), reason=str(error))
            store.spool.discard(file.path)
            continue
        of_another_round = left_off.cohort is None or not oldest <= update.base_round <= left_off.round
        _, last_round = left_off.counted.get(update.client_id, ("", 0))
        is_overtaken = update.base_round < last_round  # an update that was given up before a later one counted
        if of_another_round or is_overtaken or store.has_counted(update.client_id, update.update_id):
            store.spool.discard(file.path)
            continue
        # Of two, the older one was given up: while it counts, no other is taken.
        if update.client_id in updates and (path := updates[update.client_id][1].path):
            store.spool.discard(path)
        update = update.limited_to(limits.get(update.task))
        staged = StagedUpdate(file.header, 0, update.components, path=file.path, complete=True)
        updates[update.client_id] = (update, staged)
    return list(updates.values())
