"""Imports the modules that servers and clients have in common, in the forkserver of `fedmtl_local.forked`.

Each process imports its encoder's module itself.
"""

import threading
from importlib import import_module

from tqdm import tqdm

from fedmtl_core.runtime.allocator import keep_what_is_there

for _name in (
    "alembic.autogenerate",
    "datasets",
    "fedmtl_client.api",
    "fedmtl_client.cli",
    "fedmtl_client.session",
    "fedmtl_server.api",
    "fedmtl_server.commands.app",
    "setproctitle",
    "transformers.modeling_utils",
):
    import_module(_name)
tqdm.set_lock(threading.RLock())  # the default is a semaphore, which leaks when a signal ends the process
keep_what_is_there()  # else the garbage collector of a forked process would touch, and so copy, the shared memory
