"""The queue tickets of callers, in threads."""

from __future__ import annotations

import contextlib
import threading


class Ticket:
    """
    A ticket of a queue: one thread waits for one call.

    It is a bare lock, whose methods are atomic. A `threading.Event` holds an internal lock while it
    runs Python code. A signal handler or a finalizer that interrupts the waiting thread there, and
    calls its ticket, would deadlock.
    """

    def __init__(self) -> None:
        self._uncalled = threading.Lock()
        self._uncalled.acquire()

    def call(self) -> None:
        """Wake the thread."""
        with contextlib.suppress(RuntimeError):  # called already
            self._uncalled.release()

    def wait(self, seconds: float | None) -> None:
        """Wait for the call, for at most ``seconds``."""
        limit = threading.TIMEOUT_MAX
        if seconds is not None:
            limit = min(max(0.0, seconds), limit)
        self._uncalled.acquire(timeout=limit)
