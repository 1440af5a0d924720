"""
What token-keeping clients get wrong, pitfall after pitfall, and the naive code that each kills.

What has to do with cancellation, event loops, threads, forks and imports is in
``test_pitfalls_edges.py``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
import pickle
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import httpx
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    EndpointGoneError,
    InvalidCredentialsError,
    KoyebSessionError,
    NotSignedInError,
    PasswordCredentials,
    RateLimitedError,
    RefreshPolicy,
    ServerError,
    SessionExpiredError,
    Token,
    WireError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate, assert_no_secret

from ..concurrency import (
    AsyncBackground,
    async_advance,
    async_arrived,
    async_gather,
    async_idle,
    async_until,
    deadlines,
)

ME = "me@example.com"
PASSWORD = "correct horse"
DAY = timedelta(hours=24)
Connect = Callable[..., AsyncSessionClient]


def count(fake: FakeKoyeb, operation: str) -> int:
    """Tell how many requests for an operation the service has received."""
    return sum(request.operation == operation for request in fake.requests)


def held(session: AsyncSessionClient) -> str:
    """Give the id of the token that a session holds."""
    assert session.token is not None
    return session.token.id


# 1: a stampede reuses a rotated token


async def test_pitfall_01_a_stampede_makes_one_exchange(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills ``if expired: await refresh()`` without a flight: 100 exchanges, and reuse detected."""
    session = connect(token=fake.issue_token())
    clock.advance(DAY - timedelta(seconds=1))
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        jobs = [background.start(lambda: session.http.get("/v1/apps")) for _ in range(100)]
        await async_arrived(gate)
        await background.settled()
        gate.open()
        assert [(await job.result()).status_code for job in jobs] == [200] * 100
    assert fake.exchanges() == count(fake, "refresh") == 1
    assert fake.live_tokens() == [held(session)]


async def test_pitfall_01_staggered_arrivals_join_the_flight(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a lock around the refresh without a second look: all waiters refresh in turn."""
    session = connect(token=fake.issue_token())
    clock.advance(DAY - timedelta(seconds=1))
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        jobs = [background.start(lambda: session.http.get("/v1/apps"))]
        await async_arrived(gate)
        for _ in range(3):
            jobs += [background.start(lambda: session.http.get("/v1/apps")) for _ in range(5)]
            jobs.append(background.start(lambda: session.http.post("/v1/apps", json={})))
            await background.settled()
        assert count(fake, "apps") == 0
        gate.open()
        assert {(await job.result()).status_code for job in jobs} == {200}
    assert fake.exchanges() == 1


async def test_pitfall_01_a_token_is_never_exchanged_twice(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Kills a caller that exchanges the snapshot that it has seen, though the session moved on."""
    session = connect(token=fake.issue_token())
    seen = session._state.snapshot
    assert seen is not None
    new = await session.refresh()
    outcome = await session._keeper.renew(seen)
    assert outcome is session._state.snapshot
    assert fake.exchanges() == 1
    assert fake.live_tokens() == [new.id]


# 2: a lock is held across a yield of an auth flow


async def test_pitfall_02_a_parked_flow_keeps_nobody_waiting(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a lock held over ``yield request``: the second flow waits for the first response."""
    session = connect(token=fake.issue_token())
    clock.advance(DAY - timedelta(seconds=1))
    parked = session.auth.async_auth_flow(httpx.Request("GET", "https://app.koyeb.com/v1/apps"))
    first = await async_advance(parked)
    flow = session.auth.async_auth_flow(httpx.Request("GET", "https://app.koyeb.com/v1/apps"))
    second = await async_advance(flow)
    assert first is not None
    assert second is not None
    assert first.headers["authorization"] == second.headers["authorization"]
    assert await async_advance(flow, httpx.Response(200, request=second)) is None
    assert await async_advance(parked, httpx.Response(200, request=first)) is None
    assert fake.exchanges() == 1


async def test_pitfall_02_flows_parked_at_their_replay_keep_nobody_waiting(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Kills a lock held from the 401 to the end of the replay."""
    session = connect(token=fake.issue_token())
    flows: list[tuple[Any, httpx.Request]] = []
    for _ in range(3):
        flow = session.auth.async_auth_flow(httpx.Request("GET", "https://app.koyeb.com/v1/apps"))
        request = await async_advance(flow)
        assert request is not None
        flows.append((flow, request))
    replays: list[tuple[Any, httpx.Request]] = []
    for flow, request in flows:
        replay = await async_advance(flow, httpx.Response(401, request=request))
        assert replay is not None
        replays.append((flow, replay))
    assert {replay.headers["authorization"] for _, replay in replays} == {f"Bearer {held(session)}"}
    assert fake.exchanges() == 1
    for flow, replay in replays:
        assert await async_advance(flow, httpx.Response(200, request=replay)) is None


async def test_pitfall_02_an_abandoned_flow_leaves_nothing_behind(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a lock that only the end of a flow lets go: dropped flows deadlock the session."""
    session = connect(token=fake.issue_token())
    clock.advance(DAY - timedelta(seconds=1))
    flow = session.auth.async_auth_flow(httpx.Request("GET", "https://app.koyeb.com/v1/apps"))
    await async_advance(flow)
    await flow.aclose()
    other = session.auth.async_auth_flow(httpx.Request("GET", "https://app.koyeb.com/v1/apps"))
    request = await async_advance(other)
    assert request is not None
    await async_advance(other, httpx.Response(401, request=request))
    await other.aclose()
    del flow, other
    gc.collect()
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert (await session.refresh()).id == held(session)


# 3: a rotation is lost


async def test_pitfall_03_a_close_does_not_lose_a_rotation(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a close that aborts the refresh in flight: a token was minted, and nobody has it."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store)
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    clock.advance(DAY / 2)
    await session.current_token()
    await async_arrived(gate)
    async with AsyncBackground() as background:
        closing = background.start(session.aclose)
        await background.settled()
        assert not closing.done
        gate.open()
        await closing.result()
    assert fake.live_tokens() == [held(session)]
    saved = await store.load()
    assert saved is not None
    assert saved.id == held(session)


async def test_pitfall_03_a_lost_reply_is_probed_and_not_repeated(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a retry of a timed-out PUT: a service that detects reuse ends the whole family."""
    session = connect(token=fake.issue_token(), refresh_policy=RefreshPolicy(backoff=0))
    fake.fail("refresh", Fault(reset=True, processed=True))
    clock.advance(DAY - timedelta(seconds=30))
    with pytest.raises(SessionExpiredError):
        await session.http.get("/v1/apps")
    operations = [request.operation for request in fake.requests]
    assert operations == ["refresh", "apps", "refresh"]


# 4: the background refresher cancels itself


async def test_pitfall_04_the_keeper_in_the_background_does_not_trip_itself_up(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a timer that is cancelled from its own callback before the store was written."""

    class Slow(AsyncMemoryTokenStore):
        async def load(self) -> Token | None:
            await async_idle()
            return await super().load()

        async def save(self, token: Token) -> None:
            await async_idle()
            await super().save(token)

    store = Slow()
    session = connect(token=fake.issue_token(), store=store)
    async with AsyncBackground() as background:
        job = background.start(session.keep_current)
        await async_until(lambda: session._keeper._wakeups != ())
        for cycle in range(1, 4):
            clock.advance(DAY / 2)
            session._keeper.wake()
            await async_until(lambda: fake.exchanges() == cycle)  # noqa: B023 - used at once
            shared: Any = session._keeper._task
            await async_until(lambda: not shared.alive)  # noqa: B023 - used at once
            saved = await store.load()
            assert saved is not None
            assert saved.id == held(session)
        assert not job.done
        await session.aclose()
        await job.result()
    assert fake.exchanges() == 3


# 5: a successful refresh is thrown away afterwards


@pytest.mark.parametrize("later", ["listener", "save", "unlock"])
async def test_pitfall_05_what_fails_after_the_exchange_does_not_undo_it(
    fake: FakeKoyeb, connect: Connect, later: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Kills a ``try`` around exchange, save and callbacks whose ``except`` drops the session."""

    def broken(what: str) -> None:
        if what == later:
            message = f"{what} is broken"
            raise OSError(message)

    class Broken(AsyncMemoryTokenStore):
        async def save(self, token: Token) -> None:
            broken("save")
            await super().save(token)

        @contextlib.asynccontextmanager
        async def locked(self) -> AsyncGenerator[None]:
            async with super().lock():
                yield
            broken("unlock")

        def lock(self) -> AbstractAsyncContextManager[None]:
            return self.locked()

    session = connect(token=fake.issue_token(), store=Broken())
    session.on_token_change(lambda _: broken("listener"))
    token = await session.refresh()
    await async_idle()
    assert session.token is token
    assert fake.live_tokens() == [token.id]
    assert count(fake, "refresh") == 1
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert caplog.records


# 6: a failed refresh breaks requests while the token is still good


@pytest.mark.parametrize(
    ("fault", "timeout"),
    [
        *((Fault(status=503), 10), (Fault(status=429), 10)),
        *((Fault(body="{"), 10), (Fault(reset=True), 10)),
        (Fault(gate=Gate(), hold="request"), 0.05),
    ],
)
async def test_pitfall_06_a_failed_renewal_breaks_nothing_while_the_token_is_good(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, fault: Fault, timeout: float
) -> None:
    """Kills ``token = await refresh()`` without a fallback: a blip of the service is an outage."""
    policy = RefreshPolicy(jitter=0, backoff=4, backoff_max=4)
    session = connect(token=fake.issue_token(), refresh_policy=policy, timeout=timeout)
    fake.fail("refresh", fault, times=100)
    clock.advance(DAY - timedelta(seconds=60))
    before = count(fake, "refresh")
    for _ in range(20):
        assert (await session.http.get("/v1/apps")).status_code == 200
    first = count(fake, "refresh") - before
    assert first <= 3
    clock.advance(4)
    assert (await session.http.get("/v1/apps")).status_code == 200
    # A short deadline may pass before the first one is sent.
    assert count(fake, "refresh") - before <= 2 * max(first, 1)
    clock.advance(56)
    with pytest.raises(SessionExpiredError) as caught:
        await session.http.get("/v1/apps")
    assert isinstance(caught.value.__cause__, KoyebSessionError)


# 7: a cool-down hands out an expired token


async def test_pitfall_07_a_back_off_never_hands_out_an_expired_token(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a cool-down that returns the old token unseen: expired bearers go out for minutes."""
    session = connect(token=fake.issue_token(), refresh_policy=RefreshPolicy(jitter=0, backoff=60))
    fake.fail("refresh", Fault(status=500), times=100)
    clock.advance(DAY - timedelta(seconds=20))
    assert (await session.http.get("/v1/apps")).status_code == 200
    clock.advance(20)
    fake.requests.clear()
    for _ in range(5):
        with pytest.raises(SessionExpiredError, match="20 s ago") as caught:
            await session.http.get("/v1/apps")
        assert isinstance(caught.value.__cause__, ServerError)
    assert fake.requests == []


# 8: the window is longer than the lifetime


@pytest.mark.parametrize("seconds", [1, 5, 30, 300, 3600, 86_400])
@pytest.mark.parametrize("window", [0, 60, 3600, 12 * 3600, None, timedelta(0), timedelta(days=9)])
async def test_pitfall_08_windows_give_way_to_the_lifetime(
    clock: FakeClock, connect: Connect, seconds: float, window: Any
) -> None:
    """Kills ``expires_at - window < now`` with short tokens: a refresh at every request."""
    fake = FakeKoyeb(clock=clock, token_lifetime=timedelta(seconds=seconds))
    policy = RefreshPolicy(soft_window=window, hard_window=window)
    session = connect(
        transport=fake.transport,
        refresh_policy=policy,
        credentials=PasswordCredentials(ME, PASSWORD),
    )
    for _ in range(40):
        assert (await session.http.get("/v1/apps")).status_code == 200
        await async_idle()
        clock.advance(seconds / 20)
    exchanges = fake.exchanges() + count(fake, "login")
    assert 2 <= exchanges <= 5
    assert count(fake, "refresh") == fake.exchanges()


async def test_pitfall_08_nothing_and_no_window_are_different(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills ``window or DEFAULT``: ``0`` asks for no window, `None` for a share of the lifetime."""
    for none in (0, 0.0, timedelta(0)):
        policy = RefreshPolicy(soft_window=none, hard_window=none)
        session = connect(token=fake.issue_token(), refresh_policy=policy)
        clock.advance(DAY - timedelta(seconds=1))
        await session.current_token()
        await async_idle()
    assert fake.exchanges() == 0
    policy = RefreshPolicy(soft_window=None, hard_window=None, jitter=0)
    session = connect(token=fake.issue_token(), refresh_policy=policy)
    clock.advance(DAY * 9 / 10)
    await session.current_token()
    assert fake.exchanges() == 1


# 9: a late 401 kills the fresh token; a permanent one loops


async def test_pitfall_09_late_refusals_do_not_renew_again(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Kills ``if status == 401: await refresh()``: each late 401 kills a fresh token."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("apps", Fault(gate=gate, hold="request"), times=50)
    async with AsyncBackground() as background:
        jobs = [background.start(lambda: session.http.get("/v1/apps")) for _ in range(50)]
        await async_arrived(gate, 50)
        await session.refresh()
        gate.open()
        assert [(await job.result()).status_code for job in jobs] == [200] * 50
    assert fake.exchanges() == 1
    assert count(fake, "apps") == 100


async def test_pitfall_09_a_permanent_refusal_does_not_loop(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Kills a retry loop, and a client that forgets: 2 requests and 1 exchange, then 1 and 0."""
    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=401), times=100)
    assert (await session.http.get("/v1/apps")).status_code == 401
    assert (count(fake, "apps"), count(fake, "refresh")) == (2, 1)
    for _ in range(3):
        assert (await session.http.get("/v1/apps")).status_code == 401
    assert (count(fake, "apps"), count(fake, "refresh")) == (5, 1)


# 10: the token goes to a wrong origin


@pytest.mark.parametrize(
    "url",
    [
        *("https://evil.example/", "http://app.koyeb.com/", "https://app.koyeb.com:444/"),
        *("https://app.koyeb.com./", "https://app.koyeb.com@evil.example/", "https://koyeb.com/"),
        *("https://app.koyeb.com.evil.example/", "https://evil.example/https://app.koyeb.com/"),
    ],
)
async def test_pitfall_10_the_token_stays_at_home(
    fake: FakeKoyeb, connect: Connect, url: str
) -> None:
    """Kills a hook that signs whatever URL it is given, and renews on anybody's 401."""
    session = connect(token=fake.issue_token())
    token = held(session)
    fake.fail("apps", Fault(status=302, headers={"location": url}))
    response = await session.http.get("/v1/apps", follow_redirects=True)
    assert response.request.url == httpx.URL(url)
    await session.http.get(url)
    for request in fake.requests[1:]:
        assert_no_secret(token, request.raw_headers, request.content, request.path, request.query)
    assert fake.exchanges() == 0


# 11: the refresh is yielded as a bare request


async def test_pitfall_11_a_refresh_is_no_part_of_the_users_request(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Kills ``yield httpx.Request("PUT", …)``: hooks see it, and ``history`` keeps the token."""
    seen: list[str] = []

    async def note(response: httpx.Response) -> None:
        seen.append(response.request.url.path)

    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=401))
    async with httpx.AsyncClient(
        transport=fake.transport,
        base_url=fake.base_url,
        auth=session.auth,
        event_hooks={"response": [note]},
    ) as client:
        response = await client.get("/v1/apps")
    assert fake.exchanges() == 1
    assert seen == ["/v1/apps"] * 2
    assert [reply.request.url.path for reply in response.history] == ["/v1/apps"]


async def test_pitfall_11_a_refresh_has_a_deadline_of_its_own(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills ``yield httpx.Request("PUT", …)``: it has no timeout, and hangs with the service."""
    fake.fail("refresh", Fault(gate=Gate(), hold="request"))
    for timeout in deadlines(lambda: count(fake, "refresh")):
        fake.requests.clear()
        session = connect(token=fake.issue_token(), timeout=timeout)
        clock.advance(DAY - timedelta(seconds=30))
        async with httpx.AsyncClient(
            transport=fake.transport,
            base_url=fake.base_url,
            auth=session.auth,
            timeout=None,  # noqa: S113 - what the session has to do without
        ) as client:
            assert (await client.get("/v1/apps")).status_code == 200
    assert [request.operation for request in fake.requests] == ["refresh", "apps"]


async def test_pitfall_11_a_saturated_pool_does_not_stop_a_refresh(
    url: str, fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a refresh on the pool of the requests: with every connection busy it waits for them."""
    session = connect(token=fake.issue_token(), base_url=url)
    limits = httpx.Limits(max_connections=1)
    gate = Gate()
    fake.fail("apps", Fault(gate=gate))
    async with (
        httpx.AsyncClient(base_url=url, auth=session.auth, limits=limits) as client,
        AsyncBackground() as background,
    ):
        jobs = [background.start(lambda: client.get("/v1/apps"))]
        await async_arrived(gate)
        clock.advance(DAY - timedelta(seconds=30))
        jobs.append(background.start(lambda: client.get("/v1/apps")))
        await async_until(lambda: fake.exchanges() == 1)
        assert not gate.is_open
        gate.open()
        assert [(await job.result()).status_code for job in jobs] == [200] * 2
    assert fake.exchanges() == 1


# 12: a consumed body is sent again


@pytest.mark.parametrize("pieces", [1, 3])
async def test_pitfall_12_a_consumed_body_is_not_sent_again(
    fake: FakeKoyeb, connect: Connect, pieces: int
) -> None:
    """Kills a replay of every 401: `StreamConsumed`, or half a body at the service."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield b"piece"

    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=401), times=2)
    response = await session.http.post("/v1/apps", content=body())
    assert response.status_code == 401
    response = await session.http.post("/v1/apps", files={"file": b"content"})
    assert response.status_code == 401
    assert count(fake, "apps") == 2
    first = next(request for request in fake.requests if request.operation == "apps")
    assert first.content == b"piece" * pieces


# 13: a garbage reply becomes the token

GARBAGE: list[Fault] = [
    Fault(body={}),
    Fault(body=[]),
    Fault(body="null"),
    Fault(body={"token": None}),
    Fault(body={"token": "text"}),
    Fault(body={"token": {"id": ""}}),
    Fault(body={"token": {"id": 5}}),
    Fault(body={"token": {"id": "a\r\nX-Evil: 1"}}),
    Fault(body={"token": {"id": "a b"}}),
    Fault(body={"token": {"id": "x" * 20_000}}),
    Fault(body={"token": {"id": "new", "expires_at": "2020-01-01T00:00:00Z"}}),
    Fault(body={"token": {"id": "new", "expires_at": "soon"}}),
    Fault(body="<html>maintenance</html>"),
    Fault(body='{"token": {"id": "ne'),
    Fault(body=b"\xff\xfe"),
    Fault(body=b" " * (1 << 21)),
    Fault(status=204),
    Fault(status=202),
]


@pytest.mark.parametrize("fault", GARBAGE)
async def test_pitfall_13_garbage_does_not_become_the_token(
    fake: FakeKoyeb, connect: Connect, fault: Fault
) -> None:
    """Kills ``self.token = response.json()["token"]``: an error page, or a dead token, is kept."""
    session = connect(token=fake.issue_token())
    before = session._state.snapshot
    fake.fail("refresh", fault)
    with pytest.raises(WireError):
        await session.refresh()
    assert session._state.snapshot is before
    assert (await session.http.get("/v1/apps")).status_code == 200


# 14: secrets show


async def test_pitfall_14_secrets_show_nowhere(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Kills a plain ``repr``, and errors that quote requests, replies or arguments."""
    caplog.set_level(logging.DEBUG)
    canary = "canary-password-81"
    fake = FakeKoyeb(users={ME: canary}, clock=clock)
    credentials = PasswordCredentials(ME, canary)
    session = connect(transport=fake.transport, credentials=credentials)
    token = await session.login(ME, canary)
    secrets = [canary, token.id]
    errors: list[BaseException] = []
    for name, status in [("login", 400), ("login", 401), ("refresh", 500)]:
        secret = canary if name == "login" else token.id
        fake.fail(name, Fault(status=status, body={"message": secret, "code": secret}))
        call: Callable[[], Any] = session.refresh
        if name == "login":
            call = functools.partial(session.login, ME, canary)
        with pytest.raises(KoyebSessionError) as caught:
            await call()
        errors.append(caught.value)
        clock.advance(3600)
    for fault in GARBAGE:
        fake.fail("login", fault)
        with pytest.raises(WireError) as wire:
            await session.login(ME, canary)
        errors.append(wire.value)
    with pytest.raises(ValueError, match="email") as argument:
        await session.login("", canary)
    errors.append(argument.value)
    shown = [session, session.auth, session.http, token, credentials, session._keeper]
    shown += [session._state.snapshot, caplog]
    assert_no_secret(secrets, *shown)
    assert_no_secret(secrets, *errors, packages=["koyeb_session"])
    for error in errors:
        assert_no_secret(secrets, pickle.dumps(error), copy.copy(error))
    assert attrs.asdict(token)["id"] == token.id


# 15: secrets in other people's logs


async def test_pitfall_15_nothing_secret_is_logged_by_the_libraries_below(
    url: str, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Kills tokens and passwords in URLs: httpx logs each URL, httpcore each header of a reply."""
    caplog.set_level(logging.DEBUG)
    session = connect(base_url=url)
    token = await session.login(ME, PASSWORD)
    new = await session.refresh()
    await session.http.get("/v1/apps")
    other = await session.new_session()
    await session.logout()
    assert any(record.name.startswith("httpcore") for record in caplog.records)
    assert_no_secret([PASSWORD, token.id, new.id, other.id], caplog)


# 16: observers break the state machine


async def test_pitfall_16_listeners_break_nothing(fake: FakeKoyeb, connect: Connect) -> None:
    """Kills callbacks inside the commit: one that raises, or calls back, leaves half a change."""
    session = connect()
    heard: list[str] = []

    def raising(token: Token | None) -> None:
        heard.append("raising")
        raise RuntimeError

    async def calling(token: Token | None) -> None:
        heard.append("calling")
        if token is not None:
            assert (await session.current_token()).id == held(session)
            assert (await session.http.get("/v1/apps")).status_code == 200

    def leaving(token: Token | None) -> None:
        heard.append("leaving")
        unsubscribe()

    session.on_token_change(raising)
    unsubscribe = session.on_token_change(leaving)
    session.on_token_change(calling)
    await session.login(ME, PASSWORD)
    await async_idle()
    assert heard == ["raising", "leaving", "calling"]
    await session.refresh()
    await async_idle()
    await session.logout()
    await async_idle()
    assert heard[3:] == ["raising", "calling"] * 2
    assert session.token is None
    assert fake.live_tokens() == []


# 17: a logout meets a renewal


@pytest.mark.parametrize("hold", ["request", "reply"])
@pytest.mark.parametrize("status", [200, 401, 500])
async def test_pitfall_17_signed_out_stays_signed_out(
    fake: FakeKoyeb, connect: Connect, hold: Any, status: int
) -> None:
    """Kills a flight that commits whatever it brings: the session rises again after its logout."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold=hold))
    if status != 200:
        fake.fail("logout", Fault(status=status, processed=True))
    async with AsyncBackground() as background:
        renewal = background.start(session.refresh)
        await async_arrived(gate)
        leaving = background.start(session.logout)
        await async_until(lambda: session.token is None)
        gate.open()
        with pytest.raises(NotSignedInError):
            await renewal.result()
        with contextlib.suppress(ServerError):
            await leaving.result()
    assert session.token is None
    assert fake.live_tokens() == []
    with pytest.raises(NotSignedInError):
        await session.http.get("/v1/apps")


# 21: stores are corrupted, updates are lost


async def test_pitfall_21_who_loses_the_race_uses_the_winners_token(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a store that is written but not read again under its lock: each holder refreshes.

    What has to do with files and processes belongs to the file store, and is tested there.
    """
    store = AsyncMemoryTokenStore()
    await store.save(Token(fake.issue_token()))
    sessions = [connect(store=store) for _ in range(8)]
    for round_ in range(1, 4):
        await async_gather(*[session.current_token for session in sessions])
        clock.advance(DAY - timedelta(seconds=30))
        tokens = await async_gather(*[session.current_token for session in sessions])
        assert fake.exchanges() == round_
        assert {token.id for token in tokens} == set(fake.live_tokens())
    assert {request.status for request in fake.requests} == {200}


async def test_pitfall_21_a_refused_loser_adopts_instead_of_renewing(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a 401 handler that exchanges the dead token: reuse detection ends the winner, too."""
    store = AsyncMemoryTokenStore()
    winner = connect(store=store)
    await winner.login(ME, PASSWORD)
    loser = connect(store=store)
    await loser.current_token()
    clock.advance(5)
    await winner.refresh()
    assert (await loser.http.get("/v1/apps")).status_code == 200
    assert held(loser) == held(winner)
    assert fake.live_tokens() == [held(winner)]


# 22: clocks and timestamps


@pytest.mark.parametrize("step", [-3600, 3600, -86_400 * 30])
async def test_pitfall_22_a_clock_that_is_set_does_not_lose_the_session(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, step: float
) -> None:
    """Kills ``time.time() < expires_at`` alone: a clock set back makes a dead token immortal."""
    session = connect(transport=fake.transport)
    await session.login(ME, PASSWORD)
    clock.step_wall(step)
    first = held(session)
    if step < 0:
        # The service's clock goes right: what it says has expired by the monotonic clock is.
        clock.step_wall(-step)
        clock.advance(DAY - timedelta(seconds=30))
        clock.step_wall(step)
        snapshot = session._state.snapshot
        assert snapshot is not None
        assert snapshot.age(clock) == 86_370
    assert (await session.current_token()).id == held(session)
    if step < 0:
        assert fake.exchanges() == 1
        assert held(session) != first


async def test_pitfall_22_a_suspend_counts_as_time(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills ``time.monotonic()`` alone: it stands still in suspend, and a dead token goes out."""
    session = connect(credentials=PasswordCredentials(ME, PASSWORD))
    await session.login(ME, PASSWORD)
    clock.step_wall(DAY)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert [request.operation for request in fake.requests] == ["login", "login", "apps"]


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("2026-01-01T10:00:00Z", datetime(2026, 1, 1, 10, tzinfo=UTC)),
        ("2026-01-01T10:00:00.123Z", datetime(2026, 1, 1, 10, 0, 0, 123_000, tzinfo=UTC)),
        ("2026-01-01T10:00:00.123456Z", datetime(2026, 1, 1, 10, 0, 0, 123_456, tzinfo=UTC)),
        ("2026-01-01T10:00:00.123456789Z", datetime(2026, 1, 1, 10, 0, 0, 123_456, tzinfo=UTC)),
        ("2026-01-01T12:00:00+02:00", datetime(2026, 1, 1, 10, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", None),
        (None, None),
    ],
)
async def test_pitfall_22_timestamps_are_read_as_go_prints_them(
    fake: FakeKoyeb, connect: Connect, text: str | None, expires: datetime | None
) -> None:
    """Kills ``datetime.fromisoformat`` and naive datetimes: nine digits, offsets and zero times."""
    session = connect()
    fake.fail("login", Fault(body={"token": {"id": "opaque", "expires_at": text}}))
    token = await session.login(ME, PASSWORD)
    assert token.expires_at == expires
    assert token.expires_at is None or token.expires_at.tzinfo is UTC


# 23: Retry-After, and sleeping under the lock


async def test_pitfall_23_a_new_session_does_not_wait_for_the_old_ones_back_off(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills ``await sleep(retry_after)`` inside the flight: a new login is stuck behind it."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=429, headers={"retry-after": "3600"}))
    clock.advance(DAY - timedelta(seconds=30))
    assert (await session.http.get("/v1/apps")).status_code == 200
    with contextlib.suppress(RateLimitedError):
        await session.logout()
    await session.login(ME, PASSWORD)
    assert (await session.http.get("/v1/apps")).status_code == 200
    await session.refresh()
    assert fake.exchanges() == 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("7", 7.0), ("7.5", 7.5), ("86400", 86_400.0), ("nan", None), ("-5", None), ("soon", None)],
)
async def test_pitfall_23_what_cannot_be_waited_for_is_raised(
    fake: FakeKoyeb, connect: Connect, value: str, wanted: float | None
) -> None:
    """Kills ``sleep(float(header))``: a day's wait, a crash on NaN, a login that is repeated."""
    fake.fail("login", Fault(status=429, headers={"retry-after": value}))
    with pytest.raises(RateLimitedError) as caught:
        await connect().login(ME, PASSWORD)
    assert caught.value.retry_after == wanted
    assert count(fake, "login") == 1


async def test_pitfall_23_a_date_is_a_wait(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills ``int(header)``: RFC 9110 allows an HTTP date."""
    header = {"retry-after": "Thu, 01 Jan 2026 00:02:00 GMT"}
    fake.fail("login", Fault(status=429, headers=header))
    with pytest.raises(RateLimitedError) as caught:
        await connect().login(ME, PASSWORD)
    assert caught.value.retry_after == 120


async def test_pitfall_23_a_wrong_password_is_never_repeated(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills a renewal loop over credentials: five wrong passwords lock the account."""
    session = connect(credentials=PasswordCredentials(ME, "wrong"))
    for _ in range(50):
        with pytest.raises(InvalidCredentialsError):
            await session.http.get("/v1/apps")
        clock.advance(0.5)
    assert count(fake, "login") == 1


# 24: copies fork the session


async def test_pitfall_24_all_hooks_of_a_session_are_one(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Kills an auth object for each client, each with a token of its own: ten exchanges."""
    session = connect(token=fake.issue_token())
    clock.advance(DAY - timedelta(seconds=30))
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    transport=fake.transport, base_url=fake.base_url, auth=session.auth
                )
            )
            for _ in range(10)
        ]
        works: Iterator[Any] = (
            lambda client=client: client.get("/v1/apps") for client in [*clients, session.http]
        )
        responses = await async_gather(*works)
    assert {response.status_code for response in responses} == {200}
    assert fake.exchanges() == 1
    with pytest.raises(TypeError):
        copy.deepcopy(session)


# 25: the ground moves


@pytest.mark.parametrize("operation", ["login", "refresh", "passwordless_login", "new_session"])
@pytest.mark.parametrize(
    "fault",
    [
        *[Fault(status=status) for status in (405, 410, 501)],
        Fault(status=404, body={"code": 5, "message": "Not Found", "details": []}),
        Fault(status=404, body="<html>nothing here</html>"),
    ],
)
async def test_pitfall_25_an_operation_that_is_gone_says_what_to_do(
    fake: FakeKoyeb, connect: Connect, operation: str, fault: Fault
) -> None:
    """Kills ``raise_for_status()``: nobody learns from a bare 404 that the service has moved on."""
    session = connect(token=fake.issue_token())
    fake.fail(operation, fault)
    arguments = {"login": (ME, PASSWORD), "passwordless_login": (ME,)}.get(operation, ())
    with pytest.raises(EndpointGoneError, match=r"no longer has this operation.*; .*credentials="):
        await getattr(session, operation)(*arguments)


async def test_pitfall_25_the_engine_does_not_care_where_tokens_come_from(
    clock: FakeClock, connect: Connect
) -> None:
    """Kills a client that can renew by its own endpoints only: they are all gone one day."""
    fake = FakeKoyeb(withdrawn={"login", "refresh", "logout"}, clock=clock)
    given: list[str] = []

    def provider() -> str:
        given.append(fake.issue_token())
        return given[-1]

    session = connect(transport=fake.transport, credentials=provider)
    for _ in range(5):
        assert (await session.http.get("/v1/apps")).status_code == 200
        assert held(session) == given[-1]
        clock.advance(DAY - timedelta(seconds=30))
    assert len(given) == 5
    fake.revoke_all()
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert len(given) == 6
