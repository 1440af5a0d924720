"""
A total deadline for blocking I/O.

httpx's timeouts apply to one read each, so a reply that drips in byte by byte never ends. Here each
read, write and wait may take only the time left before the deadline of its context.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import math
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeVar

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

ends: Final = ContextVar("koyeb_session_deadline", default=math.inf)
_SHORTEST: Final = 1e-6  # seconds; 0 would ask for a non-blocking socket
_UNSET: Final = object()
_view: Final[Callable[[bytes], memoryview]] = memoryview  # the repr of a view shows no bytes


def within(seconds: float, work: Callable[[], T]) -> T:
    """
    Do some work; limit each wait in it, and each read and write on a client's own connections.

    Name lookup, further addresses of the host, and a slow TLS handshake have no total limit. The
    operating system and httpcore limit each step of them.

    The limit holds in a context of its own, and ends with it. Nothing has to be reset, so a signal
    handler that raises at any line leaves no limit behind in its thread. Other variables keep the
    values that the user's hooks set, but `ContextVar.reset` takes no token of a hook afterwards.
    """
    context = contextvars.copy_context()
    try:
        return context.run(_until, time.monotonic() + seconds, work)
    finally:
        _keep_variables(context)


def _until(limit: float, work: Callable[[], T]) -> T:
    ends.set(min(ends.get(), limit))
    return work()


def _keep_variables(context: contextvars.Context) -> None:
    for variable, value in context.items():
        if variable is not ends and variable.get(_UNSET) is not value:
            variable.set(value)


def shield(
    seconds: float = math.inf,  # noqa: ARG001 - the twin's signature
) -> contextlib.AbstractContextManager[None]:
    """Do nothing: unlike its twin's task, a thread is not cancelled."""
    return contextlib.nullcontext()


def read_raw(stream: httpx.SyncByteStream, limit: int) -> bytes:
    """
    Read a body without decoding it; stop once there are more than ``limit`` bytes.

    On the user's own connections only this function checks the deadline, between reads. It keeps a
    body that was complete at the deadline, as that may contain the session's token.
    """
    raw = io.BytesIO()  # its repr shows nothing of the body in a traceback
    late = False
    for chunk in map(_view, stream):
        if late and chunk:  # an empty chunk may end a body that is complete
            message = "the body took too long"
            raise httpx.ReadTimeout(message)
        raw.write(chunk)
        if raw.tell() > limit:
            break
        late = time.monotonic() > ends.get()
    return raw.getvalue()


def remaining(timeout: float) -> float:
    """Shorten a timeout to the time left before the deadline; both in seconds."""
    return min(timeout, max(ends.get() - time.monotonic(), _SHORTEST))
