"""Sleeping, waking, and taking turns, in threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator

from .deadlines import remaining
from .places import atomic, place


def sleep(seconds: float) -> None:
    """
    Wait.

    Raises:
        TimeoutError: The deadline comes first.
    """
    rest = remaining(seconds)
    time.sleep(rest)
    if rest < seconds:
        raise TimeoutError


class Pulse:
    """Wakes one sleeper early."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def beat(self) -> None:
        """Wake the sleeper."""
        self._event.set()

    def sleep(self, seconds: float | None) -> None:
        """Wait for the next beat, or until ``seconds`` have passed."""
        self._event.wait(seconds)
        self._event.clear()


class Lock:
    """A lock for whichever process; one that was held over a fork is free in the child."""

    def __init__(self) -> None:
        self._place: object = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """
        Hold it for the block.

        Raises:
            TimeoutError: The deadline comes first.
        """
        with atomic:
            if self._place is not place():
                self._place, self._lock = place(), threading.Lock()
            lock = self._lock
        if not lock.acquire(timeout=remaining(threading.TIMEOUT_MAX)):
            raise TimeoutError
        try:
            yield
        finally:
            lock.release()
