"""Each operation, and exactly the request that it sends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import cast

from koyeb_session import Token
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation

BASE = "https://app.koyeb.com"


TOKEN = Token("canary-token")


BEARER = {"authorization": "Bearer canary-token"}


JSON = {"content-type": "application/json"}


NO_BODY = {"content-length": "0"}


BUSY = {429, 503}


NO_ANSWER = {429, 502, 503, 504}


Sent = tuple[str, str, dict[str, str], bytes, set[int], bool, tuple[str, ...]]


def made(operation: object) -> Operation[object]:
    """Narrow an operation whose arguments were right."""
    assert isinstance(operation, Operation)
    return cast("Operation[object]", operation)


SENT: dict[str, tuple[Callable[[], object], Sent]] = {
    # the call: method, path, headers of its own, body, repeated after, signs in, secrets
    "login": (
        lambda: operations.login("me@example.com", "pässword"),
        (
            "POST",
            "/v1/account/login",
            {**JSON},
            b'{"email": "me@example.com", "password": "p\\u00e4ssword"}',
            set(),
            True,
            ("pässword",),
        ),
    ),
    "login with all": (
        lambda: operations.login("me@example.com", "pw", "org_1-A", "finger-print"),
        (
            "POST",
            "/v1/account/login",
            {**JSON, "seon-fp": "finger-print"},
            b'{"email": "me@example.com", "password": "pw", "organization_id": "org_1-A"}',
            set(),
            True,
            ("pw",),
        ),
    ),
    "passwordless_login": (
        lambda: operations.passwordless_login("me@example.com"),
        (
            "POST",
            "/v1/account/passwordless_login",
            {**JSON},
            b'{"email": "me@example.com"}',
            set(),
            False,
            (),
        ),
    ),
    "refresh": (
        lambda: operations.refresh(TOKEN),
        (
            "PUT",
            "/v1/account/refresh",
            {**BEARER, **NO_BODY},
            b"",
            BUSY,
            False,
            ("canary-token",),
        ),
    ),
    "logout": (
        lambda: operations.logout(TOKEN),
        ("DELETE", "/v1/account/logout", BEARER, b"", NO_ANSWER, False, ("canary-token",)),
    ),
    "new_session": (
        lambda: operations.new_session(TOKEN),
        (
            "POST",
            "/v1/account/session",
            {**BEARER, **NO_BODY},
            b"",
            set(),
            False,
            ("canary-token",),
        ),
    ),
    "switch_organization": (
        lambda: operations.switch_organization(TOKEN, "org-1"),
        (
            "POST",
            "/v1/organizations/org-1/switch",
            {**BEARER, **JSON},
            b"{}",
            set(),
            False,
            ("canary-token",),
        ),
    ),
    "switch_organization with a fingerprint": (
        lambda: operations.switch_organization(TOKEN, "org-1", "fp"),
        (
            "POST",
            "/v1/organizations/org-1/switch",
            {**BEARER, **JSON, "seon-fp": "fp"},
            b"{}",
            set(),
            False,
            ("canary-token",),
        ),
    ),
    "unscope_organization_token": (
        lambda: operations.unscope_organization_token(TOKEN),
        (
            "POST",
            "/v1/unscope_organization_token",
            {**BEARER, **JSON},
            b"{}",
            set(),
            False,
            ("canary-token",),
        ),
    ),
    "unscope_organization_token with a fingerprint": (
        lambda: operations.unscope_organization_token(TOKEN, "fp"),
        (
            "POST",
            "/v1/unscope_organization_token",
            {**BEARER, **JSON, "seon-fp": "fp"},
            b"{}",
            set(),
            False,
            ("canary-token",),
        ),
    ),
    "create_access_token": (
        lambda: operations.create_access_token(TOKEN, "org-1"),
        (
            "POST",
            "/v1/organizations/org-1/access_token",
            {**BEARER, **JSON},
            b"{}",
            BUSY,
            False,
            ("canary-token",),
        ),
    ),
    "create_access_token for some time": (
        lambda: operations.create_access_token(TOKEN, "org-1", timedelta(minutes=90)),
        (
            "POST",
            "/v1/organizations/org-1/access_token",
            {**BEARER, **JSON},
            b'{"validity": "5400s"}',
            BUSY,
            False,
            ("canary-token",),
        ),
    ),
    "login_method": (
        lambda: operations.login_method("me+you@example.com&x=1 ü"),
        (
            "GET",
            "/v1/account/login_method?email=me%2Byou%40example.com%26x%3D1+%C3%BC",
            {},
            b"",
            NO_ANSWER,
            False,
            (),
        ),
    ),
}
