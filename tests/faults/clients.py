"""Clients whose every update can be foretold, over FedMTL's own calls, and a ledger of what was acknowledged to them.

    python -m tests.faults.clients ADDRESS LEDGER_FILE SEED CLIENT:TASK[,CLIENT:TASK...] [PACE_FILE]

They train nothing: an update is a function of the client's name, the round and the slice. They stay through any
outage of the server, and end with exit code 0 when the run is over. A line of the ledger is an update that the server
said counts, on disk before the client does anything else.

With a pace file, the update of round `r` isn't sent before the number in the file is `r - 1 + u`, with a `u` in 0 to 1
drawn from the seed for each client and round: whoever writes the file says how far the run may have come.
"""

from __future__ import annotations

import json
import os
import queue
import random
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedmtl_client import api, patience
from fedmtl_client.component_cache import ComponentCache
from fedmtl_client.connection import ConnectionSettings
from fedmtl_client.transport import RoundEvent
from fedmtl_core.errors import ClientReplacedError, StaleRoundError
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.updates import Update

RECONNECT_S = 900.0
POLL_S = 0.02

_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,  # a connection of its own, not the process's common one
    "grpc.max_reconnect_backoff_ms": 500,
}


def num_examples(client_id: str) -> int:
    """A client's weight in every average."""
    return 1 + zlib.crc32(client_id.encode()) % 1000


def trained(client_id: str, round_: int, name: str, received: Tensor) -> Tensor:
    """What a client makes of one tensor of its slice in one round; float32 in, float32 out."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{client_id}/{round_}/{name}".encode()))
    return received * 0.9 + torch.randn(received.shape, generator=generator) * 0.01


class Ledger:
    """A file with one JSON line for every update that the server said counts. Safe to use from several threads."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def note(self, client_id: str, update_id: str, round_: int, outcome: str) -> None:
        """Have a line on disk."""
        line = {"client_id": client_id, "update_id": update_id, "round": round_, "outcome": outcome}
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Pace:
    """How far the run may have come.

    Args:
        path: of the file that says so; None for as fast as it goes.
        seed: of when each client's turn is within a round.
    """

    def __init__(self, path: Path | None, seed: int):
        self._path = path
        self._seed = seed

    def wait_for_turn(self, client_id: str, round_: int) -> None:
        """Wait until a client may send its update."""
        turn = round_ - 1 + random.Random(f"{self._seed}/{client_id}/{round_}").random()
        while self._path and float(self._path.read_text() or 0) < turn:
            time.sleep(POLL_S)


class DeterministicClient:
    """One client.

    Args:
        address: the server's, or a proxy's before it.
        client_id: its name.
        task: its task.
        ledger: where it notes what was acknowledged.
        pace: when it sends.
    """

    def __init__(self, address: str, client_id: str, task: str, ledger: Ledger, pace: Pace):
        self._api = api.FederationApi(
            address,
            client_id=client_id,
            task=task,
            reconnect_s=RECONNECT_S,
            connection=ConnectionSettings(channel_options=_OPTIONS),
        )
        self.client_id = client_id
        self._task = task
        self._ledger = ledger
        self._pace = pace
        self._cache = ComponentCache()
        self._counted: set[tuple[str, int]] = set()
        self._given_up = False
        self._events: queue.SimpleQueue[RoundEvent | Exception] = queue.SimpleQueue()

    def run(self) -> None:
        """Take part until the run is over."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            while (event := self._next_event()).kind != "finished":
                if event.kind == "opened" and self._is_wanted(event):
                    self._take_part(event)
        except Exception as error:
            if not self._given_up:
                self._say("client.failed", reason=repr(error))
            raise
        finally:
            self._api.close()
            watcher.join(30)

    def give_up(self, reason: str) -> None:
        """Have `run` end with an error, if it hasn't ended."""
        self._given_up = True
        self._events.put(RuntimeError(reason))
        self._api.close()

    def _watch(self) -> None:
        while True:
            try:
                for event in self._api.watch():
                    self._events.put(event)
                return
            except ClientReplacedError:  # by a connection of its own that the network made two of
                self._say("watch.replaced")
            except Exception as error:  # it is the main thread's to raise
                self._events.put(error)
                return

    def _next_event(self) -> RoundEvent:
        event = self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def _is_wanted(self, event: RoundEvent) -> bool:
        """Whether it has to report in an opened round; a server that lost what it acknowledged would ask again."""
        if (event.run_id, event.round) in self._counted:
            return False
        return event.in_cohort and not event.reported

    def _take_part(self, event: RoundEvent) -> None:
        """Do a round's work, through any number of outages; a round that closes meanwhile is left."""
        try:
            self._report(event)
        except StaleRoundError as error:
            self._say("round.missed", round=event.round, reason=str(error))

    def _report(self, event: RoundEvent) -> None:
        slice_ = self._api.get_slice(event.round, run_id=event.run_id, cache=self._cache)
        update = Update(
            run_id=slice_.run_id,
            client_id=self.client_id,
            task=self._task,
            base_round=slice_.round,
            update_id=uuid.uuid4().hex,
            kind="metrics",
            received=Evaluation({"accuracy": num_examples(self.client_id) / 2000}, num_examples=10),
        )
        components: list[Component] = []
        if slice_.purpose == "train":
            update = replace(update, kind="parameters", num_examples=num_examples(self.client_id))
            components = [self._trained(component, slice_.round) for component in slice_.components.values()]
        self._pace.wait_for_turn(self.client_id, slice_.round)
        receipt = self._api.push_update(update, [EncodedComponent.exact(component) for component in components])
        self._ledger.note(self.client_id, update.update_id, receipt.round, receipt.outcome)
        self._counted.add((event.run_id, event.round))

    def _trained(self, component: Component, round_: int) -> Component:
        tensors = component.views()
        return Component.pack(
            component.scope, {name: trained(self.client_id, round_, name, tensor) for name, tensor in tensors.items()}
        )

    def _say(self, event: str, **facts: object) -> None:
        print(json.dumps({"event": event, "client_id": self.client_id, **facts}), flush=True)


def run_clients(
    address: str, ledger: Path, cohort: Mapping[str, str], *, seed: int = 0, pace: Path | None = None
) -> None:
    """Run clients to the end of the run, each in a thread. Without one of them there is none: all fail with the first.

    Args:
        address: the server's.
        ledger: the file for what is acknowledged.
        cohort: task by client id.
        seed: of their pace.
        pace: the file that says how far the run may have come.
    """
    book = Ledger(ledger)
    clients = [DeterministicClient(address, *member, book, Pace(pace, seed)) for member in cohort.items()]
    with ThreadPoolExecutor(len(clients)) as pool:
        try:
            for run in as_completed([pool.submit(client.run) for client in clients]):
                run.result()
        finally:
            for client in clients:
                client.give_up("another client failed")
    book.close()


def main(arguments: Sequence[str]) -> None:
    address, ledger, seed, names, *pace = arguments
    torch.set_num_threads(1)
    patience.MAX_WAIT_S = 0.5  # outages are many: back soon after each
    cohort = dict(name.split(":", 1) for name in names.split(","))
    run_clients(address, Path(ledger), cohort, seed=int(seed), pace=Path(pace[0]) if pace else None)


if __name__ == "__main__":
    main(sys.argv[1:])
