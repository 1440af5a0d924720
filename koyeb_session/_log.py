"""The package's logger, and how it says a span of time."""

from __future__ import annotations

import logging
import math
from typing import Final

log: Final = logging.getLogger("koyeb_session")

_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def spell(seconds: float) -> str:
    """Say a span of time in its two largest units, as in ``11 h 52 min``."""
    if seconds == math.inf:
        return "an unknown time"
    rest = max(0, math.ceil(seconds))
    parts: list[str] = []
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count or (parts and len(parts) < 2) or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
        if len(parts) == 2:
            break
    return " ".join(parts)


def from_now(seconds: float) -> str:
    """Say when something is that comes in some seconds: ``in 5 s``, or ``now``."""
    return f"in {spell(seconds)}" if seconds > 0 else "now"


class Span(float):
    """Seconds that the log says as :func:`spell` does, if the line is written at all."""

    __slots__ = ()

    def __str__(self) -> str:
        return spell(self)
