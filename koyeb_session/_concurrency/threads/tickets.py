"""A caller's place in a queue, in threads."""

from __future__ import annotations

import contextlib
import threading


class Ticket:
    """
    A place in a queue: one thread waits, and is called once.

    It is a bare lock, for whose methods there is no "in the middle". A `threading.Event` holds a
    lock of its own while it runs Python code: a signal handler or the garbage collector that calls
    the waiting thread's own ticket there would wait for itself.
    """

    def __init__(self) -> None:
        self._uncalled = threading.Lock()
        self._uncalled.acquire()

    def call(self) -> None:
        """Wake the thread."""
        with contextlib.suppress(RuntimeError):  # called already
            self._uncalled.release()

    def wait(self, seconds: float | None) -> None:
        """Wait to be called, or until ``seconds`` have passed."""
        limit = threading.TIMEOUT_MAX
        if seconds is not None:
            limit = min(max(0.0, seconds), limit)
        self._uncalled.acquire(timeout=limit)
