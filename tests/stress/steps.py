"""Drives a task through its awaits, and cancels it at one that the test has counted."""

from __future__ import annotations

import asyncio
import enum
import inspect
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar, cast

import anyio
import anyio.abc
import anyio.lowlevel

T = TypeVar("T")

LONGEST = 100
"""How many rounds of the event loop anything here takes at most; a request takes ten."""


class CancelBy(enum.Enum):
    """How a cancellation reaches a task that has just given way."""

    SCOPE = "scope"
    """By its cancel scope."""
    NATIVE = "native"
    """By `asyncio.Task.cancel`: the future that it awaits is cancelled."""
    LATE = "late"
    """By `asyncio.Task.cancel` when the future that it awaits is done, but it does not know yet."""
    ROUND = "round"
    """By its cancel scope, from another task, in a round of the event loop."""


class Caller:
    """
    One caller, cancelled when it gives way for the ``at``-th time, or in that round.

    Attributes:
        round: The round in which the test has to cancel it, if any.
        steps: How often it gave way.
        reached: Whether it has been cancelled.
        after: How often it gave way once the cancellation had come.
        done: Whether it has ended.
        result: Its return value, `None` without one.
        error: The error that it raised, other than the cancellation.
    """

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, object]],
        *,
        at: int | None = None,
        by: CancelBy = CancelBy.SCOPE,
    ) -> None:
        self._work = work
        self._by = by
        self._at: int | None = None if by is CancelBy.ROUND else at
        self.round: int | None = at if by is CancelBy.ROUND else None
        self._scope = anyio.CancelScope()
        self._struck = False
        self.steps = 0
        self.reached = False
        self.after = 0
        self.done = False
        self.result: object = None
        self.error: Exception | None = None

    def cancel(self) -> None:
        """Cancel it now, from another task."""
        self.reached = not self.done
        self._scope.cancel()

    async def run(self) -> None:
        """Do the work; a cancellation ends here."""
        try:
            with self._scope:
                self.result = await _drive(self._work(), self._gives_way, self._is_struck)
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            self.error = exc
        except asyncio.CancelledError:  # of the task, and not of the scope
            if not self.reached or self._by in {CancelBy.SCOPE, CancelBy.ROUND}:
                raise
            cast("asyncio.Task[None]", asyncio.current_task()).uncancel()
        finally:
            self.done = True

    def _gives_way(self, waits_for: object) -> None:
        self.steps += 1
        self.after += self._struck
        if self.steps != self._at:
            return
        self.reached = True
        if self._by is CancelBy.SCOPE:
            self._scope.cancel()
            return
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if self._by is CancelBy.NATIVE:
            task.cancel()
        elif isinstance(waits_for, asyncio.Future):
            # Before the task's own callback, in the same round.
            cast("asyncio.Future[object]", waits_for).add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)

    def _is_struck(self) -> None:
        self._struck = True


async def _nothing() -> None:
    """Give no way."""


@types.coroutine
def _drive(
    coroutine: Coroutine[Any, Any, T],
    gives_way: Callable[[object], None] = lambda _: None,
    is_struck: Callable[[], None] = lambda: None,
    goes_on: Callable[[], Coroutine[Any, Any, None]] = _nothing,
) -> Generator[Any, Any, T]:
    """Stand between a coroutine and its event loop, and see it give way, be cancelled and go on."""
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            waits_for = step(value)
        except StopIteration as stop:
            return cast("T", stop.value)
        gives_way(waits_for)
        try:
            value = yield waits_for
            step = coroutine.send
        except BaseException as exc:  # noqa: BLE001 - handed on
            if isinstance(exc, anyio.get_cancelled_exc_class()):
                is_struck()
            step, value = coroutine.throw, exc
        else:
            yield from goes_on().__await__()


class AtAwait:
    """
    One caller, beside whom another task acts when the caller has given way for the ``at``-th time.

    Attributes:
        reached: Whether it has acted.
    """

    def __init__(self, act: Callable[[], Any], at: int) -> None:
        self._act = act
        self._left = at
        self.reached = False

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work; the caller goes on when the act is done."""
        error: Exception | None = None
        result: Any = None
        async with anyio.create_task_group() as tasks:
            try:
                result = await _drive(work(), goes_on=partial(self._wait_for_act, tasks))
            except Exception as exc:  # noqa: BLE001 - raised below: a task group would wrap it
                error = exc
        if error is not None:
            raise error
        return cast("T", result)

    async def _wait_for_act(self, tasks: anyio.abc.TaskGroup) -> None:
        self._left -= 1
        if self._left:
            return
        self.reached = True
        done = anyio.Event()

        async def act() -> None:
            try:
                if inspect.isawaitable(happening := self._act()):
                    await happening
            finally:
                done.set()

        tasks.start_soon(act)
        await done.wait()


def in_trio() -> bool:
    """Tell which event loop runs."""
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


def tasks() -> int:
    """Count the tasks of the event loop."""
    if in_trio():
        import trio

        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


async def rounds(n: int) -> None:
    """Let every task that is ready take ``n`` steps."""
    for _ in range(n):
        await anyio.lowlevel.checkpoint()


async def rounds_until(happened: Callable[[], bool]) -> int:
    """Count the rounds of the event loop until something has happened."""
    for n in range(LONGEST):
        if happened():
            return n
        await anyio.lowlevel.checkpoint()
    message = f"it has not happened within {LONGEST} rounds of the event loop"
    raise TimeoutError(message)
