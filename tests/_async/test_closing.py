"""A client as an object: its text, its copies, and its end, which awaits the work under way."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import httpx
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    ServerError,
    Token,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, AsyncBackground, async_arrived, async_pass_through, async_until
from ..support import DAY, ME, PASSWORD, held, inside
from .doubles import CALLS, AsyncUnderWay, Connect


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
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, client: httpx.AsyncClient
) -> None:
    """It is good: that the session closes is no reason to renew it once more."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store, http_client=client)
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
    assert fake.exchanges() == 0


@pytest.mark.parametrize("child", [False, True])
@pytest.mark.parametrize("name", [*CALLS, "current_token", "use_token", "keep_current"])
async def test_nothing_is_sent_after_close(
    fake: FakeKoyeb,
    session: AsyncSessionClient,
    client: httpx.AsyncClient,
    name: str,
    *,
    child: bool,
) -> None:
    """
    Use after close is a `RuntimeError` that says so, by any way; the token can still be read.

    A session from `for_token` lives no longer than the connections that it borrows.
    """
    user = session.for_token(fake.issue_token()) if child else session
    token = user.token
    arguments = CALLS.get(name, ("abc",) if name == "use_token" else ())
    uses = [partial(getattr(user, name), *arguments)]
    uses += [partial(user.http.get, "/v1/apps", auth=auth) for auth in (user.auth, None)]
    if not child:
        uses.append(partial(client.get, "/v1/apps", auth=user.auth))
    await session.aclose()
    for use in uses:
        with pytest.raises(RuntimeError, match="closed"):
            await use()
    assert fake.requests == []
    assert user.token is token is not None


async def test_sync_methods_raise_after_close(session: AsyncSessionClient) -> None:
    """Neither a block nor another session begins on a closed client."""
    async with session as entered:
        assert entered is session
    with pytest.raises(RuntimeError, match="closed"):
        async with session:
            pass
    with pytest.raises(RuntimeError, match="closed"):
        session.for_token("abc")


@pytest.mark.pitfall(20)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_client_cannot_be_copied(
    connect: Connect, copied: Callable[[object], object]
) -> None:
    """Two objects with one session would fork it."""
    with pytest.raises(TypeError, match="for_token"):
        copied(connect())


async def test_repr_tells_the_state_and_no_secret(clock: FakeClock, connect: Connect) -> None:
    """A person reads where the session stands."""
    session = connect()
    name = AsyncSessionClient.__name__
    assert repr(session) == f"<{name} https://app.koyeb.com: not signed in>"
    token = await session.login(ME, PASSWORD)
    wanted = f"<{name} https://app.koyeb.com: signed in as {token.user_id}, token good for 1 d 0 h>"
    assert repr(session) == wanted
    clock.advance(timedelta(hours=24))
    assert repr(session).endswith(f"the session as {token.user_id} has ended: token expired>")
    await session.aclose()
    assert repr(session) == f"<{name} https://app.koyeb.com: closed>"
    assert token.id not in repr(session)


class CountingTransport(httpx.AsyncBaseTransport):
    """Counts how often it is closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        """Count."""
        self.closed += 1


async def test_close_closes_the_transport_once(fake: FakeKoyeb, connect: Connect) -> None:
    """The transport that a client was given is closed with it, and with no child's close."""
    transport = CountingTransport()
    session = connect(transport=transport)
    child = session.for_token(fake.issue_token())
    assert session.http is session.http
    assert child.http.base_url == "https://app.koyeb.com"
    await child.aclose()
    assert transport.closed == 0
    for _ in range(2):
        await session.aclose()
        assert transport.closed == 1
    assert child.http.is_closed
    assert session.http.is_closed


async def test_close_leaves_the_users_client_open(
    connect: Connect, client: httpx.AsyncClient
) -> None:
    """A given ``http_client`` stays the user's to close."""
    session = connect(http_client=client)
    await session.login(ME, PASSWORD)
    await session.aclose()
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
    assert fake.live_tokens() == [held(session)] != [old.id]


async def test_a_client_that_was_never_closed_warns(url: str, clock: FakeClock) -> None:
    """Connections that are left open are told of, without a secret."""
    session = AsyncSessionClient(base_url=url, clock=clock)
    token = await session.login(ME, PASSWORD)
    for opened in (inside(session).opened, inside(session).operations_opened):
        for transport in opened.values():
            await transport.aclose()  # or the sockets warn, too
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del session
        gc.collect()
    (warning,) = caught
    assert warning.category is ResourceWarning
    assert str(warning.message).startswith(f"unclosed <{AsyncSessionClient.__name__} {url}: signed")
    assert token.id not in str(warning.message)


async def test_a_client_without_connections_does_not_warn(client: httpx.AsyncClient) -> None:
    """There is nothing to close in one that opened nothing, or was never made."""
    session = AsyncSessionClient(http_client=client)
    await session.login(ME, PASSWORD)
    session.for_token("abc")
    del session
    with pytest.raises(ValueError, match="timeout"):
        AsyncSessionClient(timeout=-1)
    gc.collect()


async def test_a_closed_client_does_not_warn(url: str, clock: FakeClock) -> None:
    """A client that was closed warns of nothing."""
    async with AsyncSessionClient(base_url=url, clock=clock) as session:
        await session.login(ME, PASSWORD)
        assert (await session.http.get("/v1/apps")).status_code == 200
        assert inside(session).connections.opened
    assert not inside(session).connections.opened
    del session
    gc.collect()


@pytest.mark.pitfall(36)
@pytest.mark.parametrize("child", [False, True])
@pytest.mark.parametrize(("operation", "hold"), [("logout", "request"), ("refresh", "reply")])
async def test_closing_waits_for_what_is_under_way(
    fake: FakeKoyeb, connect: Connect, operation: str, hold: str, *, child: bool
) -> None:
    """
    A sign-out is finished before the connections go, and no renewed token is lost.

    Catches a session of `for_token` that is forgotten when its parent closes.
    """
    parent = session = connect(token=None if child else fake.issue_token())
    if child:
        session = parent.for_token(fake.issue_token(), renew=True)
    call = getattr(session, operation)
    async with AsyncUnderWay(fake, operation, call, hold=hold) as background:
        closing = background.start(parent.aclose)
        await background.settled()
        assert not closing.done
        background.gate.open()
        await background.job.result()
        await closing.result()
    assert fake.live_tokens() == ([] if operation == "logout" else [held(session)])


async def test_no_session_begins_a_renewal_while_its_client_closes(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Catches a token that is exchanged on connections that are closed before the reply."""
    parent, gate = connect(), Gate()
    busy = parent.for_token(fake.issue_token())
    late = parent.for_token(fake.issue_token(), renew=True)
    fake.fail("logout", Fault(gate=gate))
    async with AsyncBackground() as background:
        leaving = background.start(busy.logout)
        await async_arrived(gate)
        closing = background.start(parent.aclose)
        await background.settled()
        for call in (late.refresh, late.current_token, partial(late.http.get, "/v1/apps")):
            with pytest.raises(RuntimeError, match="that this session was made by is closed"):
                await call()
        keeper = inside(late).keeper
        with pytest.raises(RuntimeError, match="is closed"):  # as if it had begun before
            await keeper.renew(inside(late).state.snapshot)
        gate.open()
        await leaving.result()
        await closing.result()
    assert fake.exchanges() == 0


async def test_auth_of_a_session_ends_with_the_client_that_made_it(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Also in the user's own httpx client, on connections that are open."""
    parent = connect()
    child = parent.for_token(fake.issue_token(), renew=True)
    async with httpx.AsyncClient(transport=fake.transport, auth=child.auth) as client:
        assert (await client.get(f"{fake.base_url}/v1/apps")).status_code == 200
        await parent.aclose()
        with pytest.raises(RuntimeError, match="is closed"):
            await client.get(f"{fake.base_url}/v1/apps")
    assert len(fake.requests) == 1


@pytest.mark.parametrize("operation", ["refresh", "logout"])
async def test_a_hook_may_close_the_client_in_the_midst_of_a_childs_work(
    fake: FakeKoyeb, connect: Connect, operation: str
) -> None:
    """The closing waits for that work; catches a hook that waits for the closing, and so for it."""
    closed: list[bool] = []

    async def close(response: httpx.Response) -> None:
        if response.request.url.path.endswith(operation):
            await parent.aclose()
            closed.append(True)

    async with httpx.AsyncClient(
        transport=fake.transport, event_hooks={"response": [close]}
    ) as client:
        parent = connect(http_client=client, timeout=PATIENCE)
        child = parent.for_token(fake.issue_token(), renew=True)
        await getattr(child, operation)()
        assert closed == [True]
        assert fake.live_tokens() == ([] if operation == "logout" else [held(child)])
        await parent.aclose()


@pytest.mark.parametrize("child", [False, True])
async def test_a_listener_may_close_the_client(
    fake: FakeKoyeb, connect: Connect, *, child: bool
) -> None:
    """Its own or the parent: nobody waits for it then, as it would wait for itself."""
    parent = connect(token=fake.issue_token(), timeout=3600)
    session = parent.for_token(fake.issue_token(), renew=True) if child else parent
    closed: list[bool] = []

    async def listener(_: Token | None) -> None:
        await parent.aclose()
        closed.append(True)

    session.on_token_change(listener)
    await session.refresh()
    await async_until(lambda: bool(closed))


@pytest.mark.pitfall(30)
@pytest.mark.parametrize("whose", ["its own", "a child's", "a guest's"])
async def test_closing_waits_for_a_listener(fake: FakeKoyeb, connect: Connect, whose: str) -> None:
    """It writes a token somewhere, which would be lost."""
    session = parent = connect()
    if whose == "a child's":
        session = parent.for_token(fake.issue_token(), renew=True)
    elif whose == "a guest's":
        session = parent.guest()
    gate = Gate()

    async def listener(_: Token | None) -> None:
        await async_pass_through(gate)

    session.on_token_change(listener)
    await session.login(ME, PASSWORD)
    async with AsyncBackground() as background:
        closing = background.start(parent.aclose)
        await async_arrived(gate)
        await background.settled()
        assert not closing.done
        gate.open()
        await closing.result()
