"""A clock that a test moves by hand, so that no test has to wait for a token to expire."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

_START = datetime(2026, 1, 1, tzinfo=UTC)
_MONOTONIC_START = 1_000.0
NANOSECOND = 1_000_000_000


class FakeClock:
    """
    A clock that stands still until the test moves it.

    Args:
        start: the wall time to begin at; an aware datetime, 2026-01-01T00:00:00Z unless given.

    Raises:
        ValueError: ``start`` is naive.

    >>> from datetime import timedelta
    >>> clock = FakeClock()
    >>> before = clock.time()
    >>> clock.advance(timedelta(hours=1))
    >>> clock.time() - before
    3600.0
    """

    def __init__(self, start: datetime = _START) -> None:
        if start.tzinfo is None:
            raise ValueError("start must be aware: give it a time zone, as in datetime.now(UTC)")
        # Whole nanoseconds, so that a thousand steps of 0.1 s are exactly 100 s.
        self._wall = nanoseconds(start - datetime(1970, 1, 1, tzinfo=UTC))
        self._monotonic = nanoseconds(_MONOTONIC_START)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<FakeClock {datetime.fromtimestamp(self.time(), UTC).isoformat()}>"

    def time(self) -> float:
        """Return the wall time, in seconds since 1970."""
        return self._wall / NANOSECOND

    def monotonic(self) -> float:
        """Return the monotonic time, in seconds."""
        return self._monotonic / NANOSECOND

    def advance(self, by: float | timedelta) -> None:
        """
        Let time pass: both the wall and the monotonic time move on.

        Args:
            by: how much, in seconds or as a timedelta; not negative.

        Raises:
            ValueError: ``by`` is negative. Use ``step_wall`` to set the wall clock back.
        """
        step = nanoseconds(by)
        if step < 0:
            raise ValueError("time does not go back; step_wall() sets the wall clock back")
        with self._lock:
            self._wall += step
            self._monotonic += step

    def step_wall(self, by: float | timedelta) -> None:
        """
        Move the wall time alone, as a correction by NTP does, or a suspended machine.

        Args:
            by: how much, in seconds or as a timedelta; negative to set the clock back.
        """
        step = nanoseconds(by)
        with self._lock:
            self._wall += step


def nanoseconds(value: float | timedelta) -> int:
    """Return seconds, or a timedelta, in whole nanoseconds."""
    if isinstance(value, timedelta):
        return value // timedelta(microseconds=1) * 1_000
    # Converted separately: a float of nanoseconds since 1970 is imprecise by hundreds of them.
    seconds, fraction = divmod(value, 1)
    return int(seconds) * NANOSECOND + round(fraction * NANOSECOND)
