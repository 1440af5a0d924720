"""Snapshots at given ages, failures, and the decisions on them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from koyeb_session import (
    AccountLockedError,
    ApiError,
    AuthenticationError,
    BadRequestError,
    EndpointGoneError,
    InvalidCredentialsError,
    KoyebSessionError,
    NotFoundError,
    NotSignedInError,
    PermissionDeniedError,
    RateLimitedError,
    RefreshPolicy,
    ServerError,
    SessionExpiredError,
    StoreError,
    Token,
    TransportError,
    TransportTimeoutError,
    WireError,
)
from koyeb_session._core.snapshot import Decision, FrozenClock, LastFailure, Observation, Snapshot
from koyeb_session.testing import FakeClock

HOUR = 3600.0
DAY = 24 * HOUR
PLAIN = RefreshPolicy(jitter=0)


def moment(clock: FakeClock, seconds: float = 0) -> datetime:
    """Return the wall time after so many seconds."""
    return datetime.fromtimestamp(clock.time(), UTC) + timedelta(seconds=seconds)


def issued(
    life: float, policy: RefreshPolicy = PLAIN, clock: FakeClock | None = None, token_id: str = "t"
) -> Snapshot:
    """Make the snapshot of a token that the service issues now."""
    clock = clock or FakeClock()
    token = Token(token_id, expires_at=moment(clock, life), issued_at=moment(clock))
    return policy.snapshot(token, clock, just_issued=True)


def clock_after(seconds: float) -> FakeClock:
    """Make a clock that is ahead of those that begin now."""
    clock = FakeClock()
    clock.advance(seconds)
    return clock


def seen(
    snapshot: Snapshot | None,
    trouble: LastFailure | None,
    clock: FakeClock,
    *,
    has_credentials: bool = False,
) -> Observation:
    """Read all that one decision is made on."""
    return Observation(
        snapshot, trouble, FrozenClock(clock.time(), clock.monotonic()), has_credentials
    )


def verdict(
    snapshot: Snapshot | None,
    trouble: LastFailure | None,
    clock: FakeClock,
    *,
    has_credentials: bool = False,
) -> Decision:
    """Tell what to do when a token is asked for at this moment."""
    return seen(snapshot, trouble, clock, has_credentials=has_credentials).decision


def held(
    soft: float = 10,
    hard: float = 20,
    expiry: float = 30,
    *,
    floor: float = 0,
    renewable: bool = True,
    clock: FakeClock | None = None,
) -> Snapshot:
    """Make a snapshot of a token that begins to be held now."""
    clock = clock or FakeClock()
    token = Token("t")
    wall, mono = clock.time(), clock.monotonic()
    return Snapshot(token, wall, mono, soft, hard, expiry=expiry, floor=floor, renewable=renewable)


def failed(
    error: KoyebSessionError, wait: float = 5, *, signs_in: bool = False, refused: bool = False
) -> LastFailure:
    """Make the record of a renewal that fails now."""
    clock = FakeClock()
    return LastFailure(error, 1, clock.time(), clock.monotonic(), wait, signs_in, refused)


REFUSALS: dict[type[KoyebSessionError], bool] = {
    # whether the wait is sixty times as long
    TransportError: False,
    TransportTimeoutError: False,
    RateLimitedError: False,
    ServerError: False,
    StoreError: False,
    WireError: False,
    KoyebSessionError: True,
    ApiError: True,
    BadRequestError: True,
    AuthenticationError: True,
    InvalidCredentialsError: True,
    SessionExpiredError: True,
    PermissionDeniedError: True,
    AccountLockedError: True,
    NotFoundError: True,
    EndpointGoneError: True,
    NotSignedInError: True,
}


def usable(snapshot: Snapshot | None, trouble: LastFailure | None, clock: FakeClock) -> bool:
    """Return whether the token may be sent at this moment."""
    found = seen(snapshot, trouble, clock).usable
    assert found is None or found is snapshot
    return found is not None
