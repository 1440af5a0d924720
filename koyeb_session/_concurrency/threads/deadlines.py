"""
A total deadline for blocking I/O.

httpx's timeouts are for one read each: a reply that drips in, byte by byte, never ends. Here each
read and write, and each wait, may take only what is left of the deadline that its context has set.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Generator

ends: Final = ContextVar("koyeb_session_deadline", default=math.inf)
_SHORTEST: Final = 1e-6  # seconds; 0 would ask for a non-blocking socket


@contextlib.contextmanager
def time_limit(seconds: float) -> Generator[None]:
    """
    Bound each read and write of the block, on connections of ``http_transport``.

    Looking up the host's name and each further address of it, and a TLS handshake that drips, are
    bounded by the operating system and by httpcore for each step, not in total.
    """
    reset = ends.set(min(ends.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        ends.reset(reset)


def read_raw(stream: httpx.SyncByteStream, limit: int) -> bytes:
    """
    Read a body as it comes; stop once there is more of it than ``limit`` bytes.

    On a user's own connections the deadline is kept here, between reads. What was complete at the
    deadline is not thrown away, as it may be the session's token.
    """
    raw = io.BytesIO()  # which shows nothing of the body in a frame that is interrupted
    late = False
    for chunk in stream:
        if late and chunk:  # one without bytes may end a body that is complete
            message = "the body took too long"
            raise httpx.ReadTimeout(message)
        raw.write(chunk)
        del chunk
        if raw.tell() > limit:
            break
        late = time.monotonic() > ends.get()
    return raw.getvalue()


def remaining(timeout: float) -> float:
    """Shorten a timeout to what is left of the deadline; both in seconds."""
    return min(timeout, max(ends.get() - time.monotonic(), _SHORTEST))
