"""Several lifespans of one `KoyebSessions`, and the end of each of them."""

from __future__ import annotations

import threading
from functools import partial

import anyio
import anyio.from_thread
import pytest

from koyeb_session import Token
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, async_until
from ..support import PASSWORDS
from .conftest import BOTH_LOOPS

anyio_backend = BOTH_LOOPS


@pytest.fixture
def sessions(fake: FakeKoyeb, clock: FakeClock) -> KoyebSessions:
    """Configure sessions on a service."""
    return KoyebSessions(transport=fake.transport, credentials=PASSWORDS, clock=clock)


def reached(events: list[anyio.Event], number: int) -> bool:
    """Return whether so many have come."""
    return len(events) == number


async def test_sessions_close_with_the_last_of_their_lifespans(sessions: KoyebSessions) -> None:
    """Catches a server that ends the sessions of another one, which has begun after it."""
    ends = [anyio.Event(), anyio.Event()]
    begun: list[anyio.Event] = []
    ended: list[anyio.Event] = []

    async def serve(end: anyio.Event) -> None:
        async with sessions.lifespan():
            begun.append(end)
            await end.wait()
        ended.append(end)

    async with anyio.create_task_group() as tasks:
        for end in ends:
            tasks.start_soon(serve, end)
        await async_until(lambda: len(begun) == len(ends))
        service, blocking = await sessions.service(), await sessions.service_sync()
        for number, end in enumerate(begun, 1):
            assert await sessions.service() is service
            await service.refresh()
            await anyio.to_thread.run_sync(blocking.refresh)
            end.set()
            await async_until(partial(reached, ended, number))
        with pytest.raises(RuntimeError, match="not running"):
            await sessions.service()
        with pytest.raises(RuntimeError, match="closed"):
            await service.refresh()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_each_event_loop_has_sessions_of_its_own(sessions: KoyebSessions, backend: str) -> None:
    """Two test clients at a time: the end of the first leaves the second as it is."""
    portal = anyio.from_thread.start_blocking_portal
    with portal(backend) as first, portal(backend) as second:
        lives = [it.wrap_async_context_manager(sessions.lifespan()) for it in (first, second)]
        for life in lives:
            life.__enter__()
        services = [it.call(sessions.service) for it in (first, second)]
        assert services[0] is not services[1]
        assert repr(services[1]) in repr(sessions)  # this thread has none of its own
        first.call(services[0].refresh)
        assert lives[0].__exit__(None, None, None) is not True
        assert second.call(sessions.service) is services[1]
        second.call(services[1].refresh)
        second.call(sessions.service_sync).close()
        lives[1].__exit__(None, None, None)
    assert repr(sessions) == "<KoyebSessions: not running>"


async def test_listener_of_the_sync_session_is_told_of_the_last_change(
    sessions: KoyebSessions, fake: FakeKoyeb
) -> None:
    """A renewal under way at the end of the application is delivered to all listeners."""
    gate = Gate()
    heard: list[Token | None] = []
    life = sessions.lifespan()
    await life.__aenter__()
    service, blocking = await sessions.service(), await sessions.service_sync()
    old = await service.current_token()
    blocking.on_token_change(heard.append)
    fake.fail("refresh", Fault(gate=gate))
    thread = threading.Thread(target=blocking.refresh)
    thread.start()
    await gate.await_arrived()

    async def open_later() -> None:
        await async_until(lambda: "closed" in repr(service))
        gate.open()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_later)
        await life.__aexit__(None, None, None)
    await anyio.to_thread.run_sync(thread.join, PATIENCE)
    assert heard == [service.token]
    assert service.token != old
