"""Calls of a user's functions, plain and async, and the hooks of httpx."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest

from koyeb_session import SessionClient
from koyeb_session._concurrency.event_loop import calls
from koyeb_session._concurrency.event_loop.calls import (
    async_call,
    async_call_blocking,
    async_in_thread,
)
from koyeb_session._concurrency.threads import calls as blocking_calls
from koyeb_session._concurrency.threads.calls import call, call_blocking, in_thread
from koyeb_session._concurrency.threads.deadlines import within
from koyeb_session.testing import FakeKoyeb

from .concurrency import PATIENCE, Halted, async_until
from .support import raising


async def plus(number: int) -> int:
    """Add one."""
    await anyio.lowlevel.checkpoint()
    return number + 1


def plain(number: int) -> int:
    """Add one."""
    return number + 1


# Calls


async def test_async_call_takes_plain_and_async_functions() -> None:
    """The result is the same."""
    assert await async_call(plus, 2) == 3
    assert await async_call(plain, 2) == 3


def test_call_refuses_async_functions() -> None:
    """The blocking half cannot await; it closes the coroutine, so that no warning follows."""
    assert call(plain, 2) == 3
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        for refuse in (call, call_blocking):
            for function in (lambda: plus(2), loop.create_future):
                with pytest.raises(TypeError, match="give it a plain one"):
                    refuse(function)
    gc.collect()


def test_call_blocking_calls_in_a_thread_and_waits_until_the_deadline() -> None:
    """A user's function that hangs blocks no caller; its exception is raised in the caller."""
    assert call_blocking(threading.get_ident) != threading.get_ident()
    assert call_blocking(plain, 2) == 3
    error = KeyError("theirs")
    with pytest.raises(KeyError) as caught:
        call_blocking(raising(error))
    assert caught.value is error
    go = threading.Event()
    with pytest.raises(TimeoutError):
        within(0, partial(call_blocking, go.wait, PATIENCE))
    go.set()


class AsyncCallable:
    """An object that is called like an async function."""

    async def __call__(self) -> int:
        """Return 3."""
        await anyio.lowlevel.checkpoint()
        return 3


@pytest.mark.parametrize("function", [lambda: plus(2), AsyncCallable(), AsyncCallable().__call__])
async def test_async_call_blocking_awaits_what_is_awaitable(
    function: Callable[[], Awaitable[int]],
) -> None:
    """Async functions, methods and objects, and plain functions that return an awaitable."""
    assert await async_call_blocking(function) == 3


async def test_async_call_blocking_runs_async_functions_here() -> None:
    """They cannot block the event loop as a plain function can."""

    async def ours() -> int:
        return threading.get_ident()

    assert await async_call_blocking(ours) == threading.get_ident()


async def test_async_in_thread_calls_with_arguments() -> None:
    """The function gets them all, in their order."""
    assert await async_in_thread(divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize("call", [async_in_thread, async_call_blocking])
async def test_async_call_in_a_thread_goes_on_without_its_caller(
    call: Callable[..., Coroutine[Any, Any, object]],
) -> None:
    """A caller that is cancelled does not wait for a function that hangs, and loses no work."""
    began, go, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go.wait(PATIENCE)
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, work)
        await async_until(began.is_set)
        tasks.cancel_scope.cancel()
    assert not done.is_set()
    go.set()
    await async_until(done.is_set)


@pytest.mark.parametrize("call", [async_in_thread, async_call_blocking])
async def test_async_call_needs_none_of_the_threads_that_all_share(
    call: Callable[..., Awaitable[int]],
) -> None:
    """Callers that wait for a renewal in pool threads must not deprive the renewal of a thread."""
    shared = anyio.to_thread.current_default_thread_limiter()
    waiting = [object() for _ in range(int(shared.total_tokens))]
    for one in waiting:
        shared.acquire_on_behalf_of_nowait(one)
    with anyio.fail_after(PATIENCE):
        assert await call(threading.get_ident) != threading.get_ident()
    for one in waiting:
        shared.release_on_behalf_of(one)


@pytest.mark.parametrize("half", [calls, blocking_calls])
async def test_exceptions_only_converts_what_no_error_handler_sees(half: Any) -> None:
    """An exception of the user's code stays as it is."""
    for error in (KeyError("theirs"), Halted()):
        with pytest.raises((KeyError, RuntimeError)) as caught, half.exceptions_only():
            raise error
        assert error in {caught.value, caught.value.__cause__}


@pytest.mark.parametrize("kind", [GeneratorExit, KeyboardInterrupt, SystemExit])
async def test_async_call_lets_the_end_of_a_program_through(kind: type[BaseException]) -> None:
    """In an event loop a signal handler may raise in any task, and so may its end."""
    with pytest.raises(kind):
        await async_call(raising(kind()))


async def test_async_call_lets_a_cancellation_of_its_own_task_through() -> None:
    """The code that is called cannot be told from its caller, and must end."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await async_call(anyio.sleep, PATIENCE)
    assert scope.cancelled_caught


def test_in_thread_calls_here() -> None:
    """The blocking half has nothing to keep free."""
    assert in_thread(threading.get_ident) == threading.get_ident()
    assert in_thread(divmod, 7, 2) == (3, 1)


# Auth


async def test_auth_refuses_an_async_client() -> None:
    """A client of the wrong half does not send unauthenticated requests; it says what is right."""
    fake = FakeKoyeb()
    session = SessionClient(transport=fake.transport, token=fake.issue_token())
    async with httpx.AsyncClient(transport=fake.transport, base_url=fake.base_url) as client:
        with pytest.raises(
            TypeError, match=r"SessionAuth needs an httpx\.Client.*AsyncSessionClient"
        ):
            await client.get("/v1/apps", auth=session.auth)
    assert fake.requests == []


@pytest.mark.parametrize(
    ("members", "through"),
    [
        ([KeyboardInterrupt()], True),
        ([ValueError(), BaseExceptionGroup("inner", [SystemExit(1)])], True),
        ([ValueError(), Halted()], False),
    ],
    ids=range(3),
)
async def test_exceptions_only_looks_into_groups(
    members: list[BaseException], *, through: bool
) -> None:
    """A task group of the user's may hold the end of the program, or its own members' errors."""
    group = BaseExceptionGroup("group", members)
    with pytest.raises(BaseException) as caught, calls.exceptions_only():  # noqa: PT011 - both
        raise group
    assert (caught.value is group) is through
    assert through or str(caught.value) == "it raised BaseExceptionGroup"


async def test_exceptions_only_lets_a_cancelled_nursery_through() -> None:
    """Trio wraps the cancellation of a nursery, and its scope has to see it."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        with calls.exceptions_only():
            try:
                await anyio.lowlevel.checkpoint()
            except anyio.get_cancelled_exc_class() as exc:
                raise BaseExceptionGroup("nursery", [exc]) from None
    assert scope.cancelled_caught
