"""The message of each error: the request, the cause, and a remedy."""

# pyright: reportPossiblyUnboundVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# A loop over timeouts or moments runs at least once; lists of mixed facts are not typed twice.

from __future__ import annotations

import copy
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from koyeb_session import (
    AccessTokenCredentials,
    ApiError,
    AsyncSessionClient,
    AuthenticationError,
    BadRequestError,
    EndpointGoneError,
    InvalidCredentialsError,
    KoyebSessionError,
    NotSignedInError,
    PasswordCredentials,
    PermissionDeniedError,
    RateLimitedError,
    RefreshPolicy,
    RetryPolicy,
    ServerError,
    SessionClient,
    SessionExpiredError,
    StoreError,
    Token,
    TransportError,
    WireError,
)
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import Reply
from koyeb_session._concurrency.forks import close_in_children
from koyeb_session._core.endings import no_token
from koyeb_session._core.snapshot import FrozenClock, LastFailure, Observation
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

BASE = "https://koyeb.example"
ME, PASSWORD = "me@example.com", "correct horse"
WAYS = (
    "use an API access token (token=...), AccessTokenCredentials(api_token, organization_id), or a "
    "callable that brings tokens (credentials=...)"
)
PAGE = b"<!doctype html><title>Welcome</title>"
HTML = {"content-type": "text/html; charset=utf-8"}


def told(operation: object, status: int, body: bytes = b"", **headers: str) -> KoyebSessionError:
    """Return the error for a reply of the service."""
    assert isinstance(operation, Operation)
    named = httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()})
    outcome: object = operation.outcome(Reply(status, named, body), 0.0, BASE)
    assert isinstance(outcome, KoyebSessionError)
    return outcome


def said(message: str, code: str | int = "some_code", **more: object) -> bytes:
    """Write an error body as the service does."""
    return json.dumps({"status": 0, "code": code, "message": message, **more}).encode()


LOGIN = operations.login(ME, PASSWORD)
REFRESH = operations.refresh(Token("canary"))


# A wrong base_url


@pytest.mark.parametrize("base_url", [f"{BASE}/v1", f"{BASE}/v1/", f"{BASE}/api/v1"])
def test_base_url_is_refused_when_it_ends_with_v1(base_url: str) -> None:
    """Each operation's path begins with it: people copy it from the API's documentation."""
    with pytest.raises(ValueError, match="base_url") as caught:
        SessionClient(base_url=base_url)
    assert str(caught.value) == "base_url must not end with /v1: each operation adds it"


def test_a_page_in_place_of_an_operation_says_that_base_url_may_be_wrong() -> None:
    """A 404 of a web server is no word of the service's about its operation."""
    error = told(LOGIN, 404, PAGE, content_type="text/html; charset=utf-8")
    assert type(error) is EndpointGoneError
    assert error.message == (
        "login: there is no such operation at this URL "
        "(POST https://koyeb.example/v1/account/login: status 404, text/html); base_url may be "
        f"wrong; if it is right, the service no longer has this operation; {WAYS}"
    )


def test_a_withdrawn_operation_is_one_by_the_services_own_word() -> None:
    """Koyeb's router answers in the API's form; then base_url is right."""
    error = told(LOGIN, 404, said("Not Found", 5), content_type="application/json")
    assert type(error) is EndpointGoneError
    assert error.message == (
        "login: the service no longer has this operation "
        f"(POST https://koyeb.example/v1/account/login: status 404); {WAYS}"
    )


@pytest.mark.parametrize(
    ("location", "what"),
    [
        ("https://www.koyeb.example/login?next=canary", "redirected to https://www.koyeb.example"),
        ("/elsewhere", "no message"),
        ("https://[::x]/", "no message"),
        ("", "no message"),
    ],
)
def test_a_redirect_names_the_service_that_it_leads_to(location: str, what: str) -> None:
    """No operation follows one; its path and query stay out, as they may hold anything."""
    error = told(REFRESH, 301, PAGE, location=location, content_type="text/html")
    assert type(error) is ApiError
    assert error.message == (
        f"refresh: {what} (PUT https://koyeb.example/v1/account/refresh: status 301, text/html); "
        "operations follow no redirect: base_url may be wrong"
    )


def test_a_page_that_comes_with_success_says_that_base_url_may_be_wrong() -> None:
    """A web site answers any path with its front page."""
    error = told(LOGIN, 200, PAGE, content_type="text/html")
    assert type(error) is WireError
    assert error.message == (
        "login: the reply is not JSON "
        "(POST https://koyeb.example/v1/account/login: status 200, text/html); "
        "this is no reply of Koyeb's API: base_url may be wrong"
    )


def test_json_that_is_not_what_was_promised_says_nothing_of_base_url() -> None:
    """It is the service that has changed."""
    error = told(LOGIN, 200, b"{}", content_type="application/json")
    assert error.message == (
        "login: the reply has no token (POST https://koyeb.example/v1/account/login: status 200)"
    )


def test_a_page_that_refuses_says_that_base_url_may_be_wrong() -> None:
    """Some proxy, or another service, has answered."""
    error = told(REFRESH, 403, PAGE, content_type="text/html")
    assert type(error) is PermissionDeniedError
    assert error.message == (
        "refresh: no message (PUT https://koyeb.example/v1/account/refresh: status 403, "
        "text/html); this is no reply of Koyeb's API: base_url may be wrong"
    )


def test_a_page_of_a_service_that_is_down_says_nothing_of_base_url() -> None:
    """A proxy before the service answers in HTML when the service does not answer."""
    error = told(REFRESH, 502, PAGE, content_type="text/html")
    assert error.message == (
        "refresh: no message (PUT https://koyeb.example/v1/account/refresh: status 502, text/html)"
    )


@pytest.mark.parametrize("kind", ["text", "a b/c", "x" * 99 + "/x", "\x1b[31m/x", "é/x"])
def test_a_content_type_that_is_none_is_not_quoted(kind: str) -> None:
    """A header may hold anything."""
    reply = Reply(502, {"content-type": kind}, b"")
    error = REFRESH.outcome(reply, 0.0, BASE)
    assert isinstance(error, ServerError)
    assert error.message == (
        "refresh: no message (PUT https://koyeb.example/v1/account/refresh: status 502)"
    )


def test_no_message_shows_whose_login_method_is_asked_for() -> None:
    """The query holds an address: errors go into logs and trackers."""
    error = told(operations.login_method(ME), 401, said("no"))
    assert error.message == (
        "login_method: no (GET https://koyeb.example/v1/account/login_method: status 401)"
    )


# Refusals


def test_too_many_requests_say_when_to_try_again() -> None:
    """The reply has no JSON; its header says when."""
    error = told(LOGIN, 429, retry_after="90")
    assert type(error) is RateLimitedError
    assert error.retryable
    assert error.message == (
        "login: too many requests (POST https://koyeb.example/v1/account/login: status 429); "
        "try again in 1 min 30 s"
    )
    later = told(LOGIN, 429, said("slow down"))
    assert later.message == (
        "login: too many requests: slow down "
        "(POST https://koyeb.example/v1/account/login: status 429); try again later"
    )
    now = told(LOGIN, 429, retry_after="0")
    assert now.message.endswith("; try again now")


def test_a_service_that_is_down_says_when_it_asks_to_come_back() -> None:
    """A 503 may name a time as well."""
    error = told(REFRESH, 503, said("maintenance"), retry_after="3600")
    assert error.message == (
        "refresh: maintenance (PUT https://koyeb.example/v1/account/refresh: status 503); "
        "try again in 1 h 0 min"
    )


def test_a_bad_request_says_what_is_wrong_with_which_field() -> None:
    """The text has what ``fields`` has, without the password."""
    fields = [
        {"field": "email", "description": "is not an address"},
        {"field": "password", "description": f"{PASSWORD} is too short"},
    ]
    error = told(LOGIN, 400, said("bad body", fields=fields))
    assert type(error) is BadRequestError
    assert error.message == (
        "login: bad body: email: is not an address, password: [secret] is too short "
        "(POST https://koyeb.example/v1/account/login: status 400)"
    )
    assert error.fields == {
        "email": "is not an address",
        "password": "[secret] is too short",
    }


def test_a_forbidden_sign_in_says_what_to_use_instead() -> None:
    """Koyeb refuses passwords more and more."""
    error = told(LOGIN, 403, said("no"), content_type="application/json")
    assert error.message == (
        "login: no (POST https://koyeb.example/v1/account/login: status 403); "
        f"if Koyeb no longer accepts this kind of sign-in, {WAYS}"
    )


# No reply


def test_no_reply_names_the_request() -> None:
    """Nothing listens there; that is worth another try."""
    once = RetryPolicy(attempts=1)
    with (
        SessionClient(base_url="http://127.0.0.1:1", retry_policy=once) as session,
        pytest.raises(TransportError) as caught,
    ):
        session.login(ME, PASSWORD)
    assert caught.value.message.startswith(
        "login: no reply to POST http://127.0.0.1:1/v1/account/login: "
    )
    assert caught.value.retryable


# The end of a session


@pytest.fixture
def clock() -> FakeClock:
    """Make a clock that stands still until the test moves it."""
    return FakeClock()


@pytest.fixture
def fake(clock: FakeClock) -> FakeKoyeb:
    """Make a service whose tokens live for a day."""
    return FakeKoyeb(clock=clock)


def connect(fake: FakeKoyeb, clock: FakeClock, **arguments: Any) -> SessionClient:
    """Make a client of the service that tries everything once, and again after ten seconds."""
    return SessionClient(
        transport=fake.transport,
        clock=clock,
        retry_policy=RetryPolicy(attempts=1),
        refresh_policy=RefreshPolicy(jitter=0, backoff=20),
        **arguments,
    )


def ending(session: SessionClient) -> KoyebSessionError:
    """Return the error of a session's request."""
    with pytest.raises(KoyebSessionError) as caught:
        session.current_token()
    return caught.value


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits be as long as they can be."""
    monkeypatch.setattr("random.random", lambda: 0.0)


def test_an_expired_token_says_since_when(fake: FakeKoyeb, clock: FakeClock) -> None:
    """No renewal has failed: the session was not used in time."""
    with connect(fake, clock, token=fake.issue_token()) as session:
        clock.advance(timedelta(hours=24))
        assert ending(session).message == (
            "the token has just expired; sign in again with login(), or give credentials="
        )
        clock.advance(timedelta(hours=1))
        error = ending(session)
    assert type(error) is SessionExpiredError
    assert error.message == (
        "the token expired 1 h 0 min ago; sign in again with login(), or give credentials="
    )
    assert not error.retryable
    assert error.__cause__ is None


def test_a_refused_token_says_what_the_service_said(fake: FakeKoyeb, clock: FakeClock) -> None:
    """It was revoked, or another program has refreshed it."""
    with connect(fake, clock, token=fake.issue_token()) as session:
        fake.revoke_all()
        with pytest.raises(SessionExpiredError) as caught:
            session.refresh()
        cause = caught.value.__cause__
        assert isinstance(cause, AuthenticationError)
        assert caught.value.message == (
            f"the service refused the token: {cause.message}; "
            "sign in again with login(), or give credentials="
        )
        assert not caught.value.retryable


def test_a_service_that_did_not_answer_until_the_end_says_so(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """The session may come back: it is the service that has failed."""
    request = f"(PUT {fake.base_url}/v1/account/refresh: status 503)"
    with connect(fake, clock, token=fake.issue_token()) as session:
        clock.advance(timedelta(hours=24, seconds=-5))
        fake.fail("refresh", Fault(status=503), times=9)
        session.current_token()
        clock.advance(6)
        error = ending(session)
        assert type(error) is SessionExpiredError
        assert error.message == (
            f"the token could not be renewed 6 s ago: refresh: Service Unavailable {request}; "
            "sign in again with login(), or give credentials="
        )
        assert error.retryable
        assert isinstance(error.__cause__, ServerError)
        clock.advance(60)
        error = ending(session)
    assert error.message == (
        "the token expired 1 min 1 s ago; its last renewal failed 1 min 6 s ago: "
        f"refresh: Service Unavailable {request}; "
        "sign in again with login(), or give credentials="
    )
    assert error.retryable
    assert isinstance(error.__cause__, ServerError)


def test_credentials_that_fail_say_when_they_are_asked_again(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """A password that was changed ends the session, and is not tried at each request."""
    request = f"(POST {fake.base_url}/v1/account/login: status 401)"
    credentials = PasswordCredentials(ME, "old password")
    with connect(fake, clock, token=fake.issue_token(), credentials=credentials) as session:
        clock.advance(timedelta(hours=25))
        error = ending(session)
        cause = error.__cause__
        assert type(error) is SessionExpiredError
        assert isinstance(cause, InvalidCredentialsError)
        assert cause.message.endswith(request)
        assert error.message == (
            f"the token could not be renewed: {cause.message}; "
            "the next try is in 20 min 0 s, that of refresh() at once"
        )
        clock.advance(90)
        error = ending(session)
        assert error.message == (
            f"the token could not be renewed 1 min 30 s ago: {cause.message}; "
            "the next try is in 18 min 30 s, that of refresh() at once"
        )
        assert not error.retryable


@pytest.mark.parametrize(
    ("begun", "kind"), [(True, SessionExpiredError), (False, NotSignedInError)]
)
def test_a_callable_that_raised_is_quoted_with_its_class(
    fake: FakeKoyeb, clock: FakeClock, kind: type[KoyebSessionError], *, begun: bool
) -> None:
    """An operator finds the vault's error in the session's; it is no end where nothing began."""

    def vault() -> str:
        raise KeyError("VAULT_TOKEN")

    given = {"token": fake.issue_token()} if begun else {}
    with connect(fake, clock, credentials=vault, **given) as session:
        clock.advance(timedelta(hours=25))
        error = ending(session)
        assert type(error) is kind
        assert error.message == (
            "the credentials gave no token: KeyError: VAULT_TOKEN; "
            "the next try is in 20 s, that of refresh() at once"
        )
        assert isinstance(error.__cause__, KeyError)
        clock.advance(5)
        error = ending(session)
        assert error.message == (
            "the credentials gave no token: KeyError: VAULT_TOKEN; that was 5 s ago; "
            "the next try is in 15 s, that of refresh() at once"
        )
        assert isinstance(error.__cause__, KeyError)
        with pytest.raises(kind) as caught:
            session.refresh()
    assert caught.value.message == "the credentials gave no token: KeyError: VAULT_TOKEN"


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("no"), "RuntimeError: no"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "UnicodeDecodeError: 'utf-8' codec"),
        (OSError(13, "Permission denied"), "PermissionError: [Errno 13] Permission denied"),
    ],
)
def test_what_a_callable_raised_is_told_once(
    fake: FakeKoyeb, clock: FakeClock, exc: Exception, text: str
) -> None:
    """Some errors have no text, and others cannot be made from a text."""

    def vault() -> str:
        raise exc

    with connect(fake, clock, credentials=vault) as session:
        error = ending(session)
    assert error.message.startswith(f"the credentials gave no token: {text}")
    assert error.message.count(type(exc).__name__) == 1
    assert error.retryable is isinstance(exc, OSError)


def test_a_first_sign_in_that_was_refused_says_how_long_ago(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """Its class stays; the password is not tried again at once."""
    with connect(fake, clock, credentials=PasswordCredentials(ME, "wrong")) as session:
        first = ending(session)
        assert type(first) is InvalidCredentialsError
        clock.advance(60)
        again = ending(session)
    assert type(again) is InvalidCredentialsError
    text = first.message.partition("; ")[0]
    assert first.message == f"{text}; the next try is in 20 min 0 s, that of refresh() at once"
    assert again.message == (
        f"{text}; that was 1 min 0 s ago; the next try is in 19 min 0 s, that of refresh() at once"
    )
    assert again.status == 401


def test_an_api_token_says_that_it_cannot_be_refreshed(fake: FakeKoyeb, clock: FakeClock) -> None:
    """It works as it is, and there is a way to short-lived ones."""
    with connect(fake, clock, token=fake.issue_api_token()) as session:
        with pytest.raises(SessionExpiredError) as caught:
            session.refresh()
        assert session.http.get("/v1/apps").status_code == 200
    assert caught.value.message == (
        "an API access token cannot be refreshed, and needs no refresh: use it as it is, or "
        "exchange it for short-lived tokens with AccessTokenCredentials(api_token, organization_id)"
    )
    assert not caught.value.retryable


def test_a_session_that_does_not_renew_says_so(fake: FakeKoyeb, clock: FakeClock) -> None:
    """The token belongs to someone else, who has a newer one."""
    wanted = (
        "the token has expired, and this session does not renew it: get another one where it came "
        "from"
    )
    with connect(fake, clock) as session:
        other = session.for_token(fake.issue_token())
        clock.advance(timedelta(hours=25))
        assert ending(other).message == wanted
        with pytest.raises(SessionExpiredError) as caught:
            other.refresh()
    assert caught.value.message == wanted


def test_a_refused_api_token_of_credentials_says_what_to_make(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """It was revoked in the control panel."""
    credentials = AccessTokenCredentials("x" * 64, fake.organizations[ME][0])
    with connect(fake, clock, credentials=credentials) as session:
        error = ending(session)
    assert type(error) is AuthenticationError
    path = f"/v1/organizations/{fake.organizations[ME][0]}/access_token"
    assert f"(POST {fake.base_url}{path}: status 401)" in error.message
    assert "the API access token is refused: make one in Koyeb's control panel" in error.message


def test_copies_of_an_error_say_the_same() -> None:
    """Each caller is given a copy."""
    error = told(LOGIN, 429, retry_after="90")
    assert copy.copy(error).message == str(copy.copy(error)) == error.message


def test_an_error_of_something_else_is_told_as_it_is(clock: FakeClock) -> None:
    """A caller's own deadline, and a store, say nothing of the token or of a sign-in."""
    now = FrozenClock(clock.time(), clock.monotonic())
    late = TransportError("the token was not renewed within 1 s")
    full = StoreError("full")
    failed = LastFailure(full, 1, now.wall, now.mono, 5.0)
    assert no_token(Observation(None, None, now), late) is late
    assert no_token(Observation(None, failed, now), late) is late
    assert no_token(Observation(None, failed, now), full) is full


def test_a_session_that_was_signed_out_meanwhile_says_so(clock: FakeClock) -> None:
    """Nothing has failed, and there is no token."""
    error = no_token(Observation(None, None, FrozenClock(clock.time(), clock.monotonic())), None)
    assert type(error) is NotSignedInError
    assert error.message == "signed out: call login()"


# Representations, copies and replacements


def test_repr_says_that_a_session_has_ended(fake: FakeKoyeb, clock: FakeClock) -> None:
    """Expired or refused, without credentials; signed out; closed."""
    at = f"<SessionClient {fake.base_url}: "
    session = connect(fake, clock)
    token = session.login(ME, PASSWORD)
    who = f"as {token.user_id}"
    assert repr(session) == f"{at}signed in {who}, token good for 1 d 0 h>"
    fake.revoke_all()
    with pytest.raises(SessionExpiredError):
        session.refresh()
    assert repr(session) == f"{at}the session {who} has ended: token refused>"
    clock.advance(timedelta(hours=25))
    assert repr(session) == f"{at}the session {who} has ended: token expired>"
    session.logout()
    assert repr(session) == f"{at}signed out>"
    session.close()
    assert repr(session) == f"{at}closed>"


def test_repr_says_what_brings_a_session_back(fake: FakeKoyeb, clock: FakeClock) -> None:
    """With credentials nothing has ended."""
    with connect(fake, clock, credentials=PasswordCredentials(ME, PASSWORD)) as session:
        session.current_token()
        clock.advance(timedelta(hours=25))
        assert repr(session).endswith(", token expired: the next request signs in again>")


def test_repr_says_what_an_api_token_is(fake: FakeKoyeb, clock: FakeClock) -> None:
    """A JWT without an expiry is none, whether the session renews it or not."""
    with connect(fake, clock, token=fake.issue_api_token()) as session:
        assert repr(session).endswith(": signed in, with an API access token>")
        jwt = "eyJhbGciOiJub25lIn0.e30."
        for other in (session.for_token(jwt), session.for_token(jwt, renew=True)):
            assert repr(other).endswith(": signed in, token good for an unknown time>")


class Broken:
    """A clock that works until it does not."""

    def __init__(self) -> None:
        self.works = True

    def time(self) -> float:
        """Return the time, or raise if the clock is broken."""
        if not self.works:
            message = "the battery is empty"
            raise RuntimeError(message)
        return 1_800_000_000.0

    monotonic = time


@pytest.mark.parametrize("half", [SessionClient, AsyncSessionClient])
def test_repr_and_the_end_raise_nothing_when_the_clock_does(
    half: type[SessionClient | AsyncSessionClient],
) -> None:
    """Debuggers, trackers and the interpreter's end look at a session at any time."""
    clock = Broken()
    token = Token("t", "user-1", expires_at=datetime(2050, 1, 1, tzinfo=UTC))
    session = half(clock=clock, token=token)
    clock.works = False
    assert repr(session) == f"<{half.__name__} https://app.koyeb.com: signed in as user-1>"
    session.__del__()
    with pytest.raises(RuntimeError, match="battery"):
        half(clock=clock, token="t")
    unmade = object.__new__(half)
    assert repr(unmade) == f"<{half.__name__}: not made>"
    unmade.__del__()


@pytest.mark.parametrize("half", [SessionClient, AsyncSessionClient])
@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_pickling_says_what_to_do_in_a_process_pool(
    half: type[SessionClient | AsyncSessionClient], copied: Callable[[object], object]
) -> None:
    """A client and its auth hold connections and locks, which no other process can use."""
    session = half()
    names = (half.__name__, half.__name__.replace("Client", "Auth"))
    for it, name in zip((session, session.auth), names, strict=True):
        with pytest.raises(TypeError) as caught:
            copied(it)
        assert str(caught.value) == (
            f"{name} cannot be copied or pickled: make a client in each process, with "
            "the same store=, or hand current_token() over, for token= or for_token() there"
        )


def _fake_login(*_: object) -> str:
    return "fake"


@pytest.mark.parametrize("half", [SessionClient, AsyncSessionClient])
def test_a_method_of_one_client_can_be_replaced(
    half: type[SessionClient | AsyncSessionClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users' tests do so, and the other clients stay as they are."""
    session, other = half(), half()
    with monkeypatch.context() as patch:
        patch.setattr(session, "login", _fake_login)
        assert session.login(ME, PASSWORD) == "fake"  # type: ignore[comparison-overlap]
        assert "login" not in vars(other)
    assert session.login == half.login.__get__(session)


# Forks


def test_a_connection_without_a_socket_is_no_childs_affair() -> None:
    """A stream of a test's own may be none of the system's."""
    close_in_children(None)


WORKERS = """
import os, sys
from koyeb_session import PasswordCredentials, SessionClient
from koyeb_session.stores import FileTokenStore
url, path = sys.argv[1:]
store = FileTokenStore(path) if path else None
who = PasswordCredentials("me@example.com", "correct horse")
session = SessionClient(base_url=url, credentials=who, store=store)
assert session.http.get("/v1/apps").status_code == 200
children = []
for number in range(3):
    child = os.fork()
    if not child:
        for _ in range(2):
            session.refresh() if number < 2 else None
            # Two refreshes by others cost one request, and there are no more than four.
            assert 200 in [session.http.get("/v1/apps").status_code for _ in range(3)]
        sys.exit(7)
    children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert session.http.get("/v1/apps").status_code == 200
session.close()
"""


ASYNC_WORKERS = """
import asyncio, gc, os, sys
from koyeb_session import AsyncSessionClient, PasswordCredentials
from koyeb_session.stores import AsyncFileTokenStore
url, path = sys.argv[1:]
store = AsyncFileTokenStore(path) if path else None
who = PasswordCredentials("me@example.com", "correct horse")
session = AsyncSessionClient(base_url=url, credentials=who, store=store)
async def use(refresh=False):
    for _ in range(2):
        await session.refresh() if refresh else None
        await asyncio.gather(*(session.http.get("/v1/apps") for _ in range(3)))
        # Two refreshes by others cost one request, and there are no more than four.
        assert 200 in [(await session.http.get("/v1/apps")).status_code for _ in range(3)]
def leave():
    gc.collect()
    os._exit(7)  # to close the parent's loop would be the end of it for both
async def use_and_fork():
    await use()
    child = os.fork()
    if not child:
        leave()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    await use()
with asyncio.Runner() as runner:
    runner.run(use_and_fork())
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            asyncio.run(use(refresh=number < 2))
            leave()
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    runner.run(use())
    runner.run(session.aclose())
"""
CHILD = """
import asyncio, os, sys
from koyeb_session import AsyncSessionClient
session = AsyncSessionClient(base_url=sys.argv[1], token=sys.argv[2])
async def use():
    await asyncio.gather(*(session.http.get("/v1/apps") for _ in range(3)))
asyncio.run(use())
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))  # its loop has left some open
asyncio.run(use())
sys.exit(7)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("program", [WORKERS, ASYNC_WORKERS], ids=["blocking", "asynchronous"])
@pytest.mark.parametrize("with_store", [False, True])
@pytest.mark.parametrize("refresh", ["revokes", "keeps"])
def test_workers_heal_and_are_silent_when_the_session_was_made_before_the_fork(
    tmp_path: Path, refresh: Literal["revokes", "keeps"], program: str, *, with_store: bool
) -> None:
    """Without a store each may have to sign in again; with one they share the session."""
    fake = FakeKoyeb(refresh=refresh)
    with fake.serve() as url:
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-W",
                    "default",
                    "-W",
                    "ignore:This process:DeprecationWarning",
                    "-c",
                    program,
                ),
                *(url, str(tmp_path / "session.json") if with_store else ""),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    sign_ins = sum(it.operation == "login" for it in fake.requests)
    assert 1 <= sign_ins <= (1 if with_store or refresh == "keeps" else 5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_normal_end_of_a_child_is_silent() -> None:
    """What its parent, and it itself, have opened in event loops is dropped without a warning."""
    fake = FakeKoyeb()
    with fake.serve() as url:
        command = [sys.executable, "-W", "default", "-c", CHILD, url, fake.issue_token()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


PARENT = """
import asyncio, os, sys
from koyeb_session import AsyncSessionClient
async def main():
    async with AsyncSessionClient(base_url=sys.argv[1], token="t") as session:
        await session.http.get("/v1/apps")
        reader, writer = os.pipe()
        if not os.fork():
            os.close(writer)
            os.read(reader, 1)  # until the parent has ended
            os._exit(0)
    print(flush=True)
    sys.stdin.read(1)
asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_connection_is_over_when_its_parent_closes_it() -> None:
    """A child that lives on holds none of the service's sockets open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PARENT, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as parent:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                assert parent.stdout is not None
                parent.stdout.readline()
                assert connection.recv(1) == b""
            parent.communicate(b"\n", timeout=30)
