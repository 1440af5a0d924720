"""Decide when to renew a token and when to try again, from the token and the time alone."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeAlias

import attrs

from .errors import KoyebSessionError, WireError
from .models import Clock, Token
from .snapshot import LastFailure, Snapshot
from .tokens import is_api_token

REFUSAL_FACTOR: Final = 60
"""The factor of the wait after a refusal, as repeated refusals lock accounts."""
RETRY_AFTER_LIMIT: Final = 3600.0
"""The longest ``Retry-After`` that is respected, in seconds."""


def _seconds(value: float | timedelta) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else value


_Validator: TypeAlias = "Callable[[object, attrs.Attribute[Any], object], None]"


def _check(
    kind: type | tuple[type, ...], wanted: str, is_right: Callable[[Any], bool]
) -> _Validator:
    """Make a validator whose message states the requirement."""

    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        message = f"{attribute.name} must be {wanted}, not "
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(message + type(value).__name__)
        if not is_right(value):
            raise ValueError(f"{message}{value}")

    return check


_IS_TIME: Final = _check(
    (int, float),
    "seconds or a timedelta, finite and not negative",
    lambda value: 0 <= value <= sys.float_info.max,  # an int may be larger than any float
)
_IS_WINDOW: Final[_Validator] = attrs.validators.optional(_IS_TIME)
_IS_SHARE: Final = _check((int, float), "a number from 0 to 1", lambda value: 0 <= value <= 1)
_IS_COUNT: Final = _check(int, "a whole number, 1 at least", lambda value: value >= 1)


@attrs.frozen(kw_only=True)
class RefreshPolicy:
    """
    When a token is renewed. Times are seconds or a `timedelta`.

    ```python
    policy = RefreshPolicy(soft_window=timedelta(hours=6), hard_window=30)
    session = SessionClient(refresh_policy=policy)
    ```

    Attributes:
        soft_window: How long before expiry to start renewing while nobody waits; 12 hours by
            default, and at most half the lifetime. `None`: half the lifetime. ``0``: never ahead
            of the hard window.
        hard_window: How long before expiry callers wait for the renewal; 60 seconds by default,
            and at most a tenth of the lifetime. `None`: a tenth of it. ``0``: only once it has
            expired.
        min_interval: The least age of a token that is renewed ahead of need; 10 seconds by default,
            and at most a twentieth of the lifetime.
        jitter: The share of the soft window by which to start later, from 0 to 1; 0.1 by default.
            The token decides how much of it, so that all processes with the same token agree.
        backoff: The wait after a first failure; 1 second by default. It doubles with each failure,
            and a random part of up to half is taken off. After a refusal it is sixty times as long.
        backoff_max: The longest wait after a failure; 60 seconds by default, and sixty times as
            long after a refusal. While the token is still good, a wait is at most half of its
            remaining life, so that there is another try before it expires. Two things may make it
            longer: it is never less than ``backoff``, or sixty times that after a refused sign-in.
            A service that asks for more time, with ``Retry-After``, is given it, up to an hour,
            and up to half of the token's remaining life.

    Raises:
        TypeError: A value is no number and no `timedelta`.
        ValueError: A value is negative or endless, or ``jitter`` is not from 0 to 1.
    """

    # Written out field by field: type checkers do not see a converter that a helper function sets.
    soft_window: float | None = attrs.field(
        default=12 * 3600.0, converter=attrs.converters.optional(_seconds), validator=_IS_WINDOW
    )
    hard_window: float | None = attrs.field(
        default=60.0, converter=attrs.converters.optional(_seconds), validator=_IS_WINDOW
    )
    min_interval: float = attrs.field(default=10.0, converter=_seconds, validator=_IS_TIME)
    jitter: float = attrs.field(default=0.1, validator=_IS_SHARE)
    backoff: float = attrs.field(default=1.0, converter=_seconds, validator=_IS_TIME)
    backoff_max: float = attrs.field(default=60.0, converter=_seconds, validator=_IS_TIME)

    def snapshot(
        self,
        token: Token,
        clock: Clock,
        *,
        just_issued: bool,
        renew: bool = True,
        just_brought: bool = False,
    ) -> Snapshot:
        """
        Calculate the phases of a token's life, for a session that holds it from now on.

        A token that was ``just_issued`` has its whole life left, by the service's own clock. The
        age of any other token is measured by the local wall clock. One that a callable has
        ``just_brought`` may be in its windows already, as long as the callable has no newer one:
        the least time until the next renewal counts from now.
        """
        wall, mono = clock.time(), clock.monotonic()
        renewable = renew and not is_api_token(token)
        expiry, soft, hard, floor = math.inf, 0.0, 0.0, 0.0
        if token.expires_at is not None:
            expires = token.expires_at.timestamp()
            issued = wall if token.issued_at is None else token.issued_at.timestamp()
            life = max(0.0, expires - issued)
            expiry = life if just_issued else expires - wall
            if renewable:
                hard = _capped(self.hard_window, life / 10)
                soft = _capped(self.soft_window, life / 2) * (1 - self.jitter * _share(token))
                floor = min(self.min_interval, life / 20)
                if just_brought:
                    floor = min(floor, expiry / 2)
                else:
                    floor -= max(0.0, life - expiry)  # its age when this session got it
        return Snapshot(
            token,
            wall,
            mono,
            soft=expiry - max(soft, hard),
            hard=expiry - hard,
            expiry=expiry,
            floor=floor,
            renewable=renewable,
        )

    def failure(
        self,
        error: KoyebSessionError,
        clock: Clock,
        chance: float,
        *,
        last: LastFailure | None,
        left: float = math.inf,
        soon: bool = False,
        signs_in: bool = False,
    ) -> LastFailure:
        """
        Decide how long to wait after a failure.

        Args:
            error: The failure.
            clock: The two clocks.
            chance: A random number from 0 to 1.
            last: The failure before it, if nothing has succeeded since.
            left: Seconds that the token remains valid; the next attempt should be within them.
            soon: Whether an early attempt is harmless after any error.
            signs_in: Whether signing in failed.
        """
        failures = 1 if last is None else last.failures + 1
        wait = min(self.backoff * 2.0 ** min(failures - 1, 32), self.backoff_max)
        may_change = soon or error.retryable or isinstance(error, WireError)
        factor = 1 if may_change else REFUSAL_FACTOR
        # A refused refresh locks no account, unlike a refused sign-in.
        least = self.backoff * (factor if signs_in else 1)
        wait = min(wait * factor, max(left / 2, least))
        wait *= 1 - chance / 2
        asked = getattr(error, "retry_after", None) or 0.0
        wait = max(wait, min(asked, RETRY_AFTER_LIMIT, left / 2))
        return LastFailure(error, failures, clock.time(), clock.monotonic(), wait)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """
    How many times an operation is sent, within its deadline. Times are seconds or a `timedelta`.

    Every operation is sent again after a refused connection: nothing was sent. Login method and
    logout are sent again after 429, 502, 503 and 504. A refresh that callers wait for is sent again
    after 429 and 503, but never after a lost reply. No other request is sent
    again: accounts lock.
    Requests of ``session.http`` are not sent again by this policy.

    ```python
    session = SessionClient(retry_policy=RetryPolicy(attempts=5, delay=0.5), timeout=30)
    ```

    Attributes:
        attempts: How often at most, the first time included; 3 by default. ``1`` turns retries off.
        delay: The longest wait before the second time; 0.2 seconds by default. It doubles with
            each try; the wait is a random part of it.
        delay_max: The longest wait; 2 seconds by default.
        retry_after_max: The longest ``Retry-After`` to wait for; 5 seconds by default. Beyond it
            the error is raised.

    Raises:
        TypeError: A value is no number and no `timedelta`, or ``attempts`` is no whole number.
        ValueError: A value is negative or endless, or ``attempts`` is below 1.
    """

    attempts: int = attrs.field(default=3, validator=_IS_COUNT)
    delay: float = attrs.field(default=0.2, converter=_seconds, validator=_IS_TIME)
    delay_max: float = attrs.field(default=2.0, converter=_seconds, validator=_IS_TIME)
    retry_after_max: float = attrs.field(default=5.0, converter=_seconds, validator=_IS_TIME)

    def wait(self, error: KoyebSessionError, attempt: int, chance: float) -> float | None:
        """Return how long to wait before sending again; `None` if it must not be sent again."""
        if attempt >= self.attempts or not error._repeatable:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            return None
        asked = getattr(error, "retry_after", None) or 0.0
        if asked > self.retry_after_max:
            return None
        return max(asked, chance * min(self.delay * 2.0 ** (attempt - 1), self.delay_max))


# The public name, also in pickles. It is set here because attrs resolves the annotations of a class
# in the module that the class names.
RefreshPolicy.__module__ = RetryPolicy.__module__ = "koyeb_session"


def _capped(window: float | None, limit: float) -> float:
    return limit if window is None else min(window, limit)


def _share(token: Token) -> float:
    """Derive a number from 0 to 1 from a token, the same in every process."""
    return zlib.crc32(token.id.encode()) / 0xFFFF_FFFF
