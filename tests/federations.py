"""A whole federation within a test's process: a server and its clients in threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedmtl_client import Client
from fedmtl_client.session import ClientResult
from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_server import Server
from fedmtl_server.storage.results import TaskResult

ON_LOOPBACK = ("server.port=0", "rounds.rejoin_grace_s=0.5")


def loaded(path: Path, *overrides: str) -> Config:
    return configuration.load(path, [*ON_LOOPBACK, *overrides])


def run(config: Config, run_dir: Path) -> tuple[dict[str, TaskResult], Sequence[ClientResult]]:
    """What a run came to, and what each of the configuration's `clients` did in it."""
    with ThreadPoolExecutor(len(config.clients)) as pool, Server(config, run_dir) as server:
        clients = [
            pool.submit(Client(config, client_id=one.client_id, server=server.address).run) for one in config.clients
        ]
        done = [client.result(timeout=120) for client in clients]
        return server.wait(), done
