"""Calling the user's functions, plain ones and async ones."""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, cast

import anyio

from ..runtime import async_call_soon, current_loop, in_trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def async_call(function: Callable[..., Any], *args: object) -> Any:
    """
    Call a plain or an async function.

    Raises:
        RuntimeError: It was cancelled and this task was not, as by waiting for a cancelled task.
    """
    try:
        result = function(*args)
        return await result if inspect.isawaitable(result) else result
    except anyio.get_cancelled_exc_class() as exc:
        if _is_cancelled():
            raise
        message = "what it waited for was cancelled"
        raise RuntimeError(message) from exc


async def async_call_blocking(function: Callable[..., Any], *args: object) -> Any:
    """Call a plain function, which may block, in a thread of its own; await an async one."""
    if _is_async(function):
        return await async_call(function, *args)
    result = await async_in_thread(function, *args)
    return await async_call(lambda: result) if inspect.isawaitable(result) else result


async def async_in_thread(
    function: Callable[[*Ts], T],
    *args: *Ts,
) -> T:
    """
    Call what blocks in a daemon thread of its own, and wait for it.

    The thread is started before the first await and goes on by itself when the waiting task is
    cancelled. The interpreter does not wait for a thread that hangs, and no pool of threads is kept
    waiting by one.

    Raises:
        Exception: What it raised.
        RuntimeError: It raised what would have ended its thread alone, as `sys.exit` does.
    """
    call = _ThreadCall(partial(function, *args))
    threading.Thread(
        target=contextvars.copy_context().run, args=(call.run,), name="koyeb-session", daemon=True
    ).start()
    return cast("T", await call.result())


class _ThreadCall:
    """A call in a thread, and the task that waits for what comes of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._loop = current_loop()
        self._done = anyio.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call; whatever it raises is for the task that waits."""
        try:
            self._value = self._call()
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            self._error = exc
        async_call_soon(self._loop, self._done.set)

    async def result(self) -> Any:
        """Wait for what came of it."""
        await self._done.wait()
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:  # it would end the event loop, or look like a cancellation
            message = f"it raised {type(self._error).__name__}"
            raise RuntimeError(message) from self._error
        return self._value


def _is_cancelled() -> bool:
    if in_trio():
        return True  # where nobody else can raise it
    import asyncio  # noqa: PLC0415 - only where it is running

    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - its kind is asked, not whether it is there
    )
