"""Sleep, wake other tasks, and lock, in an event loop."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

import anyio

from ..runtime import async_call_soon, current_loop, current_process, is_running, state_lock

async_sleep = anyio.sleep
PATROL: Final = 1.0
"""Seconds between two checks that another event loop, which is waited for, still runs."""


class AsyncEvent:
    """
    An event that is set once, in its own event loop, and wakes all its waiters.

    Waiters of other event loops are listed before they read the flag, and the flag is set before
    the list is read: whichever comes first, no wakeup is lost.
    """

    __slots__ = ("_elsewhere", "_event", "_set")

    def __init__(self) -> None:
        self._elsewhere: list[tuple[object, anyio.Event]] = []
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
        for loop, event in tuple(self._elsewhere):
            async_call_soon(loop, event.set)

    async def wait_elsewhere(self, seconds: float) -> bool:
        """Wait as `wait` does, in another event loop than the one that sets the event."""
        waiter = current_loop(), anyio.Event()
        self._elsewhere.append(waiter)
        try:
            if not self._set:
                with anyio.move_on_after(seconds):
                    await waiter[1].wait()
            return self._set
        finally:
            self._elsewhere.remove(waiter)

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
        """Wake the sleeper, from any thread; one whose event loop has ended stays asleep."""
        async_call_soon(self._home, self._wake)

    def _wake(self) -> None:
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
        return self._process is not current_process() or not is_running(self._loop)

    async def wait(self, seconds: float) -> None:
        """Wait for `wake`, for at most ``seconds``."""
        with anyio.move_on_after(seconds):
            await self._event.wait()


class AsyncLock:
    """
    A fair lock for the tasks of all event loops of the process.

    It counts as free if the event loop of its holder has ended, and in the child of a fork. Nobody
    reports either event, so each waiter checks for it every `PATROL` seconds.
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
                await ticket.wait(PATROL)
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
