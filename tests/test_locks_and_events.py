"""Where code runs, and how tasks and threads wait for each other: events, wake-ups, locks."""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
import threading
import time
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from koyeb_session._concurrency import runtime
from koyeb_session._concurrency.event_loop.waiting import AsyncEvent, AsyncLock, AsyncWakeup
from koyeb_session._concurrency.runtime import current_loop, current_process, state_lock
from koyeb_session._concurrency.threads.waiting import Event, Lock, Wakeup

from .concurrency import PATIENCE, AsyncBackground, Background, async_gather, async_until, in_child
from .support import raising

# Places and the lock


async def look() -> object:
    """Give the running event loop."""
    return current_loop()


async def test_async_place_is_the_running_loop() -> None:
    """All tasks of a loop are in one place."""
    here = current_loop()
    assert all(place is here for place in await async_gather(look, look))


def test_async_place_is_another_one_in_another_loop() -> None:
    """Loops are told apart, asyncio's and trio's; without one there is no place."""
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
        assert all(in_child(lambda: runtime._lock.acquire(timeout=1)) for _ in range(5))
        stop.set()
    assert repr(runtime._lock).startswith("<unlocked ")


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


async def test_async_pulse_hears_a_beat_from_elsewhere() -> None:
    """A thread without an event loop, or with another one, wakes the sleeper."""
    wakeup = AsyncWakeup()

    async def elsewhere() -> None:
        wakeup.set()

    for beat in (wakeup.set, partial(asyncio.run, elsewhere())):
        await anyio.to_thread.run_sync(beat)
        await wakeup.sleep(60)
        assert not wakeup._event.is_set()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_pulse_of_an_event_loop_that_has_ended_does_nothing(backend: str) -> None:
    """A client may be closed later, in another event loop."""

    async def make() -> AsyncWakeup:
        return AsyncWakeup()

    wakeup = anyio.run(make, backend=backend)
    wakeup.set()
    assert not wakeup._event.is_set()


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
    async with AsyncBackground() as background:
        jobs = [background.start(event.wait) for _ in range(2)]
        await background.settled()
        assert not any(job.done for job in jobs)
        event.set()
        event.set()
        assert [await job.result() for job in jobs] == [True, True]
    assert await event.wait() is True
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

    await async_gather(*(partial(hold, number) for number in range(3)))
    assert order[::2] == order[1::2]
    with pytest.raises(KeyError):
        async with lock.held():
            raise KeyError
    await hold(3)


def _hold(lock: Lock) -> str:
    with lock.held():
        return "held"


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
    assert not runtime.async_call_soon(SimpleNamespace(run_sync_soon=raising(RuntimeError())), int)
