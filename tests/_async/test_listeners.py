"""Listeners for token changes: the tokens that they get, and that they can break nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from koyeb_session import AsyncSessionClient, Token
from koyeb_session._concurrency.event_loop.shared_task import AsyncSharedTask
from koyeb_session.testing import FakeClock, FakeKoyeb, Gate

from ..concurrency import AsyncBackground, async_arrived, async_idle, async_pass_through
from ..support import ME, PASSWORD, inside, operations, raising
from .doubles import Connect


async def test_a_listener_is_told_of_each_change_in_order(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Login, refresh, switch, adoption and logout are told after the change, one by one."""
    session = connect()
    heard: list[tuple[Token | None, Token | None]] = []
    session.on_token_change(lambda token: heard.append((token, session.token)))
    expected: list[Token | None] = [
        await session.login(ME, PASSWORD),
        await session.refresh(),
        await session.switch_organization(fake.organizations[ME][1]),
        await session.use_token(fake.issue_token()),
    ]
    await session.logout()
    await async_idle()
    assert heard == [(token, token) for token in (*expected, None)]


async def test_a_listener_hears_of_a_renewal_that_nobody_waited_for(
    clock: FakeClock, session: AsyncSessionClient
) -> None:
    """A change in the background is a change."""
    heard: list[Token | None] = []
    session.on_token_change(heard.append)
    clock.advance(timedelta(hours=12))
    await session.current_token()
    await async_idle()
    assert heard == [session.token]


async def test_an_unsubscribed_listener_hears_nothing(session: AsyncSessionClient) -> None:
    """Taking a listener away works once, and leaves alone the same one that was given again."""
    heard: list[Token | None] = []
    unsubscribe, _ = (session.on_token_change(heard.append) for _ in range(2))
    for told in (2, 3):
        await session.refresh()
        await async_idle()
        assert len(heard) == told
        unsubscribe()
        unsubscribe()


async def test_a_listener_that_raises_is_in_the_log(
    session: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are told all the same, and the session goes on."""
    heard: list[Token | None] = []
    session.on_token_change(raising(ValueError("broken listener")))
    session.on_token_change(heard.append)
    token = await session.refresh()
    await async_idle()
    assert heard == [token]
    assert session.token is token
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "a listener for token changes raised" in record.getMessage()
    assert "broken listener" in caplog.text


async def test_a_listener_may_take_itself_and_others_away(session: AsyncSessionClient) -> None:
    """A listener that unsubscribes while it is told disturbs nobody."""
    heard: list[str] = []
    taken: list[Callable[[], None]] = []

    def once(token: Token | None) -> None:
        heard.append("once")
        for unsubscribe in taken:
            unsubscribe()

    taken.append(session.on_token_change(once))
    taken.append(session.on_token_change(lambda _: heard.append("other")))
    for _ in range(2):
        await session.refresh()
    await async_idle()
    assert heard == ["once", "other"]


@pytest.mark.pitfall(5)
@pytest.mark.pitfall(16)
async def test_a_listener_may_use_the_session(fake: FakeKoyeb, connect: Connect) -> None:
    """A listener that changes the token is told of that afterwards, not inside of itself."""
    session = connect()
    heard: list[str] = []

    async def listener(token: Token | None) -> None:
        heard.append("begin")
        assert (await session.http.get("/v1/apps")).status_code == 200
        if len(heard) < 3:
            await session.refresh()
        heard.append("end")

    session.on_token_change(listener)
    await session.login(ME, PASSWORD)
    await async_idle()
    assert heard == ["begin", "end", "begin", "end"]
    assert operations(fake) == ["login", "apps", "refresh", "apps"]


@pytest.mark.parametrize("changes", [2, 101])
async def test_the_newest_changes_are_kept_while_a_listener_hangs(
    fake: FakeKoyeb, session: AsyncSessionClient, changes: int
) -> None:
    """
    They are delivered once each, to all listeners, by the task that delivers already.

    Their own tasks do not wait for a slow listener; the queue behind it has an end.
    """
    gate = Gate()
    heard: list[Token | None] = []
    others: list[Token | None] = []

    async def slow(token: Token | None) -> None:
        heard.append(token)
        await async_pass_through(gate)

    session.on_token_change(slow)
    session.on_token_change(others.append)
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await async_arrived(gate)
        missed = [await session.use_token(fake.issue_token()) for _ in range(changes - 1)]
        missed.append(await session.refresh())
        assert len(heard) == 1
        gate.open()
        first = await job.result()
    await async_idle()
    assert heard == others == [first, *missed[-100:]]


class Interrupted(KeyboardInterrupt):
    """Cuts off all that runs."""


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_a_telling_that_is_cut_off_frees_its_place_only(
    connect: Connect, *, elsewhere: bool
) -> None:
    """The next change tells the rest, unless somebody in another place has taken over."""
    session = connect()
    heard: list[Token | None] = []
    other = object()

    def listener(token: Token | None) -> None:
        heard.append(token)
        if elsewhere:
            listeners._teller = other
        raise Interrupted

    session.on_token_change(listener)
    listeners: Any = inside(session).listeners
    listeners.post(None)
    with pytest.raises(Interrupted):
        await listeners.tell()
    assert heard == [None]
    assert listeners._teller is (other if elsewhere else None)


async def test_a_session_without_listeners_starts_nothing(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login with neither listeners nor a store starts no task and no thread of its own."""
    started: list[object] = []
    start = vars(AsyncSharedTask)["start"]

    def begin(shared: AsyncSharedTask[object]) -> None:
        started.append(shared)
        start(shared)

    monkeypatch.setattr(AsyncSharedTask, "start", begin)
    session = connect()
    await session.login(ME, PASSWORD)
    assert started == []
    session.on_token_change(lambda _: None)
    await session.login(ME, PASSWORD)
    assert len(started) == 1
