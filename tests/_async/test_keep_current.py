"""`keep_current()`: tokens are renewed without requests."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from koyeb_session import AsyncSessionClient, RefreshPolicy
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..concurrency import AsyncBackground, AsyncJob, async_idle, async_until
from ..support import DAY, PASSWORDS, held, inside, log
from .doubles import AsyncBuggy, Connect, InterceptedStore, saved


@asynccontextmanager
async def keeping(session: AsyncSessionClient) -> AsyncGenerator[AsyncJob[None]]:
    """Keep a session current until it is closed, at the end of the block at the latest."""
    async with AsyncBackground() as background:
        job = background.start(session.keep_current)
        await async_until(lambda: inside(session).wakeups != ())
        await background.settled()
        yield job
        await session.aclose()
        await job.result()


@pytest.mark.pitfall(4)
async def test_keep_current_is_not_stopped_by_its_own_news(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Catches a timer that its own callback cancels before the store was written."""

    class Slow(InterceptedStore):
        async def intercept(self, call: str) -> None:
            await async_idle()

    store = Slow()
    session = connect(token=fake.issue_token(), store=store)
    async with keeping(session) as job:
        for cycle in range(1, 4):
            clock.advance(DAY / 2)
            inside(session).keeper.wake()
            await async_until(lambda: fake.exchanges() == cycle)  # noqa: B023 - used at once
            shared: Any = inside(session).task
            await async_until(lambda: not shared.alive)  # noqa: B023 - used at once
            assert await saved(store) == held(session)
        assert not job.done
    assert fake.exchanges() == 3


async def test_every_keep_current_ends_with_the_client(session: AsyncSessionClient) -> None:
    """Two tasks that keep the same session are one too many; each may end before the other."""
    keeper = inside(session).keeper
    running = [True]
    async with AsyncBackground() as background:
        first = background.start(partial(keeper.renew_ahead_of_need, lambda: running[0]))
        await async_until(lambda: len(inside(session).wakeups) == 1)
        jobs = [background.start(session.keep_current) for _ in range(2)]
        await async_until(lambda: len(inside(session).wakeups) == 3)
        others = inside(session).wakeups[1:]
        await background.settled()
        running[0] = False
        keeper.wake()
        await first.result()
        assert inside(session).wakeups == others
        await session.aclose()
        for job in jobs:
            await job.result()
    assert inside(session).wakeups == ()


async def test_keep_current_looks_again_when_the_session_changes(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """It waits for a token, and one that is due when it comes does not wait for the next look."""
    old = fake.issue_token()
    clock.advance(DAY - timedelta(hours=1))
    session = connect()
    async with keeping(session):
        await session.use_token(old)
        await async_until(lambda: held(session) != old)
    assert fake.exchanges() == 1


async def test_keep_current_goes_on_after_a_failure(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """A failure is in the log, and is tried again."""
    fake.fail("refresh", Fault(status=500))
    clock.advance(DAY / 2)
    async with keeping(session):
        await async_until(lambda: inside(session).state.failure is not None)
        assert log(fake) == [("refresh", 500)]
        clock.advance(3600)
        inside(session).keeper.wake()
        await async_until(lambda: fake.exchanges() == 1)


async def test_keep_current_goes_on_after_a_mistake(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the log, with its traceback."""
    text = "keep_current() goes on after an error that is not Koyeb's"
    async with keeping(connect(transport=AsyncBuggy(), credentials=PASSWORDS)):
        await async_until(lambda: text in caplog.messages)


@pytest.mark.parametrize(
    ("lifetime", "failures", "wanted"),
    [(86_400, 0, [60.0] * 4), (60, 0, [30.0] * 4), (60, 1, [30.0, 4.0, 30.0, 30.0])],
)
async def test_keep_current_sleeps_until_there_is_something_to_do(
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    lifetime: float,
    failures: int,
    wanted: list[float],
) -> None:
    """Until a renewal is due, or may be tried again; a minute at most, for the clocks' sake."""
    clock = FakeClock()
    slept: list[float] = []

    class Wakeup:
        """Sleeps by moving the clock."""

        def set(self) -> None:
            """Do nothing."""

        async def sleep(self, seconds: float) -> None:
            """Note how long, and end the session after the last one."""
            slept.append(seconds)
            clock.advance(seconds)
            if len(slept) == len(wanted):
                inside(session).state.close()

    fake = FakeKoyeb(clock=clock, token_lifetime=timedelta(seconds=lifetime))
    if failures:
        fake.fail("refresh", Fault(status=500), times=failures)
    session = connect(
        transport=fake.transport,
        clock=clock,
        token=fake.issue_token(),
        refresh_policy=RefreshPolicy(jitter=0, backoff=4, backoff_max=4),
    )
    monkeypatch.setattr(
        sys.modules[inside(session).keeper.__class__.__module__], "AsyncWakeup", Wakeup
    )
    monkeypatch.setattr("random.random", lambda: 0.0)
    await session.keep_current()
    assert slept == wanted


async def test_keep_current_of_a_child_ends_with_its_parent(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Its connections are closed, so it would find an error every time."""
    parent = connect()
    async with keeping(parent.for_token(fake.issue_token(), renew=True)) as job:
        await parent.aclose()
        await job.result()
