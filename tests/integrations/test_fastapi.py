"""Sessions in FastAPI applications, under a real uvicorn and against a Koyeb on real sockets."""

# No `from __future__ import annotations`: FastAPI reads the annotations of local endpoints.

import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    NotSignedInError,
    SessionClient,
    SessionExpiredError,
    StoreError,
    Token,
    TransportError,
)
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.stores import AsyncMemoryTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate, assert_no_secret

from ..concurrency import PATIENCE, async_until
from ..support import PASSWORDS, inside, operations
from .application import asking, serve_all
from .conftest import NEARLY, Serve

ME = (PASSWORDS.email, PASSWORDS.password)
OTHER = ("you@example.com", "battery staple")


async def sign_out(session: SessionClient) -> None:
    """Sign out in a thread."""
    await anyio.to_thread.run_sync(session.logout)


@pytest.fixture
def sessions(koyeb: str, koyeb_clock: FakeClock) -> KoyebSessions:
    """Configure sessions for it."""
    return KoyebSessions(base_url=koyeb, credentials=PASSWORDS, clock=koyeb_clock)


@pytest.fixture
def app(sessions: KoyebSessions) -> FastAPI:
    """Make an application with an endpoint of each kind."""
    app = serve_all(sessions)
    sessions.add_exception_handlers(app)
    router = APIRouter(prefix="/router")

    @router.get("/caller")
    async def use_caller(
        session: Annotated[AsyncSessionClient, Depends(sessions.caller)], later: BackgroundTasks
    ) -> int:
        later.add_task(session.http.get, "/v1/apps/in-background")
        return (await session.http.get("/v1/apps")).status_code

    @app.websocket("/ws")
    async def stream(
        websocket: WebSocket, session: Annotated[AsyncSessionClient, Depends(sessions.caller)]
    ) -> None:
        await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
        await websocket.send_text(str((await session.http.get("/v1/apps")).status_code))
        await websocket.close()

    app.include_router(router)
    return app


def bearer(token: str) -> dict[str, str]:
    """Give the header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def test_sixteen_callers_share_one_exchange_at_each_expiry(
    app: FastAPI, serve: Serve, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """Sync and async endpoints live on one token, which is exchanged once each time it is due."""
    with serve(app) as url, httpx.Client(base_url=url) as client, ThreadPoolExecutor(16) as pool:
        for expiries in range(4):
            answers = list(pool.map(client.get, ["/service/get", "/sync/get"] * 8))
            assert {(answer.status_code, answer.text) for answer in answers} == {(200, "200")}
            assert fake_koyeb.exchanges() == expiries
            koyeb_clock.advance(NEARLY)
        koyeb_clock.advance(timedelta(days=2))
        answers = list(pool.map(client.get, ["/sync/get", "/service/get"] * 8))
        assert {answer.text for answer in answers} == {"200"}
    assert [request.operation for request in fake_koyeb.requests].count("login") == 2
    assert all(request.status == 200 for request in fake_koyeb.requests)


def test_revoked_token_is_replaced_in_sync_endpoint(
    app: FastAPI, serve: Serve, fake_koyeb: FakeKoyeb
) -> None:
    """A 401 in a `def` endpoint has the event loop's session renew, and is replayed."""
    with serve(app) as url, httpx.Client(base_url=url) as client:
        assert client.get("/service/get").text == "200"
        fake_koyeb.revoke_all()
        assert client.get("/sync/get").text == "200"
        assert client.get("/service/get").text == "200"


def test_caller_is_who_the_bearer_says(
    app: FastAPI, serve: Serve, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """A good bearer is used, and is never renewed; a missing, bad or old one is told by a 401."""
    good, old = fake_koyeb.issue_token(), fake_koyeb.issue_token(lifetime=timedelta(seconds=10))
    koyeb_clock.advance(20)
    with serve(app) as url, httpx.Client(base_url=url) as client:
        assert client.get("/router/caller", headers=bearer(good)).text == "200"
        assert client.get("/router/caller", headers=bearer("unknown")).text == "401"
        refused = client.get("/caller/new", headers=bearer("unknown"))
        missing = client.get("/caller/new")
        others = [client.get("/caller/new", headers=bearer(token)) for token in (old, "a b")]
        basic = client.get("/caller/new", headers={"Authorization": "Basic bWU6"})
    for answer in (refused, missing, basic, *others):
        assert answer.status_code == answer.json()["status"] == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
        assert_no_secret([good, old], answer.text)
    assert others[0].headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert fake_koyeb.exchanges() == 0
    assert "/v1/apps/in-background" in {request.path for request in fake_koyeb.requests}


def test_bearer_shows_in_openapi(app: FastAPI) -> None:
    """The page of the API has the scheme, for the endpoints that need it and no others."""
    page = app.openapi()
    assert page["components"]["securitySchemes"]["KoyebToken"]["scheme"] == "bearer"
    assert page["paths"]["/router/caller"]["get"]["security"] == [{"KoyebToken": []}]
    assert "security" not in page["paths"]["/service/{use}"]["get"]


def test_answers_to_errors_show_in_openapi(sessions: KoyebSessions) -> None:
    """A router declares the answers of its endpoints where Koyeb, or the way to it, fails."""
    app, router = FastAPI(), APIRouter(responses=KoyebSessions.responses)

    @router.get("/apps")
    async def apps(session: Annotated[AsyncSessionClient, Depends(sessions.caller)]) -> int:
        return 0

    app.include_router(router)
    responses = app.openapi()["paths"]["/apps"]["get"]["responses"]
    handed_on, ours = {"400", "401", "403", "404", "409", "429"}, {"502", "503", "504"}
    assert responses.keys() == {"200", *handed_on, *ours}
    for status in handed_on | ours:
        assert responses[status]["description"]
        (media_type,) = responses[status]["content"]
        assert media_type == "application/problem+json"
        schema = responses[status]["content"][media_type]["schema"]
        assert schema["required"] == ["type", "title", "status", "detail"]


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
def test_websocket_has_caller(app: FastAPI, serve: Serve, fake_koyeb: FakeKoyeb, ws: str) -> None:
    """A WebSocket brings its token as a header or as subprotocols; without one it is refused."""
    token = fake_koyeb.issue_token()
    subprotocols = [Subprotocol("Bearer"), Subprotocol(token)]
    with serve(app, ws=ws) as url:
        where = url.replace("http", "ws") + "/ws"
        with connect(where, additional_headers=bearer(token)) as websocket:
            assert websocket.recv() == "200"
        with connect(where, subprotocols=subprotocols) as websocket:
            assert websocket.recv() == "200"
            assert websocket.subprotocol == "Bearer"
        with pytest.raises(InvalidStatus) as caught:
            connect(where)
        assert caught.value.response.status_code == 403


async def test_session_is_asked_for_before_lifespan(app: FastAPI, sessions: KoyebSessions) -> None:
    """The error of a forgotten lifespan names the line to write."""
    async with asking(app) as client:
        with pytest.raises(RuntimeError, match=r"lifespan=sessions\.lifespan"):
            await client.get("/service/get")
    assert repr(sessions) == "<KoyebSessions: not running>"


def test_wrong_argument_is_told_when_made() -> None:
    """A configuration error shows at import time, not in the first request."""
    with pytest.raises(ValueError, match="base_url"):
        KoyebSessions(base_url="http://example.com")
    with pytest.raises(TypeError, match="allowed_origins"):
        KoyebSessions(allowed_origins="https://example.com")


async def test_environment_says_how_to_sign_in(
    koyeb: str, fake_koyeb: FakeKoyeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application is made with the settings of the environment, and with arguments that win."""
    for name in [name for name in os.environ if name.startswith("KOYEB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(NotSignedInError, match="KOYEB_TOKEN"):
        KoyebSessions.from_env()
    monkeypatch.setenv("KOYEB_TOKEN", fake_koyeb.issue_api_token())
    monkeypatch.setenv("KOYEB_URL", koyeb)
    sessions = KoyebSessions.from_env(timeout=30.0)
    async with sessions.lifespan():
        service = await sessions.service()
        assert (await service.http.get("/v1/apps")).status_code == 200
        assert service.http.timeout == httpx.Timeout(30.0)
        assert (await sessions.service_sync()).http.timeout == httpx.Timeout(30.0)


async def test_password_of_a_guest_goes_to_the_given_transport(fake_koyeb: FakeKoyeb) -> None:
    """A login endpoint of an application under test sends nothing past the fake service."""
    sessions = KoyebSessions(transport=fake_koyeb.transport)
    async with sessions.lifespan(), asking(serve_all(sessions)) as client:
        answers = [await client.get("/login?password=correct%20horse") for _ in range(2)]
        assert (await sessions.service()).token is None
    assert fake_koyeb.live_tokens() == [answer.json() for answer in answers]
    assert operations(fake_koyeb) == ["login"] * 2


async def test_dependency_is_overridden(app: FastAPI, sessions: KoyebSessions) -> None:
    """A test of the user's puts its own session in the place of ours."""
    fake = FakeKoyeb()
    own = AsyncSessionClient(transport=fake.transport, token=fake.issue_token())
    app.dependency_overrides[sessions.service] = lambda: own
    async with own, asking(app) as client:
        assert (await client.get("/service/get")).text == "200"


async def test_lifespan_composes(
    sessions: KoyebSessions, koyeb: str, fake_koyeb: FakeKoyeb
) -> None:
    """Two sessions live in one application, one of them shared with a sub-application."""
    others = KoyebSessions(base_url=koyeb, token=fake_koyeb.issue_api_token())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with sessions.lifespan(app), others.lifespan(app):
            yield

    app, sub = FastAPI(lifespan=lifespan), FastAPI(lifespan=sessions.lifespan)
    app.mount("/sub", sub)

    @sub.get("/both")
    async def both(
        one: Annotated[AsyncSessionClient, Depends(sessions.service)],
        other: Annotated[AsyncSessionClient, Depends(others.service)],
    ) -> bool:
        await one.current_token()
        return one.token != other.token

    async with (
        app.router.lifespan_context(app),
        sub.router.lifespan_context(sub),
        asking(app) as client,
    ):
        assert (await client.get("/sub/both")).text == "true"
        assert "signed in" in repr(sessions)
    async with sessions.lifespan():  # a second life
        assert (await (await sessions.service()).current_token()).id


async def test_shutdown_waits_for_exchange(
    sessions: KoyebSessions, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """An application that stops in mid-refresh does not lose the token that comes."""
    gate = Gate()
    life = sessions.lifespan()
    await life.__aenter__()
    session = await sessions.service()
    old = await session.current_token()
    koyeb_clock.advance(timedelta(hours=20))
    fake_koyeb.fail("refresh", Fault(gate=gate))
    assert await session.current_token() == old
    await gate.await_arrived()

    async def open_later() -> None:
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        gate.open()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_later)
        await life.__aexit__(None, None, None)
        assert gate.is_open
    assert session.token is not None
    assert fake_koyeb.live_tokens() == [session.token.id]
    assert session.token != old


async def test_error_in_block_is_raised_as_it_is(sessions: KoyebSessions) -> None:
    """An error of the application comes out unwrapped."""
    with pytest.raises(LookupError):
        async with sessions.lifespan():
            raise LookupError


async def test_sync_session_signs_both_in_and_out(
    sessions: KoyebSessions, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """A sign-in, a refresh or a sign-out by one half is the other one's too."""
    run = anyio.to_thread.run_sync
    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        await service.current_token()
        await run(lambda: blocking.login("me@example.com", "correct horse"))
        assert service.token == blocking.token
        await run(blocking.refresh)
        assert service.token == blocking.token
        await service.refresh()
        assert service.token == blocking.token
        await run(blocking.logout)
        assert service.token is blocking.token is None
        with pytest.raises(NotSignedInError):
            await run(blocking.current_token)


async def test_sync_session_is_the_other_one_while_a_listener_hangs(
    sessions: KoyebSessions, fake_koyeb: FakeKoyeb
) -> None:
    """Catches one that is told later: it would send the token of an account that is signed out."""
    run, gate = anyio.to_thread.run_sync, anyio.Event()

    async def hang(_: Token | None) -> None:
        await gate.wait()

    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        await service.current_token()
        service.on_token_change(hang)
        async with anyio.create_task_group() as tasks:
            first = service.token
            tasks.start_soon(service.refresh)
            await async_until(lambda: service.token != first)
            old = service.token
            tasks.start_soon(run, partial(blocking.login, *ME))
            await async_until(lambda: blocking.token != old)
            assert blocking.token == service.token
            await run(blocking.http.get, "/v1/apps")
            assert fake_koyeb.requests[-1].bearer == fake_koyeb.live_tokens()[-1]
            tasks.start_soon(sign_out, blocking)
            await async_until(lambda: blocking.token is service.token is None)
            gate.set()


async def test_logout_by_the_sync_session_is_final_during_a_renewal(
    sessions: KoyebSessions, fake_koyeb: FakeKoyeb
) -> None:
    """A renewal that comes in after it is revoked; catches one that signs both in again."""
    gate = Gate()
    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        await service.current_token()
        fake_koyeb.fail("refresh", Fault(gate=gate))

        async def refresh() -> None:
            with contextlib.suppress(KoyebSessionError):
                await service.refresh()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refresh)
            await gate.await_arrived()
            tasks.start_soon(sign_out, blocking)
            await async_until(lambda: service.token is None)
            gate.open()
        assert service.token is blocking.token is None
        assert fake_koyeb.live_tokens() == []


@pytest.mark.parametrize("credentials", [PASSWORDS, lambda: "callable"])
async def test_login_by_the_sync_session_is_saved_as_that_account(
    koyeb_clock: FakeClock, credentials: Any
) -> None:
    """Catches a token that is saved as the credentials' own: the next run would act as it."""
    fake = FakeKoyeb(users=dict([ME, OTHER]), clock=koyeb_clock)
    saved: list[str | None] = []
    for by_thread in (False, True):
        store = AsyncMemoryTokenStore()
        sessions = KoyebSessions(
            transport=fake.transport, store=store, credentials=credentials, clock=koyeb_clock
        )
        async with sessions.lifespan():
            service, blocking = await sessions.service(), await sessions.service_sync()
            if by_thread:
                await anyio.to_thread.run_sync(blocking.login, *OTHER)
            else:
                await service.login(*OTHER)
            token = await store.load()
            saved.append(None if token is None else token.provenance)
    assert saved[0] == saved[1] is not None


async def test_listener_of_the_sync_session_may_block(
    sessions: KoyebSessions, fake_koyeb: FakeKoyeb
) -> None:
    """It runs in a thread; catches one that keeps the event loop from its work."""
    heard: list[tuple[Token | None, bool]] = []
    loops = threading.get_ident()

    def hear(token: Token | None) -> None:
        heard.append((token, threading.get_ident() == loops))

    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        stop = blocking.on_token_change(hear)
        new = await service.refresh()
        stop()
        await service.refresh()
    assert heard == [(new, False)]


async def test_sessions_made_by_the_sync_session_are_their_own(
    sessions: KoyebSessions, fake_koyeb: FakeKoyeb
) -> None:
    """A guest's login, and a token of somebody else, change nothing of the service's session."""
    run = anyio.to_thread.run_sync
    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        own = await service.current_token()
        guest = blocking.guest()
        await run(partial(guest.login, *ME))
        other = blocking.for_token(fake_koyeb.issue_token())
        await run(other.logout)
        assert guest.token != own == service.token == blocking.token
        assert (await run(guest.http.get, "/v1/apps")).status_code == 200


async def test_sync_session_is_kept_current_until_it_is_closed(sessions: KoyebSessions) -> None:
    """The thread returns when the application ends."""
    async with anyio.create_task_group() as tasks, sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        tasks.start_soon(anyio.to_thread.run_sync, blocking.keep_current)
        await anyio.to_thread.run_sync(blocking.current_token)
        await async_until(lambda: len(inside(service).keeper._wakeups) == 2)


async def test_sync_session_that_is_closed_leaves_the_other_one_as_it_is(
    sessions: KoyebSessions, koyeb: str
) -> None:
    """Catches a thread that signs the whole application out by a session that it has closed."""
    heard: list[Token | None] = []
    run = anyio.to_thread.run_sync
    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        token = await service.current_token()
        assert "signed in" in repr(blocking)
        blocking.on_token_change(heard.append)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, blocking.keep_current)
            await async_until(lambda: len(inside(service).keeper._wakeups) == 2)
            await run(blocking.close)  # `keep_current` returns
        for call in (
            blocking.current_token,
            partial(blocking.login, *ME),
            blocking.refresh,
            blocking.keep_current,
            blocking.guest,
        ):
            with pytest.raises(RuntimeError, match="service_sync is closed"):
                await run(partial(call))
        flow = blocking.auth.sync_auth_flow
        with pytest.raises(RuntimeError, match="service_sync is closed"):
            flow(httpx.Request("GET", f"{koyeb}/v1/apps"))
        elsewhere = httpx.Request("GET", "https://example.com")
        assert next(flow(elsewhere)) is elsewhere
        assert repr(blocking).endswith(": closed>")
        assert "signed in" in repr(service)
        with pytest.raises(RuntimeError, match="closed"):
            await sign_out(blocking)
        assert service.token == token
        await service.refresh()
    assert heard == []


# The application dies in its lifespan, of which trio warns.
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_thread_is_told_when_the_event_loop_ends(
    fake_koyeb: FakeKoyeb, koyeb: str, koyeb_clock: FakeClock, backend: str
) -> None:
    """It gets an error of this package; catches a cancellation, which is none of an event loop."""
    gate = Gate()
    fake_koyeb.fail("refresh", Fault(gate=gate))
    outcomes: list[object] = []
    threads: list[threading.Thread] = []

    def note(call: Callable[[], object]) -> None:
        try:
            outcomes.append(call())
        except BaseException as exc:  # noqa: BLE001 - shows what the thread of a user gets
            outcomes.append(type(exc))

    async def die() -> None:
        token = fake_koyeb.issue_token()
        sessions = KoyebSessions(base_url=koyeb, token=token, clock=koyeb_clock)
        await sessions.lifespan().__aenter__()
        blocking = await sessions.service_sync()
        for call in (blocking.refresh, blocking.keep_current):
            threads.append(threading.Thread(target=note, args=(call,), daemon=True))
            threads[-1].start()
        await gate.await_arrived()
        raise LookupError

    with pytest.raises(LookupError):
        await anyio.to_thread.run_sync(partial(anyio.run, die, backend=backend))
    gate.open()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join, PATIENCE)
    assert set(outcomes) <= {None, TransportError}
    assert len(outcomes) == 2


@pytest.mark.blocks_loop
async def test_sync_session_in_event_loop_does_what_needs_no_wait(
    sessions: KoyebSessions, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """A token that is fresh, or renewed in the background, is had in an `async def`, too."""
    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        token = await service.current_token()
        assert blocking.current_token() == token
        koyeb_clock.advance(timedelta(hours=20))
        assert blocking.current_token() == token
        await async_until(lambda: service.token != token)
    assert fake_koyeb.exchanges() == 1


async def test_sync_session_ends_with_the_other(
    koyeb: str, koyeb_clock: FakeClock, fake_koyeb: FakeKoyeb
) -> None:
    """When the event loop's session cannot renew, the blocking one says the same."""
    sessions = KoyebSessions(base_url=koyeb, token=fake_koyeb.issue_token(), clock=koyeb_clock)
    async with sessions.lifespan():
        blocking = await sessions.service_sync()
        koyeb_clock.advance(timedelta(days=2))
        with pytest.raises(SessionExpiredError):
            await anyio.to_thread.run_sync(blocking.current_token)


@pytest.mark.blocks_loop
async def test_sync_session_in_event_loop_fails(
    sessions: KoyebSessions, koyeb_clock: FakeClock, fake_koyeb: FakeKoyeb
) -> None:
    """In an `async def` endpoint the blocking session would wait for itself: it says so."""
    async with sessions.lifespan():
        await (await sessions.service()).current_token()
        blocking = await sessions.service_sync()
        koyeb_clock.advance(timedelta(days=2))
        sent = len(fake_koyeb.requests)
        for call in (
            blocking.current_token,
            blocking.refresh,
            partial(blocking.login, *ME),
            blocking.logout,
            blocking.keep_current,
        ):
            with pytest.raises(StoreError, match="in an `async def` one use service"):
                call()
        assert len(fake_koyeb.requests) == sent
