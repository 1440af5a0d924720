"""The life of a client: calls that are refused once it is closed, and work that a close awaits."""

# pyright: reportPossiblyUnboundVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# A loop over timeouts or moments runs at least once; lists of mixed facts are not typed twice.

from __future__ import annotations

import gc
import warnings
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import pytest

from koyeb_session import AsyncMemoryTokenStore, AsyncSessionClient, ServerError, Token
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, AsyncBackground, async_arrived, async_pass_through, async_until
from ..support import DAY, ME, PASSWORD, held, inside
from .doubles import AsyncUnderWay, Connect

# The store


async def test_a_refresh_that_fails_while_the_client_closes_fails(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """Closing does not make a success of a failed renewal."""
    async with AsyncUnderWay(fake, "refresh", session.refresh, status=500) as background:
        closing = background.start(session.aclose)
        await background.settled()
        background.gate.open()
        with pytest.raises(ServerError):
            await background.job.result()
        await closing.result()


async def test_closing_waits_for_a_refresh_that_may_take_longer(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """For its own deadline, and not for the client's timeout: it may have issued a token."""
    old = fake.issue_token()
    session = connect(token=old, timeout=0.02)
    fake.fail("refresh", Fault(latency=0.06))
    async with AsyncBackground() as background:
        job = background.start(partial(session.refresh, timeout=PATIENCE))
        await async_until(lambda: inside(session).task is not None)
        await session.aclose()
        assert fake.live_tokens() == [held(session)] != [old]
        assert await job.result() == session.token


async def test_closing_while_the_stores_token_is_taken_over_starts_no_exchange(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """It is good: that the session closes is no reason to renew it once more."""
    store = AsyncMemoryTokenStore()
    theirs = httpx.AsyncClient(transport=fake.transport)  # which stays open
    session = connect(token=fake.issue_token(), store=store, http_client=theirs)
    clock.advance(DAY - timedelta(hours=1))
    saved = await connect().login(ME, PASSWORD)
    await store.save(saved)
    clock.advance(timedelta(hours=1))
    async with AsyncBackground() as background:
        async with store.lock():
            job = background.start(session.current_token)
            await background.settled()
            closing = background.start(session.aclose)
            await background.settled()
        assert (await job.result()).id == saved.id
        await closing.result()
    await theirs.aclose()
    assert fake.exchanges() == 0


async def test_closing_waits_for_a_logout_under_way(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """The rest of a sign-out is finished before the connections go."""
    async with AsyncUnderWay(fake, "logout", session.logout, hold="request") as background:
        closing = background.start(session.aclose)
        await background.settled()
        assert not closing.done
        background.gate.open()
        await background.job.result()
        await closing.result()
    assert fake.live_tokens() == []


CALLS: dict[str, tuple[Any, ...]] = {
    "login": (ME, PASSWORD),
    "passwordless_login": (ME,),
    "refresh": (),
    "logout": (),
    "new_session": (),
    "switch_organization": ("a",),
    "unscope_organization_token": (),
    "create_access_token": ("a",),
    "login_method": (ME,),
    "current_token": (),
    "use_token": ("abc",),
    "keep_current": (),
}


# Life cycle


@pytest.mark.parametrize("name", CALLS)
async def test_nothing_is_sent_after_close(
    fake: FakeKoyeb, session: AsyncSessionClient, name: str
) -> None:
    """Use after close is a `RuntimeError` that says so."""
    await session.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await getattr(session, name)(*CALLS[name])
    with pytest.raises(RuntimeError, match="closed"):
        await session.http.get("/v1/apps")
    assert fake.requests == []


@pytest.mark.parametrize("name", CALLS)
async def test_nothing_is_sent_for_a_child_after_the_parent_is_closed(
    fake: FakeKoyeb, connect: Connect, name: str
) -> None:
    """A session from `for_token` lives no longer than the connections that it borrows."""
    session = connect()
    child = session.for_token(fake.issue_token())
    await session.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await getattr(child, name)(*CALLS[name])
    with pytest.raises(RuntimeError, match="closed"):
        await child.http.get("/v1/apps")
    assert fake.requests == []


async def test_sync_methods_raise_after_close(session: AsyncSessionClient) -> None:
    """Neither a block nor another session begins on a closed client."""
    async with session as entered:
        assert entered is session
    with pytest.raises(RuntimeError, match="closed"):
        async with session:
            pass
    with pytest.raises(RuntimeError, match="closed"):
        session.for_token("abc")


async def test_token_can_still_be_read_after_close(session: AsyncSessionClient) -> None:
    """Reading the known token is no use of the client."""
    token = session.token
    assert token is not None
    await session.aclose()
    assert session.token is token


async def test_auth_raises_after_close(
    fake: FakeKoyeb, session: AsyncSessionClient, client: httpx.AsyncClient
) -> None:
    """The hook does not sign with the token of a closed session, on whichever client."""
    auth = session.auth
    await session.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("/v1/apps", auth=auth)
    assert fake.requests == []


class CountingTransport(httpx.AsyncBaseTransport):
    """Counts how often it is closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        """Count."""
        self.closed += 1


async def test_close_closes_the_transport_once(connect: Connect) -> None:
    """The client closes the transport that it was given; closing twice is closing once."""
    transport = CountingTransport()
    session = connect(transport=transport)
    assert session.http is session.http
    for _ in range(2):
        await session.aclose()
        assert session.http.is_closed
        assert transport.closed == 1


async def test_close_of_a_child_closes_nothing_of_the_parent(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A session from `for_token` only borrows the connections."""
    transport = CountingTransport()
    child = connect(transport=transport).for_token(fake.issue_token())
    assert child.http.base_url == "https://app.koyeb.com"
    await child.aclose()
    assert transport.closed == 0
    assert child.http.is_closed


async def test_close_leaves_the_users_client_open(
    fake: FakeKoyeb, connect: Connect, client: httpx.AsyncClient
) -> None:
    """A given ``http_client`` stays the user's to close."""
    session = connect(http_client=client)
    await session.login(ME, PASSWORD)
    await session.aclose()
    assert not client.is_closed
    assert (await client.get("/v1/apps")).status_code == 401


@pytest.mark.pitfall(3)
async def test_close_waits_for_a_renewal_under_way(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """A token that the service has issued already is not lost to a close."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    clock.advance(timedelta(hours=12))
    old = await session.current_token()
    await async_arrived(gate)
    async with AsyncBackground() as background:
        closing = background.start(session.aclose)
        await background.settled()
        assert not closing.done
        gate.open()
        await closing.result()
    assert session.token is not None
    assert session.token is not old
    assert fake.live_tokens() == [session.token.id]
    with pytest.raises(RuntimeError, match="closed"):
        await session.current_token()


async def test_a_client_that_was_never_closed_warns(url: str, clock: FakeClock) -> None:
    """Connections that are left open are told of, without a secret."""
    session = AsyncSessionClient(base_url=url, clock=clock)
    token = await session.login(ME, PASSWORD)
    for opened in (inside(session).opened, inside(session).operations_opened):
        for transport in opened.values():
            await transport.aclose()  # or the sockets warn, too
    secret = token.id
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del session
        gc.collect()
    (warning,) = caught
    assert warning.category is ResourceWarning
    assert str(warning.message).startswith(f"unclosed <{AsyncSessionClient.__name__} {url}: signed")
    assert secret not in str(warning.message)


async def test_a_client_without_connections_does_not_warn(
    fake: FakeKoyeb, client: httpx.AsyncClient
) -> None:
    """There is nothing to close in one that opened nothing, or was never made."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = AsyncSessionClient(http_client=client)
        await session.login(ME, PASSWORD)
        session.for_token("abc")
        del session
        with pytest.raises(ValueError, match="timeout"):
            AsyncSessionClient(timeout=-1)
        gc.collect()


async def test_a_closed_client_does_not_warn(url: str, clock: FakeClock) -> None:
    """A client that was closed warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with AsyncSessionClient(base_url=url, clock=clock) as session:
            await session.login(ME, PASSWORD)
            assert (await session.http.get("/v1/apps")).status_code == 200
            assert inside(session).connections.opened
        assert not inside(session).connections.opened
        del session
        gc.collect()


# New sessions, and sessions that only look new


@pytest.mark.pitfall(36)
async def test_renewal_of_a_child_is_waited_for_when_its_parent_closes(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A session of `for_token` does not lose its token to the end of the other one."""
    parent = connect(token=fake.issue_token())
    child = parent.for_token(fake.issue_token(), renew=True)
    async with AsyncUnderWay(fake, "refresh", child.refresh) as background:
        closing = background.start(parent.aclose)
        await background.settled()
        assert not closing.done
        background.gate.open()
        assert (await background.job.result()).id == held(child)
        await closing.result()
    assert held(child) in fake.live_tokens()


async def test_a_listener_may_close_the_client(session: AsyncSessionClient) -> None:
    """Nobody waits for it then, as it would wait for itself."""
    closed: list[bool] = []

    async def listener(_: Token | None) -> None:
        await session.aclose()
        closed.append(True)

    session.on_token_change(listener)
    await session.refresh()
    await async_until(lambda: bool(closed))


async def test_closing_waits_for_a_listener(session: AsyncSessionClient) -> None:
    """It writes the token somewhere, and takes a while."""
    gate = Gate()

    async def listener(_: Token | None) -> None:
        await async_pass_through(gate)

    session.on_token_change(listener)
    await session.refresh()
    async with AsyncBackground() as background:
        closing = background.start(session.aclose)
        await async_arrived(gate)
        assert not closing.done
        gate.open()
        await closing.result()


async def test_listener_of_a_child_is_waited_for_when_its_parent_closes(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """It writes a token somewhere, which would be lost; so is that of a guest's sign-in."""
    parent = connect()
    gate = Gate()
    told: list[str] = []

    async def listener(_: Token | None) -> None:
        await async_pass_through(gate)
        told.append("to the end")

    for session in (parent.for_token(fake.issue_token(), renew=True), parent.guest()):
        session.on_token_change(listener)
        await session.login(ME, PASSWORD)
    async with AsyncBackground() as background:
        closing = background.start(parent.aclose)
        await async_arrived(gate, 2)
        await background.settled()
        assert not closing.done
        gate.open()
        await closing.result()
    assert told == ["to the end"] * 2


async def test_listener_of_a_child_may_close_the_parent(fake: FakeKoyeb, connect: Connect) -> None:
    """Nobody waits for it then, as it would wait for itself."""
    parent = connect(timeout=3600)
    child = parent.for_token(fake.issue_token(), renew=True)
    closed: list[bool] = []

    async def listener(_: Token | None) -> None:
        await parent.aclose()
        closed.append(True)

    child.on_token_change(listener)
    await child.refresh()
    await async_until(lambda: bool(closed))
