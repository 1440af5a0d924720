"""The party at fault, as an application answers it: the caller, the service, or Koyeb."""

# No `from __future__ import annotations`: FastAPI reads the annotations of local endpoints.

import inspect
import logging
import warnings
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from koyeb_session import (
    AsyncSessionClient,
    InvalidCredentialsError,
    PasswordCredentials,
    RetryPolicy,
    ServerError,
    SessionExpiredError,
)
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..support import PASSWORDS
from .application import ask_raw, asking, serve_all
from .conftest import Serve

GENERIC = "Koyeb could not be asked, or gave no useful answer."


class Application:
    """An application on a fake Koyeb, whose endpoints use the sessions in more ways."""

    def __init__(self, **arguments: Any) -> None:
        self.sessions = sessions = KoyebSessions(**arguments)
        self.app = app = serve_all(sessions)
        sessions.add_exception_handlers(app)

        @app.get("/background")
        async def background(
            session: Annotated[AsyncSessionClient, Depends(sessions.service)],
            later: BackgroundTasks,
        ) -> None:
            later.add_task(session.new_session)

        @app.get("/client")
        async def client(
            session: Annotated[AsyncSessionClient, Depends(sessions.caller)],
            service: Annotated[AsyncSessionClient, Depends(sessions.service)],
        ) -> None:
            await service.current_token()
            request = service.http.build_request("GET", "/v1/apps")
            (await service.http.send(request, auth=session.auth)).raise_for_status()

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
        async with asking(self.app, headers, raise_app_exceptions=False) as client:
            return await client.get(path)


@pytest.fixture
async def application(fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock) -> AsyncIterator[Application]:
    """Run an application whose session cannot sign in again."""
    arguments: dict[str, Any] = {"transport": fake_koyeb.transport, "clock": koyeb_clock}
    made = Application(**arguments, token=fake_koyeb.issue_token())
    async with made.sessions.lifespan():
        yield made


@pytest.mark.parametrize("path", ["/caller/get", "/caller/new", "/client", "/both"])
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
    if path == "/caller/get":
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
    """A guest with a wrong password learns of it, and the service's session goes on."""
    assert (await application.get("/login?password=correct%20horse")).status_code == 200
    wrong = await application.get("/login?password=wrong")
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"] == "Bearer"
    fake_koyeb.fail("login", Fault(status=429, headers={"Retry-After": "7"}))
    busy = await application.get("/login?password=correct%20horse")
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")
    fake_koyeb.lock_account("me@example.com")
    assert (await application.get("/login?password=correct%20horse")).status_code == 403
    assert (await application.get("/service/get")).status_code == 200


def vault() -> str:
    """Fail as a vault may."""
    message = "secret/koyeb at vault-7.internal"
    raise KeyError(message)


@pytest.mark.pitfall(48)
@pytest.mark.parametrize("path", ["/service/get", "/service/new", "/sync/get", "/both"])
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
        credentials=PASSWORDS,
        clock=koyeb_clock,
        retry_policy=RetryPolicy(attempts=1),
    )
    async with application.sessions.lifespan():
        koyeb_clock.advance(timedelta(days=2))
        fake_koyeb.fail("login", fault, times=9)
        answer = await application.get("/service/get")
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == wait
    assert "locked" not in answer.text


async def test_error_of_another_callers_session_is_not_told(
    application: Application, fake_koyeb: FakeKoyeb
) -> None:
    """The errors of one caller's session are not shown to another caller."""
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
    """A background task changes no answer; the server logs its errors."""
    fake_koyeb.revoke_all()
    assert (await application.get("/background")).status_code == 200
    async with asking(application.app) as client:
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
    async with sessions.lifespan(), asking(app, {"Authorization": "Bearer t"}) as client:
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
    assert (await application.get("/caller/get", "unknown")).status_code == 401


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

    async def send(message: object) -> None:
        raise OSError

    await ask_raw(app, "/", [], [], send)
