"""The twins of both halves: shared tasks, wakeups, locks, runtimes, calls, and deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import math
import os
import runpy
import ssl
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from queue import Queue
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpcore
import httpx
import pytest
import trio

from koyeb_session import (
    AsyncSessionClient,
    MemoryTokenStore,
    RateLimitedError,
    SessionClient,
    Token,
    TransportTimeoutError,
)
from koyeb_session._concurrency import runtime
from koyeb_session._concurrency.event_loop import shared_task as async_shared_task
from koyeb_session._concurrency.event_loop.calls import (
    async_call,
    async_call_blocking,
    async_in_thread,
)
from koyeb_session._concurrency.event_loop.deadlines import async_read_raw, async_time_limit
from koyeb_session._concurrency.event_loop.shared_task import AsyncSharedTask
from koyeb_session._concurrency.event_loop.waiting import (
    AsyncEvent,
    AsyncLock,
    AsyncWakeup,
    async_sleep,
)
from koyeb_session._concurrency.runtime import current_loop, current_process, state_lock
from koyeb_session._concurrency.threads import shared_task
from koyeb_session._concurrency.threads.calls import call, call_blocking, in_thread
from koyeb_session._concurrency.threads.deadlines import ends, read_raw, remaining, time_limit
from koyeb_session._concurrency.threads.launch import launch
from koyeb_session._concurrency.threads.shared_task import SharedTask
from koyeb_session._concurrency.threads.waiting import Event, Lock, Wakeup, sleep
from koyeb_session._http import deadline_network
from koyeb_session._http.event_loop import async_http_transport
from koyeb_session._http.threads import http_transport
from koyeb_session._http.tls import certificates
from koyeb_session.testing import FakeKoyeb, Fault, Gate

from .concurrency import PATIENCE, Background, async_until, idle, until

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def no_thread(_: object) -> bool:
    """Begin no thread, as where there are too many."""
    return False


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


# Flights


async def test_async_shared_task_is_shared_by_all_who_wait() -> None:
    """The work runs once, in a task of its own; all get what it returns."""
    runs: list[str] = []

    async def work() -> str:
        runs.append(variable.get())
        await anyio.lowlevel.checkpoint()
        return "done"

    variable.set("copied")
    shared = AsyncSharedTask(work, replaces="what")
    assert (shared.replaces, shared.outcome, shared.alive) == ("what", None, True)
    results: list[str | None] = []

    async def follow() -> None:
        results.append(await shared.join(PATIENCE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        tasks.start_soon(follow)
        results.append(await shared.run())
    assert results == ["done"] * 3
    assert runs == ["copied"]
    assert not shared.alive
    assert shared.outcome == "done"


async def test_async_shared_task_goes_on_when_those_who_wait_give_up() -> None:
    """Neither the leader's cancellation nor a follower's stops the work."""
    go = anyio.Event()

    async def work() -> int:
        await go.wait()
        return 7

    shared = AsyncSharedTask(work)
    with anyio.move_on_after(0) as scope:
        await shared.run()
    assert scope.cancelled_caught
    assert shared.alive
    assert await shared.join(0) is None
    assert shared.alive
    go.set()
    assert await shared.join(PATIENCE) == 7


async def test_async_shared_task_that_is_overdue_is_waited_for_by_who_has_time() -> None:
    """Work that its deadline does not end, as in a thread, may still come to something."""
    go = anyio.Event()

    async def work() -> int:
        await go.wait()
        return 7

    shared = AsyncSharedTask(work, seconds=0.001)
    shared.start()
    results: list[int | None] = []

    async def follow(timeout: float) -> None:
        results.append(await shared.join(timeout))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow, PATIENCE)
        await follow(0.002)
        assert results == [None]
        assert shared.alive
        tasks.start_soon(follow, PATIENCE)  # which comes when it is overdue
        await anyio.lowlevel.checkpoint()
        go.set()
    assert results == [None, 7, 7]


@pytest.mark.parametrize("followers", [1, 1000])
def test_those_who_wait_for_an_async_shared_task_share_one_timer(
    followers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of callers does not matter; one with a shorter timeout has its own timer."""
    timers: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            timers.append(args)
            return call_at(*args, **kwargs)

        monkeypatch.setattr(loop, "call_at", counted)
        go = anyio.Event()
        shared = AsyncSharedTask(go.wait, seconds=PATIENCE)
        shared.start()
        waiting = [asyncio.create_task(shared.join(PATIENCE)) for _ in range(followers)]
        await anyio.lowlevel.checkpoint()
        go.set()
        await asyncio.gather(*waiting)
        assert len(timers) == 1
        shared = AsyncSharedTask(go.wait, seconds=PATIENCE)
        shared.start()
        await shared.join(PATIENCE / 2)
        assert len(timers) == 2

    asyncio.run(main())


async def test_async_shared_task_lets_those_who_wait_go_before_what_comes_then() -> None:
    """No waiter waits for the work in `on_done`."""
    go, done = anyio.Event(), anyio.Event()

    async def work() -> int:
        return 7

    async def then() -> None:
        await go.wait()
        done.set()

    shared = AsyncSharedTask(work, then)
    assert await shared.run() == 7
    assert not shared.alive
    assert not done.is_set()
    go.set()
    with anyio.fail_after(PATIENCE):
        await done.wait()


async def test_async_shared_task_starts_by_itself() -> None:
    """Nobody need wait for it."""
    done = anyio.Event()

    async def work() -> None:
        done.set()

    AsyncSharedTask(work).start()
    with anyio.fail_after(PATIENCE):
        await done.wait()


def test_async_shared_task_of_an_ended_loop_is_dead() -> None:
    """A shared task belongs to its event loop; in another one it counts as dead."""
    shared: AsyncSharedTask[None] | None = None

    async def begin() -> None:
        nonlocal shared
        shared = AsyncSharedTask(anyio.sleep_forever)
        shared.start()
        await anyio.lowlevel.checkpoint()
        assert shared.alive

    async def seen() -> bool:
        assert shared is not None
        return shared.alive

    asyncio.run(begin())
    assert not asyncio.run(seen())
    assert not trio.run(seen)
    trio.run(begin)
    assert not trio.run(seen)
    assert not asyncio.run(seen())


def test_async_shared_task_is_held_until_it_ends() -> None:
    """An asyncio loop refers to its tasks weakly: without another reference, work could vanish."""
    before = set(async_shared_task._tasks)  # of loops that have died under them

    async def main() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        shared = AsyncSharedTask(lambda: future)
        shared.start()
        assert len(async_shared_task._tasks - before) == 1
        await anyio.lowlevel.checkpoint()
        gc.collect()
        future.set_result(None)
        await shared.join(PATIENCE)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        assert async_shared_task._tasks == before

    asyncio.run(main())


def test_async_shared_task_that_is_cancelled_before_it_begins_lets_all_go() -> None:
    """The end of a program cancels all tasks; catches a task that seems to run forever."""

    async def work() -> int:
        return 1

    async def main() -> None:
        shared = AsyncSharedTask(work, seconds=60)
        shared.start()
        waiter = asyncio.create_task(shared.join(60))
        before = asyncio.all_tasks()
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - before:  # what keeps the time
            task.cancel()
        assert await waiter == 1
        shared = AsyncSharedTask(work)
        shared.start()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        assert await shared.join(5) is None
        assert not shared.alive

    asyncio.run(main())


def test_async_shared_task_that_is_cut_off_lets_all_go() -> None:
    """The task is cancelled from outside; catches callers that wait forever."""
    before = set(async_shared_task._tasks)

    async def main() -> None:
        shared: AsyncSharedTask[None] = AsyncSharedTask(anyio.sleep_forever)
        shared.start()
        await anyio.lowlevel.checkpoint()
        for task in async_shared_task._tasks - before:
            task.cancel()
        await shared.join(PATIENCE)
        assert shared.outcome is None
        assert not shared.alive

    asyncio.run(main())


async def test_async_shared_task_raises_what_its_work_raises_to_all_who_wait() -> None:
    """An exception of the user's transport reaches every caller unchanged."""
    error = KeyError("theirs")

    async def work() -> int:
        await anyio.lowlevel.checkpoint()
        raise error

    shared = AsyncSharedTask(work, seconds=PATIENCE)
    shared.start()
    await shared.wait()  # `wait` does not raise
    for wait in (shared.join, shared.run):
        with pytest.raises(KeyError) as caught:
            await wait()
        assert caught.value is error
    assert not shared.alive
    assert not shared.succeeded


async def test_async_shared_task_that_hangs_keeps_its_leader_no_longer_than_asked() -> None:
    """Also when the leader asks for as long as the work should take; catches an endless wait."""
    shared = AsyncSharedTask(anyio.sleep_forever, seconds=0.01)
    with anyio.fail_after(PATIENCE):
        await shared.run(0.01)
    assert shared.alive


def test_async_shared_task_of_an_ended_loop_keeps_nobody() -> None:
    """Closing a client in a later loop does not wait for tasks that died with an earlier one."""
    shared_tasks: list[AsyncSharedTask[None]] = []

    async def begin() -> None:
        shared_tasks.append(AsyncSharedTask(anyio.sleep_forever, seconds=60))
        shared_tasks[0].start()
        await anyio.lowlevel.checkpoint()

    async def wait() -> None:
        with anyio.fail_after(PATIENCE):
            await shared_tasks[0].wait()
            await shared_tasks[0].wait_done(60)
            await shared_tasks[0].join()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    asyncio.run(wait())
    trio.run(wait)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def test_shared_task_is_shared_by_all_who_wait() -> None:
    """The work runs once, in its own thread; the caller that starts it gets its result, too."""
    go = threading.Event()
    threads: list[threading.Thread] = []

    def work() -> int:
        threads.append(threading.current_thread())
        go.wait(PATIENCE)
        return 7

    shared = SharedTask(work, replaces="what")
    assert (shared.replaces, shared.outcome, shared.alive) == ("what", None, True)
    with Background() as background:
        leader = background.start(lambda: (shared.run(), threading.current_thread()))
        until(lambda: bool(threads))
        follower = background.start(lambda: shared.join(PATIENCE))
        assert shared.join(0) is None
        assert shared.alive
        assert not shared.succeeded
        go.set()
        assert shared.join(PATIENCE) == follower.result() == 7
        result, thread = leader.result()
    assert result == 7
    assert len(threads) == 1
    assert threads[0] is not thread
    assert not shared.alive
    assert shared.succeeded
    assert shared.outcome == 7


def test_shared_task_raises_what_its_work_raises_to_all_who_wait() -> None:
    """An exception of the user's transport reaches every caller unchanged."""
    error = KeyError("theirs")

    def work() -> int:
        raise error

    shared = SharedTask(work, seconds=PATIENCE)
    shared.start()
    shared.wait()  # `wait` does not raise
    for wait in (shared.join, shared.run):
        with pytest.raises(KeyError) as caught:
            wait()
        assert caught.value is error
    assert not shared.alive
    assert not shared.succeeded


def test_shared_task_is_started_once_whoever_starts_it() -> None:
    """Of those who lead and those who join, one starts it."""
    runs: list[int] = []
    shared = SharedTask(lambda: runs.append(1), seconds=PATIENCE)
    for _ in range(3):
        shared.start()
        shared.run(PATIENCE)
        shared.join(PATIENCE)
    shared._run()  # as in a second thread
    assert runs == [1]


def test_shared_task_is_launched_by_who_waits_when_its_starter_was_interrupted() -> None:
    """A signal handler may raise before the thread starts; catches a wait for no thread."""
    shared = SharedTask(lambda: 7, seconds=PATIENCE)
    assert shared.join(PATIENCE) == 7


def test_shared_task_has_a_deadline_of_its_own() -> None:
    """Work that all share is not cut by the time that its starter had left."""
    with time_limit(0):
        shared = SharedTask(lambda: remaining(100), seconds=PATIENCE)
        shared.start()
    assert shared.join(PATIENCE) == 100


def test_shared_task_runs_in_a_daemon_thread_when_started() -> None:
    """Nobody need wait for it, and it keeps no process alive."""
    seen: list[object] = []
    done = threading.Event()

    def work() -> None:
        thread = threading.current_thread()
        seen.extend([thread.daemon, thread.name, variable.get(), thread is caller])

    caller = threading.current_thread()
    variable.set("copied")
    shared: SharedTask[None] = SharedTask(work, done.set)
    shared.start()
    assert done.wait(PATIENCE)
    assert seen == [True, "koyeb-session", "copied", False]
    assert not shared.alive


def test_shared_task_runs_in_the_calling_thread_when_there_can_be_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With too many threads, or at the interpreter's end, the work is still done."""
    shared = SharedTask(threading.current_thread, seconds=5)
    with monkeypatch.context() as patch:
        patch.setattr(shared_task, "launch", no_thread)
        assert shared.run(1) is threading.current_thread()
    assert not shared.alive


def test_shared_task_lets_those_who_wait_go_before_what_comes_then() -> None:
    """No waiter waits for the work in `on_done`."""
    go = threading.Event()

    def then() -> None:
        assert go.wait(PATIENCE)

    shared = SharedTask(lambda: 7, then)
    shared.start()
    assert shared.join(PATIENCE) == 7
    assert not shared.alive
    go.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_shared_task_that_is_interrupted_lets_all_go() -> None:
    """An exception that ends the thread reaches no caller; catches callers that wait forever."""

    def work() -> int:
        raise SystemExit

    shared = SharedTask(work)
    assert shared.run() is None
    assert shared.join(PATIENCE) is None
    assert not shared.alive
    assert not shared.succeeded
    idle()


def test_shared_task_of_the_parent_is_dead_in_a_forked_child() -> None:
    """The thread that does the work is not there after a fork."""
    go = threading.Event()
    shared = SharedTask(lambda: go.wait(PATIENCE))
    shared.start()
    assert in_child(lambda: not shared.alive and shared.join(60) is None)

    def waits() -> bool:
        shared.wait_done(60)
        return True

    assert in_child(waits)
    unstarted = SharedTask(lambda: go.wait(PATIENCE))
    assert in_child(lambda: unstarted.run(60) is None)
    assert shared.alive
    go.set()
    assert shared.join(PATIENCE) is True


# Places and the lock


async def test_async_place_is_the_running_loop() -> None:
    """All tasks of a loop are in one place."""
    here = current_loop()
    assert here is current_loop()
    places: list[object] = []

    async def other() -> None:
        places.append(current_loop())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
    assert places == [here]


def test_async_place_is_another_one_in_another_loop() -> None:
    """Loops are told apart, asyncio's and trio's; without one there is no place."""

    async def look() -> object:
        return current_loop()

    seen = [asyncio.run(look()), asyncio.run(look()), trio.run(look), trio.run(look)]
    assert len({id(loop) for loop in seen}) == 4
    with pytest.raises(RuntimeError, match="no running event loop"):
        current_loop()


def test_place_changes_with_a_fork() -> None:
    """A process is one place until it forks; the parent stays where it is."""
    here = current_process()
    assert current_process() is here
    assert in_child(
        lambda: current_process() is not here and current_process() is current_process()
    )
    assert current_process() is here


def test_the_lock_is_free_in_a_forked_child() -> None:
    """A fork waits for the holder of the lock, so that the child never finds it locked."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            with state_lock:
                time.sleep(0.0001)

    with Background() as background:
        background.start(busy)
        assert all(in_child(lambda: state_lock.acquire(timeout=1)) for _ in range(5))
        stop.set()
    assert repr(state_lock).startswith("<unlocked ")


def test_places_do_without_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows there is nothing to register."""
    monkeypatch.delattr(os, "register_at_fork")
    copied = runpy.run_path(runtime.__file__)
    assert copied["current_process"]() is copied["current_process"]()


def test_trio_runs_nothing_while_it_is_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread has begun to import it, as httpcore does: here it is not asked yet."""
    for name in ("trio", "trio.lowlevel"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert not runtime.in_trio()


# Pulses


async def test_async_pulse_wakes_its_sleeper() -> None:
    """A wakeup ends the sleep, even one that came before it; the next sleep is a new one."""
    wakeup = AsyncWakeup()
    with anyio.fail_after(PATIENCE):
        wakeup.set()
        await wakeup.sleep(60)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wakeup.sleep, 60)
            await anyio.lowlevel.checkpoint()
            wakeup.set()
        await wakeup.sleep(0)
        await wakeup.sleep(0.001)


async def test_async_pulse_ignores_a_beat_from_elsewhere() -> None:
    """A wakeup in a thread without an event loop, or in another loop, has no effect."""
    wakeup = AsyncWakeup()

    async def elsewhere() -> None:
        wakeup.set()

    await anyio.to_thread.run_sync(wakeup.set)
    await anyio.to_thread.run_sync(asyncio.run, elsewhere())
    assert not wakeup._event.is_set()
    wakeup.set()
    assert wakeup._event.is_set()


def test_pulse_wakes_its_sleeper() -> None:
    """A wakeup ends the sleep, even one that came before it; the next sleep is a new one."""
    wakeup = Wakeup()
    wakeup.set()
    wakeup.sleep(60)
    with Background() as background:
        job = background.start(lambda: wakeup.sleep(60))
        background.settled()
        assert not job.done
        wakeup.set()
        job.result()
    wakeup.sleep(0)
    assert not wakeup._event.is_set()


# Events


async def test_async_event_wakes_all_who_wait() -> None:
    """It is set once; later callers do not wait, and callers without time give up."""
    event = AsyncEvent()
    assert not event.is_set()
    assert await event.wait(0) is False
    seen: list[bool] = []

    async def wait() -> None:
        seen.append(await event.wait())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            event.set()
            event.set()
        assert await event.wait() is True
    assert seen == [True, True]
    assert event.is_set()


def test_event_wakes_all_who_wait() -> None:
    """It is set once; later callers do not wait, and callers without time give up."""
    event = Event()
    assert not event.is_set()
    assert event.wait(0) is False
    assert event.wait(-1) is False
    with Background() as background:
        jobs = [background.start(event.wait) for _ in range(2)]
        background.settled()
        assert not any(job.done for job in jobs)
        event.set()
        event.set()
        assert [job.result() for job in jobs] == [True, True]
    assert event.wait() is True
    assert event._waiters == []


def test_event_loses_no_wake_up_when_it_is_set_as_somebody_begins_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the waiter is listed, or after: whichever comes first, it does not sleep."""
    event = Event()
    locks: list[threading.Lock] = []

    class Waiters(list[threading.Lock]):
        def append(self, lock: threading.Lock) -> None:
            if not locks:
                event.set()
                super().append(lock)
            else:
                super().append(lock)
                event.set()
            locks.append(lock)

    for _ in range(2):
        monkeypatch.setattr(event, "_set", False)
        monkeypatch.setattr(event, "_waiters", Waiters())
        assert event.wait(PATIENCE) is True
    assert len(locks) == 2


def test_event_may_be_set_by_a_signal_handler_amid_its_own_methods() -> None:
    """It takes no lock that the interrupted thread could hold; catches a thread in its own way."""
    event = Event()
    interrupted: list[str] = []

    def interrupt(frame: Any, _event: str, _arg: object) -> Any:
        if frame.f_code in {Event.set.__code__, Event.wait.__code__} and len(interrupted) < 20:
            interrupted.append(frame.f_code.co_name)
            sys.settrace(None)
            event.set()
            event.wait(0)
            sys.settrace(interrupt)
        return interrupt

    tracer = sys.gettrace()
    sys.settrace(interrupt)
    try:
        event.wait(PATIENCE)
        event.set()
    finally:
        sys.settrace(tracer)
    assert set(interrupted) == {"set", "wait"}
    assert event.is_set()
    assert event._waiters == []


# Locks


async def test_async_lock_is_held_by_one_at_a_time() -> None:
    """Others wait until the block ends, also by an error."""
    lock = AsyncLock()
    order: list[int] = []

    async def hold(number: int) -> None:
        async with lock.held():
            order.append(number)
            await anyio.lowlevel.checkpoint()
            order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(hold, number)
    assert order[::2] == order[1::2]
    with pytest.raises(KeyError):
        async with lock.held():
            raise KeyError
    await hold(3)


def test_async_lock_is_free_when_a_dead_loop_held_it() -> None:
    """A holder whose event loop has ended no longer holds it."""
    lock = AsyncLock()
    block = lock.held()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(block.__aenter__())
    loop.close()

    async def take() -> str:
        with anyio.fail_after(PATIENCE):
            async with lock.held():
                return "taken"

    assert asyncio.run(take()) == "taken"
    assert trio.run(take) == "taken"
    assert asyncio.run(take()) == "taken"


def test_lock_is_held_by_one_at_a_time() -> None:
    """Others wait until the block ends, also by an error."""
    lock = Lock()
    with pytest.raises(KeyError), lock.held():
        raise KeyError
    with Background() as background:
        with lock.held():
            job = background.start(lambda: _hold(lock))
            background.settled()
            assert not job.done
        assert job.result() == "held"


def test_lock_is_free_when_the_parent_of_a_fork_holds_it() -> None:
    """The holder is not there in the child."""
    lock = Lock()
    with lock.held():
        assert in_child(lambda: _hold(lock) == "held")
    assert _hold(lock) == "held"


def _hold(lock: Lock) -> str:
    with lock.held():
        return "held"


# Calls


class AsyncCallable:
    """An object that is called like an async function."""

    async def __call__(self) -> int:
        """Return 3."""
        await anyio.lowlevel.checkpoint()
        return 3


async def plus(number: int) -> int:
    """Add one."""
    await anyio.lowlevel.checkpoint()
    return number + 1


def plain(number: int) -> int:
    """Add one."""
    return number + 1


async def test_async_call_takes_plain_and_async_functions() -> None:
    """The result is the same."""
    assert await async_call(plus, 2) == 3
    assert await async_call(plain, 2) == 3


def test_call_refuses_async_functions() -> None:
    """The blocking half cannot await; it closes the coroutine, so that no warning follows."""
    assert call(plain, 2) == 3
    with pytest.raises(TypeError, match="give it a plain one"):
        call(plus, 2)
    with (
        contextlib.closing(asyncio.new_event_loop()) as loop,
        pytest.raises(TypeError, match="give it a plain one"),
    ):
        call(loop.create_future)
    gc.collect()
    with pytest.raises(TypeError, match="give it a plain one"):
        call_blocking(plus, 2)


def test_call_blocking_calls_in_a_thread_and_waits_until_the_deadline() -> None:
    """A user's function that hangs blocks no caller; its exception is raised in the caller."""
    assert call_blocking(threading.get_ident) != threading.get_ident()
    assert call_blocking(plain, 2) == 3
    error = KeyError("theirs")

    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        call_blocking(fail)
    assert caught.value is error
    go = threading.Event()
    with time_limit(0), pytest.raises(TimeoutError):
        call_blocking(go.wait, PATIENCE)
    go.set()


@pytest.mark.parametrize("function", [lambda: plus(2), AsyncCallable(), AsyncCallable().__call__])
async def test_async_call_blocking_awaits_what_is_awaitable(
    function: Callable[[], Awaitable[int]],
) -> None:
    """Async functions, methods and objects, and plain functions that return an awaitable."""
    assert await async_call_blocking(function) == 3


async def test_async_call_blocking_calls_plain_functions_in_a_thread() -> None:
    """A plain function does not block the event loop; an async one runs in it."""
    here = threading.get_ident()

    async def ours() -> int:
        return threading.get_ident()

    assert await async_call_blocking(threading.get_ident) != here
    assert await async_call_blocking(ours) == here


async def test_async_call_blocking_can_be_abandoned() -> None:
    """A caller that is cancelled does not wait for a function that hangs."""
    go = threading.Event()
    began = threading.Event()

    def hang() -> None:
        began.set()
        go.wait(PATIENCE)

    started = time.monotonic()
    with anyio.move_on_after(PATIENCE) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(async_call_blocking, hang)
            while not began.is_set():  # noqa: ASYNC110 - an event of threads
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
    assert not scope.cancelled_caught
    assert time.monotonic() - started < PATIENCE / 2
    go.set()


async def test_async_in_thread_calls_to_the_end() -> None:
    """It is called in a worker thread, with its arguments, and cancelling does not lose it."""
    assert await async_in_thread(threading.get_ident) != threading.get_ident()
    assert await async_in_thread(divmod, 7, 2) == (3, 1)
    began, go, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go.wait(PATIENCE)
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(async_in_thread, work)
        while not began.is_set():  # noqa: ASYNC110 - an event of threads
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
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


def test_in_thread_calls_here() -> None:
    """The blocking half has nothing to keep free."""
    assert in_thread(threading.get_ident) == threading.get_ident()
    assert in_thread(divmod, 7, 2) == (3, 1)


# Auth


def test_async_auth_refuses_a_blocking_client() -> None:
    """A client of the wrong half does not send unauthenticated requests; it says what is right."""
    fake = FakeKoyeb()
    session = AsyncSessionClient(transport=fake.transport, token=fake.issue_token())
    with (
        httpx.Client(transport=fake.transport, base_url=fake.base_url) as client,
        pytest.raises(TypeError, match=r"AsyncSessionAuth needs an httpx\.AsyncClient.*SessionCli"),
    ):
        client.get("/v1/apps", auth=session.auth)
    assert fake.requests == []


async def test_auth_refuses_an_async_client() -> None:
    """The same the other way round."""
    fake = FakeKoyeb()
    session = SessionClient(transport=fake.transport, token=fake.issue_token())
    async with httpx.AsyncClient(transport=fake.transport, base_url=fake.base_url) as client:
        with pytest.raises(
            TypeError, match=r"SessionAuth needs an httpx\.Client.*AsyncSessionClient"
        ):
            await client.get("/v1/apps", auth=session.auth)
    assert fake.requests == []


# Reading


class Chunks(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A body of so many pieces, which counts those that were taken."""

    def __init__(self, pieces: int, *, gives_way: bool = True) -> None:
        self.pieces = pieces
        self.gives_way = gives_way
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces."""
        for _ in range(self.pieces):
            self.taken += 1
            yield b"piece"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces, as a connection does."""
        for _ in range(self.pieces):
            if self.gives_way:
                await anyio.lowlevel.checkpoint()
            self.taken += 1
            yield b"piece"


@pytest.mark.parametrize(
    ("pieces", "read", "taken"), [(0, 0, 0), (2, 10, 2), (3, 15, 3), (9, 15, 3)]
)
async def test_async_read_raw_stops_beyond_the_limit(pieces: int, read: int, taken: int) -> None:
    """As soon as there is too much, no more is read."""
    stream = Chunks(pieces)
    body = await async_read_raw(stream, 10)
    assert body == (b"piece" * pieces)[:read]
    assert stream.taken == taken


def test_async_read_raw_stops_where_nothing_gives_way() -> None:
    """A transport that never awaits cannot be cancelled, but is left soon."""

    async def main() -> tuple[int, int]:
        stream = Chunks(100, gives_way=False)
        body = await async_read_raw(stream, 10)
        return len(body), stream.taken

    assert asyncio.run(main()) == (15, 4)


@pytest.mark.parametrize(
    ("pieces", "read", "taken"), [(0, 0, 0), (2, 10, 2), (3, 15, 3), (9, 15, 3)]
)
def test_read_raw_stops_beyond_the_limit(pieces: int, read: int, taken: int) -> None:
    """As soon as there is too much, no more is read."""
    stream = Chunks(pieces)
    body = read_raw(stream, 10)
    assert body == (b"piece" * pieces)[:read]
    assert stream.taken == taken


def test_read_raw_ends_with_the_deadline() -> None:
    """A body that drips in on the user's own connections is read once more, and then left."""
    stream = Chunks(9)
    with time_limit(0), pytest.raises(httpx.ReadTimeout, match="too long"):
        read_raw(stream, 100)
    assert stream.taken == 2
    with time_limit(60):
        assert len(read_raw(Chunks(9), 100)) == 45


# The network


class Recorder(httpcore.NetworkBackend, httpcore.NetworkStream):
    """A backend and its stream, which note the timeouts that they are given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        """Note host, port, timeout and options."""
        self.calls.append(("connect", (*args, *kwargs.values())))
        return self

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Note the timeout."""
        self.calls.append(("read", timeout))
        return b"x" * max_bytes

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Note the timeout."""
        self.calls.append((f"write {buffer!r}", timeout))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Note the timeout."""
        self.calls.append((f"tls {server_hostname}", timeout))
        return self

    def close(self) -> None:
        """Note it."""
        self.calls.append(("close", None))

    def get_extra_info(self, info: str) -> Any:
        """Return the argument."""
        return info


def test_each_phase_may_take_what_is_left_of_the_deadline() -> None:
    """Connecting, TLS, reading and writing may each take only the remaining time."""
    recorder = Recorder()
    with time_limit(10):
        stream = deadline_network._Backend(recorder).connect_tcp("host", 443, 60.0, "local", [])
        stream = stream.start_tls(ssl.create_default_context(), "host", 60.0)
        assert stream.read(3, 60.0) == b"xxx"
        stream.write(b"y", 60.0)
        stream.read(1, 5.0)
        stream.read(1, None)
    assert stream.get_extra_info("socket") == "socket"
    stream.close()
    names = [name for name, _ in recorder.calls]
    assert names == ["connect", "tls host", "read", "write b'y'", "read", "read", "close"]
    host, port, connect, local, options = recorder.calls[0][1]
    assert (host, port, local, options) == ("host", 443, "local", [])
    for timeout in (connect, recorder.calls[1][1], recorder.calls[2][1], recorder.calls[3][1]):
        assert 9 < timeout <= 10
    assert recorder.calls[4][1] == 5.0
    assert 9 < recorder.calls[5][1] <= 10


def test_without_a_deadline_timeouts_are_what_they_are() -> None:
    """A block that sets none changes nothing, and one that has ended has ended."""
    recorder = Recorder()
    stream = deadline_network._Backend(recorder).connect_tcp("host", 80)
    assert recorder.calls == [("connect", ("host", 80, None, None, None))]
    with pytest.raises(KeyError), time_limit(1):
        raise KeyError
    stream.read(1, 7.0)
    stream.read(1)
    assert recorder.calls[1:] == [("read", 7.0), ("read", None)]


def test_a_passed_deadline_leaves_a_moment() -> None:
    """Nothing is left, but 0 would make the socket non-blocking."""
    recorder = Recorder()
    stream = deadline_network._Stream(recorder)
    with time_limit(-5):
        stream.read(1, 7.0)
    assert recorder.calls == [("read", 1e-6)]


def test_a_deadline_within_another_cannot_be_later() -> None:
    """The outer one holds; an inner one may be sooner."""
    recorder = Recorder()
    stream = deadline_network._Stream(recorder)
    with time_limit(5):
        with time_limit(60):
            stream.read(1)
        with time_limit(2):
            stream.read(1)
        stream.read(1)
    first, second, third = (timeout for _, timeout in recorder.calls)
    assert 4 < first <= 5
    assert 1 < second <= 2
    assert 4 < third <= 5
    assert ends.get() == math.inf


async def test_async_deadline_raises_when_it_is_over() -> None:
    """The async half bounds whatever is awaited."""
    with pytest.raises(TimeoutError), async_time_limit(0.001):
        await anyio.sleep_forever()


def test_transports_share_one_tls_context() -> None:
    """Reading the certificates takes 20 ms: once for the process is enough."""
    trusted, proxy = certificates(), httpx.URL("http://proxy:1")
    blocking: Any = http_transport(None, trusted)
    proxied: Any = http_transport(proxy, trusted)
    other: Any = async_http_transport(proxy, trusted)
    assert blocking._pool._ssl_context is other._pool._ssl_context is trusted.context()
    assert isinstance(blocking._pool._network_backend, deadline_network._Backend)
    assert isinstance(blocking._pool._network_backend._inner, httpcore.NetworkBackend)
    assert isinstance(proxied._pool, httpcore.HTTPProxy)
    assert isinstance(other._pool, httpcore.AsyncHTTPProxy)
    for transport in (blocking, proxied):
        transport.close()


def test_a_store_that_cannot_be_stopped_leaves_time_for_the_exchange() -> None:
    """It never answers, and its thread cannot be stopped: the refresh has its half of the time."""
    go = threading.Event()

    class Hanging(MemoryTokenStore):
        def load(self) -> Token | None:
            assert go.wait(PATIENCE)
            return super().load()

    fake = FakeKoyeb()
    with SessionClient(
        base_url=fake.base_url,
        transport=fake.transport,
        token=fake.issue_token(),
        store=Hanging(),
        timeout=2,
    ) as session:
        old = session.token
        renewed = session.refresh()
        assert renewed == session.token
        assert renewed != old
        assert session.http.get("/v1/apps").status_code == 200
        go.set()
    assert fake.exchanges() == 1


def test_an_exchange_that_all_share_is_not_cut_by_the_deadline_of_one() -> None:
    """A session may be another one's credentials, which has less time."""
    fake = FakeKoyeb()
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    with (
        SessionClient(transport=fake.transport, token=fake.issue_token()) as theirs,
        SessionClient(
            transport=fake.transport, credentials=theirs.refresh, timeout=0.02
        ) as session,
    ):
        old = theirs.token
        with pytest.raises(TransportTimeoutError):
            session.current_token()
        assert theirs.token is old
        gate.open()
        until(lambda: theirs.token is not old)
        assert theirs.token is not None
        assert fake.live_tokens() == [theirs.token.id]


def test_a_thread_that_comes_late_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another task has replaced it: its work would be done twice."""
    done: list[str] = []
    shared = SharedTask(lambda: done.append("late"), seconds=0.01)
    monkeypatch.setattr(time, "monotonic", lambda: math.inf)
    assert not shared.alive
    shared._run()
    assert done == []
    assert shared._done.is_set()
    assert not shared.succeeded


def test_an_operation_with_no_time_left_is_not_slept_for() -> None:
    """Inside of another session's credentials: the reply that there is counts."""
    fake = FakeKoyeb()
    fake.fail("login_method", Fault(status=429, headers={"Retry-After": "2"}))
    session = SessionClient(transport=fake.transport)
    with time_limit(0.05), pytest.raises(RateLimitedError):
        session.login_method("me@example.com")
    session.close()


def test_a_reply_that_is_complete_at_the_deadline_counts() -> None:
    """It may be the session's token."""

    class Late(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            ends.set(0.0)
            yield b"whole"
            yield b""  # the last frame of HTTP/2 may be an empty one

    with time_limit(60):
        assert read_raw(Late(), 100) == b"whole"


def test_the_waits_of_the_blocking_half_end_at_the_deadline() -> None:
    """Those of the other half are cancelled there."""
    lock = Lock()
    with time_limit(0), lock.held():
        with pytest.raises(TimeoutError):
            sleep(PATIENCE)
        with pytest.raises(TimeoutError), lock.held():
            raise AssertionError
        go = threading.Event()
        shared = SharedTask(lambda: go.wait(PATIENCE), seconds=PATIENCE)
        assert shared.join(PATIENCE) is None
        assert Event().wait(PATIENCE) is False
        go.set()
    with lock.held():
        pass
    sleep(0)
    assert async_sleep is anyio.sleep


async def test_async_lock_passes_over_those_who_have_gone() -> None:
    """A waiter whose event loop has ended, or that was cancelled, would never release it."""
    lock = AsyncLock()
    async with anyio.create_task_group() as tasks, lock.held():
        gone: Any = SimpleNamespace(wake=lambda: False)
        lock._queue.append(gone)

        async def wait() -> None:
            async with lock.held():
                raise AssertionError

        tasks.start_soon(wait)
        await async_until(lambda: len(lock._queue) == 2)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await async_until(lambda: len(lock._queue) == 1)
    async with lock.held():
        pass


def test_an_event_loop_that_has_ended_is_called_in_vain() -> None:
    """Trio says so by an error, as asyncio does between two looks."""

    def ended(_: object) -> None:
        raise RuntimeError

    assert not runtime.async_call_soon(SimpleNamespace(run_sync_soon=ended), int)


def test_shared_task_of_another_process_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork came between its making and its start."""
    shared = SharedTask(int)
    monkeypatch.setattr("koyeb_session._concurrency.threads.shared_task.current_process", object)
    shared.start()
    assert not shared._begun


def test_shared_task_whose_starter_was_interrupted_is_done_by_who_waits_for_its_end() -> None:
    """A signal handler raised before it was launched; catches work that is lost at the exit."""
    shared = SharedTask(lambda: 7)
    shared.wait_done(PATIENCE)
    assert shared.outcome == 7


def test_shared_task_that_is_started_once_more_after_its_end_is_forgotten_again() -> None:
    """Catches one that is listed for good, as its second starter came late."""
    active_tasks: set[SharedTask[Any]] = set()
    runs: list[int] = []
    shared = SharedTask(lambda: runs.append(1), active_tasks=active_tasks)
    shared.start()
    shared.wait_done(PATIENCE)
    shared._launched = False  # as the second one has seen it
    shared.start()
    until(lambda: shared not in shared_task._at_exit)
    assert not active_tasks
    assert runs == [1]


def test_runtime_error_of_a_handler_is_raised_when_it_comes_while_a_thread_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not count as the lack of a thread."""

    def handler(*_: object) -> None:
        raise RuntimeError("from a handler")

    monkeypatch.setattr("_thread.start_new_thread", handler)
    with pytest.raises(RuntimeError, match="from a handler"):
        launch(int)


def test_end_of_the_interpreter_waits_for_what_is_under_way() -> None:
    """It is told by `atexit`, and waits until the work should have ended."""
    go = threading.Event()
    shared = SharedTask(lambda: go.wait(PATIENCE), seconds=PATIENCE)
    shared.start()
    threading.Timer(0.01, go.set).start()
    shared_task._finish()
    assert shared.succeeded


def test_shared_task_that_has_to_be_alone_is_not_done_without_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would keep the thread that has to go on."""
    monkeypatch.setattr(shared_task, "launch", no_thread)
    shared = SharedTask(lambda: 1)
    shared.start(alone=True)
    assert not shared.alive
    assert shared.join(PATIENCE) is None
    other = SharedTask(lambda: 1)
    other.start()
    assert other.outcome == 1


def test_thread_that_cannot_have_another_one_does_the_work_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The main thread has begun one; as from Python 3.12 on when the main thread has ended."""

    def start(_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    done: Queue[int] = Queue()
    assert launch(lambda: done.put(threading.get_ident()))
    helper = done.get(timeout=PATIENCE)
    assert helper != threading.get_ident()


def test_thread_that_is_not_the_main_one_says_that_it_can_have_no_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then its caller does the work, or not."""
    monkeypatch.setattr("koyeb_session._concurrency.threads.launch._start", no_thread)
    with Background() as background:
        job = background.start(lambda: launch(int))
    assert job.result() is False


def test_main_thread_says_that_it_can_have_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many threads, or too little memory."""
    context = contextvars.copy_context()  # which raises that error when it is entered twice
    monkeypatch.setattr("_thread.start_new_thread", context.run)
    assert context.run(launch, int) is False


def test_shared_task_is_not_waited_for_in_its_own_thread() -> None:
    """A finalizer may ask for it there."""
    shared: SharedTask[object] = SharedTask(lambda: shared.join(PATIENCE), seconds=PATIENCE)
    shared.start()
    assert shared.join(PATIENCE) is None
    assert shared.succeeded
