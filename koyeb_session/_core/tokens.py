"""Read the lifetime of a token from its id, and check that the id fits into a header."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

import attrs

from .models import Token
from .results import frameless
from .timestamps import from_epoch

TOKEN_LIMIT: Final = 16 << 10
"""The longest id of a token, in characters; common servers accept no longer header."""


@attrs.frozen
class Identity:
    """
    The secrets of a saved token: they are the same for two saved tokens if neither is newer.

    An identity provider may return the same token again with the next one-time secret. No `repr`
    shows them, as the user's clock or log may raise in a frame that compares them.
    """

    id: str = attrs.field(repr=False)
    renewal: str | None = attrs.field(default=None, repr=False)


def identity(token: Token) -> Identity:
    """Return the identity of a token."""
    return Identity(token.id, token.renewal or None)


def adds_nothing(given: Token, held: Token) -> bool:
    """Return whether a given token is the held one, without another one-time secret."""
    return given.id == held.id and given.renewal in (None, held.renewal)


def is_of_another(one: Token, other: Token) -> bool:
    """Return whether two tokens name different users, or different organizations."""
    users, organizations = (
        {one.user_id, other.user_id},
        {one.organization_id, other.organization_id},
    )
    return len(users - {None}) > 1 or len(organizations - {None}) > 1


def is_header_safe(text: str) -> bool:
    """Return whether ``text`` can be sent in a header unchanged."""
    visible = text.isascii() and text.isprintable() and " " not in text
    return visible and 0 < len(text) <= TOKEN_LIMIT


class Claims(NamedTuple):
    """The lifetime in a JWT's claims; unverified, as only the service can verify them."""

    expires_at: datetime | None
    issued_at: datetime | None


@frameless
def jwt_claims(token_id: str) -> Claims | None:
    """Read ``exp`` and ``iat`` of a JWT (RFC 7519); `None` if ``token_id`` is not a JWT."""
    parts = token_id.split(".")
    if len(parts) != 3:
        return None
    header, claims = (_jwt_part(part) for part in parts[:2])
    if header is None or claims is None:
        return None
    return Claims(from_epoch(claims.get("exp")), from_epoch(claims.get("iat")))


def _jwt_part(part: str) -> dict[str, Any] | None:
    if "+" in part or "/" in part:  # those of the other alphabet (RFC 4648, section 5)
        return None
    try:
        value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def fill_from_jwt(token: Token) -> Token:
    """Fill in the missing times of a token from its id, if that is a JWT."""
    if token.expires_at is not None and token.issued_at is not None:
        return token
    claims = jwt_claims(token.id)
    if claims is None:
        return token
    return attrs.evolve(
        token,
        expires_at=token.expires_at or claims.expires_at,
        issued_at=token.issued_at or claims.issued_at,
    )


def is_api_token(token: Token) -> bool:
    """Return whether this is an API access token: no JWT, and neither expiry nor issue time."""
    return token.expires_at is None and token.issued_at is None and jwt_claims(token.id) is None


@frameless
def with_issue_time(token: Token, wall: float) -> Token:
    """Return the token with the time of issue, by the service's own clock."""
    at = datetime.fromtimestamp(wall, UTC)
    # Not `attrs.evolve`. Hot path: see tests/benchmarks.
    return Token(token.id, token.user_id, token.organization_id, token.expires_at, issued_at=at)
