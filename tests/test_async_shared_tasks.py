"""Shared tasks of event loops: one piece of work that many wait for, and that no waiter owns."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from koyeb_session._concurrency.event_loop import shared_task as async_shared_task
from koyeb_session._concurrency.event_loop.shared_task import AsyncSharedTask

from .concurrency import PATIENCE, AsyncBackground, async_gather

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_async_shared_task_is_shared_by_all_who_wait() -> None:
    """The work runs once, in a task of its own; all get its result."""
    runs: list[str] = []

    async def work() -> str:
        runs.append(variable.get())
        await anyio.lowlevel.checkpoint()
        return "done"

    variable.set("copied")
    shared = AsyncSharedTask(work)
    assert (shared.outcome, shared.alive) == (None, True)
    follow = partial(shared.join, PATIENCE)
    assert await async_gather(follow, follow, shared.run) == ["done"] * 3
    assert runs == ["copied"]
    assert not shared.alive
    assert shared.outcome == "done"


async def test_async_shared_task_that_is_overdue_is_waited_for_by_who_has_time() -> None:
    """Work that its deadline does not end, as in a thread, may still come to something."""
    go = anyio.Event()

    async def work() -> int:
        await go.wait()
        return 7

    shared = AsyncSharedTask(work, seconds=0.001)
    shared.start()
    async with AsyncBackground() as background:
        first = background.start(partial(shared.join, PATIENCE))
        assert await shared.join(0.002) is None
        assert shared.alive
        late = background.start(partial(shared.join, PATIENCE))  # when it is overdue
        await anyio.lowlevel.checkpoint()
        go.set()
    assert [await first.result(), await late.result()] == [7, 7]


def test_those_who_wait_for_an_async_shared_task_share_one_timer(
    monkeypatch: pytest.MonkeyPatch,
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
        waiting = [asyncio.create_task(shared.join(PATIENCE)) for _ in range(1000)]
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


def test_async_shared_task_of_an_ended_loop_is_dead_and_keeps_nobody() -> None:
    """Closing a client in a later loop does not wait for tasks that died with an earlier one."""
    shared_tasks: list[AsyncSharedTask[None]] = []

    async def begin() -> None:
        shared_tasks.append(AsyncSharedTask(anyio.sleep_forever, seconds=60))
        shared_tasks[0].start()
        await anyio.lowlevel.checkpoint()
        assert shared_tasks[0].alive

    async def wait() -> None:
        assert not shared_tasks[0].alive
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
        for task in asyncio.all_tasks() - before:  # the timer
            task.cancel()
        assert await waiter == 1
        shared = AsyncSharedTask(work)
        shared.start()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        assert await shared.join(5) is None
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
