"""Each operation, and exactly the request that it sends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final, cast

import attrs

from koyeb_session import Token
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation

BASE = "https://app.koyeb.com"
TOKEN = Token("canary-token")
BUSY: Final = frozenset({429, 503})
NO_ANSWER: Final = frozenset({429, 502, 503, 504})


@attrs.frozen
class Sent:
    """
    A request.

    Attributes:
        make: The call of the operation.
        line: Its method and its path.
        headers: Its own headers; a JSON body and a token bring theirs.
        repeat: The statuses after which it is sent again.
    """

    make: Callable[[], object]
    line: str
    body: bytes = b""
    repeat: frozenset[int] = frozenset()
    headers: dict[str, str] = attrs.field(factory=dict[str, str])
    secrets: tuple[str, ...] = (TOKEN.id,)
    signs_in: bool = False

    @property
    def all_headers(self) -> dict[str, str]:
        """Its own headers, and those of its body and of the token."""
        headers = {**self.headers}
        if self.body:
            headers["content-type"] = "application/json"
        if self.body or self.line.startswith("P"):  # a `POST` or a `PUT`
            headers["content-length"] = str(len(self.body))
        if TOKEN.id in self.secrets:
            headers["authorization"] = "Bearer canary-token"
        return headers


def made(operation: object) -> Operation[object]:
    """Narrow an operation whose arguments were right."""
    assert isinstance(operation, Operation)
    return cast("Operation[object]", operation)


SENT: Final = {
    "login": Sent(
        lambda: operations.login("me@example.com", "pässword"),
        "POST /v1/account/login",
        b'{"email": "me@example.com", "password": "p\\u00e4ssword"}',
        secrets=("pässword",),
        signs_in=True,
    ),
    "login with all": Sent(
        lambda: operations.login("me@example.com", "pw", "org_1-A", "finger-print"),
        "POST /v1/account/login",
        b'{"email": "me@example.com", "password": "pw", "organization_id": "org_1-A"}',
        headers={"seon-fp": "finger-print"},
        secrets=("pw",),
        signs_in=True,
    ),
    "passwordless_login": Sent(
        lambda: operations.passwordless_login("me@example.com"),
        "POST /v1/account/passwordless_login",
        b'{"email": "me@example.com"}',
        secrets=(),
    ),
    "refresh": Sent(lambda: operations.refresh(TOKEN), "PUT /v1/account/refresh", b"", BUSY),
    "logout": Sent(lambda: operations.logout(TOKEN), "DELETE /v1/account/logout", b"", NO_ANSWER),
    "new_session": Sent(lambda: operations.new_session(TOKEN), "POST /v1/account/session"),
    "switch_organization": Sent(
        lambda: operations.switch_organization(TOKEN, "org-1"),
        "POST /v1/organizations/org-1/switch",
        b"{}",
    ),
    "switch_organization with a fingerprint": Sent(
        lambda: operations.switch_organization(TOKEN, "org-1", "fp"),
        "POST /v1/organizations/org-1/switch",
        b"{}",
        headers={"seon-fp": "fp"},
    ),
    "unscope_organization_token": Sent(
        lambda: operations.unscope_organization_token(TOKEN),
        "POST /v1/unscope_organization_token",
        b"{}",
    ),
    "unscope_organization_token with a fingerprint": Sent(
        lambda: operations.unscope_organization_token(TOKEN, "fp"),
        "POST /v1/unscope_organization_token",
        b"{}",
        headers={"seon-fp": "fp"},
    ),
    "create_access_token": Sent(
        lambda: operations.create_access_token(TOKEN, "org-1"),
        "POST /v1/organizations/org-1/access_token",
        b"{}",
        BUSY,
    ),
    "create_access_token for some time": Sent(
        lambda: operations.create_access_token(TOKEN, "org-1", timedelta(minutes=90)),
        "POST /v1/organizations/org-1/access_token",
        b'{"validity": "5400s"}',
        BUSY,
    ),
    "login_method": Sent(
        lambda: operations.login_method("me+you@example.com&x=1 ü"),
        "GET /v1/account/login_method?email=me%2Byou%40example.com%26x%3D1+%C3%BC",
        b"",
        NO_ANSWER,
        secrets=(),
    ),
}
