"""Shared work: any number of callers wait for one task, and none of them owns it."""

from __future__ import annotations

import contextvars
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from ..nesting import enter
from ..runtime import GRACE, current_loop, current_process, current_task, in_trio, is_running
from .waiting import PATROL, AsyncEvent

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

AsyncWork: TypeAlias = Callable[[], Awaitable[T]]

_tasks: Final[set[asyncio.Task[None]]] = set()
"""Strong references to running tasks: an event loop of asyncio refers to them weakly."""


def _start_task(work: Callable[[], Coroutine[Any, Any, None]], on_done: Callable[[], None]) -> None:
    """
    Run ``work``, which raises no `Exception`, in a task that the event loop itself owns.

    No task group and no cancel scope of a caller encloses it. asyncio may cancel a task before its
    first step, and then runs none of ``work``; ``on_done`` is called even so.
    """
    if in_trio():
        import trio  # noqa: PLC0415 - only where it is running

        trio.lowlevel.spawn_system_task(work, context=contextvars.copy_context())
        return
    import asyncio  # noqa: PLC0415 - only where it is running

    task = asyncio.get_running_loop().create_task(work())
    _tasks.add(task)

    def done(task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        on_done()

    task.add_done_callback(done)


class AsyncSharedTask(Generic[T]):
    """
    One run of ``work`` that any number of callers wait for.

    The event loop owns it: cancelling a waiter neither stops nor loses it. ``work`` returns its
    errors as values. An exception that it raises nevertheless is raised in each waiter.

    Order: ``first`` runs at the start, before anything waits. At the end the outcome is stored, the
    waiters are released, the task leaves ``active_tasks``, and then ``on_done`` runs in the same
    task. So no waiter waits for ``on_done``, except in `wait_done`.

    The work should end within ``seconds``. Callers that would wait beyond that time share one timer
    until then.
    """

    def __init__(
        self,
        work: AsyncWork[T],
        on_done: AsyncWork[None] | None = None,
        *,
        first: Callable[[], object] | None = None,
        seconds: float = math.inf,
        active_tasks: set[AsyncSharedTask[Any]] | None = None,
        owner: object = None,
    ) -> None:
        self._first = first
        self._work = work
        self._on_done = on_done
        self._home = current_loop()
        self._process = current_process()
        self._ends = time.monotonic() + seconds
        # Two events: callers that need the outcome must not wait for the user's listeners.
        self._done = AsyncEvent()  # set when the work has ended
        self._all_done = AsyncEvent()  # set when `on_done` has ended, too
        self._due: AsyncEvent | None = None
        """Set once the work has ended, or should have."""
        self._outcome: T | None = None
        self._raised: Exception | None = None
        self._returned = False
        self._runner: object = None
        self._active_tasks = active_tasks
        self.owner: object = owner

    @property
    def alive(self) -> bool:
        """Whether it is running in this event loop."""
        return not self._done.is_set() and self._home is current_loop()

    @property
    def under_way(self) -> bool:
        """Whether it is running, in this event loop or in another one that runs."""
        if self._done.is_set() or self._process is not current_process():
            return False  # the child of a fork has a copy of the loop, which runs nowhere
        if self._home is current_loop():
            return True
        # One that hangs elsewhere counts as dead: that loop may be blocked for good.
        return time.monotonic() < self._ends + GRACE and is_running(self._home)

    @property
    def ended(self) -> bool:
        """Whether the work has ended."""
        return self._done.is_set()

    @property
    def is_running(self) -> bool:
        """Whether the work has begun and not ended, in any event loop."""
        return self._runner is not None

    @property
    def runs_here(self) -> bool:
        """Whether the running task does the work."""
        return self.is_running and self._runner is current_task()

    @property
    def succeeded(self) -> bool:
        """Whether ``work`` has returned."""
        return self._returned

    @property
    def outcome(self) -> T | None:
        """
        The return value of ``work``; `None` while it runs, or if its event loop ended first.

        Raises:
            Exception: ``work`` raised it.
        """
        if self._raised is not None:
            raise self._raised
        return self._outcome

    def start(self, *, alone: bool = False) -> None:  # noqa: ARG002 - a task is always alone
        """Start the task, and return without waiting for it."""
        if self._active_tasks is not None:
            self._active_tasks.add(self)
        if self._first is not None:
            self._first()
        _start_task(self._run, self._end)

    async def run(self, timeout: float | None = None) -> T | None:
        """Start it, and wait as `join` does."""
        self.start()
        return await self.join(timeout)

    async def join(self, timeout: float | None = None) -> T | None:
        """
        Wait for at most ``timeout`` seconds; with `None`, until the work is late by `GRACE`.

        Raises:
            Exception: ``work`` raised it.
        """
        await self.wait(timeout)
        return self.outcome

    async def wait(self, timeout: float | None = None) -> None:
        """
        Wait as `join` does, but raise no exception of ``work``.

        Return when the task's own event loop has ended, if that is another one.
        """
        now = time.monotonic()
        timeout = max(self._ends + GRACE - now, 0.0) if timeout is None else timeout
        if self._home is not current_loop():
            await self._wait_elsewhere(now + timeout)
            return
        # Hot path: see tests/benchmarks. Thousands of callers share one timer instead of one each.
        # A caller without a limit needs none.
        if now < self._ends <= now + timeout < math.inf:
            if self._due is None:
                self._due = AsyncEvent()
                _start_task(partial(self._watch, self._due), self._due.set)
            await self._due.wait()
        # The caller's own timer: its timeout ends first, or the work is late already.
        await self._done.wait(now + timeout - time.monotonic())

    async def _wait_elsewhere(self, until: float) -> None:
        while self.under_way and (left := until - time.monotonic()) > 0:
            await self._done.wait_elsewhere(min(left, PATROL))

    async def wait_done(self, timeout: float) -> None:
        """Wait for the work and for ``on_done``, for at most ``timeout`` seconds."""
        if self._home is current_loop():
            await self._all_done.wait(timeout)
        else:
            await self.wait(timeout)

    async def _watch(self, due: AsyncEvent) -> None:
        """
        Set ``due`` when the work has ended, or should have.

        It runs in its own task: a waiter that starts the timer may be cancelled before the others.
        """
        try:
            await self._done.wait(self._ends - time.monotonic())
        finally:
            due.set()

    async def _run(self) -> None:
        self._runner = current_task()
        # `finally`: if the event loop cancels this task at its end, the waiters must not hang.
        try:
            enter(self)
            self._outcome = await self._work()
            self._returned = True
        except Exception as exc:  # noqa: BLE001 - see `outcome`
            self._raised = exc
        finally:
            self._set_done()
        try:
            if self._on_done is not None:
                await self._on_done()
        finally:
            self._all_done.set()

    def _end(self) -> None:
        """Release every waiter, also when the task was cancelled before its first step."""
        self._set_done()
        self._all_done.set()

    def _set_done(self) -> None:
        self._done.set()
        self._runner = None  # no cycle keeps the task in memory
        if self._active_tasks is not None:
            self._active_tasks.discard(self)
