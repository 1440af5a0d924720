"""The provenance of a saved token: its service, its account and its issuer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from .models import AccessTokenCredentials, PasswordCredentials, Token
from .results import frameless
from .snapshot import Issuer

if TYPE_CHECKING:
    from .models import Credentials

_FIRST: str = "koyeb-session/1"


class Provenance(NamedTuple):
    """
    A note that a session saves with its token.

    Attributes:
        origin: The service, as ``scheme://host:port``.
        account: A digest of the session's first token or credentials; see `account_of`.
        issuer: The issuer of the token.
    """

    origin: str
    account: str
    issuer: Issuer

    def write(self) -> str:
        """Write it as text, for `Token.provenance`."""
        return f"{_FIRST} {self.origin} {self.account} {self.issuer.value}"


def read_provenance(token: Token) -> Provenance | None:
    """Read the provenance of a token; `None` if it has none, or one of another format."""
    match (token.provenance or "").split(" "):
        case [first, origin, account, issuer] if first == _FIRST:
            # A store may be poisoned, and the log names the origin.
            origin = origin if origin.isprintable() else ascii(origin)[1:-1]
            try:
                return Provenance(origin, account, Issuer(issuer))
            except ValueError:
                return None
        case _:
            return None


def foreign_service(found: Token, origin: str) -> str | None:
    """Return the service of a saved token if that is another one than ``origin``."""
    provenance = read_provenance(found)
    return None if provenance is None or provenance.origin == origin else provenance.origin


@frameless
def account_of(beginning: Credentials | Token) -> str:
    """
    Return a digest that identifies an account by its credentials or first token.

    A callable names no account before it returns a token, so all callables count as one account.
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
