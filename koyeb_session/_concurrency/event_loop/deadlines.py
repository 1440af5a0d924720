"""A total deadline for I/O in an event loop."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    import httpx

T = TypeVar("T")


async def async_within(seconds: float, work: Callable[[], Awaitable[T]]) -> T:
    """Do some work; raise `TimeoutError` if it takes longer."""
    with anyio.move_on_after(seconds):
        return await work()
    raise TimeoutError


def async_shield(seconds: float = math.inf) -> AbstractContextManager[anyio.CancelScope]:
    """
    Run the block to its end, for at most ``seconds``, even if a cancel scope is cancelled.

    asyncio's own `Task.cancel` still gets through.
    """
    deadline = math.inf if seconds == math.inf else anyio.current_time() + seconds
    return anyio.CancelScope(deadline=deadline, shield=True)


def async_remaining(timeout: float) -> float:
    """Shorten a timeout to the time left before the deadline; both in seconds."""
    return min(timeout, anyio.current_effective_deadline() - anyio.current_time())


async def async_read_raw(stream: httpx.AsyncByteStream, limit: int) -> bytes:
    """Read a body without decoding it; stop once there are more than ``limit`` bytes."""
    raw = io.BytesIO()  # its repr shows nothing of the body in a traceback
    chunks = aiter(stream)
    while (chunk := await anext(chunks, None)) is not None:
        raw.write(chunk)
        del chunk
        if raw.tell() > limit:
            break
    else:
        return raw.getvalue()
    # A body comes through several generators, and a cancelled read ends them all. Just leaving the
    # loop would leave the inner ones to the garbage collector, and trio warns of that.
    with anyio.CancelScope() as enough:
        enough.cancel()
        await anext(chunks, None)
    return raw.getvalue()
