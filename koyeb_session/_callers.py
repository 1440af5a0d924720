"""Who asks a FastAPI application: the caller's bearer, and which sessions a request was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection  # FastAPI reads annotations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._async.client import AsyncSessionClient

_GIVEN: Final = "koyeb_session.given"
"""Where the scope of a request notes its sessions."""


class Given(NamedTuple):
    """A session that a request was given."""

    session: AsyncSessionClient
    is_callers: bool


class _Bearer(HTTPBearer):
    """Reads the caller's bearer, also of a WebSocket, whose browser cannot set headers."""

    async def __call__(self, request: HTTPConnection) -> HTTPAuthorizationCredentials | None:
        token = bearer_of(request)
        if token is None:
            return None
        return HTTPAuthorizationCredentials(scheme="Bearer", credentials=token)


BEARER: Final = _Bearer(
    scheme_name="KoyebToken", description="A Koyeb session or API token", auto_error=False
)


def bearer_of(connection: HTTPConnection) -> str | None:
    """Return the caller's token, if there is one."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if not scheme and connection.scope["type"] == "websocket":
        scheme, token = [*connection.scope.get("subprotocols", ()), "", ""][:2]
    return token.strip() or None if scheme.lower() == "bearer" else None


def note(
    connection: HTTPConnection | None, session: AsyncSessionClient, *, is_callers: bool = False
) -> None:
    """Note that a request is given a session, for when that fails."""
    if connection is not None:
        connection.scope.setdefault(_GIVEN, []).append(Given(session, is_callers))


def given(connection: HTTPConnection) -> Sequence[Given]:
    """Return what :func:`note` has noted."""
    found: Sequence[Given] = connection.scope.get(_GIVEN, ())
    return found
