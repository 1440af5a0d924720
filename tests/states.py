"""Changes of a state, in short."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from koyeb_session import KoyebSessionError, Token
from koyeb_session._core.snapshot import NewToken, Snapshot
from koyeb_session._core.state import SessionState
from koyeb_session.testing import FakeClock

HOUR = 3600.0


def token(clock: FakeClock, life: float | None = HOUR, token_id: str = "t") -> Token:
    """Make a token that the service issues now."""
    now = datetime.fromtimestamp(clock.time(), UTC)
    expires_at = None if life is None else now + timedelta(seconds=life)
    return Token(token_id, "user-1", None, expires_at, issued_at=now)


def commit(
    state: SessionState, given: Token, generation: int | None = None, *, begins: bool = False
) -> Snapshot:
    """Commit a token that has to be accepted."""
    found = state.commit(NewToken(given, just_issued=True), generation, begins=begins)
    assert isinstance(found, Snapshot)
    return found


def refused(state: SessionState, given: Token, *, just_issued: bool = True) -> KoyebSessionError:
    """Commit a token that has to be refused, and see that nothing has changed."""
    before = facts(state)
    found = state.commit(NewToken(given, just_issued=just_issued), begins=True)
    assert isinstance(found, KoyebSessionError)
    assert facts(state) == before
    return found


def facts(state: SessionState) -> list[object]:
    """Tell all that a state holds."""
    return [getattr(state, name) for name in SessionState.__slots__]
