"""Decide whose a saved token is, and whether it is newer than the session's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from .log import log
from .provenance import Provenance, foreign_service, read_provenance
from .snapshot import Issuer, NewToken, Owner, Snapshot
from .tokens import Identity, identity, jwt_claims
from .validation import parse_token

if TYPE_CHECKING:
    from .models import Token
    from .state import SessionState

UNKNOWN: Final = "?"
"""Stands for an account without a name."""
NEVER_READ: Final = Identity("")
"""Stands for the identity of a record that was never read."""


class Ownership:
    """
    A session's view of the records in its store: its own, a foreign one, or one of others.

    Others are the other processes and clients of the same session. Identity decides which token is
    newer: others have saved a record that is neither this session's token nor ``known``, the
    identity that this session had last judged or written. The clocks of two machines are never
    compared.
    """

    __slots__ = ("_origin", "_state", "_warned", "ours")

    def __init__(self, state: SessionState, origin: str) -> None:
        self._origin = origin
        self._state = state
        self._warned: Identity | None = None
        self.ours: set[Identity] = set()
        """The identities of records that it has written, held, or meant to overwrite."""

    def bind(self, token: Token, issuer: Issuer, owner: Owner) -> Token:
        """Return the token with its provenance: service, account and issuer."""
        provenance = Provenance(self._origin, owner.account or UNKNOWN, issuer)
        return attrs.evolve(token, provenance=provenance.write())

    def is_foreign(self, found: Token, own: Snapshot | None) -> bool:
        """Return whether a saved token belongs to another service or account; log it once."""
        provenance, owner = read_provenance(found), self._state.owner
        user = None if own is None else own.token.user_id
        if service := foreign_service(found, self._origin):
            whose = f"the service {service}"
        elif provenance is not None and owner.bound and provenance.account != UNKNOWN:
            if provenance.account == owner.account:
                return False
            whose = "another account"
        elif user and found.user_id and user != found.user_id:
            whose = "another user"
        elif owner.bound and found.provenance and provenance is None:
            whose = "an unknown account"  # a later version has written it
        else:
            return False
        if self._warned != identity(found):
            self._warned = identity(found)
            log.warning(
                "the store holds a session of %s: it is not used, and is replaced when this "
                "session saves its own; "
                "give each a store of its own, as by FileTokenStore(name=...)",
                whose,
            )
        return True

    def is_kept(self, found: Token, own: Snapshot | None) -> bool:
        """Return whether a sign-out leaves a saved record to somebody else."""
        return identity(found) not in self.ours and self.is_foreign(found, own)

    def newer(
        self, found: Token | None, own: Snapshot | None, known: Identity | None
    ) -> NewToken | None:
        """
        Return the saved token if others have saved a newer one than the session's own.

        Args:
            found: The saved token.
            own: The snapshot to replace.
            known: The identity that it had last judged or written, before it read ``found``.
        """
        if found is None or self.is_foreign(found, own):
            return None
        # The session's own token, or a record that it knew before: nothing new.
        if own is not None and identity(found) in {identity(own.token), known}:
            return None
        # Never read before: a record that was issued earlier cannot be newer.
        if own is not None and known == NEVER_READ and (_order(found, own.token) or 0) < 0:
            return None
        token = parse_token(found, self._state.clock.time())
        if isinstance(token, Exception):
            return None
        provenance = read_provenance(found)
        # Without its own account, the session continues that of the record.
        continued = None
        if provenance is not None and not self._state.owner.bound:
            continued = Owner(provenance.account)
        # Others have replaced each earlier record.
        self.ours = {identity(its) for its in (found, own and own.token) if its}
        return NewToken(
            token,
            just_issued=False,
            how="taken over from the store",
            event="taken_over",
            issuer=Issuer.GIVEN if provenance is None else provenance.issuer,
            from_store=True,
            owner=continued,
        )

    def is_others(self, found: Token | None, own: Snapshot | None, known: Identity | None) -> bool:
        """Return whether others have saved this record since the last read; see `newer`."""
        if found is None:
            return False
        provenance, owner = read_provenance(found), self._state.owner
        if provenance is not None and owner.replaced == provenance.account != owner.account:
            return False  # it belongs to the session that this one has replaced
        seen = identity(found)
        if seen in self.ours:
            return False
        if known == NEVER_READ:  # never read before: only the times of issue can tell
            order = None if own is None else _order(found, own.token)
            return order is not None and order >= 0
        return seen != known and (own is None or seen != identity(own.token))


def _order(found: Token, own: Token) -> float | None:
    """Return the seconds by which ``found`` was issued later; `None` unless both JWTs say when."""
    theirs, ours = jwt_claims(found.id), jwt_claims(own.id)
    if theirs is None or ours is None or theirs.issued_at is None or ours.issued_at is None:
        return None
    return (theirs.issued_at - ours.issued_at).total_seconds()
