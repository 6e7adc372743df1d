"""Imports what servers and clients have in common, in the process that they are forked off (`fedmtl_local.forked`).

An encoder's own module is imported by each of them.
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
tqdm.set_lock(threading.RLock())  # by default a semaphore, which a process that is ended by a signal leaves behind
keep_what_is_there()  # a forked process's garbage collector would copy it by looking at it
