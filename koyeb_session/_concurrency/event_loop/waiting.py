"""Sleep, wake other tasks, and lock, in an event loop."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

import anyio

from ..runtime import async_call_soon, current_loop, current_process, state_lock

async_sleep = anyio.sleep
_PATROL: Final = 1.0
"""Seconds between two checks that the holder of a lock is still alive."""


class AsyncEvent:
    """An event that is set once, in the event loop of its waiters, and wakes all of them."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._event: anyio.Event | None = None  # made for the first waiter
        self._set = False

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._set

    def set(self) -> None:
        """Set the event, and wake all waiters."""
        self._set = True
        if self._event is not None:
            self._event.set()

    async def wait(self, seconds: float = math.inf) -> bool:
        """Wait for at most ``seconds``, and return whether it is set."""
        if not self._set:
            event = self._event = self._event or anyio.Event()
            if seconds == math.inf:  # needs no timer
                await event.wait()
            else:
                with anyio.move_on_after(seconds):
                    await event.wait()
        return self._set


class AsyncWakeup:
    """A signal that wakes one sleeper of the same event loop early."""

    def __init__(self) -> None:
        self._home = current_loop()
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the sleeper, if it sleeps in this event loop."""
        with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
            if self._home is current_loop():
                self._event.set()

    async def sleep(self, seconds: float | None) -> None:
        """Wait for the next wakeup, for at most ``seconds``."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        # The caller checks its condition after this, with no await before it: no wakeup is lost.
        self._event = anyio.Event()


class _Ticket:
    """A task that holds an `AsyncLock`, or waits for it."""

    __slots__ = ("_event", "_loop", "_process")

    def __init__(self) -> None:
        self._process = current_process()
        self._loop = current_loop()
        self._event = anyio.Event()

    def wake(self) -> bool:
        """Tell its event loop that it holds the lock now; `False` if that loop has ended."""
        return self._process is current_process() and async_call_soon(self._loop, self._event.set)

    @property
    def is_dead(self) -> bool:
        """Whether its task can no longer run, and so never releases the lock."""
        return self._process is not current_process() or not async_call_soon(self._loop, _nothing)

    async def wait(self, seconds: float) -> None:
        """Wait for `wake`, for at most ``seconds``."""
        with anyio.move_on_after(seconds):
            await self._event.wait()


def _nothing() -> None:
    """Do nothing: an event loop that accepts this callback is running."""


class AsyncLock:
    """
    A fair lock for the tasks of all event loops of the process.

    It counts as free if the event loop of its holder has ended, and in the child of a fork. Nobody
    reports either event, so each waiter checks for it once in `_PATROL` seconds.
    """

    def __init__(self) -> None:
        self._holder: _Ticket | None = None
        self._queue: deque[_Ticket] = deque()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncGenerator[None]:
        """Hold the lock for the block."""
        ticket = _Ticket()
        self._queue.append(ticket)
        try:
            self._hand_on(None)
            while self._holder is not ticket:
                await ticket.wait(_PATROL)
                self._hand_on(None)
            yield
        finally:
            # A cancelled waiter may still be queued, or may have been given the lock already.
            with state_lock:
                if ticket in self._queue:
                    self._queue.remove(ticket)
            self._hand_on(ticket)

    def _hand_on(self, holder: _Ticket | None) -> None:
        """Give the lock to the next in the queue, if ``holder`` or a dead task holds it."""
        # One step: two tasks never take the lock, and no release is lost.
        with state_lock:
            if self._holder is not holder and not (self._holder and self._holder.is_dead):
                return
            self._holder = None
            while self._queue and self._holder is None:
                ticket = self._queue.popleft()
                if ticket.wake():  # otherwise its event loop has ended: try the next one
                    self._holder = ticket
