"""The decision for a caller that asks for a token: use it, renew it, wait, or fail."""

from __future__ import annotations

import math

import pytest

from koyeb_session import AuthenticationError, ServerError
from koyeb_session._core.snapshot import (
    Decision,
    LastFailure,
    Phase,
    Snapshot,
    seconds_to_next_check,
)
from koyeb_session.testing import FakeClock

from .snapshots import clock_after, failed, held, usable, verdict

AGES = {Phase.FRESH: 5.0, Phase.SOFT: 15.0, Phase.HARD: 25.0, Phase.EXPIRED: 35.0}
Verdicts = tuple[Decision, Decision, Decision, Decision]
OUTAGE = failed(ServerError(), wait=1000)
REFUSAL = failed(AuthenticationError(), wait=1000, refused=True)
SIGN_IN = failed(ServerError(), wait=1000, signs_in=True)
REFUSED_CREDENTIALS = failed(AuthenticationError(), wait=1000, signs_in=True, refused=True)
OVER = failed(AuthenticationError(), wait=0, signs_in=True, refused=True)


USE, RENEW, WAIT, FAIL = (
    Decision.USE,
    Decision.RENEW_IN_BACKGROUND,
    Decision.RENEW_FIRST,
    Decision.FAIL,
)
VERDICTS: dict[str, tuple[LastFailure | None, bool, Verdicts, Verdicts]] = {
    # failure, renewable: fresh, soft, hard, expired; the same with credentials
    "all is well": (None, True, (USE, RENEW, WAIT, WAIT), (USE, RENEW, WAIT, WAIT)),
    "an outage": (OUTAGE, True, (USE, USE, USE, FAIL), (USE, USE, USE, WAIT)),
    "a refusal": (REFUSAL, True, (FAIL, FAIL, FAIL, FAIL), (WAIT, WAIT, WAIT, WAIT)),
    "no sign-in": (SIGN_IN, True, (USE, USE, USE, FAIL), (USE, USE, USE, FAIL)),
    "a refusal, no sign-in": (
        REFUSED_CREDENTIALS, True, (FAIL, FAIL, FAIL, FAIL), (FAIL, FAIL, FAIL, FAIL)
    ),
    "the back-off is over": (OVER, True, (USE, RENEW, WAIT, WAIT), (USE, RENEW, WAIT, WAIT)),
    # such a token has no windows
    "not renewable": (None, False, (USE, RENEW, WAIT, FAIL), (USE, RENEW, WAIT, FAIL)),
    "not renewable, an outage": (OUTAGE, False, (USE, USE, USE, FAIL), (USE, USE, USE, FAIL)),
    "not renewable, refused": (REFUSAL, False, (FAIL, FAIL, FAIL, FAIL), (FAIL, FAIL, FAIL, FAIL)),
}  # fmt: skip


# Verdicts


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict_is_the_tables(case: str) -> None:
    """A back-off never makes an old token usable, and an outage never a good one useless."""
    trouble, renewable, alone, with_credentials = VERDICTS[case]
    for has_credentials, expected in ((False, alone), (True, with_credentials)):
        snapshot = held(renewable=renewable)
        found = tuple(
            verdict(snapshot, trouble, clock_after(age), has_credentials=has_credentials)
            for age in AGES.values()
        )
        assert found == expected


def test_verdict_is_to_sign_in_when_there_is_no_token() -> None:
    """Without a token there is nothing to use, and a back-off is kept."""
    assert verdict(None, None, FakeClock()) is Decision.RENEW_FIRST
    assert verdict(None, OVER, FakeClock()) is Decision.RENEW_FIRST
    assert verdict(None, OUTAGE, FakeClock()) is Decision.FAIL
    assert verdict(None, REFUSAL, FakeClock()) is Decision.FAIL
    assert verdict(None, OUTAGE, FakeClock(), has_credentials=True) is Decision.RENEW_FIRST
    assert verdict(None, SIGN_IN, FakeClock(), has_credentials=True) is Decision.FAIL


def test_verdict_is_to_use_when_the_floor_is_not_reached() -> None:
    """A service that hands out the same token again is not asked on every request (pitfall 8)."""
    snapshot = held(0, 0, 30, floor=10)
    assert verdict(snapshot, None, clock_after(0)) is Decision.USE
    assert verdict(snapshot, None, clock_after(9.999)) is Decision.USE
    assert verdict(snapshot, None, clock_after(10)) is Decision.RENEW_FIRST
    soft = held(0, 20, 30, floor=10)
    assert verdict(soft, None, clock_after(9.999)) is Decision.USE
    assert verdict(soft, None, clock_after(10)) is Decision.RENEW_IN_BACKGROUND
    assert verdict(held(0, 0, 5, floor=10), None, clock_after(5)) is Decision.RENEW_FIRST


def test_token_is_usable_until_it_expires_or_is_refused() -> None:
    """An expired one is never usable, a refused one not before it may be tried again."""
    for phase, age in AGES.items():
        good = phase is not Phase.EXPIRED
        assert usable(held(), None, clock_after(age)) is good
        assert usable(held(), OUTAGE, clock_after(age)) is good
        assert usable(held(), OVER, clock_after(age)) is good
        assert usable(held(), REFUSAL, clock_after(age)) is False
    assert usable(None, None, FakeClock()) is False
    assert usable(None, OVER, FakeClock()) is False


# When to look again


WINDOWS = held(100, 200, 300)


@pytest.mark.parametrize(
    ("snapshot", "age", "seconds"),
    [
        # a minute at most, as a suspend stops the timer, and 50 ms at least
        *((WINDOWS, age, 60) for age in (0, 39.9, 40)),
        *((WINDOWS, 50, 50), (WINDOWS, 99, 1)),
        *((WINDOWS, age, 0.05) for age in (99.95, 99.99, 100)),
        # in the windows a renewal is due; after the expiry only the last failure counts
        *((WINDOWS, age, 0.05) for age in (150, 250, 299)),
        *((WINDOWS, 300, 60), (WINDOWS, 999, 60)),
        # a token that may not be renewed yet is looked at when it may be
        *((held(5, 200, 300, floor=30), 10, 20), (held(30, 200, 300, floor=5), 10, 20)),
        # nobody is signed in, or the expiry is unknown
        *((None, 0, 60), (held(math.inf, math.inf, math.inf), 5, 60)),
    ],
)
def test_next_look_is_when_the_soft_window_begins(
    snapshot: Snapshot | None, age: float, seconds: float
) -> None:
    """Or at once, if a renewal is due already, or in a minute, if there is nothing to renew."""
    found = seconds_to_next_check(snapshot, None, clock_after(age))
    assert found == pytest.approx(seconds)


def test_next_look_waits_for_the_back_off_when_there_is_trouble() -> None:
    """A renewal that has to wait is tried when the wait is over."""
    trouble = failed(ServerError(), 30)
    soft = held(1, 200, 300)
    assert seconds_to_next_check(soft, trouble, clock_after(10)) == 20
    assert seconds_to_next_check(soft, trouble, clock_after(30)) == 0.05
    assert seconds_to_next_check(soft, failed(ServerError(), 9999), clock_after(10)) == 60
    assert seconds_to_next_check(held(50, 200, 300), trouble, clock_after(10)) == 40
    assert seconds_to_next_check(None, trouble, clock_after(10)) == 60
