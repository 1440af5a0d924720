"""Whose a saved token is: which service and account, and who issued it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from ._models import AccessTokenCredentials, PasswordCredentials, Token
from ._snapshot import Issuer

if TYPE_CHECKING:
    from ._models import Credentials

_FIRST: str = "koyeb-session/1"


class Provenance(NamedTuple):
    """
    What a session notes with a token that it saves.

    Attributes:
        origin: The service, as ``scheme://host:port``.
        account: A digest of what the session began with; see :func:`account_of`.
        issuer: Who issued the token.
    """

    origin: str
    account: str
    issuer: Issuer

    def write(self) -> str:
        """Write it down, for `Token.provenance`."""
        return f"{_FIRST} {self.origin} {self.account} {self.issuer.value}"


def read_provenance(token: Token) -> Provenance | None:
    """Read it back; `None` where there is none, as in what earlier versions saved."""
    match (token.provenance or "").split(" "):
        case [first, origin, account, issuer] if first == _FIRST:
            try:
                return Provenance(origin, account, Issuer(issuer))
            except ValueError:
                return None
        case _:
            return None


def account_of(beginning: Credentials | Token) -> str:
    """
    Name an account by what a session of it begins with, in a form that shows none of it.

    What a callable brings is known only when it has brought it: all callables are one account.
    """
    match beginning:
        case PasswordCredentials(email=email, organization_id=organization):
            return _digest("password", email.strip().casefold(), organization or "")
        case AccessTokenCredentials(api_token=secret, organization_id=organization):
            return _digest("access token", secret, organization)
        case Token(id=token_id):
            return _digest("token", token_id)
        case _:
            return "callable"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="replace")).hexdigest()[:16]
