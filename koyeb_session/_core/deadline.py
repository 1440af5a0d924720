"""A time limit as one value, for code that counts seconds and code that compares times."""

from __future__ import annotations

import time
from typing import Final

PATIENCE: Final = 2
"""The factor of the time for work that must end well, also when nobody waits for it any more."""


class Deadline:
    """The time by which something must be done."""

    __slots__ = ("_ends", "seconds")

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.seconds: float = seconds
        """The whole time that was given."""

    def restart(self) -> None:
        """Give the whole time once more."""
        self._ends = time.monotonic() + self.seconds

    def left(self) -> float:
        """Return the seconds that are left; never negative."""
        return max(self._ends - time.monotonic(), 0.0)

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._ends
