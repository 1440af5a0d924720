"""A total deadline for I/O in an event loop."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    import httpx


def async_deadline(seconds: float) -> AbstractContextManager[anyio.CancelScope]:
    """Raise `TimeoutError` when the block takes longer."""
    return anyio.fail_after(seconds)


@contextlib.contextmanager
def async_first_part(seconds: float) -> Generator[Callable[[], None]]:
    """Raise `TimeoutError` when the block has not called what this gives in time."""
    with anyio.fail_after(seconds) as scope:

        def over() -> None:
            if scope.cancel_called:  # in this very round of the event loop
                raise TimeoutError
            scope.deadline = math.inf

        yield over


def async_remaining(timeout: float) -> float:
    """Shorten a timeout to what is left of the deadline; both in seconds."""
    return min(timeout, anyio.current_effective_deadline() - anyio.current_time())


async def async_read_raw(stream: httpx.AsyncByteStream, limit: int) -> bytes:
    """Read a body as it comes; stop once there is more of it than ``limit`` bytes."""
    raw = bytearray()
    chunks = aiter(stream)
    while (chunk := await anext(chunks, None)) is not None:
        raw += chunk
        if len(raw) > limit:
            break
    else:
        return bytes(raw)
    # A body comes through several generators. A read that is cancelled ends them all; just leaving
    # the loop would leave the inner ones to the garbage collector, of which trio warns.
    with anyio.CancelScope() as enough:
        enough.cancel()
        await anext(chunks, None)
    return bytes(raw)
