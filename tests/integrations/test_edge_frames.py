"""Tools that show variables show no secret in a frame of an application, at any failure."""

# No `from __future__ import annotations`: FastAPI reads the annotations of local endpoints.

import contextlib
import logging
from collections.abc import Callable, MutableMapping
from datetime import timedelta
from types import TracebackType
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import pytest
from fastapi import Depends, HTTPException, Request, Response, WebSocket
from fastapi import WebSocketException as SocketRejected

from koyeb_session import AsyncSessionClient, PasswordCredentials, RetryPolicy
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, assert_no_secret

from ..interrupted import EVENTS, POINTS, Interrupting, Point
from ..walkers import assert_no_tool_shows
from .application import ask_raw, serve_all

EMAIL = "me@example.com"
PASSWORD = "canary-password-3e5d81"
FINGERPRINT = "canary-fingerprint-77ab02"
ODD = "canary odd 51aa0e"
"""A bearer that is malformed."""
OUTCOMES = ["success", "error", "timeout", "deadline", "cancellation", "refusal"]
UNBOUNDED = {"/caller/post", "/service/post", "/sync/refresh", "/sync/post"}
"""The endpoints whose own transport is not bounded, as its httpx.Client is not."""
ENDPOINTS = ["/caller/new", "/cookie", "/guest", "/service/refresh", *sorted(UNBOUNDED)]


class Application:
    """Uses the sessions in each way, and keeps the errors."""

    def __init__(self, point: Point = "request", event: Callable[[], Any] = lambda: None) -> None:
        self.clock = FakeClock()
        self.fake = FakeKoyeb(users={EMAIL: PASSWORD}, clock=self.clock)
        self.bearer = self.fake.issue_token(EMAIL)
        self.sessions = KoyebSessions(
            token=self.fake.issue_token(EMAIL),
            credentials=PasswordCredentials(EMAIL, PASSWORD),
            transport=Interrupting(self.fake, point, event),
            clock=self.clock,
            retry_policy=RetryPolicy(attempts=1),
            timeout=0.05 if event is anyio.sleep_forever else 10.0,
        )
        self.raised: list[tuple[BaseException, TracebackType | None]] = []
        self.app = app = serve_all(self.sessions)
        sessions = self.sessions

        @app.get("/guest")
        async def guest(session: Annotated[AsyncSessionClient, Depends(sessions.guest)]) -> None:
            await session.login(EMAIL, PASSWORD, seon_fp=FINGERPRINT)

        @app.websocket("/stream")
        async def stream(
            websocket: WebSocket, session: Annotated[AsyncSessionClient, Depends(sessions.caller)]
        ) -> None:
            await websocket.accept(subprotocol="Bearer")
            await session.new_session()

        @app.get("/elsewhere")
        async def elsewhere() -> None:
            raise httpx.ConnectError("of a request to another service")

        @app.exception_handler(HTTPException)
        async def keep(_: Request, error: HTTPException) -> Response:
            self.raised.append((error, error.__traceback__))  # which is not there any more later
            return Response(status_code=error.status_code)

        @app.exception_handler(SocketRejected)
        async def keep_too(websocket: WebSocket, error: SocketRejected) -> None:
            self.raised.append((error, error.__traceback__))
            await websocket.close(error.code)

    async def call(self, path: str, bearer: str, send: Callable[..., Any] | None = None) -> None:
        """Call the application as a server does."""
        headers = [(b"authorization", f"Bearer {bearer}".encode())]
        if path == "/cookie":
            headers = [(b"cookie", f"token={bearer}".encode())]
        if path == "/stream":
            headers = []
        subprotocols = ["Bearer", bearer] if path == "/stream" else None
        try:
            await ask_raw(self.app, path, headers, subprotocols, send)
        except BaseException as exc:
            self.raised.append((exc, exc.__traceback__))
            raise

    def search(self, *things: object) -> None:
        """Fail if a tool shows a secret of an error, or anything of the log."""
        issued = [token.id for token in self.fake._registry._tokens.values()]
        secrets = [PASSWORD, FINGERPRINT, ODD, *issued]
        assert_no_secret(secrets, repr(self.sessions), *things)
        for error, frames in self.raised:
            assert_no_tool_shows(error.with_traceback(frames), secrets)


def cancelling(scope: anyio.CancelScope) -> Callable[[], Any]:
    """Return a function that cancels a scope, in its event loop or in a thread of it."""

    def cancel() -> Any:
        try:
            anyio.get_current_task()
        except anyio.NoEventLoopError:
            return anyio.from_thread.run_sync(scope.cancel)
        scope.cancel()
        return anyio.lowlevel.checkpoint()

    return cancel


@pytest.mark.parametrize("handled", [True, False], ids=["answered", "raised"])
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("path", [*ENDPOINTS, "/stream"])
async def test_no_tool_shows_a_secret_of_an_application(
    path: str, outcome: str, caplog: pytest.LogCaptureFixture, *, handled: bool
) -> None:
    """Neither the service's nor a caller's, with this package's handlers and without them."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    for point in POINTS:
        if outcome == "deadline" and (point == "close" or path in UNBOUNDED):
            continue
        scope = anyio.CancelScope()
        other = {"deadline": anyio.sleep_forever, "cancellation": cancelling(scope)}
        application = Application(point, {**EVENTS, **other}.get(outcome, lambda: None))
        if handled:
            application.sessions.add_exception_handlers(application.app)
        if outcome == "refusal":
            for operation in ("new_session", "refresh", "login", "apps"):
                application.fake.fail(operation, Fault(status=500), times=9)
        async with application.sessions.lifespan():
            with scope, contextlib.suppress(Exception):
                await application.call(path, application.bearer)
            application.search(caplog.records)
        caplog.clear()


@pytest.mark.parametrize("path", [*ENDPOINTS, "/stream"])
async def test_no_tool_shows_a_bearer_of_an_application_that_is_not_running(path: str) -> None:
    """An application that forgets the lifespan shows none of the callers' tokens."""
    application = Application()
    with pytest.raises(RuntimeError, match="not running"):
        await application.call(path, application.bearer)
    application.search()


@pytest.mark.parametrize("expired", [False, True], ids=["malformed", "expired"])
@pytest.mark.parametrize("path", ["/caller/new", "/cookie", "/stream"])
async def test_no_tool_shows_a_bearer_that_is_refused(path: str, *, expired: bool) -> None:
    """Nor one that is malformed, or too old."""
    application = Application()
    old = application.fake.issue_token(EMAIL, lifetime=timedelta(seconds=10))
    application.clock.advance(20)
    async with application.sessions.lifespan():
        await application.call(path, old if expired else ODD)
    ((error, _),) = application.raised
    assert error.__context__ is None
    application.search()


async def test_no_tool_shows_a_bearer_beside_an_error_of_others() -> None:
    """An error that has nothing to do with Koyeb goes through the handlers as it is."""
    application = Application()
    application.sessions.add_exception_handlers(application.app)
    with pytest.raises(httpx.ConnectError):
        await application.call("/elsewhere", application.bearer)
    application.search()


async def test_no_tool_shows_the_bearer_of_a_websocket_that_is_being_closed() -> None:
    """An application that is cancelled meanwhile, or a server that fails, shows none."""
    application = Application()
    application.sessions.add_exception_handlers(application.app)
    application.fake.fail("new_session", Fault(status=500), times=9)

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "websocket.close":
            raise RuntimeError(message["code"])

    async with application.sessions.lifespan():
        with pytest.raises(RuntimeError, match="1011"):
            await application.call("/stream", application.bearer, send)
    application.search()
