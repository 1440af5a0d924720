"""Helpers that differ between the two halves of the tests: `AsyncX`/`X`, `async_x`/`x`."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, NoReturn, Self, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import httpx

from koyeb_session._concurrency.runtime import in_trio
from koyeb_session._concurrency.threads import launch, shared_task
from koyeb_session.testing import Gate

T = TypeVar("T")
AsyncWork: TypeAlias = Callable[[], Awaitable[T]]
Work: TypeAlias = Callable[[], T]

PATIENCE = 30.0
"""The time limit of each wait in seconds; no event takes longer, even on a busy machine."""
_TURNS = 60
"""The number of checkpoints until every task that can run has run; a request needs ten."""
_WAITING = {"wait", "held"}
"""The functions in which a thread waits: `Condition.wait`, `Event.wait` or `Lock.held`."""


class _Outcome(Generic[T]):
    """The result of a piece of work, or its error."""

    def __init__(self) -> None:
        self._future: Future[T] = Future()

    @property
    def done(self) -> bool:
        """Whether the work has ended."""
        return self._future.done()


class AsyncJob(_Outcome[T]):
    """A piece of work in the background, and its result."""

    def __init__(self, work: AsyncWork[T]) -> None:
        super().__init__()
        self._work = work
        self._done = anyio.Event()

    async def run(self) -> None:
        """Do the work, and keep its result or its error."""
        try:
            self._future.set_result(await self._work())
        except Exception as exc:  # noqa: BLE001 - raised again by `result`
            self._future.set_exception(exc)
        self._done.set()

    async def result(self) -> T:
        """Wait for the result, or raise the error of the work."""
        with anyio.fail_after(PATIENCE):
            await self._done.wait()
        return self._future.result()


class Job(_Outcome[T]):
    """The blocking twin of `AsyncJob`."""

    def __init__(self, work: Work[T]) -> None:
        super().__init__()
        self._work = work

    def run(self) -> None:
        """Do the work, and keep its result or its error."""
        try:
            self._future.set_result(self._work())
        except Exception as exc:  # noqa: BLE001 - raised again by `result`
            self._future.set_exception(exc)

    def result(self) -> T:
        """Wait for the result, or raise the error of the work."""
        return self._future.result(PATIENCE)


class AsyncBackground:
    """Runs work in the background of a test, each piece in a task; the block ends with the last."""

    def __init__(self) -> None:
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:  # the failed test will never release the work
            self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(kind, exc, traceback)

    def start(self, work: AsyncWork[T]) -> AsyncJob[T]:
        """Start ``work``, at the next checkpoint of the test."""
        job = AsyncJob(work)
        self._tasks.start_soon(job.run)
        return job

    async def settled(self) -> None:
        """Let all work run as far as it can without the test."""
        await async_idle()


class Background:
    """The blocking twin of `AsyncBackground`: each piece runs in a thread."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if not any(raised):
            _join(self._threads)

    def start(self, work: Work[T]) -> Job[T]:
        """Start ``work``."""
        job = Job(work)
        thread = threading.Thread(target=job.run, daemon=True)
        self._threads.append(thread)
        thread.start()
        return job

    def settled(self) -> None:
        """
        Let all work run as far as it can: each thread has ended, or waits for another.

        So do the session's own threads, unless they talk to a real service.
        """
        until(lambda: all(map(_waits, self._threads)) and _sessions_wait())


async def async_gather(*works: AsyncWork[T]) -> list[T]:
    """Run all work concurrently, and return the results in order."""
    async with AsyncBackground() as background:
        jobs = [background.start(work) for work in works]
    return [await job.result() for job in jobs]


def gather(*works: Work[T]) -> list[T]:
    """Run all work concurrently, and return the results in order."""
    with Background() as background:
        jobs = [background.start(work) for work in works]
    return [job.result() for job in jobs]


async def async_arrived(gate: Gate, n: int = 1) -> None:
    """Wait until ``n`` requests have arrived at the gate."""
    await gate.await_arrived(n, PATIENCE)


def arrived(gate: Gate, n: int = 1) -> None:
    """Wait until ``n`` requests have arrived at the gate."""
    gate.wait_arrived(n, PATIENCE)


async def async_pass_through(gate: Gate) -> None:
    """Wait at the gate until it opens."""
    with anyio.fail_after(PATIENCE):
        await gate.apass_through()


def pass_through(gate: Gate) -> None:
    """Wait at the gate until it opens."""
    gate.pass_through(PATIENCE)


async def async_idle() -> None:
    """Let the session's own tasks run as far as they can."""
    for _ in range(_TURNS):
        await anyio.lowlevel.checkpoint()


def idle() -> None:
    """Wait until the session's own threads have ended; none of them may be held at a gate."""
    if threading.current_thread().name != launch.NAME:  # such a thread would wait for itself
        for shared in tuple(shared_task._at_exit):  # its thread may be about to be started
            shared.wait_done(PATIENCE)
        until(_sessions_ended)


async def async_until(happened: Callable[[], bool]) -> None:
    """Wait until a condition is true; another thread may make it true."""
    with anyio.fail_after(PATIENCE):
        while not happened():  # noqa: ASYNC110 - a condition is no event
            await anyio.sleep(0.001)


def until(happened: Callable[[], bool]) -> None:
    """Wait until a condition is true; another thread may make it true."""
    ends = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.001)


def deadlines(was_enough: Callable[[], object]) -> Iterator[float]:
    """
    Yield longer and longer timeouts, in seconds, until one was long enough.

    Use it for work that must be running when its own deadline comes. On a busy machine, a short
    deadline passes before the work has begun.
    """
    for seconds in (0.05, 0.5, 5.0, PATIENCE):
        yield seconds
        if was_enough():
            return
    raise TimeoutError


class Halted(BaseException):
    """An exception that is no `Exception`, such as the ``Timeout`` of gevent."""


async def async_end_abruptly() -> NoReturn:
    """Wait for a task of asyncio that is cancelled; raise `Halted` on trio."""
    if not in_trio():
        task = asyncio.create_task(asyncio.sleep(PATIENCE))
        task.cancel()
        await task
    raise Halted


def end_abruptly() -> NoReturn:
    """Raise `Halted`."""
    raise Halted


async def async_read(response: httpx.Response) -> bytes:
    """Read the body of a reply."""
    return await response.aread()


def read(response: httpx.Response) -> bytes:
    """Read the body of a reply."""
    return response.read()


async def async_use_up(response: httpx.Response) -> None:
    """Iterate over the body of a reply, and keep nothing of it."""
    async for _ in response.aiter_bytes():
        pass


def use_up(response: httpx.Response) -> None:
    """Iterate over the body of a reply, and keep nothing of it."""
    for _ in response.iter_bytes():
        pass


AsyncFlow = AsyncGenerator[httpx.Request, httpx.Response]
Flow = Generator[httpx.Request, httpx.Response, None]


async def async_advance(
    flow: AsyncFlow, response: httpx.Response | None = None
) -> httpx.Request | None:
    """Advance an auth flow to its next request, as httpx does; return `None` when it has ended."""
    try:
        if response is None:
            return await flow.__anext__()
        return await flow.asend(response)
    except StopAsyncIteration:
        return None


def advance(flow: Flow, response: httpx.Response | None = None) -> httpx.Request | None:
    """Advance an auth flow to its next request, as httpx does; return `None` when it has ended."""
    try:
        if response is None:
            return next(flow)
        return flow.send(response)
    except StopIteration:
        return None


async def async_throw(flow: AsyncFlow, error: Exception) -> None:
    """Raise an error at the yield of an auth flow."""
    await flow.athrow(error)


def throw(flow: Flow, error: Exception) -> None:
    """Raise an error at the yield of an auth flow."""
    flow.throw(error)


def in_child(work: Callable[[], bool]) -> bool:
    """Fork, do the work in the child, and tell whether it returned `True` there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks while threads run
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _waits(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return True
    for _ in range(4):  # blockbuster adds its own frame on top
        if frame is None or frame.f_code.co_name in _WAITING:
            break
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name in _WAITING


def _sessions_wait() -> bool:
    if any(not shared._begun for shared in tuple(shared_task._at_exit)):
        return False
    idle_threads = {it.thread for it in tuple(launch._idle) if not it._given}
    own = [thread for thread in threading.enumerate() if thread.name == launch.NAME]
    return all(it in idle_threads or _waits(it) or _talks(it) for it in own)


def _sessions_ended() -> bool:
    launch.end_idle_threads()
    # One whose start was interrupted is listed, and never begins.
    own = [thread for thread in threading.enumerate() if thread.name == launch.NAME]
    return not any(thread.ident is not None and thread.is_alive() for thread in own)


def _talks(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and "httpcore" in frame.f_code.co_filename


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        if thread.ident is not None:  # one whose start was interrupted never begins
            thread.join(PATIENCE)
    if stuck := [thread.name for thread in threads if thread.is_alive()]:
        raise TimeoutError(f"threads that did not end: {stuck}")
