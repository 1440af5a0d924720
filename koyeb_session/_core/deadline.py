"""How much time is left: one value for what would be a timeout here and a moment there."""

from __future__ import annotations

import time


class Deadline:
    """A moment by which something has to be done."""

    __slots__ = ("_ends", "seconds")

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.seconds: float = seconds
        """How long it was in the beginning."""

    def left(self) -> float:
        """Tell how many seconds are left; never negative."""
        return max(self._ends - time.monotonic(), 0.0)

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._ends
