"""Keeps a running server's authentication up to date with the database of clients."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from grpc_health.v1 import health

from fedmtl_core.config import Config
from fedmtl_core.errors import StoreError
from fedmtl_core.logs import get_logger
from fedmtl_server.access.authentication import Authentication
from fedmtl_server.access.clients import ClientRegistry, database_of
from fedmtl_server.access.identities import KnownClients
from fedmtl_server.rpc import reflection


class Gate:
    """Authenticates no caller before it is open, and then the clients of the database.

    Args:
        config: the server's configuration.
    """

    def __init__(self, config: Config):
        security = config.security
        open_services = [health.SERVICE_NAME] if security.open_health else []
        open_services += reflection.SERVICE_NAMES if security.open_reflection else []
        self.interceptor = Authentication(KnownClients(), open_services)
        self._database: str | Path = database_of(config)
        self._interval_s = security.refresh_s
        self._thread = ThreadPoolExecutor(1, "clients")  # its own thread: others can be busy for long
        self._registry: ClientRegistry | None = None
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger()

    async def open(self) -> None:
        """Read the clients, and read them again periodically until the gate is closed.

        Raises:
            StoreError: the database can't be read.
        """
        loop = asyncio.get_running_loop()
        self._registry = await loop.run_in_executor(self._thread, ClientRegistry.open, self._database)
        known = await loop.run_in_executor(self._thread, self._registry.known)
        self.interceptor.replace(known)
        self._log.info("clients.loaded", num_clients=len(known), database=self._registry.name)
        if not known:
            self._log.warning(
                "clients.missing", hint="no client can connect yet: fedmtl-server clients add NAME --task …"
            )
        self._task = asyncio.create_task(self._keep_up_to_date(self._registry))

    async def close(self) -> None:
        """Stop reading the database. Known clients stay known."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._registry is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._registry.close)
        self._thread.shutdown(wait=False)

    async def _keep_up_to_date(self, registry: ClientRegistry) -> None:
        is_readable = True
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                known = await asyncio.get_running_loop().run_in_executor(self._thread, registry.known)
            except StoreError as error:
                if is_readable:  # known clients stay known, and revocations have no effect
                    self._log.error("clients.unreadable", reason=str(error))
                is_readable = False
                continue
            if not is_readable:
                self._log.info("clients.readable_again", num_clients=len(known))
            is_readable = True
            self.interceptor.replace(known)
