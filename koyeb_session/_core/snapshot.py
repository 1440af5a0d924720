"""What is known of a token at one moment, and what follows from that: pure decisions."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

if TYPE_CHECKING:
    from .errors import KoyebSessionError
    from .log import Event
    from .models import Clock, Token

SHORTEST_SLEEP: Final = 0.05
LONGEST_SLEEP: Final = 60.0
"""Seconds; after a suspend the clocks are looked at again this soon."""
SOONEST_SAVE: Final = 5.0
"""Seconds from a save that failed to the next one."""


class Phase(enum.IntEnum):
    """Where a token is in its life."""

    FRESH = 0
    """Use it."""
    SOFT = 1
    """Use it, and renew it meanwhile."""
    HARD = 2
    """Renew it first; use it if that fails."""
    EXPIRED = 3
    """Do not use it."""


class Issuer(enum.Enum):
    """Who issued a token, and so renews it."""

    KOYEB = "koyeb"
    """A login, a refresh, or another operation of the service: a refresh renews it."""
    CREDENTIALS = "credentials"
    """A callable or an API access token: they are asked for the next one, and it is never shown to
    a refresh, which may revoke what others hold."""
    GIVEN = "given"
    """Somebody else, who gave it to the session."""


@attrs.define(eq=False)
class Snapshot:
    """
    A token and the times of its life, as a session knows them at one moment.

    Its identity is the protocol: a session has moved on when it holds another snapshot. The times
    are ages, in seconds since ``wall`` and ``mono``. The age is the larger one by the two clocks,
    as one stands still in suspend, and the other may be set. Only ``check_at`` ever changes.
    """

    token: Token
    wall: float
    mono: float
    soft: float
    hard: float
    expiry: float = attrs.field(kw_only=True)
    floor: float = attrs.field(kw_only=True)
    renewable: bool = attrs.field(kw_only=True)
    issuer: Issuer = attrs.field(default=Issuer.GIVEN, kw_only=True)
    from_store: bool = attrs.field(default=False, kw_only=True)
    check_at: float = attrs.field(init=False)
    """Until this age a request just uses the token; never after ``soft``."""

    def __attrs_post_init__(self) -> None:
        self.check_at = self.soft

    def age(self, clock: Clock) -> float:
        """Tell how many seconds this has been held."""
        return max(clock.time() - self.wall, clock.monotonic() - self.mono)

    def is_due(self, clock: Clock) -> bool:
        """Tell whether a request has to look: ``age(clock) >= seen``, for less time."""
        seen = self.check_at
        return clock.monotonic() - self.mono >= seen or clock.time() - self.wall >= seen

    def phase(self, clock: Clock) -> Phase:
        """Tell where the token is in its life."""
        age = self.age(clock)
        if age < self.soft:
            return Phase.FRESH
        if age < self.hard:
            return Phase.SOFT
        return Phase.HARD if age < self.expiry else Phase.EXPIRED

    def defer_check(self, clock: Clock) -> None:
        """Have a request look again before long, and after twice as long each time."""
        age = self.age(clock)
        self.check_at = min(age + min(max(age, SOONEST_SAVE), LONGEST_SLEEP), self.soft)

    def has_deferred_work(self, clock: Clock) -> bool:
        """Tell whether a request is to look for more than whether the token is to be renewed."""
        return self.check_at < self.soft and self.age(clock) >= self.check_at


class NewToken(NamedTuple):
    """
    A token that was obtained.

    Attributes:
        token: The token.
        minted: Whether it was issued this moment, so that its whole life lies before it.
        how: How, for the log.
        event: What the log's records call it.
        issuer: Who issued it.
        from_store: Whether somebody else had saved it.
    """

    token: Token
    just_issued: bool
    how: str = "signed in with the credentials"
    event: Event = "signed_in"
    issuer: Issuer = Issuer.GIVEN
    from_store: bool = False


class FailedAttempt(NamedTuple):
    """
    Why a renewal brought no token.

    Attributes:
        error: What to tell callers.
        signs_in: Whether signing in failed, rather than a refresh or a store on the way to it.
        refused: Whether the service has refused the token that is held.
        attempted: Whether anything was asked; else there is nothing to renew it with.
        soon: Whether another attempt soon does no harm; passwords lock accounts.
    """

    error: KoyebSessionError
    signs_in: bool = False
    refused: bool = False
    attempted: bool = True
    soon: bool = False


class LastFailure(NamedTuple):
    """The last attempt to renew has failed, as a `FailedAttempt` says; the next one waits."""

    error: KoyebSessionError
    failures: int
    wall: float
    mono: float
    wait: float
    signs_in: bool = False
    refused: bool = False
    about: Snapshot | None = None
    """The snapshot that was to be replaced; once another one has taken its place, this is past."""

    def age(self, clock: Clock) -> float:
        """Tell how many seconds ago that was; never negative."""
        return max(0.0, clock.time() - self.wall, clock.monotonic() - self.mono)

    def in_backoff(self, clock: Clock) -> bool:
        """Tell whether it is too early for another attempt."""
        return self.age(clock) < self.wait


class Decision(enum.Enum):
    """What to do when a token is asked for."""

    USE = enum.auto()
    """Use the one that is there."""
    RENEW_IN_BACKGROUND = enum.auto()
    """Use it, and renew it meanwhile."""
    RENEW_FIRST = enum.auto()
    """Renew it first."""
    FAIL = enum.auto()
    """There is none that can be used, and it is too early to try again."""


class Urgency(enum.IntEnum):
    """How much a caller needs a newer token."""

    AHEAD = 0
    """Not yet: the token is good for a while."""
    NEEDED = 1
    """There is none that can be used, or hardly any time left."""
    REJECTED = 2
    """The service has just refused the one that there is."""
    REQUESTED = 3
    """Somebody has called `refresh()`."""


class FrozenClock(NamedTuple):
    """One reading of both clocks, and a clock that stands still there."""

    wall: float
    mono: float

    def time(self) -> float:
        """Give the wall clock's reading."""
        return self.wall

    def monotonic(self) -> float:
        """Give the monotonic clock's reading."""
        return self.mono


class Observation(NamedTuple):
    """All that one decision is made on: a snapshot, the last failure, one reading of the clocks."""

    snapshot: Snapshot | None
    failure: LastFailure | None
    now: FrozenClock
    has_credentials: bool = False

    @property
    def usable(self) -> Snapshot | None:
        """The snapshot, if its token may be sent: not expired, and not just refused."""
        if self.snapshot is None or self.snapshot.phase(self.now) is Phase.EXPIRED:
            return None
        return None if self._is_refused else self.snapshot

    @property
    def blocking_failure(self) -> LastFailure | None:
        """
        The last failure, while it is too early for another attempt.

        Without a usable token only a failed sign-in keeps the credentials from being asked.
        """
        failure = self.failure
        if failure is None or not failure.in_backoff(self.now):
            return None
        if self.has_credentials and not failure.signs_in and self.usable is None:
            return None
        return failure

    @property
    def decision(self) -> Decision:
        """What to do when a token is asked for; a back-off never makes an old one usable."""
        snapshot, usable, blocking_failure = self.snapshot, self.usable, self.blocking_failure
        if usable is None:
            can_renew = snapshot is None or snapshot.renewable
            return Decision.RENEW_FIRST if can_renew and blocking_failure is None else Decision.FAIL
        age = usable.age(self.now)
        if blocking_failure is not None or age < max(usable.soft, usable.floor):
            return Decision.USE
        return Decision.RENEW_IN_BACKGROUND if age < usable.hard else Decision.RENEW_FIRST

    @property
    def _is_refused(self) -> bool:
        failure = self.failure
        return failure is not None and failure.refused and failure.in_backoff(self.now)


def seconds_to_next_check(
    snapshot: Snapshot | None, failure: LastFailure | None, clock: Clock
) -> float:
    """Tell in how many seconds there may be something to renew; a minute at most."""
    wait = LONGEST_SLEEP
    if snapshot is not None and snapshot.phase(clock) is not Phase.EXPIRED:
        wait = min(wait, max(snapshot.soft, snapshot.floor) - snapshot.age(clock))
    if failure is not None:
        wait = max(wait, failure.wait - failure.age(clock))
    return min(max(wait, SHORTEST_SLEEP), LONGEST_SLEEP)
