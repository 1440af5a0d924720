"""The ways in which times are written, and those in which they are not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from koyeb_session._core.timestamps import (
    from_epoch,
    http_date,
    retry_after,
    service_time,
    timestamp,
)

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EPOCH = "Thu, 01 Jan 1970 00:00:00 GMT"


def microseconds(count: int) -> datetime:
    """Return the time so many microseconds after `AT`."""
    return AT + timedelta(microseconds=count)


@pytest.mark.pitfall(22)
@pytest.mark.parametrize(
    ("text", "at"),
    [
        *((text, AT) for text in ("2026-01-02T03:04:05Z", "2026-01-02t03:04:05z")),
        *((text, AT) for text in ("2026-01-02 03:04:05Z", "2026-01-02T03:04:05.0Z")),
        ("2026-01-02T03:04:05", AT),  # no offset: UTC
        *((text, AT) for text in ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05-00:00")),
        *((text, AT) for text in ("2026-01-02T05:34:05+02:30", "2026-01-01T22:04:05-05:00")),
        ("2026-01-02T03:04:05.1Z", microseconds(100_000)),
        ("2026-01-02T03:04:05.123Z", microseconds(123_000)),
        ("2026-01-02T03:04:05.000001Z", microseconds(1)),
        ("2026-01-02T03:04:05.123456Z", microseconds(123_456)),
        ("2026-01-02T03:04:05.1234567Z", microseconds(123_456)),
        ("2026-01-02T03:04:05.123456789Z", microseconds(123_456)),
        ("2026-01-02T03:04:05.999999999Z", microseconds(999_999)),
        ("2026-01-02T03:04:05.123456789+00:00", microseconds(123_456)),
        ("2026-01-02T03:04:05.5", microseconds(500_000)),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("0002-01-01T00:00:00Z", datetime(2, 1, 1, tzinfo=UTC)),
    ],
)
def test_timestamp_is_read_when_it_is_rfc_3339(text: str, at: datetime) -> None:
    """Each number of fractional digits, each offset and none, in upper and lower case."""
    read = timestamp(text)
    assert read is not None
    assert (read, read.tzinfo) == (at, UTC)


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z", "0001-01-01T00:00:00+01:00"]
)
def test_timestamp_is_none_when_it_is_gos_zero_time(text: str) -> None:
    """Go prints a time that was never set as the year 1."""
    assert timestamp(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "1767323045", "2026-01-02", "2026-01-02T03:04Z"),
        *("2026-01-02T03:04:05.Z", "2026-01-02T03:04:05,5Z", "2026-01-02T03:04:05X"),
        *("2026-01-02T03:04:05+02", "2026-01-02T03:04:05+0230", "2026-01-02T03:04:05ZZ"),
        *(" 2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z\n"),
        *("26-01-02T03:04:05Z", "2026-1-2T03:04:05Z", "2026/01/02T03:04:05Z"),
        "٢٠٢٦-01-02T03:04:05Z",
    ],
)
def test_timestamp_is_refused_when_it_is_of_another_form(text: str) -> None:
    """Nothing is guessed, and the text is not quoted."""
    with pytest.raises(ValueError, match=r"^not an RFC 3339 timestamp$"):
        timestamp(text)


@pytest.mark.parametrize(
    "text",
    [
        *("0000-01-01T00:00:00Z", "2026-13-02T03:04:05Z", "2026-02-30T03:04:05Z"),
        *("2026-01-02T25:04:05Z", "2026-01-02T03:60:05Z", "2026-01-02T03:04:61Z"),
        "2026-01-02T03:04:05+24:00",
    ],
)
def test_timestamp_is_refused_when_there_is_no_such_time(text: str) -> None:
    """The form alone makes no time."""
    with pytest.raises(ValueError, match=r"\w"):
        timestamp(text)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-00:01", "9999-12-31T20:00:00-05:00"])
def test_timestamp_is_refused_when_utc_would_be_past_the_last_year(text: str) -> None:
    """The last hours of the year 9999, west of Greenwich, are out of range."""
    with pytest.raises(ValueError, match=r"^a timestamp out of range$") as info:
        timestamp(text)
    assert info.value.__cause__ is None
    assert info.value.__suppress_context__


@pytest.mark.parametrize(
    ("seconds", "at"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1.5, datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (1_767_323_045, AT),
        (253_402_300_799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        *((later, None) for later in (253_402_300_800, 1_767_323_045_000)),  # milliseconds
        *((number, None) for number in (-62_135_596_801, float("nan"), float("inf"), 10**400)),
        *((thing, None) for thing in (True, False, "1767323045", None, ["0"])),
    ],
    ids=str,
)
def test_epoch_is_read_when_it_is_a_number_of_seconds(seconds: object, at: datetime | None) -> None:
    """A NumericDate is a number that is a time; all else is unknown, and no error."""
    assert from_epoch(seconds) == at


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (EPOCH, 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777.0),
        ("Sun,  6 Nov 1994 08:49:37 GMT", 784_111_777.0),
        ("Sun, 06 Nov 1994 09:49:37 +0100", 784_111_777.0),
        ("Sun, 06 Nov 1994 08:49:37 EST", 784_129_777.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777.0),  # RFC 850
        ("Sun Nov  6 08:49:37 1994", 784_111_777.0),  # asctime, without a zone
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799.0),
        ("Sun, 06 Nov 0094 08:49:37 GMT", 784_111_777.0),  # as of any two digits
        *((text, None) for text in ("soon", "", "-5", "NaN", "Fri, 99 Dec 2026 23:59:59 GMT")),
        *((f"Sun, 06 {end}", None) for end in ("Nov 1994 08:49:3x GMT", "Foo 1994 08:49:37 GMT")),
        *((f"Sun, 06 {end}", None) for end in ("Nov 1994 0034.074 GMT", "NovZ1994 08:49:37 GMT")),
        ("Mon, 01 Jan 2026 00:00:00 +99999999999999", None),
    ],
)
def test_http_date_is_read_when_it_is_one(text: str, seconds: float | None) -> None:
    """The three forms of RFC 9110 are read; anything else is none."""
    assert http_date(text) == seconds


@pytest.mark.pitfall(23)
@pytest.mark.parametrize(
    ("text", "wait"),
    [
        (None, None),
        ("0", 0.0),
        ("5", 5.0),
        ("2.5", 2.5),
        (" 5 ", 5.0),
        ("999999999", 999_999_999.0),
        ("0.123456789", 0.123_456_789),
        ("31536000", 31_536_000.0),  # a year: it is for the policies to cap
        *((text, None) for text in ("9999999999", "0.1234567891", "-5", "+5", "NaN", "inf")),
        *((text, None) for text in ("1e3", "5s", "", ".5", "5.")),
        ("٥", None),  # noqa: RUF001 - a digit that is not ASCII
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        (" Thu, 01 Jan 1970 00:01:40 GMT ", 40.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:59 GMT", 0.0),  # past
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_739.0),
    ],
)
def test_retry_after_is_read_when_it_can_be_waited_for(
    text: str | None, wait: float | None
) -> None:
    """Seconds and dates are read at 60 s past the epoch; any other text asks for no wait."""
    headers = {} if text is None else {"retry-after": text}
    assert retry_after(headers, 60.0) == wait


@pytest.mark.parametrize("wall", [-3600.0, 0.0, 3600.0])
def test_retry_after_is_a_date_of_the_service_when_our_clock_differs(wall: float) -> None:
    """The date is compared with that of the reply: a wrong clock does not change the wait."""
    headers = {"retry-after": "Thu, 01 Jan 1970 00:00:11 GMT", "date": EPOCH}
    assert retry_after(headers, wall) == (11 if wall == 0 else 10)


@pytest.mark.parametrize(
    ("date", "wall", "time"),
    [
        (None, 100.0, 100.0),
        ("garbage", 100.0, 100.0),
        (EPOCH, 0.0, 0.0),
        (EPOCH, 0.5, 0.5),
        (EPOCH, 1.999, 1.999),
        (EPOCH, 2.0, 1.0),  # our clock is two seconds ahead, or more: the service's is taken
        (EPOCH, 3600.0, 1.0),
        (EPOCH, -1.999, -1.999),
        (EPOCH, -2.0, 1.0),
        (EPOCH, -3600.0, 1.0),
        ("Fri, 31 Dec 9999 23:59:58 GMT", 0.0, 253_402_300_799.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 7.0, 7.0),  # a second later is out of range
    ],
)
def test_service_time_is_ours_when_both_agree(date: str | None, wall: float, time: float) -> None:
    """Two seconds apart, the service's clock goes before ours: it is the one that judges tokens."""
    assert service_time(date, wall) == time
