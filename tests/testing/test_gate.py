"""The gate that holds replies back."""

from __future__ import annotations

import asyncio

import anyio
import anyio.to_thread
import pytest

from koyeb_session.testing import Gate

from ..concurrency import AsyncBackground, async_idle


def test_open_gate_lets_through() -> None:
    """A request at an open gate is counted and not held."""
    gate = Gate()
    assert repr(gate) == "<Gate closed, 0 arrived>"
    gate.open()
    gate.pass_through()
    assert (gate.is_open, gate.arrived) == (True, 1)
    assert repr(gate) == "<Gate open, 1 arrived>"


def test_closed_gate_ends_patience() -> None:
    """A wait of limited time at a closed gate ends with a timeout."""
    with pytest.raises(TimeoutError):
        Gate().pass_through(timeout=0.001)


def test_wait_arrived_says_how_many_came() -> None:
    """When fewer arrive than expected, the error tells how many did."""
    gate = Gate()
    gate.open()
    gate.pass_through()
    with pytest.raises(TimeoutError, match=r"1 of 2 arrived at the gate within 0\.001 s"):
        gate.wait_arrived(2, timeout=0.001)


async def test_await_arrived_says_how_many_came() -> None:
    """The awaiting twin gives the same error."""
    with pytest.raises(TimeoutError, match=r"0 of 1 arrived at the gate within 0\.001 s"):
        await Gate().await_arrived(timeout=0.001)


async def test_gate_holds_threads_and_tasks_until_it_opens() -> None:
    """A task is told about each arrival, be it in a thread; a thread can open the gate for all."""
    gate = Gate()
    async with AsyncBackground() as background:
        calls = [gate.apass_through, lambda: anyio.to_thread.run_sync(gate.pass_through)]
        jobs = [background.start(call) for call in calls * 2]
        await gate.await_arrived(4)
        await async_idle()
        assert not any(job.done for job in jobs)
        await anyio.to_thread.run_sync(gate.open)
    assert all(job.done for job in jobs)


async def test_cancelled_task_leaves_the_gate() -> None:
    """A task that is cancelled at the gate goes at once, and the gate still works."""
    gate = Gate()
    with anyio.move_on_after(0):
        await gate.apass_through()
    gate.open()
    await gate.apass_through()
    assert gate.arrived == 2


def test_dead_loop_does_not_hinder_opening() -> None:
    """A loop that was closed under a waiting task is no obstacle for anybody else."""
    gate = Gate()
    loop = asyncio.new_event_loop()
    waiting = gate.apass_through()
    task = loop.create_task(waiting)
    loop.run_until_complete(asyncio.wait([task], timeout=0))
    task.get_loop().close()
    gate.open()
    assert gate.is_open
    # Ended by hand: no loop is left to do it, and a pending task would warn.
    waiting.close()
    task.cancelled()
