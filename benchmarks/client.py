"""FedMTL's client without training: it performs the transfers of a round on command.

    python -m benchmarks.client ADDRESS TASK[,TASK...] FIRST_NUMBER MODEL_FOLDER|-

The process has one client for each task. If a model folder is given, slices are loaded into a model and updates are
read from it.
"""

from __future__ import annotations

import json
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.processes import serve_commands
from fedmtl_client.api import ConnectionSettings, FederationApi
from fedmtl_client.component_cache import ComponentCache
from fedmtl_client.slices import Slice
from fedmtl_client.synchronizer import ClientModelSynchronizer
from fedmtl_core import logs
from fedmtl_core.model.modeling import MultiTaskModel, load_encoder
from fedmtl_core.runtime.allocator import keep_freed_blocks
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.updates import Update

OWN_CONNECTION = {"grpc.use_local_subchannel_pool": 1}
"""Channel options that give each client its own connection, as if it were a separate process."""


class Client:
    """A client that downloads and uploads on command."""

    def __init__(self, address: str, task: str, number: int, model: MultiTaskModel | None):
        self._task = task
        self._api = FederationApi(
            address,
            client_id=f"client-{number:03}",
            task=task,
            connection=ConnectionSettings(channel_options=OWN_CONNECTION),
        )
        self._cache = ComponentCache()
        self._model = model
        self._synchronizer = ClientModelSynchronizer(task=task)
        self._slice: Slice | None = None
        self._open = threading.Condition()
        self._round, self._done = 0, 0
        threading.Thread(target=self._watch, daemon=True).start()

    def get(self) -> None:
        """Download the complete slice, and load it into the model."""
        self._cache.invalidate()
        self._slice = self._api.get_slice(0, cache=self._cache)
        if self._model is not None:
            self._synchronizer.load(self._model, self._slice.components, share=True)

    def push(self) -> None:
        """Upload the last downloaded slice as the open round's update."""
        assert self._slice is not None
        self._push(self._slice.run_id, self._await_round(), self._components())

    def round(self) -> None:
        """Wait for an open round, download and upload."""
        self._await_round()
        self.get()
        self.push()

    def await_round(self) -> None:
        """Wait for a round in which this client hasn't reported yet."""
        self._await_round()

    def _components(self) -> list[Component]:
        assert self._slice is not None
        if self._model is None:
            return list(self._slice.components.values())
        return self._synchronizer.update(self._model, "parameters")

    def _push(self, run_id: str, round_: int, components: list[Component]) -> None:
        update = Update(
            run_id=run_id,
            client_id=self._api.client_id,
            task=self._task,
            base_round=round_,
            update_id=uuid.uuid4().hex,
            kind="parameters",
            num_examples=1,
        )
        self._api.push_update(update, [EncodedComponent.exact(component) for component in components])
        self._done = round_

    def _await_round(self) -> int:
        with self._open:
            self._open.wait_for(lambda: self._round > self._done)
            return self._round

    def _watch(self) -> None:
        for event in self._api.watch():
            if event.kind == "opened" and event.in_cohort:
                with self._open:
                    self._round = event.round
                    self._open.notify_all()


def _model(folder: str, task: str) -> MultiTaskModel:
    encoder, hidden_size = load_encoder(folder, weights=False)
    return MultiTaskModel(encoder, [PRESETS[task]], hidden_size=hidden_size)


def main(address: str, tasks: str, first: str, folder: str) -> None:
    keep_freed_blocks()
    logs.configure()  # to standard error; answers go to standard output
    clients = [
        Client(address, task, int(first) + i, None if folder == "-" else _model(folder, task))
        for i, task in enumerate(tasks.split(","))
    ]
    pool = ThreadPoolExecutor(len(clients))

    def command(work: Callable[[Client], None]) -> Callable[[], None]:
        def of_all() -> None:
            list(pool.map(work, clients))

        return of_all

    print(json.dumps("ready"), flush=True)
    works = {
        "get": Client.get,
        "push": Client.push,
        "round": Client.round,
        "await_round": Client.await_round,
    }
    serve_commands({name: command(work) for name, work in works.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
