"""Callers that share an exchange on one event loop: cancelled ones, many, and those that block."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    RetryPolicy,
    Token,
    TransportError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from .concurrency import PATIENCE, async_arrived, async_idle
from .support import DAY, inside


@pytest.fixture
def arguments(fake: FakeKoyeb, clock: FakeClock) -> dict[str, Any]:
    """Make the arguments of a client of the service that waits for nothing in vain."""
    return {
        "transport": fake.transport,
        "clock": clock,
        "retry_policy": RetryPolicy(delay=0),
        "token": fake.issue_token(),
    }


@pytest.mark.pitfall(3)
@pytest.mark.parametrize("hold", ["request", "reply"])
async def test_a_cancelled_leader_loses_nothing(
    fake: FakeKoyeb, arguments: dict[str, Any], hold: Any
) -> None:
    """Catches a refresh in the caller's own task: cancelling it loses a token that was issued."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold=hold))
    store = AsyncMemoryTokenStore()
    tokens: list[Token] = []
    async with AsyncSessionClient(**arguments, store=store) as session:

        async def follow() -> None:
            tokens.append(await session.refresh())

        async with anyio.create_task_group() as followers:
            async with anyio.create_task_group() as leaders:
                leaders.start_soon(session.refresh)
                await async_arrived(gate)
                followers.start_soon(follow)
                followers.start_soon(follow)
                await async_idle()
                leaders.cancel_scope.cancel()
            assert not gate.is_open  # the leader has returned, the exchange has not
            gate.open()
        assert session.token is not None
        assert tokens == [session.token] * 2
        assert fake.live_tokens() == [session.token.id]
        assert await store.load() == session.token
    assert fake.exchanges() == 1


@pytest.mark.pitfall(3)
async def test_a_cancelled_follower_disturbs_nobody(
    fake: FakeKoyeb, arguments: dict[str, Any]
) -> None:
    """Catches ``await shared_task``: one cancelled waiter cancels the task for all."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    tokens: list[Token] = []
    async with AsyncSessionClient(**arguments) as session:

        async def lead() -> None:
            tokens.append(await session.refresh())

        async with anyio.create_task_group() as leaders:
            leaders.start_soon(lead)
            await async_arrived(gate)
            with anyio.move_on_after(0.01) as scope:
                await session.refresh()
            assert scope.cancelled_caught
            gate.open()
        assert tokens == [session.token]


@asynccontextmanager
async def probe() -> AsyncGenerator[list[float]]:
    """Measure how long the event loop is away at a time."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.monotonic()
        while True:
            await anyio.sleep(0.001)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        yield gaps
        tasks.cancel_scope.cancel()


@pytest.mark.pitfall(19)
async def test_a_provider_that_blocks_does_not_block_the_loop(
    fake: FakeKoyeb, arguments: dict[str, Any]
) -> None:
    """Catches ``token = credentials()`` on the loop: everybody stands still with the vault."""
    go = threading.Event()
    calls: list[None] = []

    def provider() -> str:
        calls.append(None)
        assert go.wait(PATIENCE)
        return fake.issue_token()

    arguments["token"] = None
    async with AsyncSessionClient(**arguments, credentials=provider) as session:
        async with probe() as gaps, anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(session.current_token)
            while len(gaps) < 20:  # noqa: ASYNC110 - the loop has to turn
                await anyio.sleep(0.001)
            assert calls == [None]
            go.set()
        assert session.token is not None
    assert calls == [None]
    assert fake.requests == []


@pytest.mark.pitfall(19)
async def test_waiters_cost_no_threads(
    fake: FakeKoyeb, clock: FakeClock, arguments: dict[str, Any]
) -> None:
    """Catches a thread for each waiter: 1,000 callers starve the pool."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    before = threading.active_count()
    async with AsyncSessionClient(**arguments) as session:
        clock.advance(DAY - timedelta(seconds=1))
        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(session.current_token)
            await async_arrived(gate)
            assert threading.active_count() <= before
            gate.open()
    assert fake.exchanges() == 1


@pytest.mark.pitfall(37)
@pytest.mark.blocks_loop
def test_a_store_that_two_event_loops_share_has_one_lock() -> None:
    """Two loops in two threads; catches a lock of each loop, which excludes nobody."""
    store = AsyncMemoryTokenStore()
    go = threading.Event()
    held = threading.Event()

    async def hold() -> None:
        async with store.lock():
            held.set()
            await anyio.to_thread.run_sync(go.wait, PATIENCE)

    async def want() -> bool:
        with anyio.move_on_after(0.05):
            async with store.lock():
                return True
        go.set()
        with anyio.fail_after(PATIENCE):
            async with store.lock():
                return False

    other = threading.Thread(target=anyio.run, args=[hold])
    other.start()
    assert held.wait(PATIENCE)
    try:
        assert anyio.run(want) is False
    finally:
        go.set()
        other.join(PATIENCE)


class Endless(httpx.AsyncBaseTransport):
    """A service that keeps its connection busy for ever: no single read takes long."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Never answer."""
        await anyio.sleep_forever()
        raise AssertionError


@pytest.mark.pitfall(3)
async def test_an_exchange_has_a_total_deadline(arguments: dict[str, Any]) -> None:
    """Catches an exchange that is bounded for each read only: cancelled by all, it runs on."""
    arguments["transport"] = Endless()
    async with AsyncSessionClient(**arguments, timeout=0.05) as session:
        with anyio.move_on_after(0) as scope:
            await session.refresh()
        assert scope.cancelled_caught
        shared = inside(session).task
        assert shared is not None
        assert isinstance(await shared.join(PATIENCE), TransportError)
        assert not shared.alive
