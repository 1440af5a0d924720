"""
A total deadline for blocking I/O.

httpx's timeouts are for one read each: a reply that drips in, byte by byte, never ends. Here each
read and write may take only what is left of the deadline that its context has set.
"""

from __future__ import annotations

import contextlib
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
def deadline(seconds: float) -> Generator[None]:
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


def read_raw(response: httpx.Response, limit: int) -> bytes:
    """
    Read a body as it comes; stop once there is more of it than ``limit`` bytes.

    On a user's own connections the deadline is kept here, between reads.
    """
    raw = bytearray()
    for chunk in response.iter_raw():
        raw += chunk
        if len(raw) > limit:
            break
        if time.monotonic() > ends.get():
            message = "the body took too long"
            raise httpx.ReadTimeout(message)
    return bytes(raw)


def left(timeout: float | None) -> float | None:
    """Shorten a read's timeout to what is left of the deadline; both in seconds."""
    end = ends.get()
    if end == math.inf:
        return timeout
    rest = max(end - time.monotonic(), _SHORTEST)
    return rest if timeout is None else min(timeout, rest)
