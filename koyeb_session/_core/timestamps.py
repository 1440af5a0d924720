"""Read the three formats of time in replies and tokens."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

_RFC_3339: Final = r"(?a)\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)?"


def timestamp(text: str) -> datetime | None:
    """
    Read an RFC 3339 timestamp, with any number of fractional digits, as Go prints them.

    The year 1 is Go's zero time and means "none". A missing offset is taken as UTC.

    Raises:
        ValueError: ``text`` is anything else.
    """
    if not re.fullmatch(_RFC_3339, text):
        message = "not an RFC 3339 timestamp"
        raise ValueError(message)
    if text.startswith("0001-"):
        return None
    at = datetime.fromisoformat(text.upper())
    if at.tzinfo is UTC:
        return at
    at = at.replace(tzinfo=at.tzinfo or UTC)
    try:
        return at.astimezone(UTC)
    except OverflowError:
        message = "a timestamp out of range"
        raise ValueError(message) from None


def from_epoch(seconds: object) -> datetime | None:
    """Read a JWT's ``NumericDate`` (RFC 7519); `None` for anything that is not one."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def http_date(text: str) -> float | None:
    """Read an HTTP date (RFC 9110) as seconds since the epoch; `None` if it is none."""
    parts = email.utils.parsedate_tz(text)
    if parts is None:
        return None
    try:
        zone = timezone(timedelta(seconds=parts[9] or 0))
        return datetime(*parts[:6], tzinfo=zone).timestamp()
    except (ValueError, OverflowError):
        return None


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """
    Read ``Retry-After`` (RFC 9110), seconds or a date; `None` for anything else.

    A date is one of the service's clock.
    """
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    at = http_date(text)
    return None if at is None else max(0.0, at - service_time(headers.get("date"), wall))


def service_time(date: str | None, wall: float) -> float:
    """
    Return the service's time at the arrival of a reply, from its ``Date`` header.

    Differences below two seconds come from the header's resolution and the transfer, so the local
    clock is used. Otherwise it is the header plus one second, as the header is rounded down.
    """
    at = None if date is None else http_date(date)
    return wall if at is None or abs(at - wall) < 2 or from_epoch(at + 1) is None else at + 1
