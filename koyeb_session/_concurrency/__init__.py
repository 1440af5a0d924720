"""
Everything that differs between the two halves, as twins: ``AsyncX``/``X``, ``async_x``/``x``.

A *place* is where work lives: the running event loop, or the process since its last fork. What
belongs to another place than the current one is dead: it is neither awaited nor closed, only left.

Who owns what. A flight belongs to its place: to a task of the event loop that no caller's
cancellation reaches, or to a thread. :data:`atomic` is the only lock; it is held for a few
instructions, never across an await, a call to user code, or I/O.
"""

from .._network import deadline, http_transport, read_raw
from .calls import (
    async_call,
    async_call_blocking,
    async_in_thread,
    call,
    call_blocking,
    in_thread,
)
from .flights import AsyncFlight, AsyncWork, Flight, Work
from .http import (
    AsyncAuthBase,
    AsyncAuthFlow,
    AuthBase,
    AuthFlow,
    async_deadline,
    async_http_transport,
    async_read_raw,
)
from .places import async_place, atomic, place
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
    "atomic",
    "call",
    "call_blocking",
    "deadline",
    "http_transport",
    "in_thread",
    "place",
    "read_raw",
    "sleep",
]
