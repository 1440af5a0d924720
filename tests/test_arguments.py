"""Wrong arguments are reported before anything is sent."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from unittest.mock import AsyncMock, Mock, create_autospec

import attrs
import httpx
import pytest

from koyeb_session import AccessTokenCredentials, PasswordCredentials, RefreshPolicy, Token
from koyeb_session._core.validation import (
    TIMEOUT_LIMIT,
    async_credentials_error,
    credentials_error,
    header_error,
    id_error,
    kind_error,
    parse_token,
    takes_token,
    text_error,
    timeout_error,
)
from koyeb_session.testing import FakeKoyeb

from .jwts import jwt

WALL = 1_800_000_000.0
NOW = datetime.fromtimestamp(WALL, UTC)
END = datetime.max.replace(tzinfo=UTC)


def odd(value: object) -> Any:
    """Hide from the type checkers that a value is of the wrong type."""
    return value


def text(error: object, kind: type[Exception]) -> str:
    """Return the message of an error value, and check that it quotes no argument."""
    assert type(error) is kind
    assert "canary" not in str(error)
    return str(error)


# Tokens


EARLIER, LATER = NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)
JWT = jwt({"exp": WALL + 60})
LIVES: dict[str, tuple[Token | str, datetime | None, datetime | None]] = {
    # the expiry and the time of issue: an opaque token says nothing, and nothing is made up
    "opaque text": ("x" * 64, None, None),
    "opaque": (Token("x", "u", "o"), None, None),
    "a JWT": (jwt({"exp": WALL + 60, "iat": WALL - 60}), LATER, EARLIER),
    # without a birth, a life begins with the adoption
    "a JWT without a birth": (JWT, LATER, NOW),
    "an expiry": (Token("x", expires_at=LATER), LATER, NOW),
    "a birth": (Token("x", issued_at=EARLIER), None, EARLIER),
    "both": (Token("x", expires_at=LATER, issued_at=EARLIER), LATER, EARLIER),
    "elsewhere": (Token("x", expires_at=LATER.astimezone(timezone(timedelta(1 / 24)))), LATER, NOW),
    "a secret and a provenance": (Token(JWT, renewal="r", provenance="p"), LATER, NOW),
}


@pytest.mark.parametrize("case", LIVES)
def test_token_is_completed_when_it_is_adopted(case: str) -> None:
    """Its JWT and its own fields say how long it lives, in UTC; all else is kept as it is."""
    given, expires_at, issued_at = LIVES[case]
    kept = Token(given) if isinstance(given, str) else given
    found = parse_token(given, WALL)
    assert isinstance(found, Token)
    life = {"expires_at": expires_at, "issued_at": issued_at}
    assert attrs.asdict(found) == attrs.asdict(kept) | life
    assert found.expires_at is None or found.expires_at.tzinfo is UTC


@pytest.mark.parametrize("past", [0, 1e-6, 3600])
def test_token_is_refused_when_it_has_expired(past: float) -> None:
    """A token that expires at this moment has expired."""
    message = "token has expired; sign in again for a new one"
    at = NOW - timedelta(seconds=past)
    assert text(parse_token(Token("x", expires_at=at), WALL), ValueError) == message
    assert text(parse_token(jwt({"exp": WALL - past}), WALL), ValueError) == message
    assert isinstance(
        parse_token(Token("x", expires_at=at + timedelta(microseconds=1)), WALL - past), Token
    )


HEADER_RULE = (
    "token must be visible ASCII without spaces or line breaks, and at most 16384 characters long"
)
NOT_EMPTY = "token must not be empty"
STRIP = "token must have no space or line break around it: use .strip()"
NO_QUOTES = "token must be the token alone, without quotation marks around it"
NO_BEARER = "must be the token alone, without 'Bearer' before it"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        *((bad, HEADER_RULE) for bad in ("canary canary", "canäry", "x" * 16_385)),
        *((bad, NOT_EMPTY) for bad in ("", " ", "\n")),
        *((bad, STRIP) for bad in ("canary\r\n", "canary\n", "\tcanary")),
        # a file of variables may keep its quotation marks
        *((bad, NO_QUOTES) for bad in ('"canary"', "'canary'")),
        # a header copied from a request contains a word too many
        *((f"{word}canary", f"token {NO_BEARER}") for word in ("Bearer ", "bearer\t", " BEARER ")),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_token_is_refused_when_it_is_not_fit_for_a_header(token: str, message: str) -> None:
    """The rule is said in full, for a str and for a Token."""
    assert text(parse_token(token, WALL), ValueError) == message
    assert text(parse_token(Token(token), WALL), ValueError) == message


@pytest.mark.parametrize(
    ("token", "message"),
    [
        *((odd(token), f"token must be a Token or a str, not {type(token).__name__}")
        for token in (None, 5, b"canary", {"id": "canary"})),
        (Token(odd(b"canary")), "token must be a str, not bytes"),
        (Token("x", renewal=odd(b"canary")), "token.renewal must be a str, not bytes"),
        (Token("x", odd(LATER)), "token.user_id must be a str, not datetime: write expires_at=..."),
        (Token("x", "u", odd(5)), "token.organization_id must be a str, not int"),
        (Token("x", expires_at=odd("canary")), "token.expires_at must be a datetime, not str"),
        (Token("x", issued_at=odd("canary")), "token.issued_at must be a datetime, not str"),
    ],
    ids=repr,
)  # fmt: skip
def test_token_is_refused_when_it_or_a_field_is_of_another_class(token: Any, message: str) -> None:
    """A Token is not checked when it is made, so it is here: every store has to keep it."""
    assert text(parse_token(token, WALL), TypeError) == message


@pytest.mark.parametrize("name", ["expires_at", "issued_at"])
def test_token_is_refused_when_a_time_of_it_is_naive(name: str) -> None:
    """A naive time would be local time to some and UTC to others."""
    naive: dict[str, Any] = {name: LATER.replace(tzinfo=None)}
    token = attrs.evolve(Token("x"), **naive)
    assert text(parse_token(token, WALL), ValueError) == (
        f"token.{name} must be aware: give it a time zone, as in datetime.now(UTC)"
    )


@pytest.mark.parametrize("name", ["expires_at", "issued_at"])
@pytest.mark.parametrize(
    "at",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
    ],
    ids=str,
)
def test_token_is_refused_when_a_time_of_it_is_none_in_utc(name: str, at: datetime) -> None:
    """Such a time cannot be compared or saved; the last one of UTC itself is a far expiry."""
    extreme: dict[str, Any] = {name: at}
    token = attrs.evolve(Token("x"), **extreme)
    assert text(parse_token(token, WALL), ValueError) == (
        f"token.{name} must be in the years 1 to 9999 in UTC"
    )
    assert isinstance(parse_token(Token("x", expires_at=END), WALL), Token)


# Everything else


def test_kind_is_right_when_it_is_none_or_an_instance() -> None:
    """Optional arguments may be left out."""
    assert kind_error("refresh_policy", None, RefreshPolicy) is None
    assert kind_error("refresh_policy", RefreshPolicy(), RefreshPolicy) is None
    with httpx.Client() as client:
        assert kind_error("http_client", client, httpx.Client) is None


def test_kind_is_wrong_when_it_is_another_class() -> None:
    """The message names the argument, the expected class, and the class of the wrong value."""
    assert text(kind_error("http_client", 5, httpx.AsyncClient), TypeError) == (
        "http_client must be of class httpx.AsyncClient, not int"
    )
    assert text(kind_error("transport", FakeKoyeb(), httpx.AsyncBaseTransport), TypeError) == (
        "transport must be of class httpx.AsyncBaseTransport, not FakeKoyeb: give its .transport"
    )
    assert text(kind_error("refresh_policy", {}, RefreshPolicy), TypeError) == (
        "refresh_policy must be of class koyeb_session.RefreshPolicy, not dict"
    )
    assert text(kind_error("refresh_policy", RefreshPolicy, RefreshPolicy), TypeError).endswith(
        "not type"
    )


KINDS = (
    "credentials must be PasswordCredentials, AccessTokenCredentials, or a callable that returns "
    "a token, not"
)
ARGUMENTS = (
    "credentials must be a callable without arguments, or with one for the token that is to be "
    "replaced"
)


class Vault:
    """Something that brings tokens, in more than one way."""

    def __call__(self, old: Token | None) -> str:
        """Bring a token in place of another one."""
        return "t" if old is None else old.id

    def without(self) -> str:
        """Bring a token."""
        return "t"

    @staticmethod
    def static(old: Token | None) -> str:
        """Bring a token in place of another one."""
        return "t" if old is None else old.id


class Unreadable:
    """A callable whose signature cannot be read."""

    __signature__ = "odd"

    def __call__(self) -> str:
        """Bring a token."""
        return "t"


def annotated(old: Token | None = None) -> str:
    """Bring a token in place of another one, if there is one."""
    return "t" if old is None else old.id


def default(cache: dict[str, str] | None = None) -> str:
    """Bring a token from somewhere."""
    return (cache or {}).get("token", "t")


def keyword_only(*, vault: str) -> str:
    """Bring a token, from somewhere that has to be named."""
    return vault


def two(cache: dict[str, str], old: Token | None) -> str:
    """Bring a token from somewhere in place of another one."""
    return cache.get("token", "t") if old is None else old.id


async def awaited(old: Token | None) -> str:
    """Bring a token in place of another one."""
    return "t" if old is None else old.id


@pytest.mark.parametrize(
    "credentials",
    [
        None,
        PasswordCredentials("a@b.c", "pw"),
        PasswordCredentials("a@b.c", "pw", "org"),
        AccessTokenCredentials("x" * 64, "org"),
        AccessTokenCredentials("x", "o", timedelta(seconds=1)),
    ],
)
def test_credentials_are_right_when_they_can_be_used(credentials: object) -> None:
    """Nothing, a password, or an API access token; callables are below."""
    assert credentials_error(credentials) is None


GIVE_PASSWORD = ": give PasswordCredentials(email, password)"
GIVE_API_TOKEN = ": give AccessTokenCredentials(api_token, organization_id)"
ID_RULE = "organization_id must be an id: 1 to 36 letters, digits, '-' and '_'"
VALIDITY_RULE = "credentials.validity must be from one second to 24 hours, not 2 days, 0:00:00"
WRONG: list[tuple[object, type[Exception], str]] = [
    (
        *(PasswordCredentials("", "canary"), ValueError),
        f"credentials.email must not be empty{GIVE_PASSWORD}",
    ),
    (
        *(PasswordCredentials("a", " "), ValueError),
        f"credentials.password must not be empty{GIVE_PASSWORD}",
    ),
    (
        *(PasswordCredentials("a", odd(b"canary")), TypeError),
        f"credentials.password must be a str, not bytes{GIVE_PASSWORD}",
    ),
    (PasswordCredentials("a", "canary", ""), ValueError, ID_RULE),
    (
        *(AccessTokenCredentials(odd(None), "org"), TypeError),
        f"credentials.api_token must be a str, not NoneType{GIVE_API_TOKEN}",
    ),
    (
        *(AccessTokenCredentials("Bearer canary", "org"), ValueError),
        f"credentials.api_token {NO_BEARER}{GIVE_API_TOKEN}",
    ),
    (AccessTokenCredentials("org", "canary" * 8), ValueError, f"{ID_RULE}{GIVE_API_TOKEN}"),
    (AccessTokenCredentials("canary", "a/b"), ValueError, f"{ID_RULE}{GIVE_API_TOKEN}"),
    (AccessTokenCredentials("canary", "o", timedelta(days=2)), ValueError, VALIDITY_RULE),
    (
        *(AccessTokenCredentials("canary", "o", odd(60)), TypeError),
        "credentials.validity must be a timedelta, not int",
    ),
    ("canary", TypeError, f"{KINDS} str"),
    (("a", "canary"), TypeError, f"{KINDS} tuple"),
    *((each, TypeError, ARGUMENTS) for each in (PasswordCredentials, two, keyword_only)),
]


@pytest.mark.parametrize(("credentials", "kind", "message"), WRONG)
def test_credentials_are_wrong_when_they_could_not_be_used(
    credentials: object, kind: type[Exception], message: str
) -> None:
    """The message names the wrong part, and the values that are allowed."""
    assert text(credentials_error(credentials), kind) == message


WITHOUT: dict[str, Callable[..., object]] = {
    "none": lambda: "t",
    "any": lambda *arguments: arguments,
    "another kind": default,
    "partial with both": functools.partial(two, {}, None),
    "partial by name": functools.partial(annotated, old=None),
    "bound": Vault().without,
    "class": Vault,
    "builtin class": str,
    "builtin": iter([]).__next__,
    "no signature": Unreadable(),
    "mock": Mock(return_value="t"),
    "async mock": AsyncMock(return_value="t"),
}
WITH: dict[str, Callable[..., object]] = {
    "one": Vault.static,
    "annotated": annotated,
    "coroutine function": awaited,
    "partial": functools.partial(two, {}),
    "object": Vault(),
    "autospec": create_autospec(awaited),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_callable_is_given_nothing_when_it_asks_for_nothing(case: str) -> None:
    """One that can do without an argument, or does not say what it takes, is given none."""
    assert async_credentials_error(WITHOUT[case]) is None
    assert not takes_token(WITHOUT[case])


@pytest.mark.parametrize("case", WITH)
def test_callable_is_given_the_token_when_it_asks_for_it(case: str) -> None:
    """One that needs an argument, or says that it takes a token, is given the token."""
    assert async_credentials_error(WITH[case]) is None
    assert takes_token(WITH[case])


@pytest.mark.parametrize("function", [awaited, functools.partial(awaited), AsyncMock()])
def test_blocking_session_refuses_an_async_callable_when_it_is_given(function: object) -> None:
    """Catches one that only the first request finds out, as nothing awaits it."""
    message = "credentials must be a plain function: give the async one to an AsyncSessionClient"
    assert text(credentials_error(function), TypeError) == message


@pytest.mark.parametrize("timeout", [1, 0.5, 1e-9, TIMEOUT_LIMIT], ids=repr)
def test_timeout_is_right_when_it_is_above_zero(timeout: float) -> None:
    """Any number of seconds that can be waited for."""
    assert timeout_error(timeout) is None


@pytest.mark.parametrize(
    "timeout",
    [0, 0.0, -1, -1e-9, math.nan, math.inf, -math.inf, TIMEOUT_LIMIT + 1, 1e10, 10**400],
    ids=lambda timeout: repr(timeout)[:12],
)
def test_timeout_is_wrong_when_it_cannot_be_waited_for(timeout: float) -> None:
    """Zero, negative, endless, and longer than a socket can count."""
    message = text(timeout_error(timeout), ValueError)
    assert message == f"timeout must be above 0 and at most 1000000 s, not {timeout}"


@pytest.mark.parametrize(
    "timeout", [None, "10", True, False, timedelta(seconds=1), Decimal(1)], ids=repr
)
def test_timeout_is_wrong_when_it_is_no_number(timeout: object) -> None:
    """The unit is said, since a `timedelta` is a good guess too."""
    message = text(timeout_error(timeout), TypeError)
    assert message == f"timeout must be a number of seconds, not {type(timeout).__name__}"


def test_text_is_right_when_it_is_not_empty() -> None:
    """Anything but nothing: the service judges the rest."""
    for value in ("a", " a ", "ü\n", "\U0001f600"):
        assert text_error("password", value) is None


@pytest.mark.parametrize("value", ["a", "A-9_z", "-", "6f1b2c3d-0000-4000-8000-000000000000"])
def test_id_is_right_when_it_is_one_segment_of_a_path(value: str) -> None:
    """Letters, digits, dashes and underscores."""
    assert id_error(value) is None


@pytest.mark.parametrize("value", ["", "a/b", "..", "a b", "a?b", "a%2Fb", "ü", "a\n", "a.b", "٥"])  # noqa: RUF001 - a digit that is not ASCII
def test_id_is_wrong_when_it_would_change_the_path(value: str) -> None:
    """A slash or a dot would call another operation with the user's token."""
    assert text(id_error(value), ValueError) == ID_RULE


def test_header_is_right_when_it_is_left_out_or_visible() -> None:
    """The fingerprint may be left out."""
    assert header_error("seon_fp", None) is None
    assert header_error("seon_fp", "abc/+=") is None
