"""When to renew a token and when to try again: pure decisions over (token, now)."""

from __future__ import annotations

import enum
import math
import zlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from ._errors import (
    AuthenticationError,
    KoyebSessionError,
    RateLimitedError,
    ServerError,
    TransportError,
    WireError,
)
from ._wire import is_api_token

if TYPE_CHECKING:
    from ._models import Clock, Token

REFUSAL_FACTOR: Final = 60
"""How much longer than after an outage to wait after a refusal: repeating those locks accounts."""
RETRY_AFTER_LIMIT: Final = 3600.0
"""Seconds; a service that asks for more is asked again after this."""
LONGEST_SLEEP: Final = 60.0
"""Seconds; after a suspend the clocks are looked at again this soon."""
SHORTEST_SLEEP: Final = 0.05


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


@attrs.frozen(eq=False)
class Snapshot:
    """
    What a session knows at one moment; its identity says whether the session has moved on.

    The times are ages in seconds since ``wall`` and ``mono``. The age is the larger one of what the
    two clocks say: one of them stands still in suspend, the other one may be set.
    """

    token: Token
    wall: float
    mono: float
    soft: float
    hard: float
    expiry: float
    floor: float
    renewable: bool

    def age(self, clock: Clock) -> float:
        """Tell how many seconds this has been held."""
        return max(clock.time() - self.wall, clock.monotonic() - self.mono)

    def phase(self, clock: Clock) -> Phase:
        """Tell where the token is in its life."""
        age = self.age(clock)
        if age < self.soft:
            return Phase.FRESH
        if age < self.hard:
            return Phase.SOFT
        return Phase.HARD if age < self.expiry else Phase.EXPIRED


class Obtained(NamedTuple):
    """A token that was had, and whether the service minted it for us this moment."""

    token: Token
    minted: bool


@attrs.frozen
class Trouble:
    """The last attempt to renew has failed; the next one has to wait."""

    error: KoyebSessionError
    failures: int
    wall: float
    mono: float
    wait: float

    def age(self, clock: Clock) -> float:
        """Tell how many seconds ago that was; never negative."""
        return max(0.0, clock.time() - self.wall, clock.monotonic() - self.mono)

    def blocks(self, clock: Clock) -> bool:
        """Tell whether it is too early for another attempt."""
        return self.age(clock) < self.wait

    @property
    def is_refusal(self) -> bool:
        """Whether the service has said that the token is no good, rather than nothing useful."""
        return isinstance(self.error, AuthenticationError)


class Verdict(enum.Enum):
    """What to do when a token is asked for."""

    USE = enum.auto()
    """Use the one that is there."""
    RENEW = enum.auto()
    """Use it, and renew it meanwhile."""
    WAIT = enum.auto()
    """Renew it first."""
    FAIL = enum.auto()
    """There is none that can be used, and it is too early to try again."""


def usable(snapshot: Snapshot | None, trouble: Trouble | None, clock: Clock) -> bool:
    """Tell whether a token may be sent: not expired, and not just refused by the service."""
    if snapshot is None or snapshot.phase(clock) is Phase.EXPIRED:
        return False
    return trouble is None or not (trouble.is_refusal and trouble.blocks(clock))


def verdict(snapshot: Snapshot | None, trouble: Trouble | None, clock: Clock) -> Verdict:
    """Decide what to do when a token is asked for; a back-off never makes an old one usable."""
    blocked = trouble is not None and trouble.blocks(clock)
    if snapshot is None or not usable(snapshot, trouble, clock):
        renewable = snapshot is None or snapshot.renewable
        return Verdict.WAIT if renewable and not blocked else Verdict.FAIL
    phase = snapshot.phase(clock)
    if phase is Phase.FRESH or blocked or snapshot.age(clock) < snapshot.floor:
        return Verdict.USE
    return Verdict.RENEW if phase is Phase.SOFT else Verdict.WAIT


def next_look(snapshot: Snapshot | None, trouble: Trouble | None, clock: Clock) -> float:
    """Tell in how many seconds there may be something to renew; a minute at most."""
    wait = LONGEST_SLEEP
    if snapshot is not None and snapshot.phase(clock) is not Phase.EXPIRED:
        wait = min(wait, max(snapshot.soft, snapshot.floor) - snapshot.age(clock))
    if trouble is not None:
        wait = max(wait, trouble.wait - trouble.age(clock))
    return min(max(wait, SHORTEST_SLEEP), LONGEST_SLEEP)


def _seconds(value: float | timedelta | None) -> float | None:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"{attribute.name} must be seconds or a timedelta, not {type(value).__name__}"
        raise TypeError(message)
    if not (math.isfinite(value) and value >= 0):
        message = f"{attribute.name} must be finite and not negative, not {value}"
        raise ValueError(message)


def _check_share(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    wanted = f"{attribute.name} must be a number from 0 to 1"
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"{wanted}, not {type(value).__name__}"
        raise TypeError(message)
    if not 0 <= value <= 1:
        message = f"{wanted}, not {value}"
        raise ValueError(message)


def _check_count(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    wanted = f"{attribute.name} must be a whole number, 1 at least"
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"{wanted}, not {type(value).__name__}"
        raise TypeError(message)
    if value < 1:
        message = f"{wanted}, not {value}"
        raise ValueError(message)


def _check_unless_none(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        _check(_, attribute, value)


def _span(default: float) -> float:
    """Make a field for a span of time."""
    return attrs.field(default=default, converter=_seconds, validator=_check)


def _optional_span(default: float) -> float | None:
    return attrs.field(default=default, converter=_seconds, validator=_check_unless_none)


@attrs.frozen(kw_only=True)
class RefreshPolicy:
    """
    When a token is renewed. Times are seconds or a `timedelta`.

    Attributes:
        soft_window: How long before expiry to start renewing while nobody waits; at most half the
            lifetime. `None`: half the lifetime. ``0``: never ahead of the hard window.
        hard_window: How long before expiry callers wait for the renewal; at most a tenth of the
            lifetime. `None`: a tenth of it. ``0``: only once it has expired.
        min_interval: The least time between two renewals, at most a twentieth of the lifetime.
        jitter: By which share of the soft window to start later, from 0 to 1; the token decides
            how much of it, so that all who hold the same one agree.
        backoff: The wait after a first failure; it doubles with each, and a random half is taken
            off. After a refusal it is sixty times as long.
        backoff_max: The longest wait after a failure; after a refusal it is sixty times as long.
    """

    soft_window: float | None = _optional_span(12 * 3600.0)
    hard_window: float | None = _optional_span(60.0)
    min_interval: float = _span(10.0)
    jitter: float = attrs.field(default=0.1, validator=_check_share)
    backoff: float = _span(1.0)
    backoff_max: float = _span(60.0)

    def snapshot(self, token: Token, clock: Clock, *, minted: bool, renew: bool = True) -> Snapshot:
        """
        Lay out the life of a token that begins to be held now.

        A token that was ``minted`` for us this moment has its whole life before it, by the
        service's own clock; for any other one our wall clock has to do.
        """
        wall, mono = clock.time(), clock.monotonic()
        renewable = renew and not is_api_token(token)
        if token.expires_at is None:
            return Snapshot(
                token, wall, mono, math.inf, math.inf, math.inf, self.min_interval, renewable
            )
        expires = token.expires_at.timestamp()
        issued = wall if token.issued_at is None else token.issued_at.timestamp()
        life = max(0.0, expires - issued)
        left = life if minted else expires - wall
        if not renewable:
            return Snapshot(token, wall, mono, left, left, left, 0.0, renewable)
        hard = _capped(self.hard_window, life / 10)
        soft = _capped(self.soft_window, life / 2)
        soft *= 1 - self.jitter * _share(token)
        return Snapshot(
            token,
            wall,
            mono,
            left - max(soft, hard),
            left - hard,
            left,
            min(self.min_interval, life / 20),
            renewable,
        )

    def trouble(
        self, error: KoyebSessionError, clock: Clock, chance: float, *, last: Trouble | None
    ) -> Trouble:
        """Decide how long to wait after a failure; ``chance`` is random, from 0 to 1."""
        failures = 1 if last is None else last.failures + 1
        wait = min(self.backoff * 2.0 ** min(failures - 1, 32), self.backoff_max)
        if not (error.retryable or isinstance(error, WireError)):
            wait *= REFUSAL_FACTOR
        wait *= 1 - chance / 2
        asked = getattr(error, "retry_after", None) or 0.0
        wait = max(wait, min(asked, RETRY_AFTER_LIMIT))
        return Trouble(error, failures, clock.time(), clock.monotonic(), wait)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """
    How often one operation is sent, within its deadline. Times are seconds or a `timedelta`.

    A refused connection is tried again for every operation: nothing was sent. 429, 502, 503 and 504
    are for login method and logout; for a refresh that callers wait for 429 and 503, since after a
    lost reply it would be repeated blindly. Anything else never is: accounts lock.

    Attributes:
        attempts: How often at most, the first time included; ``1`` turns retries off.
        delay: The longest wait before the second time; it doubles with each, and a random part
            of it is taken.
        delay_max: The longest wait.
        retry_after_max: The longest ``Retry-After`` to wait for; beyond it the error is raised.
    """

    attempts: int = attrs.field(default=3, validator=_check_count)
    delay: float = _span(0.2)
    delay_max: float = _span(2.0)
    retry_after_max: float = _span(5.0)

    def wait(
        self,
        error: KoyebSessionError,
        attempt: int,
        chance: float,
        *,
        sent: bool,
        repeat: frozenset[int],
    ) -> float | None:
        """Decide how long to wait before sending again; `None`: do not."""
        if attempt >= self.attempts:
            return None
        if isinstance(error, TransportError):
            again = not sent
        else:
            again = isinstance(error, RateLimitedError | ServerError) and error.status in repeat
        if not again:
            return None
        asked = getattr(error, "retry_after", None) or 0.0
        if asked > self.retry_after_max:
            return None
        return max(asked, chance * min(self.delay * 2.0 ** (attempt - 1), self.delay_max))


def _capped(window: float | None, limit: float) -> float:
    return limit if window is None else min(window, limit)


def _share(token: Token) -> float:
    """Derive a number from 0 to 1 from a token, the same in every process."""
    return zlib.crc32(token.id.encode()) / 0xFFFF_FFFF


def minted_at(token: Token, wall: float) -> Token:
    """Note when the service minted a token, by its own clock."""
    return attrs.evolve(token, issued_at=datetime.fromtimestamp(wall, UTC))
