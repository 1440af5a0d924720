"""A session's token and failures at one moment, and the decisions that follow from them."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

from .errors import StoreError

if TYPE_CHECKING:
    from .errors import KoyebSessionError
    from .log import Event
    from .models import Clock, Token

SHORTEST_SLEEP: Final = 0.05
LONGEST_SLEEP: Final = 60.0
"""The longest time between two checks of the clocks, which may jump after a suspend."""
SOONEST_SAVE: Final = 5.0
"""The shortest time from a failed save to the next attempt, in seconds."""


class Phase(enum.IntEnum):
    """A phase of a token's life."""

    FRESH = 0
    """Use it."""
    SOFT = 1
    """Use it, and renew it in the background."""
    HARD = 2
    """Renew it first; use it if that fails."""
    EXPIRED = 3
    """Do not use it."""


class Issuer(enum.Enum):
    """The issuer of a token, which also renews it."""

    KOYEB = "koyeb"
    """A login, a refresh, or another operation of the service: a refresh renews it."""
    CREDENTIALS = "credentials"
    """A callable or an API access token: they provide the next token. A refresh could revoke the
    copies that others hold, so this token is never sent to one."""
    GIVEN = "given"
    """Unknown: the user gave the token, or a saved record that names no issuer."""


@attrs.define(eq=False, weakref_slot=False)
class Snapshot:
    """
    A token with the phases of its life; a session replaces it as a whole, never in part.

    Its identity tells callers whether the session has moved on. Only ``check_at`` and the
    one-time secret in its token ever change.

    The times are ages, in seconds since ``wall`` and ``mono``. The age is the larger of the two
    clocks' readings: one clock may stop during a suspend, and the other may be set.
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
    """Up to this age, at most ``soft``, a request uses the token without any other check."""

    def __attrs_post_init__(self) -> None:
        self.check_at = self.soft

    def age(self, clock: Clock) -> float:
        """Return for how many seconds the session has held the token."""
        return max(clock.time() - self.wall, clock.monotonic() - self.mono)

    def is_due(self, clock: Clock) -> bool:
        """Return whether a request must check the state: ``age(clock) >= check_at``, but faster."""
        seen = self.check_at
        return clock.monotonic() - self.mono >= seen or clock.time() - self.wall >= seen

    def phase(self, clock: Clock) -> Phase:
        """Return the phase of the token's life."""
        age = self.age(clock)
        if age < self.soft:
            return Phase.FRESH
        if age < self.hard:
            return Phase.SOFT
        return Phase.HARD if age < self.expiry else Phase.EXPIRED

    def defer_check(self, clock: Clock) -> None:
        """Schedule a check by a later request; the wait doubles each time, up to a minute."""
        age = self.age(clock)
        self.check_at = min(age + min(max(age, SOONEST_SAVE), LONGEST_SLEEP), self.soft)

    def cancel_check(self) -> None:
        """Cancel the check that `defer_check` has scheduled."""
        self.check_at = self.soft

    def has_deferred_work(self, clock: Clock) -> bool:
        """Return whether a check is due for another reason than the age of the token."""
        return self.check_at < self.soft and self.age(clock) >= self.check_at


class Owner(NamedTuple):
    """
    The account of a session.

    Attributes:
        account: See `Provenance.account`; `None`: the account of the saved record.
        bound: Whether records of other accounts are foreign; so after a login, or with credentials.
        replaced: The account of the session that this one has replaced.
    """

    account: str | None = None
    bound: bool = False
    replaced: str | None = None


class NewToken(NamedTuple):
    """
    A token that a session is about to take over.

    Attributes:
        token: The token.
        just_issued: Whether the service has just issued it, so that its whole life is left.
        how: The log message's description of where it came from.
        event: The name of the event in the log's records.
        issuer: The issuer of the token.
        from_store: Whether another process or client had saved it.
        owner: The account of its session; `None`: the same account as before.
    """

    token: Token
    just_issued: bool
    how: str = "signed in with the credentials"
    event: Event = "signed_in"
    issuer: Issuer = Issuer.GIVEN
    from_store: bool = False
    owner: Owner | None = None


class FailedAttempt(NamedTuple):
    """
    The result of a renewal without a new token.

    Attributes:
        error: The error for callers.
        signs_in: Whether signing in failed, rather than a refresh or a store before it.
        refused: Whether the service has rejected the session's token.
        attempted: Whether anything was tried; otherwise the session has no means to renew.
        soon: Whether an early attempt is harmless; wrong passwords lock accounts.
        unused: A token that was issued for a session that has moved on; it is to be revoked.
        expired: A token that has expired already, but has the next one-time secret.
    """

    error: KoyebSessionError
    signs_in: bool = False
    refused: bool = False
    attempted: bool = True
    soon: bool = False
    unused: Token | None = None
    expired: Token | None = None


class LastFailure(NamedTuple):
    """The last failure of a renewal, and the wait before the next attempt."""

    error: KoyebSessionError
    failures: int
    wall: float
    mono: float
    wait: float
    signs_in: bool = False
    refused: bool = False
    attempted: bool = True
    about: Snapshot | None = None
    """The snapshot that the renewal should replace; the failure counts only while it is current."""

    def age(self, clock: Clock) -> float:
        """Return how many seconds ago it was; never negative."""
        return max(0.0, clock.time() - self.wall, clock.monotonic() - self.mono)

    def in_backoff(self, clock: Clock) -> bool:
        """Return whether it is too early for another attempt."""
        return self.age(clock) < self.wait

    def bars_refresh(self, clock: Clock) -> bool:
        """Return whether it is too early for another refresh, as the last one has failed."""
        # A store's failure says nothing about the service.
        return self.in_backoff(clock) and not isinstance(self.error, StoreError)


class Rejection(NamedTuple):
    """The last rejection of a brand-new token, and the seconds for which it is remembered."""

    about: Snapshot
    in_a_row: int
    wall: float
    mono: float
    wait: float
    accepted: Snapshot | None = None
    """The last token that was accepted since."""

    def age(self, clock: Clock) -> float:
        """Return how many seconds ago it was."""
        return max(clock.monotonic() - self.mono, clock.time() - self.wall)

    def is_remembered(self, clock: Clock) -> bool:
        """Return whether it is too early to try another token because of a 401."""
        return self.age(clock) < self.wait


class Decision(enum.Enum):
    """The way to serve a caller that needs a token."""

    USE = enum.auto()
    """Use the current token."""
    RENEW_IN_BACKGROUND = enum.auto()
    """Use the current token, and renew it in the background."""
    RENEW_FIRST = enum.auto()
    """Renew it first."""
    FAIL = enum.auto()
    """Raise: there is no usable token, and it cannot be renewed now."""


class Urgency(enum.IntEnum):
    """The degree to which a caller needs a newer token."""

    AHEAD = 0
    """Not needed yet: the token is good for a while."""
    NEEDED = 1
    """There is no usable token, or it is about to expire."""
    REJECTED = 2
    """The service has just rejected the token."""
    REQUESTED = 3
    """The user has called `refresh()`."""


class Need(NamedTuple):
    """
    The need for one renewal, as its first caller has it.

    Attributes:
        old: The snapshot to replace; `None` when there is none.
        generation: The generation in which this was decided.
        urgency: How urgently the callers need a newer token.
        seconds: The time that the renewal may take in all.
        failure: The last failure that the caller has seen.
    """

    old: Snapshot | None
    generation: int
    urgency: Urgency
    seconds: float
    failure: LastFailure | None = None

    def answered_by(self, failure: LastFailure | None) -> KoyebSessionError | None:
        """Return the error of a renewal that has begun and failed since a thread's look."""
        if self.urgency >= Urgency.REJECTED or failure is self.failure or failure is None:
            return None
        return failure.error if failure.about is self.old else None


class FrozenClock(NamedTuple):
    """A clock that stands still, at one reading of both clocks."""

    wall: float
    mono: float

    def time(self) -> float:
        """Return the reading of the wall clock."""
        return self.wall

    def monotonic(self) -> float:
        """Return the reading of the monotonic clock."""
        return self.mono


class Observation(NamedTuple):
    """The input of one decision: a snapshot, the last failure, and one reading of the clocks."""

    snapshot: Snapshot | None
    failure: LastFailure | None
    now: FrozenClock
    has_credentials: bool = False

    @property
    def usable(self) -> Snapshot | None:
        """The snapshot, if its token is neither expired nor just rejected."""
        if self.snapshot is None or self.snapshot.phase(self.now) is Phase.EXPIRED:
            return None
        return None if self._is_refused else self.snapshot

    @property
    def may_sign_in(self) -> bool:
        """Whether there are credentials that have not just failed, so that they may help."""
        return self.has_credentials and not (self.failure is not None and self.failure.signs_in)

    @property
    def blocking_failure(self) -> LastFailure | None:
        """
        The last failure, while it is too early for another attempt.

        Without a usable token, the credentials are tried at once, unless a sign-in has failed.
        """
        failure = self.failure
        if failure is None or not failure.in_backoff(self.now):
            return None
        return None if self.may_sign_in and self.usable is None else failure

    @property
    def decision(self) -> Decision:
        """The decision for a caller; a back-off never makes an expired token usable."""
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
    """Return the seconds until a renewal may be due, at most a minute."""
    wait = LONGEST_SLEEP
    if snapshot is not None and snapshot.phase(clock) is not Phase.EXPIRED:
        wait = min(wait, max(snapshot.soft, snapshot.floor) - snapshot.age(clock))
    if failure is not None:
        wait = max(wait, failure.wait - failure.age(clock))
    return min(max(wait, SHORTEST_SLEEP), LONGEST_SLEEP)
