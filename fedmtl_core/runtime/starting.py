"""Ctrl-C during the start of a command, before its imports are complete."""

from __future__ import annotations

import signal


def end_at_once_on_ctrl_c() -> None:
    """Let Ctrl-C end this process silently while it imports, when there is nothing to clean up yet.

    `fedmtl_core.runtime.cli.run` restores the normal behavior. If Ctrl-C is ignored, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt_on_ctrl_c() -> None:
    """Make Ctrl-C raise `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
