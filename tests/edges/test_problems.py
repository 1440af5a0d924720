"""What the callers of a FastAPI application are told when Koyeb, or the way to it, fails."""

# No `from __future__ import annotations`: FastAPI reads the annotations of local endpoints.

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from koyeb_session import (
    ApiError,
    AsyncSessionClient,
    InvalidCredentialsError,
    KoyebSessionError,
    PasswordCredentials,
    RetryPolicy,
    ServerError,
    SessionClient,
)
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, assert_no_secret

ME = PasswordCredentials("me@example.com", "correct horse")
APPS = "https://app.koyeb.com/v1/apps?secret=hush"
HUSH = ["hush", "correct horse"]
GENERIC = "Koyeb could not be asked, or gave no useful answer."
Serve = Callable[..., AbstractContextManager[str]]
Raise = Callable[[Exception], None]


def refused(status: int, url: str = APPS, headers: dict[str, str] | None = None) -> Exception:
    """Make what `raise_for_status` raises for a reply."""
    request = httpx.Request("GET", url)
    response = httpx.Response(status, request=request, headers=headers, text="hush")
    return httpx.HTTPStatusError(f"{status} for {url}", request=request, response=response)


def failed(kind: type[httpx.RequestError], url: str = APPS) -> Exception:
    """Make what `httpx` raises where no reply comes."""
    return kind(f"hush: {url}", request=httpx.Request("GET", url))


async def answers(error: Exception, **arguments: Any) -> httpx.Response:
    """Raise an error in an endpoint, and give what the caller is answered."""
    sessions, app = KoyebSessions(**arguments), FastAPI()
    sessions.add_exception_handlers(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        return await client.get("/")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        *((refused(status), status) for status in (400, 401, 403, 404, 409, 429, 503, 504)),
        *((refused(status), 502) for status in (302, 402, 405, 410, 418, 500, 501, 502)),
        (failed(httpx.ConnectTimeout), 504),
        (failed(httpx.ReadTimeout), 504),
        (failed(httpx.PoolTimeout), 503),
        (failed(httpx.ConnectError), 502),
        (failed(httpx.RemoteProtocolError), 502),
        (failed(httpx.TooManyRedirects), 502),
        (ApiError("taken", status=409), 409),
        (ApiError("odd", status=402), 502),
    ],
    ids=lambda value: f"{type(value).__name__} {value}"[:24],
)
async def test_answer_says_whose_fault_it_is(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What a caller can mend is handed on; all else is the way to Koyeb, and is in the log."""
    answer = await answers(error)
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["detail"] == GENERIC) == (status >= 500)
    logged = [(record.name, record.levelno) for record in caplog.records]
    assert logged == ([("koyeb_session", logging.WARNING)] if status >= 500 else [])
    assert_no_secret(HUSH, answer.text, caplog.text)


async def test_retry_after_is_handed_on() -> None:
    """A caller learns how long Koyeb asks to wait."""
    waits = [
        (await answers(refused(status, headers={"Retry-After": "7"}))).headers.get("retry-after")
        for status in (429, 503, 500)
    ]
    assert waits == ["7", "7", None]


@pytest.mark.parametrize(
    "make",
    [partial(refused, 404), partial(failed, httpx.ReadTimeout)],
    ids=["reply", "timeout"],
)
async def test_errors_of_others_are_left_alone(make: Callable[[str], Exception]) -> None:
    """The endpoint's other calls fail as they do without this package."""
    error = make("https://example.com/hush")
    with pytest.raises(type(error)) as caught:
        await answers(error)
    assert caught.value is error
    again = make("https://example.com/hush")
    allowed = await answers(again, allowed_origins=["https://example.com"])
    assert allowed.headers["content-type"] == "application/problem+json"
    with pytest.raises(httpx.ReadTimeout):
        await answers(httpx.ReadTimeout("of a transport that does not say which request"))


async def test_handler_of_the_users_stays() -> None:
    """Who answers httpx's errors already goes on doing so."""
    app = FastAPI()

    @app.exception_handler(httpx.HTTPError)
    async def teapot(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("mine", 418)

    KoyebSessions().add_exception_handlers(app)

    @app.get("/")
    async def fail() -> None:
        raise refused(404)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        assert (await client.get("/")).status_code == 418


class Application:
    """An application on a pretend Koyeb, whose endpoints use the sessions in each way."""

    def __init__(self, **arguments: Any) -> None:
        self.sessions = sessions = KoyebSessions(**arguments)
        self.app = app = FastAPI(lifespan=sessions.lifespan)
        sessions.add_exception_handlers(app)

        @app.get("/service")
        async def service(
            session: Annotated[AsyncSessionClient, Depends(sessions.service)],
        ) -> None:
            (await session.http.get("/v1/apps")).raise_for_status()

        @app.get("/service/new")
        async def service_new(
            session: Annotated[AsyncSessionClient, Depends(sessions.service)],
        ) -> None:
            await session.new_session()

        @app.get("/sync")
        def service_sync(session: Annotated[SessionClient, Depends(sessions.service_sync)]) -> None:
            session.http.get("/v1/apps").raise_for_status()

        @app.get("/caller")
        async def caller(session: Annotated[AsyncSessionClient, Depends(sessions.caller)]) -> None:
            (await session.http.get("/v1/apps")).raise_for_status()

        @app.get("/caller/new")
        async def caller_new(
            session: Annotated[AsyncSessionClient, Depends(sessions.caller)],
        ) -> None:
            await session.new_session()

    async def get(self, path: str, token: str | None = None) -> httpx.Response:
        """Ask as a caller with this bearer."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.get(path, headers=headers)


@pytest.fixture
async def application(fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock) -> AsyncIterator[Application]:
    """Run an application whose session cannot sign in again."""
    arguments: dict[str, Any] = {"transport": fake_koyeb.transport, "clock": koyeb_clock}
    made = Application(**arguments, token=fake_koyeb.issue_token())
    async with made.sessions.lifespan():
        yield made


async def test_refused_bearer_is_the_callers(
    application: Application, fake_koyeb: FakeKoyeb
) -> None:
    """A caller whose bearer Koyeb does not know is told so, by `session.http` and by operations."""
    for path in ("/caller", "/caller/new"):
        answer = await application.get(path, "unknown")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "unknown" not in answer.text
    good = fake_koyeb.issue_token()
    fake_koyeb.fail("apps", Fault(status=404))
    assert (await application.get("/caller", good)).status_code == 404


@pytest.mark.parametrize("path", ["/service", "/service/new", "/sync"])
async def test_ended_session_is_a_challenge(
    application: Application, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, path: str
) -> None:
    """Whoever asks learns that somebody has to sign in, by `session.http` and by operations."""
    assert (await application.get(path)).status_code == 200
    koyeb_clock.advance(timedelta(days=2))
    expired = await application.get(path)
    assert expired.status_code == 401
    assert expired.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("fault", "status", "wait"),
    [
        (Fault(status=503, headers={"Retry-After": "7"}), 503, "7"),
        (Fault(status=429, headers={"Retry-After": "7"}), 429, "7"),
        (Fault(status=500), 502, None),
        (Fault(reset=True), 502, None),
        (Fault(status=401), 401, None),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_outage_of_koyeb_is_no_sign_in(
    fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, fault: Fault, status: int, wait: str | None
) -> None:
    """With an expired token the answer says why it was not renewed; only a refusal is 401."""
    fake_koyeb.fail("login", fault)
    session = AsyncSessionClient(
        transport=fake_koyeb.transport,
        base_url=fake_koyeb.base_url,
        token=fake_koyeb.issue_token(),
        credentials=ME,
        clock=koyeb_clock,
        retry_policy=RetryPolicy(attempts=1),
    )
    koyeb_clock.advance(timedelta(days=2))
    with pytest.raises(KoyebSessionError, match="could not be renewed") as caught:
        await session.current_token()
    answer = await answers(caught.value)
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == wait
    assert ("www-authenticate" in answer.headers) == (status == 401)
    await session.aclose()


async def test_second_sessions_are_about_koyeb_too(
    application: Application, fake_koyeb: FakeKoyeb
) -> None:
    """Two `KoyebSessions` of different services share an application's handlers."""
    other = KoyebSessions(base_url="https://koyeb.example", transport=fake_koyeb.transport)
    other.add_exception_handlers(application.app)

    @application.app.get("/other")
    async def use(session: Annotated[AsyncSessionClient, Depends(other.caller)]) -> None:
        (await session.http.get("/v1/apps")).raise_for_status()

    async with other.lifespan():
        assert (await application.get("/other", "unknown")).status_code == 401
    assert (await application.get("/caller", "unknown")).status_code == 401


@pytest.mark.parametrize("how", ["server", "client", "neither"])
def test_closed_websocket_is_left_closed(serve: Serve, how: str) -> None:
    """An error after either end has closed a WebSocket adds no second one."""
    sessions, app = KoyebSessions(), FastAPI()
    sessions.add_exception_handlers(app)
    raised: list[Exception] = []

    @app.websocket("/")
    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        if how == "server":
            await websocket.close(4000)
        if how == "client":
            assert (await websocket.receive())["type"] == "websocket.disconnect"
        error = ServerError("broken", status=500)
        raise error

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except Exception as exc:
            raised.append(exc)
            raise

    with serve(watched) as url, connect(url.replace("http", "ws")) as websocket:
        websocket.send("go")
        if how == "client":
            websocket.close()
        else:
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == (4000 if how == "server" else 1011)
    assert raised == []


async def test_websocket_that_is_lost_meanwhile_is_left() -> None:
    """A connection that breaks while it is being closed adds no error."""
    sessions, app = KoyebSessions(), FastAPI()
    sessions.add_exception_handlers(app)

    @app.websocket("/")
    async def stream(websocket: WebSocket) -> None:
        error = InvalidCredentialsError("no")
        raise error

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: object) -> None:
        raise OSError

    scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": [], "query_string": b""}
    await app(scope, receive, send)


def test_configuration_begins_nothing() -> None:
    """At import time no thread is started: no certificates are read."""
    program = (
        "import threading; from koyeb_session.fastapi import KoyebSessions; KoyebSessions();"
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
