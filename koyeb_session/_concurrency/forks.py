"""
Threads that a fork waits for.

It imports next to nothing: a hook keeps what its module holds until the interpreter has ended.
"""

from __future__ import annotations

import os
import threading

_threads: list[threading.Thread] = []


def start_before_forks(thread: threading.Thread) -> None:
    """
    Start a thread that no fork may interrupt.

    Raises:
        RuntimeError: There can be no more threads.
    """
    _threads[:] = [thread, *(it for it in _threads if it.is_alive())]
    thread.start()


def _wait() -> None:
    for thread in tuple(_threads):
        if thread.is_alive():
            thread.join()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait)
