"""The answers to the callers of a FastAPI application when Koyeb, or the way to it, fails."""

# No `from __future__ import annotations`: FastAPI reads the annotations of local endpoints.

import contextlib
import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

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
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    SessionExpiredError,
    StoreError,
    TransportError,
    TransportTimeoutError,
    WireError,
)
from koyeb_session._core.results import RAISED_BY
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeClock, FakeKoyeb, assert_no_secret

from .application import asking

APPS = "https://app.koyeb.com/v1/apps?secret=hush"
HUSH = ["hush", "correct horse"]
GENERIC = "Koyeb could not be asked, or gave no useful answer."


def refused(status: int, url: str = APPS, headers: dict[str, str] | None = None) -> Exception:
    """Make the error that `raise_for_status` raises for a reply."""
    request = httpx.Request("GET", url)
    response = httpx.Response(status, request=request, headers=headers, text="hush")
    return httpx.HTTPStatusError(f"{status} for {url}", request=request, response=response)


def failed(kind: type[httpx.RequestError], url: str = APPS) -> Exception:
    """Make the error that `httpx` raises where no reply comes."""
    return kind(f"hush: {url}", request=httpx.Request("GET", url))


async def answers(error: Exception, *, own: bool = False, **arguments: Any) -> httpx.Response:
    """Raise an error in an endpoint, maybe as one of the caller's; return the answer."""
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

    async with sessions.lifespan(), asking(app) as client:
        return await client.get("/")


REASONS: list[tuple[Exception, int, int]] = [
    # The error, its status where it is the caller's, and where it is the service's.
    *((refused(status), status, 502) for status in (400, 401, 403, 404, 409)),
    *((refused(status), 502, 502) for status in (302, 402, 405, 410, 418, 501)),
    *((refused(status), 503, 503) for status in (500, 502, 503)),
    *((refused(status), 503, 503) for status in (408, 425)),
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
    """A failure that a caller can mend is handed on to them; all else is in the log alone."""
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
    """A caller learns which part of its own request Koyeb found wrong, and the id of it."""
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


@pytest.mark.parametrize("date", [None, "Thu, 01 Jan 2026 00:00:00 GMT"])
async def test_retry_after_is_counted_by_the_clocks_of_the_reply_or_the_session(
    date: str | None,
) -> None:
    """The date in it is one of the service's clock, and at best one of the session's own."""
    clock, headers = FakeClock(), {"Retry-After": "Thu, 01 Jan 2026 00:00:08 GMT"}
    if date is not None:
        clock.step_wall(-3600)
        headers |= {"Date": date}
    answer = await answers(refused(503, headers=headers), clock=clock)
    assert answer.headers["retry-after"] == ("8" if date is None else "7")


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
    """An application that answers httpx's errors already goes on doing so."""
    app = FastAPI()

    @app.exception_handler(httpx.HTTPError)
    async def teapot(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("mine", 418)

    KoyebSessions().add_exception_handlers(app)

    @app.get("/")
    async def fail() -> None:
        raise refused(404)

    async with asking(app) as client:
        assert (await client.get("/")).status_code == 418


def test_configuration_begins_nothing() -> None:
    """At import time no thread is started: no certificates are read."""
    program = (
        "import threading; from koyeb_session.fastapi import KoyebSessions; KoyebSessions();"
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
