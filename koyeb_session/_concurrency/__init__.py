"""
Everything that differs between the two halves, as twins: ``AsyncX``/``X``, ``async_x``/``x``.

A *place* is where work lives: the running event loop, or the process since its last fork. What
belongs to another place than the current one is dead: it is neither awaited nor closed, only left.

Who owns what. A flight belongs to its place: to a task of the event loop that no caller's
cancellation reaches, or to a thread. :data:`atomic` is the only lock; it is held for a few
instructions, never across an await, a call to user code, or I/O.
"""

from .calls import (
    async_call,
    async_call_blocking,
    async_in_thread,
    call,
    call_blocking,
    in_thread,
)
from .deadlines import deadline, read_raw
from .flights import AsyncFlight, AsyncWork, Flight, Work
from .http import (
    AsyncAuthBase,
    AsyncAuthFlow,
    AuthBase,
    AuthFlow,
    async_deadline,
    async_http_transport,
    async_read_raw,
    http_transport,
)
from .places import async_place, atomic, place
from .tls import async_tls_ready, prepare_tls, tls_ready
from .waiting import AsyncLock, AsyncPulse, Lock, Pulse, async_sleep, sleep

__all__ = [
    "AsyncAuthBase",
    "AsyncAuthFlow",
    "AsyncFlight",
    "AsyncLock",
    "AsyncPulse",
    "AsyncWork",
    "AuthBase",
    "AuthFlow",
    "Flight",
    "Lock",
    "Pulse",
    "Work",
    "async_call",
    "async_call_blocking",
    "async_deadline",
    "async_http_transport",
    "async_in_thread",
    "async_place",
    "async_read_raw",
    "async_sleep",
    "async_tls_ready",
    "atomic",
    "call",
    "call_blocking",
    "deadline",
    "http_transport",
    "in_thread",
    "place",
    "prepare_tls",
    "read_raw",
    "sleep",
    "tls_ready",
]
