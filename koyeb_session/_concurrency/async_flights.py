"""Work that everyone waits for, and no waiter owns: in a task of its own."""

from __future__ import annotations

import contextvars
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

import anyio

from .places import async_place, in_trio

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

AsyncWork: TypeAlias = Callable[[], Awaitable[T]]

_tasks: Final[set[asyncio.Task[None]]] = set()
"""Strong references: an event loop holds its tasks weakly."""


def _start_task(work: Callable[[], Awaitable[None]], then: Callable[[], None]) -> None:
    """
    Run ``work``, which raises no `Exception`, in a task of the event loop itself.

    ``then`` is called although asyncio cancels a task before its first step.
    """
    if in_trio():
        import trio  # noqa: PLC0415 - only where it is running

        trio.lowlevel.spawn_system_task(work, context=contextvars.copy_context())
        return
    import asyncio  # noqa: PLC0415 - only where it is running

    async def run() -> None:
        await work()

    task = asyncio.get_running_loop().create_task(run())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    task.add_done_callback(lambda _: then())


class AsyncFlight(Generic[T]):
    """
    One run of ``work`` that any number of callers wait for.

    Cancelling a waiter neither stops nor loses it. ``work`` returns its errors. ``then`` runs after
    the waiters have been let go. ``about`` is whatever its owner wants to know it by. It should
    have ended in ``seconds``: those who would wait for longer share one timer until then.
    """

    def __init__(
        self,
        work: AsyncWork[T],
        then: AsyncWork[None] | None = None,
        *,
        about: object = None,
        seconds: float = math.inf,
    ) -> None:
        self.about: object = about
        self._work = work
        self._then = then
        self._place = async_place()
        self._seconds = seconds
        self._ends = time.monotonic() + seconds
        self._landed = anyio.Event()
        self._over: anyio.Event | None = None
        """Set once it has landed, or should have."""
        self.outcome: T | None = None
        """What ``work`` returned; `None` while under way, and if its event loop ended first."""

    @property
    def alive(self) -> bool:
        """Whether it is under way, here."""
        return not self._landed.is_set() and self._place is async_place()

    def start(self) -> None:
        """Let it run by itself."""
        _start_task(self._run, self._landed.set)

    async def lead(self, timeout: float = math.inf) -> T | None:
        """Start it and wait for it, for at most ``timeout`` seconds."""
        self.start()
        if timeout < self._seconds:
            return await self.join(timeout)
        await self._landed.wait()
        return self.outcome

    async def join(self, timeout: float | None = None) -> T | None:
        """Wait for it, for at most ``timeout`` seconds; `None`: until it should have ended."""
        now = time.monotonic()
        timeout = max(self._ends - now, 0.0) if timeout is None else timeout
        if now < self._ends <= now + timeout:  # a timer for each would double what waiting costs
            if self._over is None:
                self._over = anyio.Event()
                _start_task(partial(self._watch, self._over), self._over.set)
            await self._over.wait()
        if not self._landed.is_set():
            with anyio.move_on_after(now + timeout - time.monotonic()):
                await self._landed.wait()
        return self.outcome

    async def _watch(self, over: anyio.Event) -> None:
        """Keep the time, in a task of its own that ends with the flight, or at its time."""
        try:
            with anyio.move_on_after(self._ends - time.monotonic()):
                await self._landed.wait()
        finally:
            over.set()

    async def _run(self) -> None:
        try:
            self.outcome = await self._work()
        finally:
            self._landed.set()
        if self._then is not None:
            await self._then()
