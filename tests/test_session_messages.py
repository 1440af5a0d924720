"""The messages of a session about its end and about itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from koyeb_session import (
    AccessTokenCredentials,
    AsyncSessionClient,
    AuthenticationError,
    InvalidCredentialsError,
    KoyebSessionError,
    NotSignedInError,
    PasswordCredentials,
    ServerError,
    SessionClient,
    SessionExpiredError,
    Token,
)
from koyeb_session._core.endings import no_token
from koyeb_session._core.snapshot import FrozenClock, Observation
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from .support import ME, PASSWORD, connect_once, raising


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
    with connect_once(fake, clock, token=fake.issue_token()) as session:
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
    with connect_once(fake, clock, token=fake.issue_token()) as session:
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
    with connect_once(fake, clock, token=fake.issue_token()) as session:
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
    with connect_once(fake, clock, token=fake.issue_token(), credentials=credentials) as session:
        clock.advance(timedelta(hours=25))
        error = ending(session)
        cause = error.__cause__
        assert type(error) is SessionExpiredError
        assert isinstance(cause, InvalidCredentialsError)
        assert cause.message.endswith(request)
        assert error.message == (
            f"the token could not be renewed: {cause.message}; "
            "it tries again in 20 min 0 s, or at once with refresh()"
        )
        clock.advance(90)
        error = ending(session)
        assert error.message == (
            f"the token could not be renewed 1 min 30 s ago: {cause.message}; "
            "it tries again in 18 min 30 s, or at once with refresh()"
        )
        assert not error.retryable


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize(
    ("begun", "kind"), [(True, SessionExpiredError), (False, NotSignedInError)]
)
def test_a_callable_that_raised_is_quoted_with_its_class(
    fake: FakeKoyeb, clock: FakeClock, kind: type[KoyebSessionError], *, begun: bool, raises: bool
) -> None:
    """An operator finds the vault's error in the session's; it is no end where nothing began."""
    cause = KeyError if raises else TypeError
    text = "VAULT_TOKEN" if raises else "the token must be a Token or a str, not NoneType"
    what = f"{cause.__name__}: {text}"

    def vault() -> Any:
        if raises:
            raise KeyError("VAULT_TOKEN")

    given = {"token": fake.issue_token()} if begun else {}
    with connect_once(fake, clock, credentials=vault, **given) as session:
        clock.advance(timedelta(hours=25))
        error = ending(session)
        assert type(error) is kind
        assert error.message == (
            f"the credentials gave no token: {what}; "
            "it tries again in 20 s, or at once with refresh()"
        )
        assert isinstance(error.__cause__, cause)
        clock.advance(5)
        error = ending(session)
        assert error.message == (
            f"the credentials gave no token: {what}; that was 5 s ago; "
            "it tries again in 15 s, or at once with refresh()"
        )
        assert isinstance(error.__cause__, cause)
        with pytest.raises(kind) as caught:
            session.refresh()
    assert caught.value.message == f"the credentials gave no token: {what}"


class BusyError(Exception):
    """An error that says itself that another attempt may help."""

    retryable = True


@pytest.mark.parametrize(
    ("exc", "text", "retryable"),
    [
        (RuntimeError(), "RuntimeError; ", False),
        (RuntimeError("no"), "RuntimeError: no; ", False),
        (BusyError("busy"), "BusyError: busy; ", True),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "UnicodeDecodeError: 'utf-8'", False),
        (OSError(13, "Permission denied"), "PermissionError: [Errno 13] Permission denied; ", True),
    ],
)
def test_an_error_of_a_callable_is_told_once(
    fake: FakeKoyeb, clock: FakeClock, exc: Exception, text: str, *, retryable: bool
) -> None:
    """Some errors have no text, others cannot be made from a text, or say that they may pass."""

    def vault() -> str:
        raise exc

    with connect_once(fake, clock, credentials=vault) as session:
        error = ending(session)
    assert error.message.startswith(f"the credentials gave no token: {text}")
    assert error.message.count(type(exc).__name__) == 1
    assert error.retryable is retryable


def test_a_first_sign_in_that_was_refused_says_how_long_ago(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """Its class stays; the password is not tried again at once."""
    with connect_once(fake, clock, credentials=PasswordCredentials(ME, "wrong")) as session:
        first = ending(session)
        assert type(first) is InvalidCredentialsError
        clock.advance(60)
        again = ending(session)
    assert type(again) is InvalidCredentialsError
    text = first.message.partition("; ")[0]
    assert first.message == f"{text}; it tries again in 20 min 0 s, or at once with refresh()"
    assert again.message == (
        f"{text}; that was 1 min 0 s ago; it tries again in 19 min 0 s, or at once with refresh()"
    )
    assert again.status == 401


def test_an_api_token_says_that_it_cannot_be_refreshed(fake: FakeKoyeb, clock: FakeClock) -> None:
    """It works as it is, and there is a way to short-lived ones."""
    with connect_once(fake, clock, token=fake.issue_api_token()) as session:
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
    with connect_once(fake, clock) as session:
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
    with connect_once(fake, clock, credentials=credentials) as session:
        error = ending(session)
    assert type(error) is AuthenticationError
    path = f"/v1/organizations/{fake.organizations[ME][0]}/access_token"
    assert f"(POST {fake.base_url}{path}: status 401)" in error.message
    assert "the API access token is refused: make one in Koyeb's control panel" in error.message


def test_a_session_that_was_signed_out_meanwhile_says_so(clock: FakeClock) -> None:
    """Nothing has failed, and there is no token."""
    error = no_token(Observation(None, None, FrozenClock(clock.time(), clock.monotonic())), None)
    assert type(error) is NotSignedInError
    assert error.message == "signed out: call login()"


def test_repr_says_what_brings_a_session_back(fake: FakeKoyeb, clock: FakeClock) -> None:
    """With credentials nothing has ended."""
    with connect_once(fake, clock, credentials=PasswordCredentials(ME, PASSWORD)) as session:
        session.current_token()
        clock.advance(timedelta(hours=25))
        assert repr(session).endswith(", token expired: the next request signs in again>")


def test_repr_says_what_an_api_token_is(fake: FakeKoyeb, clock: FakeClock) -> None:
    """A JWT without an expiry is none, whether the session renews it or not."""
    with connect_once(fake, clock, token=fake.issue_api_token()) as session:
        assert repr(session).endswith(": signed in, with an API access token>")
        jwt = "eyJhbGciOiJub25lIn0.e30."
        for other in (session.for_token(jwt), session.for_token(jwt, renew=True)):
            assert repr(other).endswith(": signed in, token good for an unknown time>")


@pytest.mark.parametrize("half", [SessionClient, AsyncSessionClient])
def test_repr_and_the_end_raise_nothing_when_the_clock_does(
    half: type[SessionClient | AsyncSessionClient],
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Debuggers, trackers and the interpreter's end look at a session at any time."""
    token = Token("t", "user-1", expires_at=datetime(2050, 1, 1, tzinfo=UTC))
    session = half(clock=clock, token=token)
    for name in ("time", "monotonic"):
        monkeypatch.setattr(FakeClock, name, raising(RuntimeError("the battery is empty")))
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
