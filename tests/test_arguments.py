"""Wrong arguments are reported before anything is sent."""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from unittest.mock import AsyncMock, Mock, create_autospec

import httpx
import pytest

from koyeb_session import AccessTokenCredentials, PasswordCredentials, RefreshPolicy, Token
from koyeb_session._core.results import unwrap
from koyeb_session._core.validation import (
    TIMEOUT_LIMIT,
    credentials_error,
    header_error,
    id_error,
    kind_error,
    parse_token,
    takes_token,
    text_error,
    timeout_error,
)

WALL = 1_800_000_000.0
NOW = datetime.fromtimestamp(WALL, UTC)
HOUR = timedelta(hours=1)


def jwt(**claims: float) -> str:
    """Write a JWT with these claims."""
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in ({}, claims))
    return ".".join([*(part.decode().rstrip("=") for part in parts), "sig"])


def text(error: object, kind: type[Exception]) -> str:
    """Return the message of an error value, and check that it quotes no argument."""
    assert type(error) is kind
    assert "canary" not in str(error)
    return str(error)


def test_unwrap_returns_what_is_right() -> None:
    """A value that is no error comes through."""
    assert unwrap("value") == "value"
    assert unwrap(None) is None


@pytest.mark.parametrize("error", [ValueError("v"), TypeError("t")], ids=repr)
def test_unwrap_raises_what_is_wrong(error: ValueError | TypeError) -> None:
    """A copy is raised; catches a cycle of the error and the frames that hold it as a value."""
    with pytest.raises((ValueError, TypeError)) as info:
        unwrap(error)
    assert (type(info.value), info.value.args) == (type(error), error.args)
    assert error.__traceback__ is None


# Tokens


def test_token_is_adopted_as_it_is_when_it_is_opaque() -> None:
    """An API token says nothing of its life, and nothing is made up."""
    assert parse_token("x" * 64, WALL) == Token("x" * 64)
    token = Token("x", "u", "o")
    found = parse_token(token, WALL)
    assert found == token
    assert isinstance(found, Token)
    assert found.issued_at is None


def test_token_is_completed_when_it_is_a_jwt() -> None:
    """A JWT's ``exp`` and ``iat`` are its life."""
    found = parse_token(jwt(exp=WALL + 60, iat=WALL - 60), WALL)
    assert isinstance(found, Token)
    assert found.expires_at == NOW + timedelta(seconds=60)
    assert found.issued_at == NOW - timedelta(seconds=60)


def test_token_is_taken_as_new_when_only_its_expiry_is_known() -> None:
    """Without a birth, a life begins with the adoption."""
    for token in (Token("x", expires_at=NOW + HOUR), Token(jwt(exp=WALL + 3600))):
        found = parse_token(token, WALL)
        assert isinstance(found, Token)
        assert (found.expires_at, found.issued_at) == (NOW + HOUR, NOW)


def test_token_keeps_its_birth_when_that_is_known() -> None:
    """The time of issue that a store has saved is trusted."""
    token = Token("x", expires_at=NOW + HOUR, issued_at=NOW - HOUR)
    found = parse_token(token, WALL)
    assert isinstance(found, Token)
    assert found.issued_at == NOW - HOUR
    unknown = parse_token(Token("x", issued_at=NOW - HOUR), WALL)
    assert isinstance(unknown, Token)
    assert (unknown.expires_at, unknown.issued_at) == (None, NOW - HOUR)


def test_token_is_utc_when_its_expiry_was_in_another_zone() -> None:
    """The expiry is the same moment, in UTC."""
    there = (NOW + HOUR).astimezone(timezone(timedelta(hours=2)))
    found = parse_token(Token("x", "u", "o", there), WALL)
    assert isinstance(found, Token)
    assert found == Token("x", "u", "o", NOW + HOUR)
    assert found.expires_at is not None
    assert found.expires_at.tzinfo is UTC


@pytest.mark.parametrize("past", [0, 1e-6, 3600])
def test_token_is_refused_when_it_has_expired(past: float) -> None:
    """A token that expires at this moment has expired."""
    message = "token has expired; sign in again for a new one"
    at = NOW - timedelta(seconds=past)
    assert text(parse_token(Token("x", expires_at=at), WALL), ValueError) == message
    assert text(parse_token(jwt(exp=WALL - past), WALL), ValueError) == message
    assert isinstance(
        parse_token(Token("x", expires_at=at + timedelta(microseconds=1)), WALL - past), Token
    )


HEADER_RULE = (
    "token must be visible ASCII, not empty, without spaces or line breaks, and at most 16384 "
    "characters long"
)


@pytest.mark.parametrize(
    "token",
    ["", " ", "canary canary", "canary\r\n", "canary\n", "\tcanary", "canäry", "x" * 16_385],
    ids=lambda token: ascii(token)[:20],
)
def test_token_is_refused_when_it_is_not_fit_for_a_header(token: str) -> None:
    """The rule is said in full, for a str and for a Token."""
    assert text(parse_token(token, WALL), ValueError) == HEADER_RULE
    assert text(parse_token(Token(token), WALL), ValueError) == HEADER_RULE


def test_token_is_refused_when_its_id_is_no_str() -> None:
    """A Token is not checked when it is made, so it is here."""
    token = Token(b"canary")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
    assert text(parse_token(token, WALL), TypeError) == "token must be a str, not bytes"


@pytest.mark.parametrize("token", ["Bearer canary", "bearer\tcanary", " BEARER canary"])
def test_token_is_refused_when_it_is_a_whole_header(token: str) -> None:
    """A header copied from a request contains a word too many."""
    message = "token must be the token alone, without 'Bearer' before it"
    assert text(parse_token(token, WALL), ValueError) == message


def test_token_is_refused_when_its_renewal_is_no_str() -> None:
    """Every store has to be able to keep it."""
    token = Token("x", renewal=b"canary")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
    assert text(parse_token(token, WALL), TypeError) == "token.renewal must be a str, not bytes"


def test_token_keeps_what_is_no_field_of_the_api() -> None:
    """The renewal secret and the provenance survive when other fields are filled in."""
    given = Token(jwt(exp=WALL + 60), renewal="r", provenance="p")
    found = parse_token(given, WALL)
    assert isinstance(found, Token)
    assert (found.renewal, found.provenance) == ("r", "p")
    assert found.expires_at is not None


@pytest.mark.parametrize("token", [None, 5, b"canary", {"id": "canary"}], ids=repr)
def test_token_is_refused_when_it_is_neither_token_nor_str(token: object) -> None:
    """The message names the class of the wrong value."""
    message = text(parse_token(token, WALL), TypeError)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
    assert message == f"token must be a Token or a str, not {type(token).__name__}"


@pytest.mark.parametrize("name", ["expires_at", "issued_at"])
def test_token_is_refused_when_a_time_of_it_is_naive_or_none_at_all(name: str) -> None:
    """A naive time would be local time to some and UTC to others."""
    naive = (NOW + HOUR).replace(tzinfo=None)
    error = parse_token(Token("x", **{name: naive}), WALL)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - by name
    assert text(error, ValueError) == (
        f"token.{name} must be aware: give it a time zone, as in datetime.now(UTC)"
    )
    error = parse_token(Token("x", **{name: "2030-01-01"}), WALL)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
    assert text(error, TypeError) == f"token.{name} must be a datetime, not str"


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

    def __init__(self) -> None:
        self.replaced: Token | None = None

    def __call__(self, old: Token | None) -> str:
        """Bring a token in place of another one."""
        self.replaced = old
        return "t"

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


def two(cache: dict[str, str], old: Token | None) -> str:
    """Bring a token from somewhere in place of another one."""
    return cache.get("token", "t") if old is None else old.id


async def awaited(old: Token | None) -> str:
    """Bring a token in place of another one."""
    return "t" if old is None else old.id


def anything(*arguments: object) -> str:
    """Return a token, with any arguments."""
    return f"t{len(arguments)}"


def keyword_only(*, vault: str) -> str:
    """Bring a token, from somewhere that has to be named."""
    return vault


def test_credentials_are_right_when_they_can_be_used() -> None:
    """Nothing, a password, or anything that can be called."""
    assert credentials_error(None) is None
    assert credentials_error(PasswordCredentials("a@b.c", "pw")) is None
    assert credentials_error(PasswordCredentials("a@b.c", "pw", "org")) is None
    assert credentials_error(AccessTokenCredentials("x" * 64, "org")) is None
    assert credentials_error(AccessTokenCredentials("x", "o", timedelta(seconds=1))) is None
    assert credentials_error(lambda: "token") is None
    assert credentials_error(annotated) is None


@pytest.mark.parametrize(
    ("credentials", "kind", "message"),
    [
        (
            PasswordCredentials("", "canary"),
            ValueError,
            "credentials.email must not be empty: give PasswordCredentials(email, password)",
        ),
        (
            PasswordCredentials("a", " "),
            ValueError,
            "credentials.password must not be empty: give PasswordCredentials(email, password)",
        ),
        (
            PasswordCredentials("a", None),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
            TypeError,
            ("credentials.password must be a str, not NoneType: give PasswordCredentials(email, "
            "password)"),
        ),
        (
            PasswordCredentials("a", b"canary"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
            TypeError,
            ("credentials.password must be a str, not bytes: give PasswordCredentials(email, "
            "password)"),
        ),
        (
            PasswordCredentials("a", "canary", ""),
            ValueError,
            "organization_id must be an id: letters, digits, '-' and '_', not empty",
        ),
        (
            AccessTokenCredentials(None, "org"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
            TypeError,
            ("credentials.api_token must be a str, not NoneType: give "
            "AccessTokenCredentials(api_token, organization_id)"),
        ),
        (
            AccessTokenCredentials("Bearer canary", "org"),
            ValueError,
            ("credentials.api_token must be the token alone, without 'Bearer' before it: give "
            "AccessTokenCredentials(api_token, organization_id)"),
        ),
        (
            AccessTokenCredentials("canary", "a/b"),
            ValueError,
            ("organization_id must be an id: letters, digits, '-' and '_', not empty: give "
            "AccessTokenCredentials(api_token, organization_id)"),
        ),
        (
            AccessTokenCredentials("canary", "o", timedelta(days=2)),
            ValueError,
            "credentials.validity must be from one second to 24 hours, not 2 days, 0:00:00",
        ),
        (
            AccessTokenCredentials("canary", "o", 60),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
            TypeError,
            "credentials.validity must be a timedelta, not int",
        ),
        ("canary", TypeError, f"{KINDS} str"),
        (("a", "canary"), TypeError, f"{KINDS} tuple"),
        (PasswordCredentials, TypeError, ARGUMENTS),
        (two, TypeError, ARGUMENTS),
        (keyword_only, TypeError, ARGUMENTS),
    ],
)  # fmt: skip
def test_credentials_are_wrong_when_they_could_not_be_used(
    credentials: object, kind: type[Exception], message: str
) -> None:
    """The message names the wrong part, and the values that are allowed."""
    assert text(credentials_error(credentials), kind) == message


WITHOUT: dict[str, Callable[..., object]] = {
    "none": lambda: "t",
    "any": anything,
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
    assert credentials_error(WITHOUT[case]) is None
    assert not takes_token(WITHOUT[case])


@pytest.mark.parametrize("case", WITH)
def test_callable_is_given_the_token_when_it_asks_for_it(case: str) -> None:
    """One that needs an argument, or says that it takes a token, is given the token."""
    assert credentials_error(WITH[case]) is None
    assert takes_token(WITH[case])


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
    assert text(timeout_error(timeout), TypeError) == "timeout must be a number of seconds"


def test_text_is_right_when_it_is_not_empty() -> None:
    """Anything but nothing: the service judges the rest."""
    for value in ("a", " a ", "ü\n", "\U0001f600"):
        assert text_error("password", value) is None


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("", ValueError, "password must not be empty"),
        (" \t\n", ValueError, "password must not be empty"),
        ("canary\ud800", ValueError, "password must be text that can be written as UTF-8"),
        (None, TypeError, "password must be a str, not NoneType"),
        (b"canary", TypeError, "password must be a str, not bytes"),
        (["canary"], TypeError, "password must be a str, not list"),
    ],
)
def test_text_is_wrong_when_it_is_empty_or_none(
    value: object, kind: type[Exception], message: str
) -> None:
    """The argument is named, and its value is not shown."""
    assert text(text_error("password", value), kind) == message


@pytest.mark.parametrize("value", ["a", "A-9_z", "-", "6f1b2c3d-0000-4000-8000-000000000000"])
def test_id_is_right_when_it_is_one_segment_of_a_path(value: str) -> None:
    """Letters, digits, dashes and underscores."""
    assert id_error(value) is None


@pytest.mark.parametrize("value", ["", "a/b", "..", "a b", "a?b", "a%2Fb", "ü", "a\n", "a.b", "٥"])  # noqa: RUF001 - a digit that is not ASCII
def test_id_is_wrong_when_it_would_change_the_path(value: str) -> None:
    """A slash or a dot would call another operation with the user's token."""
    message = "organization_id must be an id: letters, digits, '-' and '_', not empty"
    assert text(id_error(value), ValueError) == message


def test_id_is_wrong_when_it_is_no_str() -> None:
    """A UUID object is a good guess; the error names the type that is needed."""
    assert text(id_error(5), TypeError) == "organization_id must be a str, not int"
    assert text(id_error(None), TypeError) == "organization_id must be a str, not NoneType"


def test_header_is_right_when_it_is_left_out_or_visible() -> None:
    """The fingerprint may be left out."""
    assert header_error("seon_fp", None) is None
    assert header_error("seon_fp", "abc/+=") is None


@pytest.mark.parametrize("value", ["", " ", "a b", "a\r\nb", "ü"])
def test_header_is_wrong_when_it_is_not_visible_ascii(value: str) -> None:
    """A line break would begin another header."""
    assert text(header_error("seon_fp", value), ValueError) == "seon_fp must be visible ASCII"


def test_header_is_wrong_when_it_is_no_str() -> None:
    """Bytes are not taken."""
    assert text(header_error("seon_fp", b"canary"), TypeError) == "seon_fp must be a str, not bytes"
