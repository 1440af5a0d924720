"""What the callers of a FastAPI application are told when Koyeb, or the way to it, fails."""

# No `from __future__ import annotations`: FastAPI reads the annotations of local endpoints.

import contextlib
import inspect
import logging
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from koyeb_session import (
    AccountLockedError,
    ApiError,
    AsyncSessionClient,
    BadRequestError,
    EndpointGoneError,
    InvalidCredentialsError,
    KoyebSessionError,
    NotFoundError,
    NotSignedInError,
    PasswordCredentials,
    PermissionDeniedError,
    RateLimitedError,
    RetryPolicy,
    ServerError,
    SessionClient,
    SessionExpiredError,
    StoreError,
    TransportError,
    TransportTimeoutError,
    WireError,
)
from koyeb_session._core.results import RAISED_BY
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


async def answers(error: Exception, *, own: bool = False, **arguments: Any) -> httpx.Response:
    """Raise an error in an endpoint, maybe as one of the caller's; give what is answered."""
    sessions, app = KoyebSessions(transport=FakeKoyeb().transport, **arguments), FastAPI()
    sessions.add_exception_handlers(app)

    @app.get("/")
    async def fail(session: Annotated[AsyncSessionClient, Depends(sessions.guest)]) -> None:
        mark = session.auth.shared[0].state.mark if own else None
        if isinstance(error, KoyebSessionError):
            error.raised_by = mark
        elif isinstance(error, httpx.HTTPStatusError | httpx.RequestError):
            with contextlib.suppress(RuntimeError):  # it has no request
                error.request.extensions[RAISED_BY] = mark
        raise error

    transport = httpx.ASGITransport(app)
    async with (
        sessions.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://t") as client,
    ):
        return await client.get("/")


REASONS: list[tuple[Exception, int, int]] = [
    # The error, its status where it is the caller's, and where it is the service's.
    *((refused(status), status, 502) for status in (400, 401, 403, 404, 409)),
    *((refused(status), 502, 502) for status in (302, 402, 405, 410, 418, 501)),
    *((refused(status), 503, 503) for status in (500, 502, 503)),
    (refused(429), 429, 503),
    (refused(504), 504, 504),
    (failed(httpx.ConnectTimeout), 504, 504),
    (failed(httpx.ReadTimeout), 504, 504),
    (failed(httpx.PoolTimeout), 503, 503),
    (failed(httpx.ConnectError), 503, 503),
    (failed(httpx.RemoteProtocolError), 503, 503),
    (failed(httpx.TooManyRedirects), 502, 502),
    (InvalidCredentialsError("hush"), 401, 502),
    (InvalidCredentialsError("hush", status=400), 401, 502),
    (SessionExpiredError("hush"), 401, 502),
    (NotSignedInError("hush"), 401, 502),
    (PermissionDeniedError("hush"), 403, 502),
    (AccountLockedError("hush"), 403, 502),
    (RateLimitedError("hush", retry_after=1.5), 429, 503),
    (BadRequestError("hush", fields={"hush": "hush"}, request_id="hush"), 400, 502),
    (NotFoundError("hush"), 404, 502),
    (EndpointGoneError("hush"), 502, 502),
    (ServerError("hush", status=500), 503, 503),
    (ServerError("hush", status=504), 504, 504),
    (ApiError("hush", status=409), 409, 502),
    (ApiError("hush", status=402), 502, 502),
    (WireError("hush"), 502, 502),
    (TransportError("hush"), 503, 503),
    (TransportTimeoutError("hush"), 504, 504),
    (StoreError("hush"), 503, 503),
]
NAMES = [f"{number}-{type(error).__name__}" for number, (error, *_) in enumerate(REASONS)]


@pytest.mark.parametrize("whose", ["caller", "service"])
@pytest.mark.parametrize(("error", "callers", "services"), REASONS, ids=NAMES)
async def test_answer_says_whose_fault_it_is(
    error: Exception, callers: int, services: int, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What a caller can mend is handed on to that caller; all else is in the log alone."""
    own = whose == "caller"
    status = callers if own else services
    answer = await answers(error, own=own)
    problem = answer.json()
    assert answer.status_code == problem["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    assert problem["type"] == "about:blank"
    assert (problem["detail"] == GENERIC) == (status >= 500)
    assert ("retry-after" in answer.headers) >= (status == 503)
    level = logging.WARNING if own else logging.ERROR
    logged = [(record.name, record.levelno) for record in caplog.records]
    assert logged == ([("koyeb_session", level)] if status >= 500 else [])
    if not own:
        assert problem.keys() == {"type", "title", "status", "detail"}
        assert "www-authenticate" not in answer.headers
        assert_no_secret("hush", answer.text, str(answer.headers))
    if isinstance(error, httpx.HTTPError):
        assert_no_secret(HUSH, answer.text, caplog.text)


async def test_details_are_for_the_one_whose_request_it_was() -> None:
    """A caller is told what Koyeb found wrong with its own request, and the id of it."""
    error = BadRequestError("bad", fields={"email": "odd"}, request_id="r1")
    problem = (await answers(error, own=True)).json()
    assert (problem["detail"], problem["fields"]) == ("bad", {"email": "odd"})
    assert problem["request_id"] == "r1"


@pytest.mark.parametrize("whose", ["caller", "service"])
async def test_retry_after_is_handed_on(whose: str) -> None:
    """A caller learns how long Koyeb asks to wait, and else waits for a moment."""
    waits = [
        (await answers(error, own=whose == "caller")).headers.get("retry-after")
        for error in (
            refused(429, headers={"Retry-After": "7"}),
            refused(503, headers={"Retry-After": "7"}),
            RateLimitedError("slowly", retry_after=1.5),
            refused(503),
            refused(501, headers={"Retry-After": "7"}),
        )
    ]
    assert waits == ["7", "7", "2", "5", None]


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
    """An application on a fake Koyeb, whose endpoints use the sessions in each way."""

    def __init__(self, **arguments: Any) -> None:
        self.sessions = sessions = KoyebSessions(**arguments)
        self.app = FastAPI(lifespan=sessions.lifespan)
        sessions.add_exception_handlers(self.app)
        self._serve_all()
        self._serve_callers()
        self._serve_both()

    def _serve_all(self) -> None:
        """Add what uses the service's own session."""
        app, sessions = self.app, self.sessions

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

        @app.get("/background")
        async def background(
            session: Annotated[AsyncSessionClient, Depends(sessions.service)],
            later: BackgroundTasks,
        ) -> None:
            later.add_task(session.new_session)

    def _serve_callers(self) -> None:
        """Add what uses a session of the caller's."""
        app, sessions = self.app, self.sessions

        @app.get("/caller")
        async def caller(session: Annotated[AsyncSessionClient, Depends(sessions.caller)]) -> None:
            (await session.http.get("/v1/apps")).raise_for_status()

        @app.get("/caller/new")
        async def caller_new(
            session: Annotated[AsyncSessionClient, Depends(sessions.caller)],
        ) -> None:
            await session.new_session()

        @app.get("/caller/client")
        async def caller_client(
            session: Annotated[AsyncSessionClient, Depends(sessions.caller)],
            service: Annotated[AsyncSessionClient, Depends(sessions.service)],
        ) -> None:
            await service.current_token()
            request = service.http.build_request("GET", "/v1/apps")
            (await service.http.send(request, auth=session.auth)).raise_for_status()

        @app.get("/cookie")
        async def cookie(request: Request) -> None:
            await sessions.for_token(request, request.cookies.get("token")).new_session()

        @app.get("/login")
        async def login(
            guest: Annotated[AsyncSessionClient, Depends(sessions.guest)], password: str
        ) -> str:
            return (await guest.login("me@example.com", password)).id

    def _serve_both(self) -> None:
        """Add what uses both."""
        app, sessions = self.app, self.sessions

        @app.get("/both")
        async def both(
            caller: Annotated[AsyncSessionClient, Depends(sessions.caller)],
            service: Annotated[AsyncSessionClient, Depends(sessions.service)],
        ) -> None:
            await caller.new_session()
            await service.new_session()

        @app.websocket("/stream")
        async def stream(
            websocket: WebSocket,
            caller: Annotated[AsyncSessionClient, Depends(sessions.caller)],
            service: Annotated[AsyncSessionClient, Depends(sessions.service)],
        ) -> None:
            await websocket.accept()
            whose = await websocket.receive_text()
            await (caller if whose == "caller" else service).new_session()

    async def get(
        self, path: str, token: str | None = None, *, cookie: str | None = None
    ) -> httpx.Response:
        """Ask as a caller with this bearer."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        headers |= {} if cookie is None else {"Cookie": f"token={cookie}"}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.get(path, headers=headers)


@pytest.fixture
async def application(fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock) -> AsyncIterator[Application]:
    """Run an application whose session cannot sign in again."""
    arguments: dict[str, Any] = {"transport": fake_koyeb.transport, "clock": koyeb_clock}
    made = Application(**arguments, token=fake_koyeb.issue_token())
    async with made.sessions.lifespan():
        yield made


@pytest.mark.parametrize("path", ["/caller", "/caller/new", "/caller/client", "/both"])
async def test_refused_bearer_is_the_callers(
    application: Application, fake_koyeb: FakeKoyeb, path: str
) -> None:
    """A caller whose bearer Koyeb does not know is told so, however it is sent."""
    answer = await application.get(path, "unknown")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "unknown" not in answer.text
    good = fake_koyeb.issue_token()
    assert (await application.get(path, good)).status_code == 200
    if path == "/caller":
        fake_koyeb.fail("apps", Fault(status=404))
        assert (await application.get(path, good)).status_code == 404


async def test_token_of_a_cookie_is_the_callers(
    application: Application, fake_koyeb: FakeKoyeb
) -> None:
    """A token that came in another way is refused as a bearer is."""
    good = fake_koyeb.issue_token()
    assert (await application.get("/cookie", cookie=good)).status_code == 200
    for bad in ("unknown", "odd=token=here,", "two words", "", None):
        answer = await application.get("/cookie", cookie=bad)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_refused_password_is_the_callers(
    application: Application, fake_koyeb: FakeKoyeb
) -> None:
    """Whoever logs in as a guest is told what is wrong, and the service's session goes on."""
    assert (await application.get("/login?password=correct%20horse")).status_code == 200
    wrong = await application.get("/login?password=wrong")
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"] == "Bearer"
    fake_koyeb.fail("login", Fault(status=429, headers={"Retry-After": "7"}))
    busy = await application.get("/login?password=correct%20horse")
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")
    fake_koyeb.lock_account("me@example.com")
    assert (await application.get("/login?password=correct%20horse")).status_code == 403
    assert (await application.get("/service")).status_code == 200


def vault() -> str:
    """Fail as a vault may."""
    message = "secret/koyeb at vault-7.internal"
    raise KeyError(message)


@pytest.mark.parametrize("path", ["/service", "/service/new", "/sync", "/both"])
@pytest.mark.parametrize(
    "credentials",
    [None, PasswordCredentials("me@example.com", "rotated"), vault],
    ids=["none", "password", "vault"],
)
async def test_trouble_of_the_service_is_no_callers(
    fake_koyeb: FakeKoyeb,
    koyeb_clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    credentials: Any,
    path: str,
) -> None:
    """A service that cannot sign in says 502 and no more, also to a caller who is signed in."""
    application = Application(
        transport=fake_koyeb.transport,
        token=fake_koyeb.issue_token(),
        credentials=credentials,
        clock=koyeb_clock,
    )
    async with application.sessions.lifespan():
        assert (await application.get(path, fake_koyeb.issue_token())).status_code == 200
        koyeb_clock.advance(timedelta(days=2))
        caplog.clear()
        answer = await application.get(path, fake_koyeb.issue_token())
    assert answer.status_code == 502
    assert answer.json() == {
        "type": "about:blank",
        "title": "Bad Gateway",
        "status": 502,
        "detail": GENERIC,
    }
    assert "www-authenticate" not in answer.headers
    said = [it for it in caplog.records if "answered with 502: the service's" in it.getMessage()]
    assert [record.levelno for record in said] == [logging.ERROR]


@pytest.mark.parametrize(
    ("fault", "status", "wait"),
    [
        (Fault(status=503, headers={"Retry-After": "7"}), 503, "7"),
        (Fault(status=429, headers={"Retry-After": "7"}), 503, "7"),
        (Fault(status=500), 503, "5"),
        (Fault(reset=True), 503, "5"),
        (Fault(status=401), 502, None),
        (Fault(status=403, body={"message": "the account is locked"}), 502, None),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_outage_of_koyeb_is_no_sign_in(
    fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, fault: Fault, status: int, wait: str | None
) -> None:
    """With an expired token the answer says whether to try again, and never to sign in."""
    application = Application(
        transport=fake_koyeb.transport,
        token=fake_koyeb.issue_token(),
        credentials=ME,
        clock=koyeb_clock,
        retry_policy=RetryPolicy(attempts=1),
    )
    async with application.sessions.lifespan():
        koyeb_clock.advance(timedelta(days=2))
        fake_koyeb.fail("login", fault, times=9)
        answer = await application.get("/service")
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == wait
    assert "locked" not in answer.text


async def test_error_of_another_callers_session_is_not_told(
    application: Application, fake_koyeb: FakeKoyeb
) -> None:
    """What one caller's session met with is not told to another caller."""
    kept: list[AsyncSessionClient] = []

    @application.app.get("/keep")
    async def keep(
        session: Annotated[AsyncSessionClient, Depends(application.sessions.caller)],
    ) -> None:
        kept.append(session)
        await kept[0].new_session()

    assert (await application.get("/keep", "unknown")).status_code == 401
    other = await application.get("/keep", fake_koyeb.issue_token())
    assert other.status_code == 502
    assert "www-authenticate" not in other.headers


@pytest.mark.parametrize(("whose", "code"), [("caller", 1008), ("service", 1011)])
def test_websocket_is_closed_by_whose_fault_it_is(
    serve: Serve, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, whose: str, code: int
) -> None:
    """A refused token of the caller's is a policy violation; the service's is an internal error."""
    application = Application(
        transport=fake_koyeb.transport, token=fake_koyeb.issue_token(), clock=koyeb_clock
    )
    headers = {"Authorization": f"Bearer {fake_koyeb.issue_token()}"}
    with serve(application.app) as url:
        where = url.replace("http", "ws") + "/stream"
        with connect(where, additional_headers=headers) as websocket:
            fake_koyeb.revoke_all()
            websocket.send(whose)
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, "")


async def test_trouble_in_the_background_comes_after_the_answer(
    application: Application, fake_koyeb: FakeKoyeb
) -> None:
    """A background task changes no answer; the server logs what it raises."""
    fake_koyeb.revoke_all()
    assert (await application.get("/background")).status_code == 200
    transport = httpx.ASGITransport(application.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        with pytest.raises(RuntimeError) as caught:
            await client.get("/background")
    assert isinstance(caught.value.__cause__, SessionExpiredError)


async def test_every_operation_of_a_caller_is_the_callers() -> None:
    """There is no operation whose refusal counts as the service's trouble."""
    reply = httpx.Response(403, json={"message": "no"})
    sessions, app = KoyebSessions(transport=httpx.MockTransport(lambda _: reply)), FastAPI()
    sessions.add_exception_handlers(app)
    given = {"email": "me@example.com", "password": "p", "organization_id": "o", "token": "t"}

    @app.get("/{name}")
    async def call(
        name: str, session: Annotated[AsyncSessionClient, Depends(sessions.caller)]
    ) -> None:
        operation = getattr(session, name)
        wanted = inspect.signature(operation).parameters.values()
        with warnings.catch_warnings(action="ignore"):
            await operation(*(given[it.name] for it in wanted if it.default is it.empty))

    names = [
        name
        for name, member in vars(AsyncSessionClient).items()
        if inspect.iscoroutinefunction(member) and not name.startswith("_")
    ]
    transport, headers = httpx.ASGITransport(app), {"Authorization": "Bearer t"}
    async with (
        sessions.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client,
    ):
        statuses = {
            name: (await client.get(f"/{name}")).status_code
            for name in names
            if name not in {"aclose", "keep_current"}
        }
    offline = {"use_token": 200, "current_token": 200}
    assert statuses == dict.fromkeys(statuses, 403) | offline
    assert {"login", "logout", "refresh", "new_session"} <= statuses.keys()


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
