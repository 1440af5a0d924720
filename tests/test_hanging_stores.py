"""Stores that hang, and callers of the asynchronous half who do not wait for them."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

import anyio
import pytest

from koyeb_session import StoreError, Token, TransportTimeoutError
from koyeb_session._concurrency.event_loop.shared_task import AsyncSharedTask
from koyeb_session._concurrency.event_loop.waiting import AsyncEvent
from koyeb_session.testing import FakeClock, FakeKoyeb, Gate

from ._async.doubles import Grants, Troubled
from .concurrency import PATIENCE, async_idle, deadlines
from .support import ME, PASSWORD, connected


def hanging(*calls: str) -> tuple[Troubled, Gate]:
    """Make a store whose calls of some kinds do not return until the gate opens."""
    store, mended = Troubled(), Gate()
    store.gates = dict.fromkeys(calls, mended)
    return store, mended


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all waiters give up once no task can run, as if their time had passed."""

    async def wait(event: AsyncEvent, seconds: float = math.inf) -> bool:
        assert seconds > 0  # no caller has used up another one's share
        await async_idle()
        return event.is_set()

    async def land(shared: AsyncSharedTask[Any], timeout: float | None = None) -> None:
        # Waiters for a store run in a shared task themselves.
        for _ in itertools.count() if timeout is None else range(10):
            await async_idle()
            if not shared.alive:
                return

    monkeypatch.setattr(AsyncEvent, "wait", wait)
    monkeypatch.setattr(AsyncSharedTask, "wait", land)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("hangs", ["lock", "load", "save"])
async def test_a_login_does_not_wait_for_a_store_that_hangs(
    caplog: pytest.LogCaptureFixture, hangs: str
) -> None:
    """The session goes on in memory; once the store answers, it has the token after all."""
    clock = FakeClock()
    store, mended = hanging(hangs)
    async with connected(FakeKoyeb(clock=clock), clock, store=store) as session:
        token = await session.login(ME, PASSWORD)
        assert session.token == token
        assert caplog.messages[-1].startswith("the new token is kept in memory only: ")
        mended.open()
    assert await store.load() == token


async def test_a_login_waits_no_longer_than_asked_for_a_store_that_hangs() -> None:
    """Its own timeout is for the store, too; the client's, of a minute, is not waited for."""
    clock = FakeClock()
    store, mended = hanging("save")
    async with connected(FakeKoyeb(clock=clock), clock, timeout=60, store=store) as session:
        for seconds in deadlines(lambda: session.token is not None):
            with anyio.fail_after(PATIENCE), contextlib.suppress(TransportTimeoutError):
                assert await session.login(ME, PASSWORD, timeout=seconds) == session.token
        mended.open()  # closing waits for the work under way
    assert await store.load() == session.token is not None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "hangs", [("lock",), ("load",), ("delete",), ("lock", "load"), ("lock", "delete")]
)
async def test_a_store_that_hangs_does_not_keep_a_logout_from_the_service(
    fake: FakeKoyeb, clock: FakeClock, hangs: tuple[str, ...]
) -> None:
    """Neither its lock nor its deletion takes all of the time; the log says what may be left."""
    store, mended = hanging(*hangs)
    async with connected(fake, clock, token=fake.issue_token(), store=store) as session:
        if "delete" not in hangs:  # it is emptied without the lock
            await session.logout()
        else:
            with pytest.raises(StoreError, match="could not be emptied"):
                await session.logout()
        assert session.token is None
        assert fake.live_tokens() == []
        mended.open()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("hangs", ["load", "save"])
async def test_a_store_that_hangs_leaves_time_for_the_exchange(
    fake: FakeKoyeb, clock: FakeClock, hangs: str
) -> None:
    """No other process holds its lock, so the token is refreshed without it."""
    old = fake.issue_token()
    store, mended = hanging(hangs)
    async with connected(fake, clock, token=old, store=store) as session:
        assert (await session.refresh()).id != old
        assert fake.live_tokens() == [session.token.id]
        assert (await session.http.get("/v1/apps")).status_code == 200
        mended.open()
    assert await store.load() == session.token


@pytest.mark.usefixtures("impatient")
async def test_a_store_whose_lock_is_not_had_keeps_a_good_token_from_an_exchange(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """The holder of the lock may refresh the same token, and two refreshes may cost the session."""
    store, mended = hanging("lock")
    async with connected(fake, clock, token=fake.issue_token(), store=store) as session:
        with pytest.raises(StoreError, match="could not be locked in time"):
            await session.refresh()
        assert fake.requests == []
        assert (await session.http.get("/v1/apps")).status_code == 200
        mended.open()


@pytest.mark.parametrize("rotates", [False, True])
async def test_a_caller_gets_the_token_that_came_though_the_store_is_still_waited_for(
    fake: FakeKoyeb, clock: FakeClock, *, rotates: bool
) -> None:
    """At the end of its time, not the news that nothing was renewed."""
    store, mended = hanging("save")
    source: dict[str, Any] = (
        {"credentials": Grants(fake)} if rotates else {"token": fake.issue_token()}
    )
    async with connected(fake, clock, store=store, timeout=1, **source) as session:
        old = session.token
        renewed: list[Token] = []
        for seconds in deadlines(lambda: renewed):
            with contextlib.suppress(TransportTimeoutError):
                renewed.append(await session.refresh(timeout=seconds))
        assert renewed == [session.token] != [old]
        mended.open()
