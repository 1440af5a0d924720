"""The tokens that the fake service has issued, live or not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import attrs

from .._core.models import Clock
from ._clock import NANOSECOND, nanoseconds

# The end of the year 9999: neither Go nor Python can format a later one.
_LAST_MOMENT = 253_402_300_799 * NANOSECOND
_JWT_HEADER = {"alg": "HS256", "typ": "JWT"}
_OPAQUE_BYTES = 48  # 64 characters of base64


TokenKind = Literal["session", "access", "api", "organization api"]


@attrs.define(eq=False)
class IssuedToken:
    """
    One token, with its state.

    Attributes:
        kind: ``"session"``; ``"access"`` for a short-lived token of one organization; ``"api"``
            and ``"organization api"`` for API access tokens of a user and of an organization.
        exchanged: Whether a refresh has replaced it.
    """

    id: str = attrs.field(repr=False)
    email: str
    user_id: str
    organization_id: str
    family: int  # the sign-in that it descends from
    expires_at: int  # nanoseconds since 1970
    kind: TokenKind = "session"
    exchanged: bool = False
    revoked: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the ``Token`` of the API; it omits ``organization_id`` if there is none."""
        organization = {"organization_id": self.organization_id} if self.organization_id else {}
        return {
            "id": self.id,
            "user_id": self.user_id,
            **organization,
            "expires_at": _rfc3339(self.expires_at),
        }


class TokenRegistry:
    """Issues tokens and remembers them."""

    def __init__(self, clock: Clock, lifetime: timedelta) -> None:
        self._clock = clock
        self._lifetime = lifetime
        self._key = secrets.token_bytes(32)
        self._families = itertools.count(1)
        self._serials = itertools.count(1)
        self._tokens: dict[str, IssuedToken] = {}

    def issue(
        self,
        email: str,
        user_id: str,
        organization_id: str,
        *,
        family: int | None = None,
        lifetime: timedelta | None = None,
        kind: TokenKind = "session",
        opaque: bool = False,
    ) -> IssuedToken:
        """Issue a token that expires; it starts its own family unless ``family`` is given."""
        issued_at = nanoseconds(self._clock.time())
        lived = nanoseconds(self._lifetime if lifetime is None else lifetime)
        expires_at = max(0, min(issued_at + lived, _LAST_MOMENT))
        claims = {
            "sub": user_id,
            "iat": issued_at // NANOSECOND,
            "exp": expires_at // NANOSECOND,
            "jti": f"{next(self._serials):032x}",
            "organization": organization_id,
        }
        return self._add(
            IssuedToken(
                id=secrets.token_urlsafe(_OPAQUE_BYTES) if opaque else self._sign(claims),
                email=email,
                user_id=user_id,
                organization_id=organization_id,
                family=next(self._families) if family is None else family,
                expires_at=expires_at,
                kind=kind,
            )
        )

    def issue_api_token(
        self, email: str, user_id: str, organization_id: str, *, kind: TokenKind = "api"
    ) -> IssuedToken:
        """Issue an API access token: opaque, and good until it is revoked."""
        return self._add(
            IssuedToken(
                id=secrets.token_urlsafe(_OPAQUE_BYTES),
                email=email,
                user_id=user_id,
                organization_id=organization_id,
                family=next(self._families),
                expires_at=_LAST_MOMENT,
                kind=kind,
            )
        )

    def find(self, token_id: str) -> IssuedToken | None:
        """Return the token with this id, live or not."""
        return self._tokens.get(token_id)

    def is_expired(self, token: IssuedToken) -> bool:
        """Return whether the token has expired."""
        return nanoseconds(self._clock.time()) >= token.expires_at

    def find_live(self, token_id: str) -> IssuedToken | None:
        """Return the token with this id if the service accepts it now."""
        token = self._tokens.get(token_id)
        return token if token is not None and self._is_live(token) else None

    def live(self) -> list[IssuedToken]:
        """Return the tokens that the service accepts now, the oldest first."""
        return [token for token in self._tokens.values() if self._is_live(token)]

    def revoke_family(self, family: int) -> None:
        """Revoke all tokens that descend from one sign-in."""
        for token in self._tokens.values():
            token.revoked |= token.family == family

    def _is_live(self, token: IssuedToken) -> bool:
        return not token.revoked and not self.is_expired(token)

    def _add(self, token: IssuedToken) -> IssuedToken:
        self._tokens[token.id] = token
        return token

    def _sign(self, claims: dict[str, Any]) -> str:
        signed = f"{_base64url(_compact(_JWT_HEADER))}.{_base64url(_compact(claims))}"
        signature = hmac.digest(self._key, signed.encode(), hashlib.sha256)
        return f"{signed}.{_base64url(signature)}"


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _rfc3339(at: int) -> str:
    """Format a time as Go does: up to nine fractional digits, without trailing zeros."""
    seconds, fraction = divmod(at, NANOSECOND)
    whole = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).strftime("%FT%T")
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{whole}{digits}Z"
