"""Have work done in an event loop for a thread, which waits for it within bounds."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.event_loop.waiting import PATROL
from .._concurrency.runtime import async_call_soon, current_loop, current_process
from .._concurrency.threads.deadlines import ends, remaining
from .._concurrency.threads.waiting import Event
from .._core.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Bridge:
    """A way into the event loop that makes it, for the threads of this process."""

    def __init__(self) -> None:
        self._loop = current_loop()
        self._process = current_process()

    @property
    def is_here(self) -> bool:
        """Whether the calling thread runs the event loop, and so cannot wait for it."""
        with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
            return current_loop() is self._loop
        return False

    def call_soon(self, callback: Callable[[], object]) -> bool:
        """Have the event loop call ``callback``; `False` if it no longer runs, or not here."""
        return self._process is current_process() and async_call_soon(self._loop, callback)


class LoopCall(Generic[T]):
    """
    One call of an async function in an event loop.

    It starts at once, in a task that the event loop owns: neither the end of the thread's wait nor
    a cancel scope around the thread reaches it. It has the thread's context, but not its deadline.
    """

    def __init__(self, bridge: Bridge, work: Callable[[], Awaitable[T]]) -> None:
        self._bridge = bridge
        self._work = work
        self._task: AsyncSharedTask[None] | None = None
        self._ended = Event()
        self._outcome: T | None = None
        self._raised: Exception | None = None
        self._returned = False
        context = contextvars.copy_context()
        context.run(_leave_thread)
        self._runs = bridge.call_soon(partial(context.run, self._begin))

    def wait(self, seconds: float) -> bool:
        """
        Wait for at most ``seconds``, or until the thread's deadline; `False` if they are over.

        It is `True` as soon as there is nothing more to wait for: see `cut_off`.
        """
        deadline = Deadline(remaining(seconds))
        while self._runs and not self._ended.wait(min(PATROL, deadline.left())):
            self._runs = self._bridge.call_soon(self._check)
            if deadline.passed:
                return not self._runs
        return True

    @property
    def cut_off(self) -> bool:
        """Whether it was cancelled, or its event loop has ended, before there was an outcome."""
        return not self._returned and self._raised is None

    @property
    def outcome(self) -> T:
        """
        The return value of the function.

        Raises:
            Exception: The function raised it.
        """
        if self._raised is not None:
            raise self._raised
        return cast("T", self._outcome)

    def _begin(self) -> None:
        self._task = AsyncSharedTask(self._run)
        self._task.start()

    def _check(self) -> None:
        """Wake the thread if the task was cancelled before its first step."""
        if self._task is not None and not self._task.alive:
            self._ended.set()

    async def _run(self) -> None:
        try:
            self._outcome = await self._work()
            self._returned = True
        except Exception as exc:  # noqa: BLE001 - see `outcome`
            self._raised = exc
        finally:
            self._ended.set()


def _leave_thread() -> None:
    """Remove from the context the values that are true in the thread alone."""
    ends.set(float("inf"))
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is not None:  # another event loop may run in the thread
        sniffio.current_async_library_cvar.set(None)
