"""
Everything that differs between the two halves, as twins: ``AsyncX``/``X``, ``async_x``/``x``.

A *place* is where work lives: the running event loop, or the process since its last fork. What
belongs to another place than the current one is dead: it is neither awaited nor closed, only left.

Who owns what. A flight belongs to its place: to a task of the event loop that no caller's
cancellation reaches, or to a thread. :data:`atomic` is the only lock; it is held for a few
instructions, never across an await, a call to user code, or I/O.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import os
import sys
import threading
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
)
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import httpx

from ._network import deadline, http_transport, tls_context

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

__all__ = [  # twins that are defined elsewhere, too
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
    "async_place",
    "async_sleep",
    "atomic",
    "call",
    "call_blocking",
    "deadline",
    "http_transport",
    "place",
    "sleep",
]

AsyncAuthFlow: TypeAlias = AsyncGenerator[httpx.Request, httpx.Response]
AuthFlow: TypeAlias = Generator[httpx.Request, httpx.Response, None]

AsyncWork: TypeAlias = Callable[[], Awaitable[T]]
Work: TypeAlias = Callable[[], T]


# The lock, and fork

atomic: Final = threading.Lock()
"""Guards each check-then-set of a session's state, for the whole process."""

_process = object()


def _after_fork_in_child() -> None:
    global _process  # noqa: PLW0603 - the one thing that a fork changes
    _process = object()
    atomic.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=atomic.acquire,
        after_in_parent=atomic.release,
        after_in_child=_after_fork_in_child,
    )


# Places


def _in_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


def async_place() -> object:
    """Name the running event loop."""
    if _in_trio():
        import trio  # noqa: PLC0415 - only where it is running

        return trio.lowlevel.current_trio_token()
    import asyncio  # noqa: PLC0415 - the blocking half does without

    return asyncio.get_running_loop()


def place() -> object:
    """Name the process since its last fork."""
    return _process


# Flights

_tasks: Final[set[asyncio.Task[None]]] = set()
"""Strong references: an event loop holds its tasks weakly."""


def _start_task(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work``, which raises no `Exception`, in a task of the event loop itself."""
    if _in_trio():
        import trio  # noqa: PLC0415 - only where it is running

        trio.lowlevel.spawn_system_task(work, context=contextvars.copy_context())
        return
    import asyncio  # noqa: PLC0415 - the blocking half does without

    async def run() -> None:
        await work()

    task = asyncio.get_running_loop().create_task(run())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


class AsyncFlight(Generic[T]):
    """
    One run of ``work`` that any number of callers wait for.

    Cancelling a waiter neither stops nor loses it. ``work`` returns its errors. ``then`` runs after
    the waiters have been let go. ``about`` is whatever its owner wants to know it by.
    """

    def __init__(
        self, work: AsyncWork[T], then: AsyncWork[None] | None = None, *, about: object = None
    ) -> None:
        self.about = about
        self._work = work
        self._then = then
        self._place = async_place()
        self._landed = anyio.Event()
        self.outcome: T | None = None
        """What ``work`` returned; `None` while under way, and if its event loop ended first."""

    @property
    def alive(self) -> bool:
        """Whether it is under way, here."""
        return not self._landed.is_set() and self._place is async_place()

    def start(self) -> None:
        """Let it run by itself."""
        _start_task(self._run)

    async def lead(self) -> T | None:
        """Start it and wait for it."""
        self.start()
        await self._landed.wait()
        return self.outcome

    async def join(self, timeout: float) -> T | None:
        """Wait for it, for at most ``timeout`` seconds."""
        with anyio.move_on_after(timeout):
            await self._landed.wait()
        return self.outcome

    async def _run(self) -> None:
        try:
            self.outcome = await self._work()
        finally:
            self._landed.set()
        if self._then is not None:
            await self._then()


class Flight(Generic[T]):
    """Blocking twin: who leads it runs it in the calling thread, `start` in a daemon thread."""

    def __init__(
        self, work: Work[T], then: Work[None] | None = None, *, about: object = None
    ) -> None:
        self.about = about
        self._work = work
        self._then = then
        self._place = place()
        self._landed = threading.Event()
        self.outcome: T | None = None
        """What ``work`` returned; `None` while under way, and if its thread was interrupted."""

    @property
    def alive(self) -> bool:
        """Whether it is under way, here."""
        return not self._landed.is_set() and self._place is place()

    def start(self) -> None:
        """Let it run by itself."""
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(self._run,), name="koyeb-session", daemon=True
        ).start()

    def lead(self) -> T | None:
        """Run it here."""
        self._run()
        return self.outcome

    def join(self, timeout: float) -> T | None:
        """Wait for it, for at most ``timeout`` seconds."""
        self._landed.wait(timeout)
        return self.outcome

    def _run(self) -> None:
        try:
            self.outcome = self._work()
        finally:
            self._landed.set()
        if self._then is not None:
            self._then()


# Waiting

async_sleep = anyio.sleep
sleep = time.sleep


class AsyncPulse:
    """Wakes one sleeper of the same place early."""

    def __init__(self) -> None:
        self._place = async_place()
        self._event = anyio.Event()

    def beat(self) -> None:
        """Wake the sleeper, if it sleeps here."""
        with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
            if self._place is async_place():
                self._event.set()

    async def sleep(self, seconds: float) -> None:
        """Wait for the next beat, or until ``seconds`` have passed."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        self._event = anyio.Event()


class Pulse:
    """Blocking twin."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def beat(self) -> None:
        """Wake the sleeper."""
        self._event.set()

    def sleep(self, seconds: float) -> None:
        """Wait for the next beat, or until ``seconds`` have passed."""
        self._event.wait(seconds)
        self._event.clear()


class AsyncLock:
    """A lock for whichever place; one that a dead place held is free."""

    def __init__(self) -> None:
        self._place: object = None
        self._lock: anyio.Lock | None = None

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncGenerator[None]:
        """Hold it for the block."""
        lock = self._lock
        if lock is None or self._place is not async_place():
            self._place, self._lock = async_place(), (lock := anyio.Lock())
        async with lock:
            yield


class Lock:
    """Blocking twin."""

    def __init__(self) -> None:
        self._place: object = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Hold it for the block."""
        with atomic:
            if self._place is not place():
                self._place, self._lock = place(), threading.Lock()
            lock = self._lock
        with lock:
            yield


# Calling user code


async def async_call(function: Callable[..., Any], *args: object) -> Any:
    """Call a plain or an async function."""
    result = function(*args)
    return await result if inspect.isawaitable(result) else result


def call(function: Callable[..., Any], *args: object) -> Any:
    """Blocking twin: an async function cannot be waited for here."""
    result = function(*args)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        message = "an async function was given to the blocking half: give it a plain one"
        raise TypeError(message)
    return result


async def async_call_blocking(function: Callable[[], Any]) -> Any:
    """Call a plain function, which may block, in a worker thread; await an async one."""
    if _is_async(function):
        return await function()
    result = await anyio.to_thread.run_sync(function, abandon_on_cancel=True)
    return await result if inspect.isawaitable(result) else result


call_blocking = call


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - its kind is asked, not whether it is there
    )


# Deadlines and the network


async_deadline = anyio.fail_after


def async_http_transport(proxy: str | None) -> httpx.AsyncBaseTransport:
    """Make httpx's own transport; its blocking twin is in ``_network``."""
    return httpx.AsyncHTTPTransport(verify=tls_context(), proxy=proxy)


# Auth


class AsyncAuthBase(httpx.Auth):
    """Refuses ``httpx.Client``, which would send unauthenticated requests."""

    def sync_auth_flow(self, request: httpx.Request) -> AuthFlow:  # noqa: ARG002 - httpx's signature
        """Raise `TypeError`."""
        message = (
            f"{type(self).__name__} needs an httpx.AsyncClient; "
            "for an httpx.Client use the auth of a SessionClient"
        )
        raise TypeError(message)


class AuthBase(httpx.Auth):
    """Blocking twin: refuses ``httpx.AsyncClient``."""

    def async_auth_flow(self, request: httpx.Request) -> AsyncAuthFlow:  # noqa: ARG002 - httpx's signature
        """Raise `TypeError`."""
        message = (
            f"{type(self).__name__} needs an httpx.Client; "
            "for an httpx.AsyncClient use the auth of an AsyncSessionClient"
        )
        raise TypeError(message)
