"""The values: frozen, comparable, picklable, and silent about secrets."""

from __future__ import annotations

import copy
import pickle
import time
from datetime import UTC, datetime

import attrs
import pytest

from koyeb_session import (
    Clock,
    LoginReply,
    LoginRequest,
    PasswordCredentials,
    PasswordlessLoginRequest,
    Token,
)
from koyeb_session.testing import FakeClock, assert_no_secret

AT = datetime(2026, 1, 1, tzinfo=UTC)
TOKEN = Token("canary", "u", "o", AT, issued_at=AT)
VALUES = [
    TOKEN,
    LoginRequest("me@example.com", "canary", "o"),
    LoginReply(TOKEN),
    PasswordlessLoginRequest("me@example.com"),
    PasswordCredentials("me@example.com", "canary", "o"),
]
EACH = pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)


@pytest.mark.pitfall(14)
@EACH
def test_value_hides_its_secret_when_shown(value: object) -> None:
    """No repr, str or format shows a token's id or a password."""
    assert_no_secret("canary", value)
    assert type(value).__name__ in repr(value)


@EACH
def test_value_is_the_same_when_pickled_or_copied(value: object) -> None:
    """Values can be passed to other processes, with their secrets."""
    pickled: object = pickle.loads(pickle.dumps(value))  # noqa: S301 - our own
    for twin in (pickled, copy.copy(value), copy.deepcopy(value)):
        assert twin == value
        assert hash(twin) == hash(value)
        assert type(twin) is type(value)


@EACH
def test_value_is_frozen(value: attrs.AttrsInstance) -> None:
    """A value that threads share never changes, and has no room for more."""
    name = attrs.fields(type(value))[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, name, "other")
    assert not hasattr(value, "__dict__")


def test_token_has_only_an_id_when_nothing_else_is_known() -> None:
    """All other fields are optional in the description."""
    token = Token("t")
    assert attrs.asdict(token) == {
        "id": "t",
        "user_id": None,
        "organization_id": None,
        "expires_at": None,
        "issued_at": None,
        "renewal": None,
        "provenance": None,
    }


def test_token_is_equal_when_it_was_issued_at_another_time() -> None:
    """The time of issue is a note of the session, and no part of a token's equality."""
    assert attrs.evolve(TOKEN, issued_at=None) == TOKEN
    assert hash(attrs.evolve(TOKEN, issued_at=None)) == hash(TOKEN)
    for change in ({"id": "x"}, {"user_id": "x"}, {"organization_id": "x"}, {"expires_at": None}):
        assert attrs.evolve(TOKEN, **change) != TOKEN
    restored: Token = pickle.loads(pickle.dumps(TOKEN))  # noqa: S301 - our own
    assert restored.issued_at == AT


def test_clock_is_fulfilled_by_the_time_module() -> None:
    """The standard library's module is a clock, and so is the fake one."""
    clocks: list[Clock] = [time, FakeClock()]
    for clock in clocks:
        assert isinstance(clock.time(), float)
        assert isinstance(clock.monotonic(), float)
