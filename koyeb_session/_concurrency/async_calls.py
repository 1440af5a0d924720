"""Calling the user's functions, plain ones and async ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack, cast

import anyio
import anyio.to_thread

from .places import in_trio

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

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


async def async_call_blocking(function: Callable[[], Any]) -> Any:
    """Call a plain function, which may block, in a worker thread; await an async one."""

    async def in_worker() -> Any:
        # In a tuple, as trio refuses threads that return a coroutine.
        (result,) = await anyio.to_thread.run_sync(
            lambda: (function(),), abandon_on_cancel=True, limiter=_no_queue()
        )
        return await result if inspect.isawaitable(result) else result

    return await async_call(function if _is_async(function) else in_worker)


async def async_in_thread(function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Call what blocks for a moment in a worker thread, cancelled or not: it is never left out."""
    shield = cast("AbstractContextManager[object, None]", anyio.CancelScope(shield=True))
    with shield:  # which nobody cancels, so that it swallows nothing
        return await anyio.to_thread.run_sync(function, *args, limiter=_no_queue())


def _is_cancelled() -> bool:
    if in_trio():
        return True  # where nobody else can raise it
    import asyncio  # noqa: PLC0415 - only where it is running

    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _no_queue() -> anyio.CapacityLimiter:
    """
    Let a thread be had at once.

    The threads that all of the loop's work shares may be taken by those who wait for the renewal.
    """
    return anyio.CapacityLimiter(1)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - its kind is asked, not whether it is there
    )
