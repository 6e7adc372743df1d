"""The first moments of a command, before it has imported what it needs."""

from __future__ import annotations

import signal


def end_at_once_on_ctrl_c() -> None:
    """Have Ctrl-C end this process without a word while it imports, where there is nothing to put in order yet.

    `fedmtl_core.runtime.cli.run` takes it back. Where Ctrl-C is ignored it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt_on_ctrl_c() -> None:
    """Have Ctrl-C raise `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
