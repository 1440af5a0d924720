"""Sleeping, waking, and taking turns, in an event loop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

import anyio

from .places import async_place

async_sleep = anyio.sleep


class AsyncPulse:
    """Wakes one sleeper of the same place early."""

    def __init__(self) -> None:
        self._place = async_place()
        self._event = anyio.Event()

    def beat(self) -> None:
        """Wake the sleeper, if it sleeps here."""
        with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
            if self._place is async_place():
                self._event.set()

    async def sleep(self, seconds: float | None) -> None:
        """Wait for the next beat, or until ``seconds`` have passed."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        self._event = anyio.Event()


class AsyncLock:
    """A lock for whichever place; one that a dead place held is free."""

    def __init__(self) -> None:
        self._place: object = None
        self._lock: anyio.Lock | None = None

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncGenerator[None]:
        """Hold it for the block."""
        lock = self._lock
        if lock is None or self._place is not async_place():
            self._place, self._lock = async_place(), (lock := anyio.Lock())
        async with lock:
            yield
