"""Starting a thread without losing a Ctrl-C."""

from __future__ import annotations

import threading


def start_thread(thread: threading.Thread) -> None:
    """``thread.start()``, out of which an interrupt comes as itself.

    `Thread.start` waits on a condition in Python; one interrupted while its lock is given back fails on leaving
    it, and "release unlocked lock" then stands in place of the interrupt.

    Raises
    ------
    RuntimeError
        There can be no more threads.
    """
    try:
        thread.start()
    except RuntimeError as error:
        cause = error.__context__
        if cause is None or isinstance(cause, Exception):
            raise
        interrupt = cause
    else:
        return
    raise interrupt
