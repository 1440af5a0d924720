"""Sleep, wake other threads, and lock, in threads."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Generator

from ..runtime import current_process, is_in_step, state_lock
from .deadlines import remaining


def sleep(seconds: float) -> None:
    """
    Sleep for ``seconds``.

    Raises:
        TimeoutError: The deadline comes first.
    """
    rest = remaining(seconds)
    time.sleep(rest)
    if rest < seconds:
        raise TimeoutError


class Event:
    """
    An event that is set once, and wakes all its waiters.

    No method takes a lock that another caller could hold. So a signal handler or a finalizer may
    interrupt one method and call another. A waiter is listed before it reads the flag, and the flag
    is set before the list is read: whichever comes first, no wakeup is lost.
    """

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[threading.Lock] = []

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._set

    def set(self) -> None:
        """Set the event, and wake all waiters."""
        self._set = True
        for waiter in tuple(self._waiters):
            with contextlib.suppress(RuntimeError):  # another thread has just woken it
                waiter.release()

    def wait(self, seconds: float = math.inf) -> bool:
        """
        Wait for at most ``seconds``, or until the deadline, and return whether it is set.

        It does not wait where a signal handler or a finalizer has interrupted a change of a session
        in the same thread: the change, which others wait for, goes on only after the handler.
        """
        if is_in_step():
            return self._set
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        try:
            if not self._set:
                waiter.acquire(timeout=min(remaining(max(seconds, 0.0)), threading.TIMEOUT_MAX))
            return self._set
        finally:
            self._waiters.remove(waiter)


class Wakeup:
    """A signal that wakes one sleeper early."""

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        """Wake the sleeper."""
        self._event.set()

    def sleep(self, seconds: float | None) -> None:
        """Wait for the next wakeup, for at most ``seconds``."""
        self._event.wait(math.inf if seconds is None else seconds)
        self._event = Event()  # the caller checks its condition after this, so no wakeup is lost


class Lock:
    """A lock for the threads of this process; the child of a fork finds it free."""

    def __init__(self) -> None:
        self._home: object = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """
        Hold the lock for the block.

        Raises:
            TimeoutError: The deadline comes first.
        """
        # A new lock in each process: if another thread held it at the fork, it would stay locked.
        with state_lock:
            if self._home is not current_process():
                self._home, self._lock = current_process(), threading.Lock()
            lock = self._lock
        if not lock.acquire(timeout=remaining(threading.TIMEOUT_MAX)):
            raise TimeoutError
        try:
            yield
        finally:
            lock.release()
