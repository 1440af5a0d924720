"""Call the user's functions, plain or async."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, cast

import anyio

from ..nesting import enter, is_part_of_work
from ..runtime import async_call_soon, current_loop, in_trio
from ..threads.launch import launch

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def async_call(function: Callable[..., Any], *args: object) -> Any:
    """
    Call a plain or an async function.

    Raises:
        RuntimeError: See `exceptions_only`.
    """
    with exceptions_only():
        result = function(*args)
        return await result if inspect.isawaitable(result) else result


@contextlib.contextmanager
def exceptions_only() -> Generator[None]:
    """
    Raise a `RuntimeError` if the user's code in the block ends in something that is no `Exception`.

    An error handler for the user's code would not see it. A cancellation of this task, or the end
    of the program, is none of the user's code, and gets through.

    Raises:
        RuntimeError: The code was cancelled and this task was not, or it raised something else,
            such as the ``Timeout`` of gevent. The code is cancelled when it waits for another task,
            which is cancelled.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as exc:
        if _gets_through(exc):
            raise
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            message = "what it waited for was cancelled"
        else:
            message = f"it raised {type(exc).__name__}"
        raise RuntimeError(message) from exc


async def async_call_blocking(function: Callable[..., Any], *args: object) -> Any:
    """Call a plain function in its own thread, as it may block; await an async one here."""
    if _is_async(function):
        return await async_call(function, *args)
    result = await async_in_thread(function, *args)
    return await async_call(lambda: result) if inspect.isawaitable(result) else result


async def async_in_thread(
    function: Callable[[*Ts], T],
    *args: *Ts,
) -> T:
    """
    Call a blocking function in its own daemon thread, and wait for it.

    The thread starts before the first await. It keeps running when the waiting task is cancelled. A
    thread that hangs delays neither the end of the interpreter nor other calls: there is no pool.

    Raises:
        Exception: The function raised it.
        RuntimeError: The function raised something else, such as the `SystemExit` of `sys.exit`.
    """
    call = _ThreadCall(partial(function, *args))
    if not launch(partial(contextvars.copy_context().run, call.run)):
        message = "no thread can be had"
        raise RuntimeError(message)
    return cast("T", await call.result())


class _ThreadCall:
    """
    A call in a thread, and the task that waits for its result.

    It is a part of the shared work that the task does, if any, and so are the event loops that the
    call runs in its thread.
    """

    owner: object = None  # that of the work around it counts

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._is_part = is_part_of_work()
        self._thread: int | None = None
        self._loop = current_loop()
        self._done = anyio.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def is_running(self) -> bool:
        """Whether the call has begun and not ended."""
        return self._thread is not None

    @property
    def runs_here(self) -> bool:
        """Whether this thread makes the call, as a part of shared work."""
        return self._is_part and self._thread == threading.get_ident()

    def run(self) -> None:
        """Make the call, and keep its result or exception for the waiting task."""
        self._thread = threading.get_ident()
        enter(self)
        try:
            self._value = self._call()
        except BaseException as exc:  # noqa: BLE001 - raised in the waiting task
            self._error = exc
        self._thread = None
        # Last, so that the waiting task finds the result. An `anyio.Event` may be set only in its
        # own event loop; if that loop has ended, nothing waits.
        async_call_soon(self._loop, self._done.set)

    async def result(self) -> Any:
        """Wait for the result of the call."""
        await self._done.wait()
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:  # as it is, it would end the loop or look like a cancellation
            message = f"it raised {type(self._error).__name__}"
            raise RuntimeError(message) from self._error
        return self._value


def _gets_through(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):  # of a task group, or nursery, of the user's
        members = cast("BaseExceptionGroup[BaseException]", exc).exceptions
        return any(map(_gets_through, members))
    if isinstance(exc, GeneratorExit | KeyboardInterrupt | SystemExit):
        return True
    return isinstance(exc, anyio.get_cancelled_exc_class()) and _is_cancelled()


def _is_cancelled() -> bool:
    if in_trio():
        return True  # trio raises `Cancelled` only in a task that is cancelled itself
    import asyncio  # noqa: PLC0415 - only where it is running

    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - asks whether it is async, not callable
    )
