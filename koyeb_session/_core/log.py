"""
The package's logger, the fields of its records, and the format of durations.

The docstring of `koyeb_session` lists the names of the fields, as operators filter by them.
"""

from __future__ import annotations

import logging
import math
from typing import Final, Literal, TypeAlias

Event: TypeAlias = Literal[
    "operation",
    "signed_in",
    "renewed",
    "taken_over",
    "sign_in_failed",
    "renewal_failed",
    "signed_out",
]

log: Final = logging.getLogger("koyeb_session")


def fields(event: Event, **values: str | float | None) -> dict[str, str | float | None]:
    """Make the ``extra`` of a record: the event and its details."""
    return {"koyeb_event": event, **{f"koyeb_{name}": value for name, value in values.items()}}


_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units, as in ``11 h 52 min``."""
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


def time_from_now(seconds: float) -> str:
    """Format a time that is some seconds away: ``in 5 s``, or ``now``."""
    return f"in {format_duration(seconds)}" if seconds > 0 else "now"


class Duration(float):
    """Seconds that are formatted by `format_duration`, and only if the line is logged."""

    __slots__ = ()

    def __str__(self) -> str:
        return format_duration(self)
