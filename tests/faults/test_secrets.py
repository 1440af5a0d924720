"""No password, token or store content shows, however the service, a store or a logger behaves."""

from __future__ import annotations

import gc
import json
import logging
import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

import httpx
import pytest

import koyeb_session
from koyeb_session import (
    AccessTokenCredentials,
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    KoyebSessionError,
    LoginReply,
    LoginRequest,
    MemoryTokenStore,
    NotSignedInError,
    PasswordCredentials,
    PasswordlessLoginRequest,
    SessionClient,
    SessionExpiredError,
    StoreError,
    Token,
)
from koyeb_session.testing import assert_no_secret

from .._sync.doubles import BrokenStore
from .cell import SECRETS, held_token
from .certificates import client_context, server_context
from .http2 import http2
from .matrix import ACTIONS, EMAIL, PASSWORD, PASSWORD_CORE, RETRY
from .replies import ISSUED, head, reply
from .server import SERVER_THREAD, Behavior, Exchange, Server

STORED: Final = "canary-stored-51aa0e-of-sixty-four-characters-as-an-api-token-has-it"


def _echo(request_text: Callable[[Exchange], str], shape: Callable[[str], bytes]) -> Behavior:
    def behave(exchange: Exchange) -> None:
        exchange.send(shape(request_text(exchange)))
        exchange.close()

    return behave


def _told(exchange: Exchange) -> str:
    """Collect the secrets of the request: its bearer, and those of its body."""
    bearer = re.search("(?mi)^authorization: Bearer (.*?)\r?$", exchange.request.head)
    parts = [bearer[1]] if bearer else []
    if exchange.request.body:
        parts += [value for value in json.loads(exchange.request.body).values() if value != EMAIL]
    return " ".join(parts)


def _raw(exchange: Exchange) -> str:
    """Collect the same as it came over the wire, on one line."""
    request = exchange.request
    return request.head.replace("\r\n", " ") + request.body.decode("latin-1")


def _json_error(status: int) -> Callable[[str], bytes]:
    def shape(text: str) -> bytes:
        fields = [{"field": text, "description": text}]
        body = json.dumps({"code": text, "message": f"you sent {text}, wrong", "fields": fields})
        return head(status, f"Content-Length: {len(body)}") + body.encode()

    return shape


def _head(form: str, encoding: str = "latin-1") -> Callable[[str], bytes]:
    def shape(text: str) -> bytes:
        return form.format(text).encode(encoding, "replace")

    return shape


_EMPTY: Final = "\r\nContent-Length: 0\r\n\r\n"
ECHOES: Final[dict[str, Behavior]] = {
    **{
        f"error {status}": _echo(_told, _json_error(status)) for status in (400, 401, 403, 404, 500)
    },
    "error with the raw request": _echo(_raw, _json_error(400)),
    "login method": _echo(_raw, _json_error(200)),
    "request id": _echo(_told, _head(f"HTTP/1.1 500 Oh\r\nX-Request-Id: {{}}{_EMPTY}")),
    "request id in UTF-8": _echo(
        _told, _head(f"HTTP/1.1 500 Oh\r\nX-Request-Id: {{}}{_EMPTY}", "utf-8")
    ),
    "retry-after": _echo(_told, _head(f"HTTP/1.1 429 Oh\r\nRetry-After: {{}}{_EMPTY}")),
    "location": _echo(_raw, _head(f"HTTP/1.1 302 Oh\r\nLocation: /{{}}{_EMPTY}")),
    "reason": _echo(_raw, _head(f"HTTP/1.1 500 {{}}{_EMPTY}")),
    "broken status line": _echo(_raw, _head("HTTP/9.9 {}\r\n\r\n")),
    "broken header": _echo(_raw, _head("HTTP/1.1 200 OK\r\n{}\r\n\r\n")),
    "broken length": _echo(_raw, _head("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n")),
    "broken chunk": _echo(
        _raw, _head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n\r\n")
    ),
    "broken encoding": _echo(_raw, _head(f"HTTP/1.1 200 OK\r\nContent-Encoding: {{}}{_EMPTY}")),
}


@pytest.mark.parametrize("operation", ACTIONS)
def test_service_that_echoes_a_secret(operation: str, caplog: pytest.LogCaptureFixture) -> None:
    """A secret that the service sends back gets into no error and no log line of ours."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    for echo in ECHOES.values():
        error: Exception | None = None
        with Server([echo]) as server, _session(server.url, token=held_token()) as session:
            try:
                ACTIONS[operation](session)
            except KoyebSessionError as exc:
                error = exc
        assert_no_secret(SECRETS, error, repr(session))
    ours = [record for record in caplog.records if record.name == "koyeb_session"]
    assert_no_secret(SECRETS, ours)


# Where a service answers before it has read the request, httpcore leaves the body's generator.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("operation", ACTIONS)
async def test_service_that_echoes_a_secret_to_the_async_half(operation: str) -> None:
    """The errors of the async half, whose frames are others, hold no echo either."""
    for echo in ECHOES.values():
        error: Exception | None = None
        with Server([echo]) as server:
            async with AsyncSessionClient(
                base_url=server.url, token=held_token(), retry_policy=RETRY
            ) as session:
                try:
                    await ACTIONS[operation](session)
                except KoyebSessionError as exc:
                    error = exc
        assert_no_secret(SECRETS, error)


def test_public_objects_show_no_secret() -> None:
    """The repr, str and format of all that holds a secret are free of it."""
    store, async_store = MemoryTokenStore(), AsyncMemoryTokenStore()
    token = held_token()
    store.save(token)
    credentials = PasswordCredentials(EMAIL, PASSWORD)
    with SessionClient(token=token, store=store, credentials=credentials) as session:
        other = AsyncSessionClient(token=token, store=async_store, credentials=credentials)
        things: list[Any] = [
            *(token, credentials, AccessTokenCredentials(STORED, "an-organization")),
            *(LoginRequest(EMAIL, PASSWORD), LoginReply(token), PasswordlessLoginRequest(EMAIL)),
            *(store, async_store),
            *(session, session.auth, session.http),
            *(session.for_token(token), session.token),
            *(other, other.auth, other.http, other.for_token(token)),
        ]
        signed = httpx.Request("GET", "https://app.koyeb.com/v1/apps")
        next(session.auth.sync_auth_flow(signed))
        assert_no_secret([STORED, *SECRETS], things, signed, session.http.__dict__)
    shown = {type(thing).__name__ for thing in things}
    public = [name for name in koyeb_session.__all__ if not name.endswith("Error")]
    classes = {name for name in public if isinstance(getattr(koyeb_session, name), type)}
    assert classes - shown <= {
        *("AsyncTokenStore", "Clock", "LoginMethod", "RefreshPolicy", "RetryPolicy", "TokenStore")
    }


def test_refused_request_shows_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """An error that the auth hook raises in the middle of httpx holds no secret in any frame."""
    caplog.set_level(logging.DEBUG)
    refused = reply(401, b'{"code": "unauthorized", "message": "no"}')
    with (
        Server([refused]) as server,
        _session(server.url, token=held_token()) as session,
        pytest.raises(SessionExpiredError) as caught,
    ):
        session.http.post("/v1/apps", content=b"{}")
    assert_no_secret(SECRETS, caught.value, caplog.records)


async def test_refused_async_request_shows_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """An error that the async auth hook raises in the middle of httpx holds no secret either."""
    caplog.set_level(logging.DEBUG)
    refused = reply(401, b'{"code": "unauthorized", "message": "no"}')
    with Server([refused]) as server:
        async with AsyncSessionClient(base_url=server.url, token=held_token()) as session:
            with pytest.raises(SessionExpiredError) as caught:
                await session.http.post("/v1/apps", content=b"{}")
    assert_no_secret(SECRETS, caught.value, caplog.records)


def _vault() -> Token:
    """Fail as a provider of tokens does whose own frames and causes hold the secret."""
    headers = {"Authorization": f"Bearer {STORED}"}
    try:
        int(headers["Authorization"])
    except ValueError as exc:
        message = "the vault is away"
        raise RuntimeError(message) from exc
    return Token(STORED)


def test_credentials_that_fail_show_no_frames(caplog: pytest.LogCaptureFixture) -> None:
    """The error of the user's own way to sign in is told without the frames on its way."""
    caplog.set_level(logging.DEBUG)
    with (
        SessionClient(credentials=_vault, retry_policy=RETRY) as session,
        pytest.raises(NotSignedInError) as caught,
    ):
        session.current_token()
    cause = caught.value.__cause__
    assert str(cause) == "the vault is away"
    assert cause is not None
    assert (cause.__traceback__, cause.__context__) == (None, None)
    assert_no_secret([STORED, *SECRETS], caught.value, caplog.records)


@pytest.mark.parametrize("broken", ["load", "save", "delete"])
def test_store_that_tells_what_it_holds(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    """The contents that a store's error quotes get into no error and no log line of ours."""
    caplog.set_level(logging.DEBUG)
    errors: list[Exception] = []
    error = json.JSONDecodeError(f"not JSON: {STORED}", STORED, 0)
    store = BrokenStore(broken, error=error if broken == "load" else RuntimeError(STORED))
    with (
        Server([reply()]) as server,
        _session(server.url, token=held_token(), store=store) as session,
    ):
        for operation in ("refresh", "login", "logout"):
            try:
                ACTIONS[operation](session)
            except StoreError as exc:
                errors.append(exc)
    assert bool(errors) is (broken == "delete")
    assert_no_secret([STORED, *SECRETS], errors, caplog.records)


def test_unclosed_client_shows_no_secret() -> None:
    """The warning about a client that was not closed is free of secrets."""
    with Server([reply()]) as server:
        session = SessionClient(
            base_url=server.url, credentials=PasswordCredentials(EMAIL, PASSWORD)
        )
        session.login(EMAIL, PASSWORD)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            del session
            gc.collect()
    (unclosed,) = [warning for warning in warned if type(warning.source) is SessionClient]
    assert unclosed.category is ResourceWarning
    assert_no_secret(SECRETS, warned)
    assert unclosed.source is not None
    unclosed.source.close()


async def test_http2_logs_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Over HTTP/2, whose layers log at DEBUG too, neither headers nor bodies are logged."""
    caplog.set_level(logging.DEBUG)
    with Server([], tls=server_context(http2=True), speak=http2) as server:
        transport = httpx.AsyncHTTPTransport(verify=client_context(), http2=True)
        async with AsyncSessionClient(base_url=server.url, transport=transport) as session:
            await session.login(EMAIL, PASSWORD)
            await session.refresh()
            response = await session.http.get("/v1/apps")
            await session.logout()
    assert response.http_version == "HTTP/2"
    assert len(server.requests) == 4
    assert f"Bearer {ISSUED}" in server.requests[2].head
    assert PASSWORD_CORE in server.requests[0].body.decode()
    ours = [record for record in caplog.records if record.threadName != SERVER_THREAD]
    assert {"httpcore.http2", "hpack.hpack", "httpx"} <= {record.name for record in ours}
    assert_no_secret(SECRETS, ours)


@contextmanager
def _session(base_url: str, **arguments: Any) -> Generator[SessionClient]:
    with SessionClient(base_url=base_url, retry_policy=RETRY, **arguments) as session:
        yield session
