"""Sessions on a real Redis that restarts, hangs, forgets or is away."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from koyeb_session import AsyncSessionClient, RefreshPolicy
from koyeb_session.stores import AsyncRedisTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import async_arrived, async_until
from ..stores.conftest import RedisServer, redis_server
from ..stores.fleet import async_redis_client
from ..support import ME, PASSWORD, PASSWORDS, inside
from .doubles import Connect

__all__ = ["redis_server"]  # a fixture

KEY = "session"
WITHOUT_WAITS = RefreshPolicy(jitter=0, backoff=0.05, backoff_max=0.05)


@pytest.fixture
def clock() -> FakeClock:
    """Start at the real time, which is Redis's."""
    return FakeClock(datetime.now(UTC))


@pytest.fixture
def fake(clock: FakeClock) -> FakeKoyeb:
    """Make a service whose tokens live for an hour, and die when they are refreshed."""
    return FakeKoyeb(clock=clock, token_lifetime=timedelta(hours=1))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the store give up on a Redis that hangs sooner than it would."""
    waits: dict[str, Any] = AsyncRedisTokenStore.__init__.__globals__
    monkeypatch.setitem(waits, "_COMMAND_TIMEOUT", 0.5)


async def all_served(session: AsyncSessionClient) -> bool:
    """Make some requests, and tell whether the service answered them all."""
    replies = [await session.http.get("/v1/apps") for _ in range(20)]
    return {reply.status_code for reply in replies} == {200}


@pytest.mark.parametrize("fault", ["restart", "hang", "lose_data", "go_away"])
async def test_fault_in_mid_exchange_fails_no_request(
    redis_server: RedisServer, connect: Connect, fake: FakeKoyeb, clock: FakeClock, fault: str
) -> None:
    """While the token is good no request fails; when Redis is back, it is told of the new token."""
    async with async_redis_client(redis_server.port) as client:
        session = connect(store=AsyncRedisTokenStore(client, key=KEY), refresh_policy=WITHOUT_WAITS)
        first = await session.login(ME, PASSWORD)
        gate = Gate()
        fake.fail("refresh", Fault(gate=gate, hold="request"))
        clock.advance(timedelta(minutes=40))
        assert await all_served(session)  # and begins the exchange
        await async_arrived(gate)
        getattr(redis_server, fault)()
        gate.open()
        assert await all_served(session)
        await async_until(lambda: session.token != first)
        assert await all_served(session)
        await inside(session).keeper.drain()
        redis_server.come_back()
        await session.aclose()
    assert fake.exchanges() == 1
    async with async_redis_client(redis_server.port) as client:
        assert await AsyncRedisTokenStore(client, key=KEY).load() == session.token


async def test_fleet_that_renews_without_its_redis_signs_in_again(
    redis_server: RedisServer, connect: Connect, fake: FakeKoyeb, clock: FakeClock
) -> None:
    """Each member renews by itself, which a service that revokes grants one: credentials help."""
    arguments: dict[str, Any] = {"credentials": PASSWORDS, "refresh_policy": WITHOUT_WAITS}
    async with async_redis_client(redis_server.port) as client:

        def member() -> AsyncSessionClient:
            return connect(store=AsyncRedisTokenStore(client, key=KEY), **arguments)

        fleet = [member() for _ in range(3)]
        assert [await all_served(session) for session in fleet] == [True] * 3
        redis_server.go_away()
        clock.advance(timedelta(minutes=59, seconds=30))
        for _ in range(2):
            assert [await all_served(session) for session in fleet] == [True] * 3
        redis_server.come_back()
        for session in fleet:
            await session.aclose()
        fake.requests.clear()
        assert await all_served(member())
        assert {request.operation for request in fake.requests} == {"apps"}
