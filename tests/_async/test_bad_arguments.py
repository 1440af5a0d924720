"""Arguments that are refused before anything is sent."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import httpx
import pytest

from koyeb_session import AsyncSessionClient, PasswordCredentials, RetryPolicy, SessionClient, Token
from koyeb_session.testing import FakeKoyeb

from ..support import ME, PASSWORD
from .doubles import CALLS

BadCall: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]


BAD_EMAILS: list[tuple[object, type[Exception]]] = [
    *(("", ValueError), (" ", ValueError), ("\ud800", ValueError)),
    *((None, TypeError), (b"me", TypeError), (1, TypeError)),
]


BAD_IDS: list[tuple[object, type[Exception]]] = [
    *(("", ValueError), ("a/b", ValueError), ("..", ValueError)),
    *(("a b", ValueError), ("a\n", ValueError), (7, TypeError)),
]


BAD_TIMEOUTS: list[tuple[object, type[Exception]]] = [
    *((-1, ValueError), (math.nan, ValueError), (0, ValueError)),
    *((math.inf, ValueError), ("1", TypeError), (True, TypeError)),
]


BAD_TOKENS: list[tuple[object, type[Exception]]] = [
    *(("", ValueError), ("a b", ValueError), ("a\r\nb", ValueError)),
    *(("é", ValueError), (b"a", TypeError), (3, TypeError)),
    (Token("a", expires_at=datetime(2030, 1, 1)), ValueError),  # noqa: DTZ001 - naive
]


BAD_VALIDITIES: list[tuple[Any, type[Exception]]] = [
    *((timedelta(seconds=bad), ValueError) for bad in (-1, 0, 0.999999, 86_400.000001)),
    *((bad, TypeError) for bad in (3600, "3600s", True)),
]


BAD_CALLS: list[BadCall] = [
    *[("login", (bad, PASSWORD), {}, error, "email") for bad, error in BAD_EMAILS],
    *[("login", (ME, bad), {}, error, "password") for bad, error in BAD_EMAILS],
    *[("passwordless_login", (bad,), {}, error, "email") for bad, error in BAD_EMAILS],
    *[("login_method", (bad,), {}, error, "email") for bad, error in BAD_EMAILS],
    *[
        ("login", (ME, PASSWORD), {"organization_id": bad}, error, "organization_id")
        for bad, error in BAD_IDS
    ],
    *[("switch_organization", (bad,), {}, error, "organization_id") for bad, error in BAD_IDS],
    ("switch_organization", (None,), {}, TypeError, "organization_id"),
    ("login", (ME, PASSWORD), {"seon_fp": "a\nb"}, ValueError, "seon_fp"),
    ("switch_organization", ("a",), {"seon_fp": 5}, TypeError, "seon_fp"),
    ("unscope_organization_token", (), {"seon_fp": "a b"}, ValueError, "seon_fp"),
    *[("create_access_token", (bad,), {}, error, "organization_id") for bad, error in BAD_IDS],
    *[
        ("create_access_token", ("a",), {"validity": bad}, error, "validity")
        for bad, error in BAD_VALIDITIES
    ],
    *[("use_token", (bad,), {}, error, "token") for bad, error in BAD_TOKENS],
    *[("for_token", (bad,), {}, error, "token") for bad, error in BAD_TOKENS],
    *[
        (name, arguments, {"timeout": bad}, error, "timeout")
        for bad, error in BAD_TIMEOUTS
        for name, arguments in CALLS.items()
    ],
]


@pytest.mark.parametrize("name", sorted({name for name, *_ in BAD_CALLS}))
async def test_bad_argument_is_named_before_anything_is_sent(
    fake: FakeKoyeb, session: AsyncSessionClient, name: str
) -> None:
    """The caller's mistake is a `ValueError` or a `TypeError` that names the argument."""
    before = session.token
    for _, args, kwargs, error, argument in [call for call in BAD_CALLS if call[0] == name]:
        with pytest.raises(error, match=argument) as caught:
            await getattr(session, name)(*args, **kwargs)
        assert type(caught.value) is error, (args, kwargs)
        assert fake.requests == []
        assert session.token is before


BAD_BASE_URLS = [
    *("app.koyeb.com", "//app.koyeb.com", "https://", "ftp://app.koyeb.com", ""),
    *("https://me:pw@app.koyeb.com", "http://app.koyeb.com", "https://a.b/?q=1"),
]


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *[({"base_url": bad}, ValueError, "base_url") for bad in BAD_BASE_URLS],
    ({"base_url": b"https://app.koyeb.com"}, TypeError, "base_url"),
    ({"allowed_origins": "https://a.example"}, TypeError, "allowed_origins"),
    ({"allowed_origins": 5}, TypeError, "allowed_origins"),
    ({"allowed_origins": ["http://a.example"]}, ValueError, "allowed_origins"),
    ({"allowed_origins": ["https://a.example/v1"]}, ValueError, "allowed_origins"),
    *[({"token": bad}, error, "token") for bad, error in BAD_TOKENS],
    *[({"timeout": bad}, error, "timeout") for bad, error in BAD_TIMEOUTS],
    ({"timeout": None}, TypeError, "timeout"),
    ({"credentials": ("me", "pw")}, TypeError, "credentials"),
    ({"credentials": PasswordCredentials("", "pw")}, ValueError, "credentials.email"),
    ({"credentials": PasswordCredentials(ME, "")}, ValueError, "credentials.password"),
    ({"credentials": PasswordCredentials(ME, "p", "a/b")}, ValueError, "organization_id"),
    ({"refresh_policy": RetryPolicy()}, TypeError, "refresh_policy"),
    ({"retry_policy": 3}, TypeError, "retry_policy"),
    ({"http_client": httpx}, TypeError, "http_client"),
    ({"transport": object()}, TypeError, "transport"),
]


async def test_client_refuses_a_bad_argument_by_its_name() -> None:
    """A client is not made with arguments that cannot work."""
    for arguments, error, argument in BAD_ARGUMENTS:
        with pytest.raises(error, match=argument) as caught:
            AsyncSessionClient(**arguments)
        assert type(caught.value) is error, arguments


def test_the_halves_have_the_same_names() -> None:
    """The blocking client offers the same methods as the asynchronous one."""
    ours = {name.replace("aclose", "close") for name in dir(AsyncSessionClient)}
    renamed = {"__aenter__": "__enter__", "__aexit__": "__exit__"}
    assert {renamed.get(name, name) for name in ours} == set(dir(SessionClient))
